"""Scrutiny: whether the numbers of attacks can be believed."""
