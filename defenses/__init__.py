"""Defenses, one file a method: ``from defenses import DPSGD``."""

from typing import Any


def __getattr__(name: str) -> Any:
    from secure_ml.defense import Defense
    from secure_ml.discovery import export

    return export("defenses", Defense, name)
