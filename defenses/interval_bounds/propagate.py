"""Bounds on what a chain of layers answers when its inputs lie in a box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from defenses.interval_bounds.layers import Interval, Layer, Rows
from secure_ml.surfaces import Box

Bounds = Literal["ibp", "crown"]


def ball(surface: Box, clean: Tensor, radius: Tensor | float) -> Interval:
    """The part of the box within ``radius`` (a number, or one an example, ``(B,)``) of the clean inputs.

    As where an attack is projected, a clean value that lies outside the box by rounding may stay.
    """
    if isinstance(radius, Tensor):
        radius = radius.reshape(-1, *[1] * (clean.ndim - 1))
    return Interval(surface.clamp(clean, clean - radius), surface.clamp(clean, clean + radius))


def boxes(chain: Sequence[Layer], box: Interval, unit: float = 0.0) -> list[Interval]:
    """Where the inputs of each layer lie, and at the end the answers (interval arithmetic, Gowal et al. 2018)."""
    found = [box]
    for layer in chain:
        found.append(layer.interval(found[-1], unit))
    return found


def margins(
    chain: Sequence[Layer], reached: Sequence[Interval], target: Tensor, bounds: Bounds, unit: float = 0.0
) -> Tensor:
    """Lower bounds ``(B, K)`` on the right class's logit less each other's; infinite for the right class itself.

    Of one logit ``(B,)``: a lower bound ``(B, 1)`` on the logit, or on minus the logit where class 0 is right.
    Interval bounds go back to the last layer that bends, so that the layers after it are merged with the difference;
    CROWN bounds (Zhang et al. 2018) go back to the inputs, and the best bound on the way counts.
    """
    rows, right = _differences(reached[-1].lower, target)
    lowest: list[Tensor] = []
    for place in reversed(range(len(chain))):
        if not chain[place].affine:
            lowest.append(rows.lowest(reached[place + 1]))
            if bounds == "ibp":
                break
        rows = chain[place].back(rows, reached[place], unit)
    else:
        lowest.append(rows.lowest(reached[0]))
    return torch.stack(lowest).amax(0).T.masked_fill(right, torch.inf)


def _differences(answers: Tensor, target: Tensor) -> tuple[Rows, Tensor]:
    """What is asked of the answers, K rows (1 for one logit), and which of them asks nothing, ``(B, K)``."""
    if answers.ndim == 1:
        sign = (2 * target - 1).to(answers)[None]
        return Rows(sign, torch.zeros_like(sign)), torch.zeros(len(target), 1, dtype=torch.bool, device=answers.device)
    classes = answers.shape[1]
    mine = F.one_hot(target, classes)
    rows = mine[None] - torch.eye(classes, device=answers.device)[:, None]
    return Rows(rows.to(answers), answers.new_zeros(classes, len(target))), mine.bool()


def worst_answers(margin: Tensor, target: Tensor, single: bool) -> Tensor:
    """Answers that no point of the box makes worse: logits ``(B, K)`` less the right one's, or one logit ``(B,)``."""
    if single:
        return margin[:, 0] * (2 * target - 1)
    return torch.where(margin.isinf(), 0.0, -margin)
