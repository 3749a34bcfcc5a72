"""The repr of a configured value: what differs from its defaults, and enough to make it again."""

from dataclasses import MISSING, fields
from typing import Any


def brief(value: Any) -> str:
    """``PGD(steps=100)``: positional fields bare, keyword fields where they are not at their default."""
    shown = []
    for field in fields(value):
        held = getattr(value, field.name)
        if not field.kw_only:
            shown.append(repr(held))
        elif field.default is MISSING or held != field.default:
            shown.append(f"{field.name}={held!r}")
    return f"{type(value).__name__}({', '.join(shown)})"
