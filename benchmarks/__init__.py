"""Measurements and their recorded results; the tables in the documents are drawn from the records."""
