"""Images turned, stretched and moved: any pool is then as large as a budget, and its answers say more."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from secure_ml.batch import Batch
from secure_ml.errors import UsageError


def varied(pool: Batch, n: int, rng: torch.Generator) -> Tensor:
    """``n`` images ``(n, C, H, W)`` of a pool, none more often than needed, each turned in its own way."""
    images = pool.inputs
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        raise UsageError("only a pool of images (B, C, H, W) can be varied; ask about this one as it is")
    if not len(images):
        return images
    rounds = [torch.randperm(len(images), generator=rng) for _ in range(-(-n // len(images)))]
    return turned(images[torch.cat(rounds)[:n].to(images.device)], rng)


def turned(images: Tensor, rng: torch.Generator) -> Tensor:
    """Each image ``(B, C, H, W)`` turned by any angle, zoomed by 0.6 to 1.8, stretched by up to 1.5, and moved."""
    n = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(n, generator=rng)).to(images)

    angle, zoom = uniform(-math.pi, math.pi), torch.exp(uniform(math.log(0.6), math.log(1.8)))
    wide = zoom * torch.exp(uniform(-0.4, 0.4))
    rows = [
        torch.stack([angle.cos() / wide, -angle.sin() / zoom, uniform(-0.4, 0.4)], 1),
        torch.stack([angle.sin() / wide, angle.cos() / zoom, uniform(-0.4, 0.4)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
