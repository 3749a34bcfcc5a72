"""How far an adversary may go: a threat measures, projects and samples changes of inputs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from secure_ml.errors import require
from secure_ml.settings import brief
from secure_ml.surfaces import Box, Surface, Table, Tokens


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
        """The same threat at a share of its radius."""
        return self.within(self.radius * share)

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
    def advance(self, surface: Surface, clean: Tensor, point: Tensor, gradient: Tensor, length: float) -> Tensor:
        """The point after a step of ``length``, in the unit of ``radius``, in the direction of fastest growth."""

    def realise(self, surface: Surface, clean: Tensor, point: Tensor) -> Tensor:
        """The allowed example for which a point on the way stands: itself, unless examples are discrete."""
        return point


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

    def advance(self, surface: Surface, clean: Tensor, point: Tensor, gradient: Tensor, length: float) -> Tensor:
        """A step along the norm's steepest direction, projected."""
        return self.project(surface, clean, point + length * self.steepest(gradient))


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
        return surface.clamp(clean, clean + delta * _broadcast(factor, delta))

    def start(self, surface: Surface, clean: Tensor, rng: torch.Generator) -> Tensor:
        """Noise of a random direction and loudness."""
        loudness = _broadcast(L2(0).norm(clean), clean)
        return self.project(surface, clean, clean + L2(self.radius).sample(clean, rng) * loudness)

    def advance(self, surface: Surface, clean: Tensor, point: Tensor, gradient: Tensor, length: float) -> Tensor:
        """A step along the gradient, as long as ``length`` times the waveform."""
        loudness = _broadcast(L2(0).norm(clean), clean)
        return self.project(surface, clean, point + length * loudness * L2(0).steepest(gradient))


@dataclass(frozen=True)
class Features(Walk):
    """Numbers of a `Table` change by at most ``radius`` each, and at most ``flips`` of its categories are replaced."""

    radius: float
    flips: int = 1
    surface: ClassVar[type[Surface]] = Table

    def __post_init__(self) -> None:
        require(self.flips >= 0, f"Features needs a number of flips of at least 0; given {self.flips}")
        Linf(self.radius)

    def within(self, radius: float) -> Self:
        """Another radius for the numbers; at 0 no category changes either."""
        return replace(self, radius=radius, flips=self.flips if radius > 0 else 0)

    def scaled(self, share: float) -> Self:
        """A share of the radius, and of the flips, rounded up."""
        return replace(self, radius=self.radius * share, flips=math.ceil(self.flips * share))

    def size(self, clean: Tensor, changed: Tensor) -> Tensor:
        """Largest change of a number; a change of 1 or more is a category's: infinite if there are too many of them."""
        delta = (changed - clean).abs()
        flipped = delta > 1 - 1e-6
        within = flipped.sum(1) <= 2 * self.flips
        return torch.where(within, Linf(0).norm(delta.masked_fill(flipped, 0.0)), torch.inf)

    def project(self, surface: Surface, clean: Tensor, proposal: Tensor) -> Tensor:
        """Numbers into the cube and onto their grid; the ``flips`` categories that are most clearly others, flipped."""
        assert isinstance(surface, Table)
        proposal = torch.where(proposal.isfinite(), proposal, clean)
        changed = Linf(self.radius).project(surface, clean, proposal)
        groups = [list(group) for group in surface.free_groups]
        if not groups or not len(clean) or not self.flips:
            return changed
        margins = torch.stack([_margin(clean[:, g], proposal[:, g]) for g in groups], 1)
        chosen = margins.topk(min(self.flips, len(groups)), dim=1).indices
        flip = torch.zeros_like(margins).scatter(1, chosen, 1.0).bool() & (margins > 0)
        for i, group in enumerate(groups):
            hot = torch.nn.functional.one_hot(proposal[:, group].argmax(1), len(group)).to(clean)
            changed[:, group] = torch.where(flip[:, i, None], hot, clean[:, group])
        return changed

    def start(self, surface: Surface, clean: Tensor, rng: torch.Generator) -> Tensor:
        """Random numbers in the cube; categories as they are."""
        return self._relax(surface, clean, clean + Linf(self.radius).sample(clean, rng))

    def advance(self, surface: Surface, clean: Tensor, point: Tensor, gradient: Tensor, length: float) -> Tensor:
        """Numbers step by the sign; categories gather what their gradients promise, without a bound."""
        assert isinstance(surface, Table)
        step = length * gradient.sign()
        columns = [column for group in surface.free_groups for column in group]
        if columns:
            steep = gradient[:, columns]
            largest = steep.abs().amax(1, keepdim=True).clamp(min=1e-30)
            step[:, columns] = _EAGER * length / max(self.radius, 1e-30) * steep / largest
        return self._relax(surface, clean, point + step)

    def realise(self, surface: Surface, clean: Tensor, point: Tensor) -> Tensor:
        """The table's row for which the point stands."""
        return self.project(surface, clean, point)

    def _relax(self, surface: Surface, clean: Tensor, point: Tensor) -> Tensor:
        """Numbers in the cube and the box, but off their grid; categories anywhere."""
        assert isinstance(surface, Table)
        near = surface.clamp(clean, clean + (point - clean).clamp(-self.radius, self.radius))
        columns = torch.zeros(clean.shape[1], dtype=torch.bool, device=clean.device)
        columns[[column for group in surface.groups for column in group]] = True
        return torch.where(columns, point, near)


_EAGER = 10
"""How much further categories move than numbers, so that those that promise less are tried too."""


def _margin(clean: Tensor, proposal: Tensor) -> Tensor:
    """How far a category ``(B, k)`` leads the one that was there, ``(B,)``."""
    return proposal.amax(1) - proposal.gather(1, clean.argmax(1)[:, None])[:, 0]


@dataclass(frozen=True)
class Edits(Change):
    """At most ``radius`` tokens of each example are replaced by other tokens; none is added or removed."""

    radius: int
    surface: ClassVar[type[Surface]] = Tokens

    def __post_init__(self) -> None:
        require(
            isinstance(self.radius, int) and self.radius >= 0,
            f"Edits needs a whole number of edits of at least 0; given {self.radius}",
        )

    def within(self, radius: float) -> Self:
        """Another number of edits; parts of one count as one."""
        return replace(self, radius=math.ceil(radius))

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
