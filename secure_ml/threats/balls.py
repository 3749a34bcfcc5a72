"""Norm balls."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from secure_ml.errors import require
from secure_ml.surfaces import Box, Surface
from secure_ml.threats.base import Walk, broadcast


@dataclass(frozen=True)
class Ball(Walk):
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

    def within(self, radius: float) -> Self:
        """The ball of another radius."""
        return replace(self, radius=radius)

    def size(self, clean: Tensor, changed: Tensor) -> Tensor:
        """The norm of each example's change, ``(B,)``."""
        return self.norm(changed - clean)

    def project(self, surface: Surface, clean: Tensor, proposal: Tensor) -> Tensor:
        """Into the ball, then into the box; both sets are convex and hold the clean point. A table keeps its rules."""
        assert isinstance(surface, Box)
        proposal = torch.where(proposal.isfinite(), proposal, clean)
        return surface.snap(clean, surface.clamp(clean, clean + self.shrink(proposal - clean)))

    def start(self, surface: Surface, clean: Tensor, rng: torch.Generator) -> Tensor:
        """A random point of the ball."""
        return self.project(surface, clean, clean + self.sample(clean, rng))

    def direction(self, surface: Surface, clean: Tensor, point: Tensor, gradient: Tensor) -> Tensor:
        """The norm's steepest direction."""
        return self.steepest(gradient)

    def settle(self, surface: Surface, clean: Tensor, point: Tensor) -> Tensor:
        """The point projected."""
        return self.project(surface, clean, point)

    def reach(self, surface: Surface, clean: Tensor) -> float:
        """The radius beyond which nothing more is reached: the size of the box around ``(B, *shape)`` examples."""
        assert isinstance(surface, Box)
        return self.norm(torch.full_like(clean[:1], surface.high - surface.low)).sum().item()


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
        return delta * broadcast(factor, delta)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The gradient over its length, however small; 0 where the gradient is 0."""
        largest = broadcast(Linf(0).norm(gradient), gradient)
        even = torch.where(largest > 0, gradient / largest, gradient)
        return even / broadcast(self.norm(even).clamp(min=1.0), even)

    def sample(self, like: Tensor, rng: torch.Generator) -> Tensor:
        """Uniform in the ball: a random direction at radius ``u^(1/d)``."""
        direction = torch.randn(like.shape, generator=rng, dtype=like.dtype)
        length = torch.rand(len(like), generator=rng, dtype=like.dtype) ** (1 / max(like[:1].numel(), 1))
        return (self.steepest(direction) * broadcast(length, direction)).to(like.device) * self.radius


@dataclass(frozen=True)
class L1(Ball):
    """The change's absolute values add up to at most ``radius`` (in the unit of the box)."""

    def norm(self, delta: Tensor) -> Tensor:
        """Sum of the absolute values of each example's change, ``(B,)``."""
        return delta.flatten(1).abs().sum(1)

    def shrink(self, delta: Tensor) -> Tensor:
        """The nearest change in the ball, where all coordinates give up the same amount or all of theirs."""
        return _water_fill(delta, torch.full_like(delta, torch.inf), self.radius)

    def project(self, surface: Surface, clean: Tensor, proposal: Tensor) -> Tensor:
        """The nearest point in both ball and box (Croce and Hein 2021, https://arxiv.org/abs/2103.01208).

        One after the other would not be the nearest: it would leave much of the radius unused.
        """
        assert isinstance(surface, Box)
        delta = torch.where(proposal.isfinite(), proposal, clean) - clean
        room = torch.where(delta > 0, surface.high - clean, clean - surface.low).clamp(min=0)
        return surface.snap(clean, surface.clamp(clean, clean + _water_fill(delta, room, self.radius)))

    def steepest(self, gradient: Tensor) -> Tensor:
        """All of the step in the coordinate of the largest gradient."""
        flat = gradient.flatten(1)
        if not flat.numel():
            return gradient
        largest = flat.abs().argmax(1, keepdim=True)
        return torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest).sign()).view_as(gradient)

    def direction(self, surface: Surface, clean: Tensor, point: Tensor, gradient: Tensor) -> Tensor:
        """Even steps in the share of coordinates with the largest gradients among those that have room left.

        The steepest coordinate alone takes too many steps (Tramer and Boneh 2019, https://arxiv.org/abs/1904.13000).
        """
        assert isinstance(surface, Box)
        stuck = ((gradient > 0) & (point >= surface.high)) | ((gradient < 0) & (point <= surface.low))
        return sparse_signs(gradient.masked_fill(stuck, 0.0), torch.full((len(gradient),), _SHARE))

    def sample(self, like: Tensor, rng: torch.Generator) -> Tensor:
        """Uniform in the ball: signed exponentials on its surface, at radius ``u^(1/d)``."""
        size = torch.empty(like.shape, dtype=like.dtype).exponential_(generator=rng)
        sign = torch.rand(like.shape, generator=rng, dtype=like.dtype).sub(0.5).sign()
        length = torch.rand(len(like), generator=rng, dtype=like.dtype) ** (1 / max(like[:1].numel(), 1))
        scale = length / self.norm(size).clamp(min=1e-30)
        return (size * sign * broadcast(scale, like)).to(like.device) * self.radius


