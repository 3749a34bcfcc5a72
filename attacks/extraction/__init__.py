"""Extraction: copies of a served model."""
