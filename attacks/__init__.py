"""Attacks, one file a method, in a folder per risk: ``from attacks import PGD``."""

from typing import Any


def __getattr__(name: str) -> Any:
    from secure_ml.attack import Attack
    from secure_ml.discovery import export

    return export("attacks", Attack, name)
