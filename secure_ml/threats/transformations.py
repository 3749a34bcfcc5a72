"""A finite catalogue of changes: rotations and shifts, common corruptions."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from secure_ml.errors import require
from secure_ml.randomness import generator
from secure_ml.surfaces import Box, Surface
from secure_ml.threats.base import Change, broadcast

Member = Callable[[Tensor], Tensor]
"""Images ``(B, C, H, W)`` in [0, 1] to as many that are changed, in [0, 1]."""


class Transformations(Change):
    """The changes of a catalogue, and no others."""

    surface: ClassVar[type[Surface]] = Box

    @abstractmethod
    def members(self) -> list[Member]:
        """All changes of the catalogue; none where the radius is 0."""

    def apply(self, surface: Surface, clean: Tensor, member: Member) -> Tensor:
        """The examples ``(B, C, H, W)`` changed by one member; `UsageError` for anything but images."""
        assert isinstance(surface, Box)
        require(clean.ndim == 4, f"{self!r} changes images (B, C, H, W); given {tuple(clean.shape)}")
        width = surface.high - surface.low
        changed = member((clean - surface.low) / width).clamp(0, 1) * width + surface.low
        return surface.clamp(clean, changed)

    def size(self, clean: Tensor, changed: Tensor) -> Tensor:
        """0 where nothing changed, else the radius, ``(B,)``; whether it is of the catalogue, `project` sees to."""
        moved = (clean != changed).flatten(1).any(1)
        return torch.where(moved, float(self.radius), 0.0)

    def project(self, surface: Surface, clean: Tensor, proposal: Tensor) -> Tensor:
        """Of the clean example and all members' changes of it, the one nearest to the proposal."""
        proposal = torch.where(proposal.isfinite(), proposal, clean)
        nearest, distance = clean, (proposal - clean).flatten(1).norm(dim=1)
        for member in self.members() if len(clean) else []:
            changed = self.apply(surface, clean, member)
            further = (proposal - changed).flatten(1).norm(dim=1)
            nearest = torch.where(broadcast(further < distance, clean), changed, nearest)
            distance = torch.minimum(distance, further)
        return nearest


@dataclass(frozen=True)
class Spatial(Transformations):
    """Shifts by up to ``radius`` pixels and rotations by up to ``degrees``, on a grid (https://arxiv.org/abs/1712.02779)."""

    radius: float = 3.0
    degrees: float = 30.0
    shifts: int = 5
    """Shifts tried in each direction."""
    rotations: int = 31
    """Angles tried."""

    def __post_init__(self) -> None:
        require(self.radius >= 0 and self.degrees >= 0, f"Spatial needs a radius and degrees >= 0; given {self!r}")
        require(
            self.radius > 0 or not self.degrees,
            f"at a radius of 0 nothing changes; for rotations alone give a tiny one: Spatial(1e-6, {self.degrees:g})",
        )
        require(self.shifts >= 1 and self.rotations >= 1, f"Spatial needs at least 1 of each; given {self!r}")

    def within(self, radius: float) -> Self:
        """Another radius, and as many more or fewer degrees."""
        share = radius / self.radius if self.radius else 0.0
        return replace(self, radius=radius, degrees=self.degrees * share)

    def members(self) -> list[Member]:
        """Every pair of a shift and an angle of the grid."""
        if not self.radius and not self.degrees:
            return []
        moves = _grid(self.radius, self.shifts)
        return [_turned(dx, dy, angle) for dx, dy, angle in product(moves, moves, _grid(self.degrees, self.rotations))]


def _grid(end: float, n: int) -> list[float]:
    return [0.0] if n == 1 else torch.linspace(-end, end, n).tolist()


