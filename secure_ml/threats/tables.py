"""Changes of rows that keep the rules of their table."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from secure_ml.errors import require
from secure_ml.surfaces import Surface, Table
from secure_ml.threats.balls import Linf
from secure_ml.threats.base import Walk


@dataclass(frozen=True)
class Features(Walk):
    """Numbers of a `Table` change by at most ``radius`` each, and at most ``flips`` of its categories are replaced."""

    radius: float
    flips: int = 1
    surface: ClassVar[type[Surface]] = Table

    def __post_init__(self) -> None:
        require(self.flips >= 0, f"Features needs a number of flips of at least 0; given {self.flips}")
        Linf(self.radius)
        require(
            self.radius > 0 or not self.flips,
            f"at a radius of 0 nothing changes; for categories alone give Features(1e-6, flips={self.flips})",
        )

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
        return self.settle(surface, clean, clean + Linf(self.radius).sample(clean, rng))

    def direction(self, surface: Surface, clean: Tensor, point: Tensor, gradient: Tensor) -> Tensor:
        """Numbers step by the sign; categories gather what their gradients promise, without a bound."""
        assert isinstance(surface, Table)
        step = gradient.sign()
        columns = [column for group in surface.free_groups for column in group]
        if columns:
            steep = gradient[:, columns]
            largest = steep.abs().amax(1, keepdim=True).clamp(min=1e-30)
            step[:, columns] = _EAGER / max(self.radius, 1e-30) * steep / largest
        return step

    def realise(self, surface: Surface, clean: Tensor, point: Tensor) -> Tensor:
        """The table's row for which the point stands."""
        return self.project(surface, clean, point)

    def settle(self, surface: Surface, clean: Tensor, point: Tensor) -> Tensor:
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
