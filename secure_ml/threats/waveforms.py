"""Noise that is quieter than the sound."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from secure_ml.errors import require
from secure_ml.surfaces import Box, Surface
from secure_ml.threats.balls import L2
from secure_ml.threats.base import Walk, broadcast


@dataclass(frozen=True)
class SNR(Walk):
    """Noise added to a waveform ``(B, T)``, at least ``decibels`` below it in energy over the whole clip."""

    decibels: float
    surface: ClassVar[type[Surface]] = Box

    def __post_init__(self) -> None:
        require(not math.isnan(self.decibels), "SNR needs a number of decibels; given nan")

    @property
    def radius(self) -> float:  # type: ignore[override]
        """The noise's amplitude over the waveform's: 0.1 at 20 dB."""
        return float(10 ** (-self.decibels / 20))

    def within(self, radius: float) -> Self:
        """The same threat at another ratio of amplitudes; infinitely many decibels at 0."""
        return replace(self, decibels=-20 * math.log10(radius) if radius > 0 else math.inf)

    def size(self, clean: Tensor, changed: Tensor) -> Tensor:
        """The noise's amplitude over the waveform's, ``(B,)``; infinite where silence was changed."""
        noise = L2(0).norm(changed - clean)
        return torch.where(noise > 0, noise / L2(0).norm(clean), noise)

    def project(self, surface: Surface, clean: Tensor, proposal: Tensor) -> Tensor:
        """Noise that is too loud is made quieter; then into the box."""
        assert isinstance(surface, Box)
        delta = torch.where(proposal.isfinite(), proposal, clean) - clean
        allowed = self.radius * L2(0).norm(clean)
        factor = (allowed / L2(0).norm(delta).clamp(min=1e-30)).clamp(max=1)
        return surface.clamp(clean, clean + delta * broadcast(factor, delta))

    def start(self, surface: Surface, clean: Tensor, rng: torch.Generator) -> Tensor:
        """Noise of a random direction and loudness."""
        loudness = broadcast(L2(0).norm(clean), clean)
        return self.project(surface, clean, clean + L2(self.radius).sample(clean, rng) * loudness)

    def direction(self, surface: Surface, clean: Tensor, point: Tensor, gradient: Tensor) -> Tensor:
        """Along the gradient, as long as the waveform."""
        return broadcast(L2(0).norm(clean), clean) * L2(0).steepest(gradient)

    def settle(self, surface: Surface, clean: Tensor, point: Tensor) -> Tensor:
        """The point projected."""
        return self.project(surface, clean, point)
