"""Reconstruction: training examples, attributes, secrets and properties of the training set, from what is released."""
