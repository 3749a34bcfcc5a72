"""A random walk along the border."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.evasion._deciding import Deciding
from secure_ml.access import BlackBox
from secure_ml.batch import Batch, Tree
from secure_ml.errors import require
from secure_ml.families.evasion import Evasion
from secure_ml.outputs import Reveal
from secure_ml.surfaces import Box, Surface
from secure_ml.threats import L2, Change
from secure_ml.threats.base import broadcast


@dataclass(frozen=True, kw_only=True)
class Boundary(Evasion):
    """Boundary attack: a random walk among errors towards the input (Brendel et al. 2018, https://arxiv.org/abs/1712.04248).

    For inputs ``(B, *shape)``: each step moves an error sideways, at the same distance, and if that is an error too,
    a little closer. Both steps grow where they succeed often and shrink where they fail. All examples go in step.
    Raises `UsageError` for settings out of range, `NotApplicable` where there are no classes.

    Differs from the paper: it starts at the border by halving; an example leaves once an error lies inside the threat.
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Box,)
    threats: ClassVar[tuple[type[Change], ...]] = (L2,)
    sees: ClassVar[Reveal] = "label"
    classifies: ClassVar[bool] = True

    queries: int = 25_000
    """Queries for each example."""
    sideways: float = 0.01
    """First step along the sphere, as a share of the distance."""
    closer: float = 0.01
    """First step towards the input, as a share of the distance."""
    draws: int = 25
    """Noise inputs tried for a first error."""
    early: bool = True
    """Whether an example leaves once an error lies inside the threat; else a nearer one is sought on."""

    def __post_init__(self) -> None:
        for name in ("queries", "draws"):
            require(getattr(self, name) >= 1, f"Boundary needs {name} of at least 1; given {getattr(self, name)}")
        for name in ("sideways", "closer"):
            value = getattr(self, name)
            require(0 < value < 1, f"Boundary needs a step {name} between 0 and 1; given {value}")

    def budget(self, examples: int) -> int:
        """The queries about every example."""
        return self.queries * examples

    def perturb(self, access: BlackBox, batch: Batch, threat: L2, rng: torch.Generator) -> Tree:
        """The nearest errors found, of the shape of the batch's inputs, which may lie outside the threat."""
        if threat.radius == 0:
            return batch.inputs
        hunt = Deciding(access, batch, threat, self.queries, self.early)
        hunt.begin(self.draws, rng)
        hunt.halve(hunt.nearest[hunt.rows], min(_HALVINGS, hunt.left))
        sideways = torch.full_like(hunt.distance, self.sideways)
        closer = torch.full_like(hunt.distance, self.closer)
        while hunt.left >= 2:
            hunt.leave()
            rows = hunt.rows
            if not len(rows):
                break
            moved = _sideways(hunt, sideways[rows], rng)
            still = hunt.wrong(moved)
            trial = moved + broadcast(closer[rows], moved) * (hunt.clean[rows] - moved)
            nearer = torch.zeros_like(still)
            nearer[still] = hunt.wrong(trial[still], rows[still])
            hunt.keep(trial[nearer], rows[nearer])
            hunt.place(moved[still & ~nearer], rows[still & ~nearer])
            sideways[rows] = _paced(sideways[rows], still)
            closer[rows] = torch.where(still, _paced(closer[rows], nearer), closer[rows])
        return hunt.inputs()

    @classmethod
    def tiny(cls) -> Boundary:
        """Sixty queries."""
        return cls(queries=60, draws=5, sideways=0.1, closer=0.1)


_HALVINGS = 10
_UP = 1.1


def _paced(length: Tensor, success: Tensor) -> Tensor:
    """Longer after success and shorter after failure: in balance where one in three succeeds."""
    return torch.where(success, length * _UP**2, length / _UP).clamp(max=0.5)


def _sideways(hunt: Deciding, share: Tensor, rng: torch.Generator) -> Tensor:
    """Each point in play moved in a random direction across its own, at the same distance from the clean one."""
    point, clean = hunt.nearest[hunt.rows], hunt.clean[hunt.rows]
    change = (point - clean).flatten(1)
    distance = change.norm(dim=1, keepdim=True).clamp(min=1e-12)
    along = change / distance
    noise = torch.randn(point.shape, generator=rng).to(point).flatten(1)
    noise = noise - (noise * along).sum(1, keepdim=True) * along
    noise = noise / noise.norm(dim=1, keepdim=True).clamp(min=1e-12)
    turned = along + share[:, None] * noise
    turned = distance * turned / turned.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return hunt.surface.clamp(clean, clean + turned.view_as(point))
