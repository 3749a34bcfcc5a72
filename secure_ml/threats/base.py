"""What every threat is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from secure_ml.errors import require
from secure_ml.settings import brief
from secure_ml.surfaces import Surface


class Threat(ABC):
    """A set of allowed changes around each clean example."""

    def __init_subclass__(cls) -> None:
        cls.__repr__ = brief  # type: ignore[method-assign]

    @abstractmethod
    def parts(self) -> tuple[Change, ...]:
        """The changes of single surfaces that it allows together."""

    @abstractmethod
    def within(self, radius: float) -> Self:
        """The same threat at another radius."""

    @abstractmethod
    def scaled(self, share: float) -> Self:
        """The same threat at a share of its radius; whole edits stay whole, rounded up."""


class Change(Threat):
    """A threat to one surface."""

    surface: ClassVar[type[Surface]]
    radius: float
    """How far the change may go; at 0 nothing changes."""

    def parts(self) -> tuple[Change, ...]:
        """Itself."""
        return (self,)

    def scaled(self, share: float) -> Self:
        """The same threat at a share of its radius, rounded to twelve digits: 1.5 times 0.1 is 0.15."""
        return self.within(float(f"{self.radius * share:.12g}"))

    @abstractmethod
    def size(self, clean: Tensor, changed: Tensor) -> Tensor:
        """How far each example was changed, ``(B,)``, in the unit of ``radius``."""

    @abstractmethod
    def project(self, surface: Surface, clean: Tensor, proposal: Tensor) -> Tensor:
        """The allowed example nearest to the proposal; values that are no numbers fall back to the clean ones."""


@dataclass(frozen=True)
class Joint(Threat):
    """Several surfaces may be changed at once, each within its own threat."""

    threats: tuple[Change, ...]

    def __post_init__(self) -> None:
        kinds = [type(threat).__name__ for threat in self.threats]
        require(len(kinds) > 1, f"Joint joins at least 2 threats; given {len(kinds)}")

    def parts(self) -> tuple[Change, ...]:
        """The threats that it joins."""
        return self.threats

    def within(self, radius: float) -> Self:
        """Each threat at that share of its radius: theirs have different units."""
        return self.scaled(radius)

    def scaled(self, share: float) -> Self:
        """Each threat at that share of its radius."""
        return replace(self, threats=tuple(threat.scaled(share) for threat in self.threats))


class Walk(Change):
    """A change along which a gradient can be followed, from a start by steps that stay allowed."""

    @abstractmethod
    def start(self, surface: Surface, clean: Tensor, rng: torch.Generator) -> Tensor:
        """A random point to start from, drawn on the CPU."""

    @abstractmethod
    def direction(self, surface: Surface, clean: Tensor, point: Tensor, gradient: Tensor) -> Tensor:
        """The step ``(B, *shape)`` of length 1, in the unit of ``radius``, that a gradient asks for."""

    @abstractmethod
    def settle(self, surface: Surface, clean: Tensor, point: Tensor) -> Tensor:
        """The nearest point from which the way may go on."""

    def advance(
        self, surface: Surface, clean: Tensor, point: Tensor, gradient: Tensor, length: float | Tensor
    ) -> Tensor:
        """The point after a step of ``length`` (one for all, or ``(B, 1, ...)``) in the direction of fastest growth."""
        return self.settle(surface, clean, point + length * self.direction(surface, clean, point, gradient))

    def realise(self, surface: Surface, clean: Tensor, point: Tensor) -> Tensor:
        """The allowed example for which a point on the way stands: itself, unless examples are discrete."""
        return point


def broadcast(per_example: Tensor, like: Tensor) -> Tensor:
    """One number for each example, ``(B, 1, ...)``, to meet a tensor ``(B, *shape)``."""
    return per_example.reshape(-1, *[1] * (like.ndim - 1))
