"""Fixed features of images: averaged moduli of wavelets, and of wavelets of those (Bruna and Mallat 2013)."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from secure_ml.errors import require

ANGLES = 8
CHANNELS = 1 + 2 * ANGLES + ANGLES * ANGLES
"""Features of a place: the average, 8 directions at 2 scales, and 8 directions of each direction of the finer one."""


def scatter(images: Tensor) -> Tensor:
    """Scattering coefficients of order 0 to 2 at two scales: ``(B, C, H, W)`` to ``(B, 81 C, H / 4, W / 4)``.

    Convolutions with Morlet wavelets by FFT, each followed by a modulus, then averaged over a window of about 4 pixels
    (https://arxiv.org/abs/1203.1513). The image is continued beyond its edges by reflection. Nothing is learned and
    nothing is read off any data set: what is trained on these features is as private as on the images (Tramer and Boneh
    2021, https://arxiv.org/abs/2011.11660). Height and width must be multiples of 4, and at least 8.
    """
    batch, channels, height, width = images.shape
    require(
        height % 4 == 0 and width % 4 == 0 and min(height, width) >= 8,
        f"scattering needs sides of at least 8 that are multiples of 4; given {height}x{width}",
    )
    fine, coarse = (part.to(images.device) for part in _wavelets(height + 2 * _MARGIN, width + 2 * _MARGIN))
    margins = (_MARGIN,) * 4
    image = F.pad(images.reshape(batch * channels, 1, height, width), margins, mode="reflect")
    spectrum = torch.fft.fft2(image)
    first_fine = torch.fft.ifft2(spectrum * fine).abs()
    first_coarse = torch.fft.ifft2(_folded(spectrum * coarse)).abs()
    paths = torch.fft.fft2(first_fine)[:, :, None] * coarse
    second = torch.fft.ifft2(_folded(paths)).abs().flatten(1, 2)
    averages = [_averaged(part, step) for part, step in ((image, 4), (first_fine, 4), (first_coarse, 2), (second, 2))]
    return torch.cat(averages, 1).reshape(batch, channels * CHANNELS, height // 4, width // 4)


def _averaged(values: Tensor, step: int) -> Tensor:
    """Averages over a window, at every ``step``-th pixel of ``(..., high, wide)`` within the margins."""
    rows, columns = (_window(n, step).to(values) for n in values.shape[-2:])
    return rows @ values @ columns.t()


def _folded(spectrum: Tensor) -> Tensor:
    """The spectrum of every second pixel of every second row."""
    high, wide = (n // 2 for n in spectrum.shape[-2:])
    half = spectrum[..., :high, :] + spectrum[..., high:, :]
    return (half[..., :wide] + half[..., wide:]) / 4


@cache
def _wavelets(high: int, wide: int) -> tuple[Tensor, Tensor]:
    """Spectra of the wavelets of scale 1 and of scale 2, each ``(8, high, wide)``."""
    fine, coarse = (torch.stack([_morlet(high, wide, scale, k) for k in range(ANGLES)]) for scale in (1, 2))
    return fine, coarse


@cache
def _window(n: int, step: int) -> Tensor:
    """A Gaussian average along ``n`` pixels, at every ``step``-th of them, ``(n / step - 2, n)``.

    On half the grid (step 2), its low frequencies are kept, and those that are left are folded onto them.
    """
    whole = n * 4 // step
    places = torch.arange(-2 * whole, 3 * whole, dtype=torch.float64)
    hill = torch.exp(-places.square() / (2 * _WIDTH**2)) / (math.sqrt(2 * math.pi) * _WIDTH)
    spectrum = torch.fft.fft(hill.view(5, whole).sum(0))
    if step == 2:
        spectrum[whole // 4 : whole // 4 + n] = 0
        spectrum = spectrum.view(2, n).sum(0)
    line: Tensor = torch.fft.ifft(spectrum).real.float()
    averaged = torch.arange(step, n - step, step)
    return line[(averaged[:, None] - torch.arange(n)) % n]


def _morlet(high: int, wide: int, scale: int, k: int) -> Tensor:
    """A wave of period 8/3 times its scale under a Gaussian twice as long across, less what makes its mean 0."""
    angle, frequency = (ANGLES // 2 - 1 - k) * math.pi / ANGLES, 0.75 * math.pi / scale
    wave = _gabor(high, wide, 0.8 * scale, angle, frequency, 0.5)
    hill = _gabor(high, wide, 0.8 * scale, angle, 0.0, 0.5)
    return _spectrum(wave - wave.sum() / hill.sum() * hill)


def _gabor(high: int, wide: int, width: float, angle: float, frequency: float, slant: float) -> Tensor:
    """A wave under a Gaussian ``(high, wide)``, wrapped around the edges."""
    reach = 2
    rows, columns = (torch.arange(-reach * n, (reach + 1) * n, dtype=torch.float64) for n in (high, wide))
    along = rows[:, None] * math.cos(angle) + columns * math.sin(angle)
    across = columns * math.cos(angle) - rows[:, None] * math.sin(angle)
    hill = torch.exp(-(along.square() + slant**2 * across.square()) / (2 * width**2))
    wave = hill * torch.exp(1j * frequency * along) * slant / (2 * math.pi * width**2)
    whole: Tensor = wave.reshape(2 * reach + 1, high, 2 * reach + 1, wide).sum((0, 2))
    return whole


def _spectrum(values: Tensor) -> Tensor:
    """The Fourier transform, which is real: wave and hill are symmetric."""
    spectrum: Tensor = torch.fft.fft2(values).real.float()
    return spectrum


_WIDTH = 1.6
"""Standard deviation of the window, in pixels."""
_MARGIN = 4
"""Pixels by which an image is continued on each side: about the reach of the widest wavelet."""
