"""Windows on inputs of any shape, as Square Attack changes them (Andriushchenko et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def as_grid(shape: Sequence[int]) -> tuple[int, int, int]:
    """Channels, height and width of an example: images as they are, a row of d numbers as one line of d pixels."""
    height, width = ([1, 1, *shape])[-2:]
    return math.prod(shape[:-2]), height, width


def share(query: int, queries: int, first: float) -> float:
    """Share of an image that the window of a query covers; it shrinks in stages, as many for any number of queries."""
    return first / 2.0 ** sum(query * 10_000 // queries > end for end in _STAGES)


_STAGES = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def sides(covered: float, height: int, width: int, least: int = 1) -> tuple[int, int]:
    """Height and width of a window that covers a share: a square, as far as the image has room for it."""
    area = covered * height * width
    side = max(round(math.sqrt(area)), least)
    if least > 1:
        side += 1 - side % 2
    if side > height:
        return height, min(max(round(area / height), 1 if height == 1 else least), width)
    if side > width:
        return min(max(round(area / width), 1 if width == 1 else least), height), width
    return side, side


def cells(window: tuple[int, int], grid: tuple[int, int, int]) -> Tensor:
    """Where the pixels of a window in the upper left corner lie in a flattened image, ``(C * h * w,)``."""
    channels, height, width = grid
    parts = [torch.arange(n) * step for n, step in ((channels, height * width), (window[0], width), (window[1], 1))]
    return (parts[0][:, None, None] + parts[1][:, None] + parts[2]).flatten()


def corners(draws: Tensor, window: tuple[int, int], grid: tuple[int, int, int]) -> Tensor:
    """Where windows begin in a flattened image, from two uniform numbers each: every place is as likely."""
    _, height, width = grid
    places = [
        (draws[..., i] * (n - side + 1)).long().clamp(max=n - side)
        for i, (n, side) in enumerate(zip((height, width), window, strict=True))
    ]
    return places[0] * width + places[1]


def hill(window: tuple[int, int], across: bool) -> Tensor:
    """Two hills of a window, one up and one down, side by side, ``(h, w)`` of length 1."""
    height, width = window
    if across or height == 1:
        return hill((width, height), False).t() if width > 1 else torch.ones(window)
    both = torch.cat([_rise(height // 2, width), -_rise(height - height // 2, width)])
    return both / both.square().sum().sqrt()


def _rise(height: int, width: int) -> Tensor:
    """Squares stacked around a centre, the k-th of weight ``1 / k^2``; of length 1."""
    down, right = ((torch.arange(n) - n // 2).abs() for n in (height, width))
    ring = torch.maximum(down[:, None], right)
    weights = torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float32) ** -2
    rise: Tensor = weights.flip(0).cumsum(0).flip(0)[ring]
    return rise / rise.square().sum().sqrt()


def tiles(grid: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Five by five hills ``(2, H, W)``, lying one way and the other, and the tile that each pixel lies in.

    Outside of all tiles the hills are 0.
    """
    _, height, width = grid
    side = max(height // 5, 1), max(width // 5, 1)
    count = height // side[0], width // side[1]
    first = [(n - k * s) // 2 for n, k, s in zip((height, width), count, side, strict=True)]
    rows, columns = (slice(a, a + k * s) for a, k, s in zip(first, count, side, strict=True))
    hills, number = torch.zeros(2, height, width), torch.zeros(height, width, dtype=torch.long)
    for way in (0, 1):
        hills[way, rows, columns] = hill(side, bool(way)).repeat(*count)
    numbers = torch.arange(count[0] * count[1]).view(*count)
    number[rows, columns] = numbers.repeat_interleave(side[0], 0).repeat_interleave(side[1], 1)
    return hills, number
