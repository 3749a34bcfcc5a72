"""Who steals, unless a test is told."""

from __future__ import annotations

from secure_ml.errors import require
from secure_ml.families.extraction import Extraction


def default_thief(queries: int) -> Extraction:
    """Random questions from the pool, then imitation of the probabilities."""
    from attacks.extraction.knockoff import Knockoff

    return Knockoff(queries=queries)


def check_settings(name: str, copies: int, independents: int, level: float, queries: int) -> None:
    """Raise `UsageError` for settings out of range."""
    require(copies >= 1, f"{name} needs at least 1 stolen copy; given {copies}")
    require(independents >= 1, f"{name} needs at least 1 independent model as control; given {independents}")
    require(0 < level < 1, f"{name} needs a level between 0 and 1; given {level}")
    require(queries >= 1, f"{name} needs a thief with a budget of at least 1 query; given {queries}")
