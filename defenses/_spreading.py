"""The answer that is least like the true one, within a budget and with its decision: what ModelGuard-W solves."""

from __future__ import annotations

import torch
from torch import Tensor

SMALL = 1e-6
"""What is added to a probability before its logarithm is a price, as in the authors' code."""
MARGIN = 1e-4
"""How far the decision stays above all others, at most; in a small budget, a share of it."""
HALVINGS = 60
"""Of an interval, until it holds nothing that a double could tell apart."""


def spread(bare: Tensor, budget: float) -> Tensor:
    """Probabilities ``(N, K)`` that minimise their mean log-probability under the bare ones.

    They lie within an L1 distance of ``budget``, and the decision of the bare ones stays first. The linear program is
    solved for each height of the decision by moving mass from the likeliest classes to the unlikeliest, and its
    value, convex in that height, is minimised by a search: every row by itself, whatever else is asked.
    """
    order = bare.argsort(dim=1, descending=True, stable=True)
    ranked = bare.gather(1, order)
    room = budget * (1 - 1e-6) / 2
    margin = min(MARGIN, budget / (4 * bare.shape[1]))
    price = (ranked + SMALL).log()

    low, high = _lowest(ranked, room, margin), (ranked[:, 0] + room).clamp_max(1)
    for _ in range(HALVINGS):
        third = (high - low) / 3
        left, right = low + third, high - third
        costs = [(_moved(ranked, height, room, margin) * price).sum(1) for height in (left, right)]
        rising = costs[0] <= costs[1]
        low, high = torch.where(rising, low, left), torch.where(rising, right, high)
    best = _moved(ranked, (low + high) / 2, room, margin)
    return torch.empty_like(bare).scatter(1, order, best)


def _moved(ranked: Tensor, height: Tensor, room: float, margin: float) -> Tensor:
    """Descending probabilities ``(N, K)`` after the first is moved to ``height (N,)``, and others as far as it pays."""
    others = ranked[:, 1:]
    taken, given, forced, space = _needs(ranked, height, margin)
    spare = others - forced
    cap = (height - margin)[:, None].expand_as(others)
    full = _first(cap, 1 - height).flip(1)  # without a budget, the last classes hold all that the first does not
    most = given + (full - others).clamp_min(0).sum(1)
    total = torch.maximum(torch.maximum(taken, given), most.clamp_max(room))
    lost, won = _first(spare, total - taken), _first(space.flip(1), total - given).flip(1)
    return torch.cat([height[:, None], spare - lost + won], 1)


def _needs(ranked: Tensor, height: Tensor, margin: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a height of the first takes away at least, and gives, ``(N,)``; how much the others lose, and can win."""
    over = ranked[:, 1:] - (height - margin)[:, None]
    forced, space = over.clamp_min(0), (-over).clamp_min(0)
    fall = ranked[:, 0] - height
    return fall.clamp_min(0) + forced.sum(1), (-fall).clamp_min(0), forced, space


def _first(amounts: Tensor, total: Tensor) -> Tensor:
    """How much of each of ``amounts (N, K)`` is used when they are used up in their order until the total ``(N,)``."""
    before = amounts.cumsum(1) - amounts
    return torch.minimum((total[:, None] - before).clamp_min(0), amounts)


def _lowest(ranked: Tensor, room: float, margin: float) -> Tensor:
    """The lowest height ``(N,)`` to which the first can come down within the budget, with room for what it loses."""
    low, high = torch.zeros_like(ranked[:, 0]), (ranked[:, 0] + ranked.shape[1] * margin).clamp_max(1)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        taken, given, _, space = _needs(ranked, middle, margin)
        fits = (taken <= room) & (given + space.sum(1) >= taken)
        low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
    return high
