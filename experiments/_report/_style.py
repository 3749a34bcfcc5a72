"""How single numbers are written: values, intervals, effects."""

from __future__ import annotations

import math
from dataclasses import replace

from secure_ml.interactions import Effect
from secure_ml.rows import Row, cell

GLYPHS = {
    "better": "▲",
    "worse": "▼",
    "different": "◆",
    "perhaps better": "△",
    "perhaps worse": "▽",
    "perhaps different": "◇",
    "within noise": "≈",
}
"""Before an effect; what cannot be told has a question mark."""


MINUS = "\N{MINUS SIGN}"


def value(row: Row) -> tuple[str, str]:
    """A row's value and its interval as text, with the digits that the interval bears."""
    if row.value is None:
        return "n/a", ""
    if row.unit == "epsilon":
        return _epsilon(row)
    whole = cell([replace(row, note="")], [])
    number, _, bounds = whole.partition(" [")
    return number, f"[{bounds}" if bounds else ""


def _epsilon(row: Row) -> tuple[str, str]:
    assert row.value is not None
    if math.isinf(row.value):
        return "none claimed", ""
    sign = "≥ " if row.measure.startswith("epsilon lower bound") else ""
    return f"{sign}{row.value:.3g}", ""


def both(row: Row) -> str:
    """Value and interval on one line."""
    return " ".join(part for part in value(row) if part)


def glyph(effect: Effect) -> str:
    """The sign of what an effect is worth."""
    return GLYPHS.get(effect.verdict, "?")


def signed(effect: Effect) -> str:
    """A difference with its sign; empty where there is none."""
    found = effect.difference.value
    if found is None:
        return ""
    return f"{found:+.{_decimals(effect)}f}".replace("-", MINUS)


def interval(effect: Effect) -> str:
    """A difference's interval; empty where there is none."""
    found = effect.difference
    if found.low is None or found.high is None:
        return ""
    places = _decimals(effect)
    return f"[{found.low:+.{places}f}, {found.high:+.{places}f}]".replace("-", MINUS)


def plain(number: float | None, effect: Effect) -> str:
    """A mean with the digits of the effect."""
    return "n/a" if number is None else f"{number:.{_decimals(effect)}f}".replace("-", MINUS)


def words(effect: Effect, against: str = "the bare model") -> str:
    """An effect as a sentence, for who hears the table rather than sees it."""
    if effect.difference.value is None:
        return effect.verdict
    found = effect.difference
    said = f"{signed(effect)} {interval(effect)}".strip() + f" against {against}"
    how = f"{found.n} seeds, {'paired' if found.paired else 'unpaired'}"
    p = "" if found.adjusted is None else f", p = {found.adjusted:.2g} corrected"
    return f"{said}: {effect.verdict} ({how}{p})"


def _decimals(effect: Effect) -> int:
    found = effect.difference
    if found.low is not None and found.high is not None and found.high > found.low:
        half = (found.high - found.low) / 2
    else:
        half = abs(found.value or 0.0) / 10 or 0.01
    return min(max(1 - math.floor(math.log10(half)), 0), 3)