def _turned(dx: float, dy: float, angle: float) -> Member:
    """A rotation by ``angle`` degrees about the middle, then a shift by pixels; what comes in is black."""

    def turn(images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        ratio = height / width
        matrix = [[c, -s * ratio, -2 * dx / width], [s / ratio, c, -2 * dy / height]]
        theta = torch.tensor(matrix, dtype=images.dtype, device=images.device).expand(len(images), 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)

    return turn


@dataclass(frozen=True)
class Corruptions(Transformations):
    """Noise, blur, light and coarseness of a severity of 1 to 5, as in CIFAR-10-C (https://arxiv.org/abs/1903.12261).

    Differs from the benchmark: nine of its kinds, those that are formulas; the noise of a place is always the same.
    """

    radius: int = 3
    """The severity."""

    def __post_init__(self) -> None:
        require(0 <= self.radius <= 5, f"Corruptions needs a severity of 1 to 5; given {self.radius}")

    def within(self, radius: float) -> Self:
        """Another severity; parts of one count as one, and 5 is the last."""
        return replace(self, radius=min(math.ceil(radius), 5))

    def scaled(self, share: float) -> Self:
        """A share of the severity, rounded up."""
        return self.within(self.radius * share)

    def members(self) -> list[Member]:
        """One change of each kind."""
        if not self.radius:
            return []
        at = {name: values[self.radius - 1] for name, values in _SEVERITIES.items()}
        return [
            lambda x: x + at["gaussian noise"] * _noise(x, "gaussian"),
            lambda x: x + (x / at["shot noise"]).sqrt() * _noise(x, "shot"),
            lambda x: x * (1 + at["speckle noise"] * _noise(x, "speckle")),
            lambda x: _impulse(x, at["impulse noise"]),
            lambda x: _blurred(x, at["gaussian blur"]),
            lambda x: x + at["brightness"],
            lambda x: (x - x.mean((2, 3), keepdim=True)) * at["contrast"] + x.mean((2, 3), keepdim=True),
            lambda x: _coarse(x, at["pixelate"]),
            lambda x: _zoomed(x, at["zoom blur"]),
        ]


_SEVERITIES: dict[str, tuple[float, ...]] = {
    "gaussian noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot noise": (500, 250, 100, 75, 50),
    "speckle noise": (0.06, 0.10, 0.12, 0.16, 0.20),
    "impulse noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "gaussian blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "brightness": (0.05, 0.10, 0.15, 0.20, 0.30),
    "contrast": (0.75, 0.50, 0.40, 0.30, 0.15),
    "pixelate": (0.95, 0.90, 0.85, 0.75, 0.65),
    "zoom blur": (1.06, 1.11, 1.16, 1.21, 1.26),
}
"""What a severity of 1 to 5 means for each kind, as for CIFAR-10-C."""


def _noise(images: Tensor, kind: str) -> Tensor:
    """Standard normal numbers, the same for the same shape and kind."""
    rng = generator(0, "corruption", kind)
    return torch.randn(images.shape, generator=rng, dtype=images.dtype).to(images.device)


def _impulse(images: Tensor, share: float) -> Tensor:
    """A share of the values at one end or the other."""
    draw = torch.rand(images.shape, generator=generator(0, "corruption", "impulse"), dtype=images.dtype)
    draw = draw.to(images.device)
    return torch.where(draw < share / 2, 0.0, torch.where(draw > 1 - share / 2, 1.0, images))


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur."""
    reach = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    channels = images.shape[1]
    across = kernel.expand(channels, 1, 1, -1)
    blurred = F.conv2d(images, across, padding=(0, reach), groups=channels)
    return F.conv2d(blurred, across.transpose(2, 3), padding=(reach, 0), groups=channels)


def _coarse(images: Tensor, share: float) -> Tensor:
    """Fewer pixels, each of them larger."""
    small = [max(1, round(side * share)) for side in images.shape[2:]]
    return F.interpolate(F.interpolate(images, small, mode="area"), images.shape[2:], mode="nearest")


def _zoomed(images: Tensor, most: float) -> Tensor:
    """The mean of the image at growing magnifications."""
    views = [images]
    for factor in torch.linspace(1, most, 6)[1:].tolist():
        theta = torch.tensor([[1 / factor, 0, 0], [0, 1 / factor, 0]], dtype=images.dtype, device=images.device)
        grid = F.affine_grid(theta.expand(len(images), 2, 3), list(images.shape), align_corners=False)
        views.append(F.grid_sample(images, grid, align_corners=False))
    return torch.stack(views).mean(0)
