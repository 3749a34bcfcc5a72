"""Picking rows by the names of their task, stack of defenses or attack, as a command line writes them."""

from __future__ import annotations

import re


def pieces(text: str, mark: str) -> list[str]:
    """The parts of a text between marks that stand in no parentheses, stripped; empty ones are left out."""
    parts, depth, last = [], 0, 0
    for place, sign in enumerate(text):
        depth += (sign in "([") - (sign in ")]")
        if sign == mark and depth == 0:
            parts.append(text[last:place])
            last = place + 1
    return [part.strip() for part in (*parts, text[last:]) if part.strip()]


def names(item: str, task: str, defenses: str, attack: str) -> bool:
    """Whether an item such as ``dp_sgd``, ``DPSGD(epsilon=1.0)`` or ``lira`` names a row's task, stack or attack.

    Settings are compared where the item gives any; a stack is named in full, part by part.
    """
    mine = [_call(part) for part in pieces(item, "+")]
    alternatives = [task, defenses, *pieces(attack, "|")]
    return any(_alike(mine, [_call(part) for part in pieces(other, "+")]) for other in alternatives)


def _alike(mine: list[tuple[str, set[str] | None]], theirs: list[tuple[str, set[str] | None]]) -> bool:
    if len(mine) != len(theirs):
        return False
    pairs = zip(mine, theirs, strict=True)
    return all(a == b and (settings is None or settings == (given or set())) for (a, settings), (b, given) in pairs)


def _call(text: str) -> tuple[str, set[str] | None]:
    """A name without case and ``_``, and its settings; None where there are no parentheses."""
    name, found, inside = text.partition("(")
    settings = {_setting(part) for part in pieces(inside.removesuffix(")"), ",")} if found else None
    return re.sub(r"[\W_]", "", name).lower(), settings


def _setting(text: str) -> str:
    """``epsilon = 1`` and ``epsilon=1.0`` are the same setting."""
    key, _, value = text.partition("=")
    try:
        return f"{key.strip()}={float(value)!r}"
    except ValueError:
        return f"{key.strip()}={value.strip()}".replace('"', "'")
