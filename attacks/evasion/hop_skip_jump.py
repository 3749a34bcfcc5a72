"""A way along the border, found by asking for classes only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.evasion._deciding import Deciding
from attacks.evasion._slopes import portions
from secure_ml.access import BlackBox
from secure_ml.batch import Batch, Tree
from secure_ml.errors import require
from secure_ml.families.evasion import Evasion
from secure_ml.outputs import Reveal
from secure_ml.surfaces import Box, Surface
from secure_ml.threats import L2, Ball, Change, Linf
from secure_ml.threats.base import broadcast


@dataclass(frozen=True, kw_only=True)
class HopSkipJump(Evasion):
    """HopSkipJump: nearest errors from decisions only (Chen et al. 2020, https://arxiv.org/abs/1904.02144).

    For inputs ``(B, *shape)``: from an error found by noise (else the batch's nearest input of another class), to the
    border by halving; there the normal is estimated from decisions about random changes; a step along it, and back to
    the border. All examples go in step. Raises `UsageError` for settings out of range, `NotApplicable` where there
    are no classes.

    Differs from the paper: an example leaves once an error lies inside the threat; what the queries do not last for
    is left out, the last normal being estimated from what is left.
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Box,)
    threats: ClassVar[tuple[type[Change], ...]] = (Linf, L2)
    sees: ClassVar[Reveal] = "label"
    classifies: ClassVar[bool] = True

    queries: int = 10_000
    """Queries for each example."""
    samples: int = 100
    """Queries for the first normal; the t-th takes ``sqrt(t)`` times as many."""
    draws: int = 25
    """Noise inputs tried for a first error."""
    early: bool = True
    """Whether an example leaves once an error lies inside the threat; else a nearer one is sought on."""

    def __post_init__(self) -> None:
        for name in ("queries", "samples", "draws"):
            require(getattr(self, name) >= 1, f"HopSkipJump needs {name} of at least 1; given {getattr(self, name)}")

    def budget(self, examples: int) -> int:
        """The queries about every example."""
        return self.queries * examples

    def perturb(self, access: BlackBox, batch: Batch, threat: Ball, rng: torch.Generator) -> Tree:
        """The nearest errors found, of the shape of the batch's inputs, which may lie outside the threat."""
        if threat.radius == 0:
            return batch.inputs
        hunt = Deciding(access, batch, threat, self.queries, self.early)
        hunt.begin(self.draws, rng)
        size = max(hunt.clean[:1].numel(), 1)
        halvings = max(math.ceil((1.5 if hunt.round else 2) * math.log2(size)), _LEAST)
        hunt.halve(hunt.nearest[hunt.rows], min(halvings, hunt.left))
        hunt.leave()
        t, width = 1, torch.full_like(hunt.distance, _FIRST * (hunt.surface.high - hunt.surface.low))
        while len(hunt.rows):
            samples = min(int(self.samples * math.sqrt(t)), _MOST, hunt.left - halvings - _STEPS)
            if samples < 1:
                break
            point = hunt.nearest[hunt.rows]
            normal = _normal(hunt, point, width[hunt.rows], samples, rng)
            there = _stride(hunt, point, normal, t)
            # As in the paper's code, by the distance before the way back to the border.
            width[hunt.rows] = threat.size(hunt.clean[hunt.rows], there) / size
            hunt.halve(there, halvings)
            hunt.leave()
            t += 1
        return hunt.inputs()

    @classmethod
    def tiny(cls) -> HopSkipJump:
        """Sixty queries."""
        return cls(queries=80, samples=15, draws=5)


_LEAST = 8
"""Halvings at least, where inputs have few coordinates."""
_FIRST, _MOST, _STEPS = 0.1, 10_000, 15
"""First width as a share of the box, samples and halvings of the step at most."""


def _normal(hunt: Deciding, point: Tensor, width: Tensor, samples: int, rng: torch.Generator) -> Tensor:
    """The direction ``(n, *shape)`` into the wrong side: the mean of changes, weighted by their decisions."""
    n, shape = len(point), point.shape[1:]
    votes, plain, total = torch.zeros_like(point), torch.zeros_like(point), point.new_zeros(n)
    for k in portions(samples, n, hunt.access.task.chunk):
        noise = (
            torch.randn(n * k, *shape, generator=rng)
            if hunt.round
            else 2 * torch.rand(n * k, *shape, generator=rng) - 1
        )
        noise = noise / broadcast(noise.flatten(1).norm(dim=1).clamp(min=1e-12), noise)
        rows, middle = hunt.rows.repeat_interleave(k), point.repeat_interleave(k, 0)
        reach = broadcast(width.repeat_interleave(k), middle)
        trial = hunt.surface.clamp(hunt.clean[rows], middle + reach * noise.to(point))
        vote = (hunt.wrong(trial, rows, cost=k).to(point) * 2 - 1).view(n, k)
        change = ((trial - middle) / reach).view(n, k, *shape)
        votes += (change * vote.view(n, k, *[1] * len(shape))).sum(1)
        plain += change.sum(1)
        total += vote.sum(1)
    mean = total / samples
    mean = torch.where(mean.abs() == 1, 0.0, mean)  # all alike: the votes as they are
    normal = votes - broadcast(mean, point) * plain
    return L2(1.0).steepest(normal) if hunt.round else normal.sign()


def _stride(hunt: Deciding, point: Tensor, normal: Tensor, t: int) -> Tensor:
    """Wrong points ``distance / sqrt(t)`` along the normal; half as far where that is not wrong, and so on."""
    length = hunt.distance[hunt.rows] / math.sqrt(t)
    there, pending = point.clone(), torch.arange(len(point), device=point.device)
    for _ in range(_STEPS):
        if not len(pending):
            break
        rows = hunt.rows[pending]
        step = broadcast(length[pending], point[pending]) * normal[pending]
        trial = hunt.surface.clamp(hunt.clean[rows], point[pending] + step)
        found = hunt.wrong(trial, rows)
        there[pending[found]] = trial[found]
        length, pending = length / 2, pending[~found]
    return there
