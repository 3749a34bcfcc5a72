"""JPEG's lossy half, on whole batches of images: blocks, cosines, and rounding (ITU-T T.81, annexes A and K)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
TO_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)


@dataclass(frozen=True)
class RoundTrip:
    """Images ``(B, 1 or 3, H, W)`` in [0, 1] as they are after JPEG of a quality, without subsampled colours.

    Every step is rounded as in a file, so that the gradient is 0.
    """

    quality: int

    def __call__(self, images: Tensor) -> Tensor:
        """The images that come back."""
        levels = (images.clamp(0, 1) * 255).round()
        colour = images.shape[1] == 3
        if colour:
            levels = (_mix(levels, _tensor(TO_YCBCR, images)) + _centre(images)).round()
        back = self._compress(levels)
        if colour:
            back = _mix(back - _centre(images), torch.linalg.inv(_tensor(TO_YCBCR, images))).round().clamp(0, 255)
        return back / 255

    def _compress(self, planes: Tensor) -> Tensor:
        """Levels ``(B, C, H, W)`` in blocks of 8x8, whose cosines are rounded to multiples of a table."""
        height, width = planes.shape[-2:]
        padded = F.pad(planes, (0, -width % 8, 0, -height % 8), mode="replicate")
        down, right = padded.shape[2] // 8, padded.shape[3] // 8
        blocks = padded.reshape(*padded.shape[:2], down, 8, right, 8).transpose(3, 4) - 128
        cosines, tables = _cosines(blocks), self._tables(blocks)
        kept = (cosines @ blocks @ cosines.T / tables).round() * tables
        back = (cosines.T @ kept @ cosines + 128).round().clamp(0, 255)
        return back.transpose(3, 4).reshape(padded.shape)[..., :height, :width]

    def _tables(self, blocks: Tensor) -> Tensor:
        """The table of each plane ``(C, 1, 1, 8, 8)``, scaled to the quality as libjpeg does it."""
        scale = 5000 // self.quality if self.quality < 50 else 200 - 2 * self.quality
        tables = torch.stack([_tensor(t, blocks) for t in (LUMINANCE, CHROMINANCE, CHROMINANCE)][: blocks.shape[1]])
        return ((tables * scale + 50) / 100).floor().clamp(1, 255)[:, None, None]


def _cosines(like: Tensor) -> Tensor:
    """The orthonormal cosine transform of 8 values, ``(8, 8)``."""
    k, x = torch.arange(8, dtype=torch.float64)[:, None], torch.arange(8, dtype=torch.float64)
    matrix = torch.cos(math.pi * (2 * x + 1) * k / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix.to(like)


def _mix(images: Tensor, matrix: Tensor) -> Tensor:
    """The channels of each pixel, mixed."""
    return torch.einsum("dc,bchw->bdhw", matrix, images)


def _centre(like: Tensor) -> Tensor:
    """Where the planes of brightness and of colours have their 0."""
    return _tensor((0.0, 128.0, 128.0), like)[:, None, None]


def _tensor(values: object, like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)
