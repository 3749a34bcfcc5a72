"""Ownership: whether a suspect was copied from the victim, tested beside models that were not."""
