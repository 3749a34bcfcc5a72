"""Evasion: inputs changed within a threat."""
