"""Gradients estimated from what answers say about pairs of points."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from attacks.evasion._asking import Asking

Draw = Callable[[tuple[int, ...]], Tensor]


def portions(samples: int, examples: int, chunk: int) -> Iterator[int]:
    """Samples of each example to be asked about together, so that a chunk holds them, until there were all."""
    most = max(chunk // max(examples, 1), 1)
    for start in range(0, samples, most):
        yield min(most, samples - start)


def slope(aim: Asking, point: Tensor, pairs: int, width: float, draw: Draw) -> Tensor:
    """The gradient at points ``(n, *shape)``: the mean of ``v (f(x + w v) - f(x - w v)) / 2w`` over directions v."""
    total = torch.zeros_like(point)
    n, shape = len(point), point.shape[1:]
    for k in portions(pairs, 2 * n, aim.access.task.chunk):
        towards = draw((n, k, *shape)).to(point)
        which = torch.arange(n, device=point.device).repeat_interleave(k)
        centre, step = point[which], width * towards.flatten(0, 1)
        clean = aim.clean[which]
        sides = [aim.surface.clamp(clean, centre + sign * step) for sign in (1, -1)]
        losses, _ = aim.look(torch.cat(sides), which.repeat(2))
        rise = (losses[: n * k] - losses[n * k :]).view(n, k, *[1] * len(shape)) / (2 * width)
        total += (rise * towards).sum(1)
    return total / pairs
