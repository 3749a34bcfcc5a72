"""Steps onto the boundary, drawn back towards the clean point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.evasion._nearest import MinimumNorm, Nearest
from attacks.evasion._plane import to_plane
from secure_ml.errors import require
from secure_ml.threats.base import broadcast


@dataclass(frozen=True, kw_only=True)
class FAB(MinimumNorm):
    """The fast adaptive boundary attack (Croce and Hein 2020, https://arxiv.org/abs/1907.02044).

    Looks for the nearest input ``(B, *shape)`` of another class, in the norm of the threat: each step goes to the
    boundary as it looks from here, projected exactly onto plane and box, and is drawn towards the clean point's own
    projection. With ``targets``, a class at a time with one gradient a step (FAB-T); without, the nearest of all
    planes, with a gradient for every class. Raises `UsageError` for settings out of range.

    Differs from the paper: an example leaves once it is broken within the radius, which changes no score; points that
    were drawn back are looked at as well.
    """

    steps: int = 100
    """Gradient steps in each run."""
    restarts: int = 1
    """Runs (for each class, where there are targets): from the clean point, then from random points."""
    targets: int = 0
    """Other classes to be sent to, as many as there are at most; 0 looks for the nearest of all."""
    alpha_max: float = 0.1
    """Largest weight of the clean point's own projection."""
    eta: float = 1.05
    """How far a step goes, 1 being the boundary."""
    beta: float = 0.9
    """Where a broken point is drawn back to, between the clean point at 0 and itself at 1."""

    def __post_init__(self) -> None:
        for name in ("steps", "restarts"):
            require(getattr(self, name) >= 1, f"FAB needs {name} of at least 1; given {getattr(self, name)}")
        require(self.targets >= 0, f"FAB needs a number of targets of at least 0; given {self.targets}")
        require(0 <= self.alpha_max <= 1, f"FAB needs an alpha_max from 0 to 1; given {self.alpha_max}")
        require(self.eta >= 1, f"FAB needs an eta of at least 1, to cross the boundary; given {self.eta}")
        require(0 < self.beta < 1, f"FAB needs a beta between 0 and 1; given {self.beta}")

    @classmethod
    def tiny(cls) -> FAB:
        """Five steps."""
        return cls(steps=5)

    def search(self, near: Nearest, rng: torch.Generator) -> None:
        """Runs of all examples, towards each class in turn; then three steps towards the clean point."""
        for others in near.rounds(self.targets):
            for i in range(self.restarts):
                start = _away(near, rng) if i else near.origin
                rows = near.restart(others)
                if len(rows):
                    self._run(near, start[rows])
        near.refine(_REFINEMENTS)

    def _run(self, near: Nearest, point: Tensor) -> None:
        """From a start ``(n, *shape)`` of every row in play."""
        for i in range(self.steps):
            lead, slope = near.plane(point)
            if i == 0 and not slope.any():  # nothing would ever move
                return
            point = self._step(near, point, lead, slope)
            drawn = near.clean + self.beta * (point - near.clean)
            point = torch.where(broadcast(near.check(point), point), drawn, point)
            (point,) = near.leave(point)
            if not len(point):
                return

    def _step(self, near: Nearest, point: Tensor, lead: Tensor, slope: Tensor) -> Tensor:
        """The next point: the projections of this point and of the clean one, mixed by how near each is."""
        here, clean, flat = point.flatten(1), near.clean.flatten(1), slope.flatten(1)
        mine = to_plane(near.threat, near.surface, here, flat, lead)
        its = to_plane(near.threat, near.surface, clean, flat, lead + (flat * (clean - here)).sum(1))
        far, near_by = (near.threat.norm(change).clamp(min=1e-8) for change in (its, mine))
        share = (near_by / (near_by + far)).clamp(max=self.alpha_max)[:, None]
        there = torch.lerp(here + self.eta * mine, clean + self.eta * its, share)
        return near.surface.clamp(near.clean, there.view_as(point))


def _away(near: Nearest, rng: torch.Generator) -> Tensor:
    """A random point half as far from each clean one as the nearest broken point, or as the radius."""
    noise = near.threat.within(1.0).sample(near.origin, rng)
    length = near.size.clamp(max=near.threat.radius) / 2 / near.threat.norm(noise).clamp(min=1e-30)
    return near.surface.clamp(near.origin, near.origin + broadcast(length, noise) * noise)


_REFINEMENTS = 3