_SHARE = 0.05
"""Share of the coordinates that a step in L1 moves."""


def sparse_signs(gradient: Tensor, share: Tensor) -> Tensor:
    """The signs of a share ``(B,)`` of the coordinates, those of the largest gradients, with an L1 norm of 1."""
    flat = gradient.flatten(1)
    if not flat.numel():
        return gradient
    count = (share.to(flat.device) * flat.shape[1]).long().clamp(1, flat.shape[1])
    order = flat.abs().sort(1, descending=True).values
    least = order.gather(1, count[:, None] - 1)
    signs = torch.where(flat.abs() >= least, flat.sign(), 0.0)
    return (signs / signs.abs().sum(1, keepdim=True).clamp(min=1.0)).view_as(gradient)


def _water_fill(delta: Tensor, room: Tensor, radius: float) -> Tensor:
    """The nearest change with coordinates no larger than their room and an L1 norm of at most ``radius``.

    It is ``sign(d) min(max(|d| - level, 0), room)``, and the level is found by halving.
    """
    size, limit = delta.flatten(1).abs(), room.flatten(1)
    if not size.numel():
        return delta

    def kept(level: Tensor) -> Tensor:
        return torch.minimum((size - level).clamp(min=0), limit)

    low = torch.zeros_like(size[:, :1])
    high = size.amax(1, keepdim=True)
    over = kept(low).sum(1, keepdim=True) > radius
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = kept(middle).sum(1, keepdim=True) > radius
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    filled = torch.where(over, kept(high), torch.minimum(size, limit))
    excess = filled.sum(1, keepdim=True) / max(radius, 1e-30)
    return (delta.sign().flatten(1) * filled / excess.clamp(min=1.0)).view_as(delta)


_HALVINGS = 30


@dataclass(frozen=True)
class L0(Ball):
    """At most ``radius`` places of each example change, by any amount; the channels of an image share their places.

    On the way to it, a gradient is followed with all places free; the point then stands for the example in which the
    ``radius`` places that moved furthest are at the end of the box that they moved to.
    """

    radius: int

    def within(self, radius: float) -> Self:
        """Another number of places; parts of one count as one."""
        return replace(self, radius=math.ceil(radius))

    def scaled(self, share: float) -> Self:
        """A share of the places, rounded up."""
        return self.within(self.radius * share)

    def norm(self, delta: Tensor) -> Tensor:
        """Number of places changed in each example, ``(B,)``."""
        return (_places(delta) > 0).sum(1).to(delta.dtype)

    def shrink(self, delta: Tensor) -> Tensor:
        """The ``radius`` places that changed most; the others as they were."""
        change = _places(delta)
        count = min(self.radius, change.shape[1])
        chosen = torch.zeros_like(change).scatter(1, change.topk(count, dim=1).indices, 1.0)
        return delta * (chosen.reshape(len(delta), 1, *delta.shape[2:]) if delta.ndim == 4 else chosen.view_as(delta))

    def project(self, surface: Surface, clean: Tensor, proposal: Tensor) -> Tensor:
        """Into the box, then onto the places that changed most."""
        assert isinstance(surface, Box)
        proposal = torch.where(proposal.isfinite(), proposal, clean)
        return surface.snap(clean, clean + self.shrink(surface.clamp(clean, proposal) - clean))

    def steepest(self, gradient: Tensor) -> Tensor:
        """The gradient over its largest value, so that places are compared by what they promise."""
        return gradient / broadcast(Linf(0).norm(gradient).clamp(min=1e-30), gradient)

    def direction(self, surface: Surface, clean: Tensor, point: Tensor, gradient: Tensor) -> Tensor:
        """What each place would gain at the end of the box that its gradient points to."""
        assert isinstance(surface, Box)
        room = torch.where(gradient > 0, surface.high - clean, clean - surface.low)
        return self.steepest(gradient * room)

    def settle(self, surface: Surface, clean: Tensor, point: Tensor) -> Tensor:
        """The point as it is: on the way, all places are free."""
        return torch.where(point.isfinite(), point, clean)

    def realise(self, surface: Surface, clean: Tensor, point: Tensor) -> Tensor:
        """The places that moved furthest, each at the end of the box that it moved to."""
        assert isinstance(surface, Box)
        moved = self.shrink(point - clean)
        ends = torch.where(moved > 0, surface.high, torch.where(moved < 0, surface.low, clean))
        return self.project(surface, clean, ends)

    def start(self, surface: Surface, clean: Tensor, rng: torch.Generator) -> Tensor:
        """Random places, hardly preferred."""
        return clean + self.sample(clean, rng)

    def sample(self, like: Tensor, rng: torch.Generator) -> Tensor:
        """A tiny change of every place, drawn on the CPU."""
        return 1e-3 * torch.randn(like.shape, generator=rng, dtype=like.dtype).to(like.device)

    def reach(self, surface: Surface, clean: Tensor) -> float:
        """All places."""
        return float(_places(clean[:1]).shape[1])


def _places(delta: Tensor) -> Tensor:
    """How far each place moved, ``(B, places)``: the sum over channels, where there are any."""
    return (delta.abs().sum(1) if delta.ndim == 4 else delta.abs()).flatten(1)
