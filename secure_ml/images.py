"""How alike two images are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
BEST = 100.0
"""Decibels that stand for equality, which has no finite ratio."""


def psnr(images: Tensor, others: Tensor, span: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio ``(B,)`` in dB of ``(B, *shape)`` whose values span ``span``; at most 100.

    Minus ten times the logarithm to base 10 of the mean squared error over the squared span.
    """
    error = (images - others).double().square().flatten(1).mean(1) / span**2
    return (-10 * error.clamp(min=1e-30).log10()).clamp(max=BEST)


def ssim(images: Tensor, others: Tensor, span: float = 1.0) -> Tensor:
    """Structural similarity ``(B,)`` of images ``(B, C, H, W)``, 1 where equal (Wang et al. 2004).

    https://doi.org/10.1109/TIP.2003.819861: means, variances and covariance in a Gaussian window of 11 pixels (sigma
    1.5) that lies inside the image, with constants 0.01 and 0.03 of the span; averaged over places and channels. Where
    an image is smaller, the window has the largest odd side that fits.
    """
    channels, *sides = images.shape[1:]
    window = _window(min(WINDOW, *(side - (side + 1) % 2 for side in sides)), channels, images.device)

    def blur(values: Tensor) -> Tensor:
        return F.conv2d(values, window, groups=channels)

    x, y = images.double(), others.double()
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    alike = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return alike.flatten(1).mean(1)


def are_images(inputs: Tensor) -> bool:
    """Whether ``(B, *shape)`` are images ``(B, C, H, W)`` with sides of at least 3."""
    return inputs.ndim == 4 and min(inputs.shape[2:]) >= 3


def variation(images: Tensor) -> Tensor:
    """Total variation ``(B,)``: the mean absolute difference of neighbours in images, 0 for anything else."""
    if not are_images(images):
        return images.new_zeros(len(images))
    down, right = images.diff(dim=2).abs(), images.diff(dim=3).abs()
    return down.flatten(1).mean(1) + right.flatten(1).mean(1)


def _window(side: int, channels: int, device: torch.device) -> Tensor:
    """Weights ``(C, 1, side, side)`` that sum to 1 in each channel."""
    line = torch.arange(side, dtype=torch.float64, device=device) - side // 2
    bell = (-(line**2) / (2 * SIGMA**2)).exp()
    plane = bell[:, None] * bell
    return (plane / plane.sum()).expand(channels, 1, side, side).contiguous()
