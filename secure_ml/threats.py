"""How far an adversary may go: a threat measures, projects and samples changes on one kind of surface."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secure_ml.errors import require
from secure_ml.settings import brief
from secure_ml.surfaces import Box, Surface, Tokens


class Threat(ABC):
    """A set of allowed changes around each clean example."""

    surface: ClassVar[type[Surface]]
    radius: float

    def __init_subclass__(cls) -> None:
        cls.__repr__ = brief  # type: ignore[method-assign]

    @abstractmethod
    def size(self, clean: Tensor, changed: Tensor) -> Tensor:
        """How far each example was changed, ``(B,)``, in the unit of ``radius``."""

    @abstractmethod
    def project(self, surface: Surface, clean: Tensor, proposal: Tensor) -> Tensor:
        """The allowed example nearest to the proposal; values that are no numbers fall back to the clean ones."""


@dataclass(frozen=True)
class Ball(Threat):
    """All points of a `Box` within ``radius`` of the clean one, in a norm that the subclass names."""

    radius: float
    surface: ClassVar[type[Surface]] = Box

    def __post_init__(self) -> None:
        require(
            math.isfinite(self.radius) and self.radius >= 0,
            f"{type(self).__name__} needs a finite radius of at least 0; given {self.radius}",
        )

    @abstractmethod
    def norm(self, delta: Tensor) -> Tensor:
        """The norm of each example's change, ``(B,)``."""

    @abstractmethod
    def shrink(self, delta: Tensor) -> Tensor:
        """The nearest change ``(B, *shape)`` inside the ball."""

    @abstractmethod
    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction ``(B, *shape)`` of norm 1 along which a linear function grows fastest."""

    @abstractmethod
    def sample(self, like: Tensor, rng: torch.Generator) -> Tensor:
        """A random change ``(B, *shape)`` inside the ball, drawn on the CPU."""

    def size(self, clean: Tensor, changed: Tensor) -> Tensor:
        """The norm of each example's change, ``(B,)``."""
        return self.norm(changed - clean)

    def project(self, surface: Surface, clean: Tensor, proposal: Tensor) -> Tensor:
        """Into the ball, then into the box; both sets are convex and hold the clean point."""
        assert isinstance(surface, Box)
        proposal = torch.where(proposal.isfinite(), proposal, clean)
        inside = clean + self.shrink(proposal - clean)
        low, high = clean.clamp(max=surface.low), clean.clamp(min=surface.high)
        return torch.clamp(inside, low, high)


@dataclass(frozen=True)
class Linf(Ball):
    """No coordinate changes by more than ``radius`` (in the unit of the box)."""

    def norm(self, delta: Tensor) -> Tensor:
        """Largest absolute change of each example, ``(B,)``."""
        return delta.flatten(1).abs().amax(1) if delta.numel() else delta.new_zeros(len(delta))

    def shrink(self, delta: Tensor) -> Tensor:
        """Each coordinate cut at ``radius``."""
        return delta.clamp(-self.radius, self.radius)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The sign of the gradient."""
        return gradient.sign()

    def sample(self, like: Tensor, rng: torch.Generator) -> Tensor:
        """Uniform in the cube."""
        noise = torch.rand(like.shape, generator=rng, dtype=like.dtype) * 2 - 1
        return noise.to(like.device) * self.radius


@dataclass(frozen=True)
class L2(Ball):
    """The change's Euclidean length is at most ``radius`` (in the unit of the box)."""

    def norm(self, delta: Tensor) -> Tensor:
        """Euclidean length of each example's change, ``(B,)``."""
        return delta.flatten(1).square().sum(1).sqrt()

    def shrink(self, delta: Tensor) -> Tensor:
        """Changes that are too long, scaled back to the sphere."""
        factor = self.radius / self.norm(delta).clamp(min=max(self.radius, 1e-30))
        return delta * _broadcast(factor, delta)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The gradient over its length, however small; 0 where the gradient is 0."""
        largest = _broadcast(Linf(0).norm(gradient), gradient)
        even = torch.where(largest > 0, gradient / largest, gradient)
        return even / _broadcast(self.norm(even).clamp(min=1.0), even)

    def sample(self, like: Tensor, rng: torch.Generator) -> Tensor:
        """Uniform in the ball: a random direction at radius ``u^(1/d)``."""
        direction = torch.randn(like.shape, generator=rng, dtype=like.dtype)
        length = torch.rand(len(like), generator=rng, dtype=like.dtype) ** (1 / max(like[:1].numel(), 1))
        return (self.steepest(direction) * _broadcast(length, direction)).to(like.device) * self.radius


@dataclass(frozen=True)
class Edits(Threat):
    """At most ``radius`` tokens of each example are replaced by other tokens; none is added or removed."""

    radius: int
    surface: ClassVar[type[Surface]] = Tokens

    def __post_init__(self) -> None:
        require(
            isinstance(self.radius, int) and self.radius >= 0,
            f"Edits needs a whole number of edits of at least 0; given {self.radius}",
        )

    def size(self, clean: Tensor, changed: Tensor) -> Tensor:
        """Number of positions changed in each example, ``(B,)``."""
        return (clean != changed).flatten(1).sum(1)

    def project(self, surface: Surface, clean: Tensor, proposal: Tensor) -> Tensor:
        """Undo edits that are not allowed, then those beyond the first ``radius`` positions."""
        assert isinstance(surface, Tokens)
        known = (proposal >= 0) & (proposal < surface.vocabulary)
        allowed = known & surface.editable(clean) & surface.editable(proposal) & (proposal != clean)
        kept = allowed & (allowed.long().cumsum(1) <= self.radius)
        return torch.where(kept, proposal, clean)


def _broadcast(per_example: Tensor, like: Tensor) -> Tensor:
    return per_example.reshape(-1, *[1] * (like.ndim - 1))
