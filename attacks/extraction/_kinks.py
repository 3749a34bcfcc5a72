"""Where a piecewise linear function bends along a line, and how: what a layer of ReLU units gives away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from attacks.extraction._exact import Asked
from secure_ml.surfaces import Box

NEAR = 0.01
"""Share of a piece from which the slope at its end is read."""
SHORT = 1e-7
"""Share of a line below which a piece that still bends is given up: it hides two bends or more."""


@dataclass(frozen=True)
class Kink:
    """A bend at ``point`` ``(d,)`` along ``way`` ``(d,)``, of length 1, by ``jump`` ``(K,)`` in the slopes."""

    point: Tensor
    way: Tensor
    jump: Tensor


@dataclass(frozen=True)
class Line:
    """The bends along a line, and the straight ``pieces`` before, between and after: middles ``(d,)`` and lengths."""

    kinks: list[Kink]
    pieces: list[tuple[Tensor, float]]


def search(ask: Asked, start: Tensor, end: Tensor) -> Line:
    """All bends between two points ``(d,)``.

    A piece is straight where points between lie on its chord; has one bend where the slopes at its ends meet in a
    point whose value they foretell (Carlini et al. 2020, https://arxiv.org/abs/2003.04884); and is halved otherwise.
    """
    way = end - start
    length = float(way.norm())

    def on_line(t: Tensor) -> Tensor:
        return ask(start + t[:, None] * way)

    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    values = on_line(ends)
    low, high, at_low, at_high = ends[:1], ends[1:], values[:1], values[1:]
    found: list[tuple[float, Tensor]] = []
    while len(low):
        span = high - low
        inner = torch.stack([low + NEAR * span, low + 0.47 * span, high - NEAR * span], 1)
        seen = on_line(inner.flatten()).reshape(*inner.shape, -1)
        share = ((inner - low[:, None]) / span[:, None])[..., None]
        chord = at_low[:, None] * (1 - share) + at_high[:, None] * share
        bent = ((seen - chord).abs().amax((1, 2)) > ask.noise) & (span > SHORT)
        low, high, at_low, at_high, seen, inner = (x[bent] for x in (low, high, at_low, at_high, seen, inner))
        single, place, jump = _meet(ask, on_line, low, high, at_low, at_high, seen)
        found += zip(place[single].tolist(), jump[single], strict=True)
        low, high, at_low, at_high, seen, inner = (x[~single] for x in (low, high, at_low, at_high, seen, inner))
        low, high = torch.cat([low, inner[:, 1]]), torch.cat([inner[:, 1], high])
        at_low, at_high = torch.cat([at_low, seen[:, 1]]), torch.cat([seen[:, 1], at_high])
    found.sort(key=lambda pair: pair[0])
    places = [0.0, *(place for place, _ in found), 1.0]
    return Line(
        [Kink(start + place * way, way / length, jump / length) for place, jump in found],
        [(start + (a + b) / 2 * way, length * (b - a)) for a, b in pairwise(places)],
    )


def _meet(
    ask: Asked,
    on_line: Callable[[Tensor], Tensor],
    low: Tensor,
    high: Tensor,
    at_low: Tensor,
    at_high: Tensor,
    seen: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Which pieces have one bend, where, and by how much the slope changes there."""
    span = (high - low)[:, None]
    left, right = (seen[:, 0] - at_low) / (NEAR * span), (at_high - seen[:, 2]) / (NEAR * span)
    place = _crossing(at_low, left, at_high, right, span)
    inside = (place > 2 * NEAR) & (place < 1 - 2 * NEAR)
    place = place.clamp(2 * NEAR, 1 - 2 * NEAR)
    sides = torch.cat([0.9 * place, 1 - 0.9 * (1 - place)], 1)
    at = on_line((low[:, None] + sides * span).flatten()).reshape(*sides.shape, -1) if len(low) else seen[:, :2]
    # both straight: the points near the ends lie on the chords to those close to the bend
    first = at_low + (at[:, 0] - at_low) * (NEAR / sides[:, :1])
    last = at_high + (at[:, 1] - at_high) * (NEAR / (1 - sides[:, 1:]))
    straight = torch.stack([(first - seen[:, 0]), (last - seen[:, 2])], 1).abs().amax((1, 2)) <= ask.noise
    left, right = (at[:, 0] - at_low) / (sides[:, :1] * span), (at_high - at[:, 1]) / ((1 - sides[:, 1:]) * span)
    place = _crossing(at_low, left, at_high, right, span)
    between = ((place > sides[:, :1]) & (place < sides[:, 1:]) & inside)[:, 0] & straight
    t = low + place[:, 0] * span[:, 0]
    value = at_low + left * place * span
    good = between.clone()
    if bool(between.any()):
        good[between] = (on_line(t[between]) - value[between]).abs().amax(1) <= 10 * ask.noise
    return good, t, right - left


def _crossing(at_low: Tensor, left: Tensor, at_high: Tensor, right: Tensor, span: Tensor) -> Tensor:
    """Where two lines meet, as a share of the piece between them, by least squares over the values."""
    gap, turn = at_high - right * span - at_low, (left - right) * span
    return (gap * turn).sum(1, keepdim=True) / turn.square().sum(1, keepdim=True).clamp(min=1e-300)


def gradient(ask: Asked, point: Tensor, length: float, area: Box) -> Tensor | None:
    """The slopes ``(K, d)`` of the linear piece around a point; None where no step is short enough to stay in it.

    The first steps are half the piece's length along the line that it was found on; where one leaves it, shorter ones.
    """
    d = len(point)
    steps = torch.minimum(point - area.low, area.high - point).clamp(max=length / 2)
    (middle,) = ask(point[None])
    slopes = torch.zeros(len(middle), d, dtype=torch.float64)
    left = torch.arange(d)
    while len(left) and float(steps[left].max()) > SHORT:
        moves = torch.zeros(len(left), d, dtype=torch.float64)
        moves[torch.arange(len(left)), left] = steps[left]
        above, below = ask(torch.cat([point + moves, point - moves])).chunk(2)
        flat = (above + below - 2 * middle).abs().amax(1) <= ask.noise
        slopes[:, left[flat]] = ((above - below)[flat] / (2 * steps[left[flat]])[:, None]).T
        left = left[~flat]
        steps[left] /= 4
    return None if len(left) else slopes
