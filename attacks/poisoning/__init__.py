"""Poisoning: training examples changed before the victim is trained."""
