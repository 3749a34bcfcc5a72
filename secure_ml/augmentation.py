"""Random changes of images that leave their class: each example draws its own, all of a batch are made at once.

Each takes ``(batch, rng)`` with images ``(B, C, H, W)`` as inputs and draws on the CPU, so that a seed means the same
on every device. What comes in from outside the image is 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from secure_ml.batch import Batch
from secure_ml.errors import require
from secure_ml.task import Augment


@dataclass(frozen=True)
class Chain:
    """One after the other."""

    steps: tuple[Augment, ...]

    def __call__(self, batch: Batch, rng: torch.Generator) -> Batch:
        """The batch after every step."""
        for step in self.steps:
            batch = step(batch, rng)
        return batch


@dataclass(frozen=True)
class Flip:
    """Left and right change places with this probability."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        require(0 <= self.probability <= 1, f"a flip needs a probability in [0, 1]; given {self.probability}")

    def __call__(self, batch: Batch, rng: torch.Generator) -> Batch:
        """The batch with some images mirrored."""
        images = _images(batch)
        chosen = torch.rand(len(images), generator=rng) < self.probability
        chosen = chosen.to(images.device)[:, None, None, None]
        return Batch(torch.where(chosen, images.flip(-1), images), batch.target)


@dataclass(frozen=True)
class Crop:
    """Move by whole pixels: pad all around, then cut the old size out of a random place."""

    padding: int = 4

    def __post_init__(self) -> None:
        require(self.padding >= 0, f"a crop needs a padding of at least 0; given {self.padding}")

    def __call__(self, batch: Batch, rng: torch.Generator) -> Batch:
        """The batch with each image moved by up to ``padding`` pixels along each axis."""
        images = _images(batch)
        top, left = torch.randint(2 * self.padding + 1, (2, len(images)), generator=rng).to(images.device)
        height, width = images.shape[-2:]
        places = F.pad(images, [self.padding] * 4).unfold(2, height, 1).unfold(3, width, 1)
        return Batch(places[torch.arange(len(images), device=images.device), :, top, left], batch.target)


@dataclass(frozen=True)
class Shift:
    """Move by up to this share of the height and of the width, any fraction of a pixel."""

    share: float = 0.1

    def __post_init__(self) -> None:
        require(0 <= self.share < math.inf, f"a shift needs a share of at least 0; given {self.share}")

    def __call__(self, batch: Batch, rng: torch.Generator) -> Batch:
        """The batch with each image moved down and to the right, or the other way."""
        images = _images(batch)
        down, right = _symmetric(2, images, rng) * self.share
        one, none = torch.ones_like(down), torch.zeros_like(down)
        # coordinates run from -1 to 1, so that a share s of the side is 2 s
        return Batch(_affine(images, [[one, none, -2 * right], [none, one, -2 * down]]), batch.target)


@dataclass(frozen=True)
class Rotation:
    """Turn around the centre by up to this many degrees either way."""

    degrees: float = 10.0

    def __post_init__(self) -> None:
        require(0 <= self.degrees <= 180, f"a rotation needs degrees in [0, 180]; given {self.degrees}")

    def __call__(self, batch: Batch, rng: torch.Generator) -> Batch:
        """The batch with each image turned counter-clockwise, or the other way."""
        images = _images(batch)
        (angle,) = _symmetric(1, images, rng) * math.radians(self.degrees)
        height, width = images.shape[-2:]
        cos, sin, none = angle.cos(), angle.sin(), torch.zeros_like(angle)
        rows = [[cos, -sin * (height / width), none], [sin * (width / height), cos, none]]
        return Batch(_affine(images, rows), batch.target)


@dataclass(frozen=True)
class Zoom:
    """Enlarge by a factor of up to 1 + share, or shrink by one of at least 1 - share, around the centre."""

    share: float = 0.1

    def __post_init__(self) -> None:
        require(0 <= self.share < 1, f"a zoom needs a share in [0, 1); given {self.share}")

    def __call__(self, batch: Batch, rng: torch.Generator) -> Batch:
        """The batch with each image enlarged or shrunk."""
        images = _images(batch)
        (size,) = 1 / (1 + _symmetric(1, images, rng) * self.share)
        none = torch.zeros_like(size)
        return Batch(_affine(images, [[size, none, none], [none, size, none]]), batch.target)


def _images(batch: Batch) -> Tensor:
    require(
        isinstance(batch.inputs, Tensor) and batch.inputs.ndim == 4,
        "images are augmented as one tensor (B, C, H, W) of inputs",
    )
    return cast("Tensor", batch.inputs)


def _symmetric(kinds: int, images: Tensor, rng: torch.Generator) -> Tensor:
    """Uniform numbers ``(kinds, B)`` in [-1, 1)."""
    return (torch.rand(kinds, len(images), generator=rng) * 2 - 1).to(images)


def _affine(images: Tensor, rows: list[list[Tensor]]) -> Tensor:
    """Each image read, bilinearly, where its own 2x3 matrix of numbers ``(B,)`` sends the pixels of the result."""
    if not len(images):
        return images
    matrices = torch.stack([torch.stack(row, -1) for row in rows], 1)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
