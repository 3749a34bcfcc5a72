"""Images centred and made upright by their own moments: what handwriting varies in most is taken away untrained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Upright(nn.Module):
    """Moves each image's centre of mass to the middle and shears it until rows do not lean: nothing is trained.

    Of images ``(B, C, H, W)`` the brightness, summed over channels, is a mass; its slant is the covariance of column
    and row over the variance of rows, and at most 1. LeCun et al. 1998 (https://doi.org/10.1109/5.726791) deslant
    digits so. Each image is moved by itself alone, and differentiably.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Images of the same shape."""
        if not len(images):
            return images
        mass = images.sum(1) + 1e-6
        rows, columns = (torch.linspace(-1, 1, n, device=images.device, dtype=images.dtype) for n in mass.shape[1:])
        total = mass.sum((1, 2))
        row = (mass.sum(2) @ rows) / total
        column = (mass.sum(1) @ columns) / total
        down, across = rows - row[:, None], columns - column[:, None]
        spread = (mass.sum(2) * down.square()).sum(1) / total
        lean = (mass * down[:, :, None] * across[:, None, :]).sum((1, 2)) / total
        slant = (lean / (spread + 1e-3)).clamp(-1, 1)
        x = columns + (slant[:, None] * rows + column[:, None])[:, :, None]
        y = (rows + row[:, None])[:, :, None].expand_as(x)
        return F.grid_sample(images, torch.stack([x, y], 3), align_corners=True)
