"""Elements, scales and marks of SVG. Text and attributes are escaped; colours are classes, which a theme fills in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

SERIES = 8
_MARKS = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    "M-4 -4h8v8h-8z",
    "M0 -5.5L5 4H-5z",
    "M0 -5.8L5.8 0L0 5.8L-5.8 0z",
    "M0 5.5L5 -4H-5z",
    "M-1.6 -5h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4v-3.2h3.4z",
    "M0 -6L1.6 -1.8L6 -1.6L2.5 1.2L3.7 5.5L0 3L-3.7 5.5L-2.5 1.2L-6 -1.6L-1.6 -1.8z",
    "M-2.6 -5h5.2l2.6 4.6l-2.6 4.6h-5.2l-2.6 -4.6z",
)


def el(tag: str, *children: object, **attributes: object) -> Markup:
    """An element; ``class_`` is its class, ``_`` in other names is ``-``, and what is None is left out."""
    given = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items() if value is not None}
    shown = "".join(f' {name}="{escape(_short(value))}"' for name, value in given.items())
    inner = "".join(escape(child) for child in children)
    return Markup(f"<{tag}{shown}>{inner}</{tag}>")  # noqa: S704 - every part is escaped above


def _short(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def mark(series: int, x: float, y: float, *, tip: str = "", hollow: bool = False, scale: float = 1.0) -> Markup:
    """A series' mark at a place; one with a tip can be reached by the keyboard and is read out."""
    size = f" scale({scale:g})" if scale != 1 else ""
    return el(
        "path",
        d=_MARKS[series % SERIES],
        transform=f"translate({x:.1f} {y:.1f}){size}",
        class_=f"mark s{series % SERIES}{' hollow' if hollow else ''}",
        role="img" if tip else None,
        aria_label=tip or None,
        data_tip=tip or None,
        tabindex="0" if tip else None,
    )


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high`` as places from ``start`` to ``end``, linear or by the logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value lies; one beyond the ends lies on the nearer end."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values along it: powers of ten, or multiples of 1, 2 or 5 of one."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            return [10.0**power for power in range(first, last + 1)] or [self.low, self.high]
        rough = (self.high - self.low) / count
        size = 10 ** math.floor(math.log10(rough))
        step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def padded(values: Sequence[float], unit: str) -> tuple[float, float]:
    """The ends of an axis for these values: a little beyond them, and a share's within 0 and 1."""
    low, high = min(values), max(values)
    gap = (high - low) * 0.08 or max(abs(high) * 0.1, 0.05)
    low, high = low - gap, high + gap
    return (max(low, 0.0), min(high, 1.0)) if unit == "share" else (low, high)


def number(value: float) -> str:
    """A tick's label."""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}"


def frame(x: Scale, y: Scale, x_label: str, y_label: str, *, ticks: int = 5) -> Markup:
    """Grid, ticks and names of both axes."""
    left, right, bottom, top = x.start, x.end, y.start, y.end
    parts: list[Markup] = []
    for value in x.ticks(ticks):
        at = x(value)
        parts.append(el("line", x1=at, x2=at, y1=top, y2=bottom, class_="grid"))
        parts.append(el("text", number(value), x=at, y=bottom + 16, class_="tick mid"))
    for value in y.ticks(ticks):
        at = y(value)
        parts.append(el("line", x1=left, x2=right, y1=at, y2=at, class_="grid"))
        parts.append(el("text", number(value), x=left - 7, y=at + 4, class_="tick end"))
    parts.append(el("text", x_label, x=(left + right) / 2, y=bottom + 36, class_="axis-name mid"))
    turned = f"translate({left - 42:.0f} {(top + bottom) / 2:.0f}) rotate(-90)"
    parts.append(el("text", y_label, transform=turned, class_="axis-name mid"))
    return Markup("").join(parts)


def drawing(width: float, height: float, label: str, *parts: Markup, class_: str = "plot") -> Markup:
    """A drawing that scales to the room it has; one without a label only repeats what stands beside it."""
    role, hidden = ("group", None) if label else (None, "true")
    box = f"0 0 {width:g} {height:g}"
    return el("svg", *parts, viewBox=box, class_=class_, role=role, aria_label=label or None, aria_hidden=hidden)
