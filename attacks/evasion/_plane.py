"""The nearest point of a box at which a linear function vanishes, in each norm."""

from __future__ import annotations

import torch
from torch import Tensor

from secure_ml.surfaces import Box
from secure_ml.threats import L1, L2, Linf
from secure_ml.threats.balls import Ball

DUAL: dict[type[Ball], Ball] = {Linf: L1(0), L2: L2(0), L1: Linf(0)}
"""The norm in which a gradient is measured, so that value over norm is the distance to the plane."""


def to_plane(norm: Ball, box: Box, point: Tensor, slope: Tensor, lead: Tensor) -> Tensor:
    """The least change of ``(n, d)`` points, by a norm and within a box, that brings ``lead + slope.change`` to 0.

    Where the box ends before, the change leads to the corner that comes closest; where the slope is 0 it is 0. Exact:
    the size of the change is the root of a piecewise linear function (Croce and Hein 2020, section 3.2).
    """
    if not point.numel():
        return torch.zeros_like(point)
    scale = slope.abs().amax(1).clamp(min=1e-30)
    toward = slope * torch.where(lead < 0, 1 / scale, -1 / scale)[:, None]
    need = (lead.abs() / scale).clamp(max=_FAR)[:, None]
    room = torch.where(toward > 0, box.high - point, point - box.low).clamp_(min=0)
    steep = toward.abs()
    if isinstance(norm, L1):
        return toward.sign() * _steepest_first(steep, room, need)
    if isinstance(norm, L2):
        limit = room / steep.clamp(min=1 / _FAR)
        return toward * torch.minimum(limit, _level(steep.square(), limit, need))
    return toward.sign() * torch.minimum(room, _level(steep, room, need))


def _level(weight: Tensor, limit: Tensor, need: Tensor) -> Tensor:
    """The level ``(n, 1)`` at which ``sum weight min(level, limit)`` reaches what is needed, or a level beyond all.

    Newton's method from below: the sum is concave in the level, so no step goes too far, and each adds to the
    coordinates at their limit until none is added.
    """
    whole, before = weight * limit, -1
    level = torch.zeros_like(need)
    for i in range(_NEWTON):
        at_limit = limit <= level
        if not at_limit.is_cuda:
            count = int(at_limit.sum())
            if count == before:
                break
            before = count
        reached = torch.where(at_limit, whole, 0.0).sum(1, keepdim=True)
        slope = torch.where(at_limit, 0.0, weight).sum(1, keepdim=True)
        level = torch.maximum(level, ((need - reached) / slope.clamp(min=1 / _FAR)).clamp(max=_FAR))
        if at_limit.is_cuda and i == _BLIND:
            break
    return level


def _steepest_first(steep: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """Sizes ``(n, d)`` of a change that uses up the room of the steepest coordinates first."""
    sorted_steep, order = steep.sort(1, descending=True)
    gain = sorted_steep * room.gather(1, order)
    used = torch.minimum((need - (gain.cumsum(1) - gain)).clamp(min=0), gain)
    sizes = used / sorted_steep.clamp(min=1 / _FAR)
    return torch.zeros_like(room).scatter(1, order, sizes)


_FAR = 1e18
_NEWTON = 100
_BLIND = 15
"""Newton steps on a GPU, which is not asked after each whether it was the last; 2 to 6 are the rule."""
