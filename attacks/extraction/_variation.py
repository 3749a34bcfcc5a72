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


def nudged(batch: Batch, rng: torch.Generator) -> Batch:
    """The images of a batch turned by up to 12 degrees, zoomed by up to 1.15 and moved a little: the answers hold."""
    images = batch.inputs
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise UsageError("only images (B, C, H, W) can be nudged; train on these inputs as they are")
    return Batch(turned(images, rng, angle=math.pi / 15, zoom=(0.87, 1.15), wide=0.1, move=0.1), batch.target)


def turned(
    images: Tensor,
    rng: torch.Generator,
    *,
    angle: float = math.pi,
    zoom: tuple[float, float] = (0.6, 1.8),
    wide: float = 0.4,
    move: float = 0.4,
) -> Tensor:
    """Images ``(B, C, H, W)``, each turned, zoomed, made wider by e to up to ``wide``, moved by half of ``move``."""
    n = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(n, generator=rng)).to(images)

    turn, high = uniform(-angle, angle), torch.exp(uniform(math.log(zoom[0]), math.log(zoom[1])))
    across = high * torch.exp(uniform(-wide, wide))
    rows = [
        torch.stack([turn.cos() / across, -turn.sin() / high, uniform(-move, move)], 1),
        torch.stack([turn.sin() / across, turn.cos() / high, uniform(-move, move)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
