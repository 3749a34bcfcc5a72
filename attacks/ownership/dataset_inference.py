"""Accusation by how far a suspect's boundary lies from the victim's training examples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.ownership._thief import check_settings, default_thief
from secure_ml.access import BlackBox
from secure_ml.batch import Batch
from secure_ml.errors import NotApplicable, require
from secure_ml.families.extraction import Extraction
from secure_ml.families.ownership import Evidence, Owner, Ownership, decide
from secure_ml.surfaces import Box
from secure_ml.task import Task
from secure_ml.threats import Threat


@dataclass(frozen=True, kw_only=True)
class DatasetInference(Ownership):
    """Members lie further from the boundary, in a copy too (Maini et al. 2021, https://arxiv.org/abs/2104.10706).

    Blind walk: from inputs ``(B, *shape)`` a suspect is asked along random directions until its label changes. The
    steps that takes, direction by direction, are weighed by what tells members from others on the victim itself, and
    Welch's one-sided t-test compares the weighted distances of other training examples with those of public ones, which
    nobody was trained on. Every suspect is walked along the same directions.

    The p-value is one of a difference between two samples: it accuses an independent model where public examples are
    easier or harder than private ones by themselves (Szyller et al. 2022, https://arxiv.org/abs/2210.13631), and
    whoever overfits nothing, or trains adversarially, is not found. Here the public examples are non-members of the
    same distribution: the control shows whether that was enough. Raises `NotApplicable` where inputs are no plain box
    of numbers or an answer is not one class, `UsageError` for settings out of range.

    Differs from the paper: a ridge regression in the place of a two-layer net.
    """

    points: int = 100
    """Private, and public examples; half of each teach what tells them apart, on the victim."""
    directions: int = 10
    """Random directions of each of three kinds: uniform, Gaussian, Laplacian noise."""
    steps: int = 50
    """Steps along a direction, at most."""
    length: float = 0.05
    """Of a step, as a share of the box, in the root mean square over the input's numbers."""
    queries: int = 2000
    """Budget of each thief, who asks random questions and imitates the probabilities."""
    stealing: Extraction | None = None
    """Another thief, in the place of that one."""
    copies: int = 3
    """Stolen models."""
    independents: int = 10
    """Models of the same task, on other data, that were not stolen."""
    level: float = 0.01
    """Of the test: the most p that is an accusation."""

    def __post_init__(self) -> None:
        check_settings("DatasetInference", self.copies, self.independents, self.level, self.queries)
        require(self.points >= 6, f"DatasetInference needs at least 6 points; given {self.points}")
        for name in ("directions", "steps"):
            given = getattr(self, name)
            require(given >= 1, f"DatasetInference needs {name} of at least 1; given {given}")
        require(0 < self.length <= 1, f"DatasetInference needs a length between 0 and 1; given {self.length}")

    @property
    def thief(self) -> Extraction:
        """Who makes the copies."""
        return self.stealing or default_thief(self.queries)

    def check(self, task: Task, threat: Threat | None) -> None:
        """Raise `NotApplicable` where there is no walking in a box."""
        super().check(task, threat)
        if not any(type(surface) is Box for surface in task.surfaces):
            raise NotApplicable(f"DatasetInference walks through real numbers; {task.name} has none in a plain box")

    def collect(self, owner: Owner, rng: torch.Generator) -> Evidence:
        """Private and public examples, and what tells them apart on the victim."""
        splits, task = owner.victim.splits, owner.task
        n = min(self.points, len(splits.train), len(splits.nonmembers))
        require(n >= 6, f"{task} has too few examples for a test of members against others: {n}")
        members, others = (
            part.take(torch.randperm(len(part), generator=rng)[:n]) for part in (splits.train, splits.nonmembers)
        )
        taught = n // 2
        walked = [
            self._walk(BlackBox(task, owner.victim.served, "label"), some.take(slice(0, taught)))
            for some in (members, others)
        ]
        weights = _ridge(*walked)
        return Evidence(members.take(slice(taught, n)), public=others.take(slice(taught, n)), weights=weights)

    def accuse(self, evidence: Evidence, suspect: BlackBox, rng: torch.Generator) -> float:
        """Welch's test of whether private examples lie further away."""
        from scipy.stats import ttest_ind_from_stats

        assert evidence.public is not None
        assert evidence.weights is not None
        walked = [self._walk(suspect, batch) for batch in (evidence.questions, evidence.public)]
        private, public = (steps @ evidence.weights for steps in walked)
        moments = [(float(some.mean()), float(some.std()), len(some)) for some in (private, public)]
        if max(spread for _, spread, _ in moments) < 1e-9:
            return 1.0  # every walk is as long as the other
        return float(ttest_ind_from_stats(*moments[0], *moments[1], equal_var=False, alternative="greater").pvalue)

    def _walk(self, suspect: BlackBox, batch: Batch) -> Tensor:
        """Steps until the label changes, ``(B, 3 * directions)``, in shares of the longest walk; all at once."""
        surface = next(surface for surface in suspect.task.surfaces if type(surface) is Box)
        ways = 3 * self.directions
        named = decide(suspect, batch.inputs).repeat(ways)
        many = batch.map(lambda tensor: tensor.repeat(ways, *[1] * (tensor.ndim - 1)))
        clean = surface.get(many.inputs)
        stride = self.length * (surface.high - surface.low) * _directions(surface.get(batch.inputs), self.directions)
        walked = torch.full((len(clean),), float(self.steps), device=clean.device)
        going = torch.arange(len(clean), device=clean.device)
        for step in range(1, self.steps + 1):
            here = surface.clamp(clean[going], clean[going] + step * stride[going])
            changed = decide(suspect, surface.put(many.take(going).inputs, here)) != named[going]
            walked[going[changed]] = step
            going = going[~changed]
            if not len(going):
                break
        return (walked / self.steps).double().view(ways, -1).T

    @classmethod
    def tiny(cls) -> DatasetInference:
        """Eight points, one direction of each kind, three steps, one copy by eight queries, two independent models."""
        return cls(points=8, directions=1, steps=3, queries=8, copies=1, independents=2)


def _directions(clean: Tensor, count: int) -> Tensor:
    """Directions ``(3 * count * B, *shape)`` of unit root mean square, the same at every call for as many inputs."""
    rng = torch.Generator().manual_seed(0)
    shape = (count, *clean.shape)
    uniform = torch.rand(shape, generator=rng) * 2 - 1
    gauss = torch.randn(shape, generator=rng)
    signs = (torch.rand(shape, generator=rng) < 0.5).float() * 2 - 1
    laplace = signs * torch.empty(shape).exponential_(generator=rng)
    found = torch.cat([uniform, gauss, laplace]).flatten(0, 1)
    size = found.flatten(1).square().mean(1).sqrt().clamp(min=1e-12)
    return (found / size.view(-1, *[1] * (found.ndim - 1))).to(clean)


def _ridge(members: Tensor, others: Tensor) -> Tensor:
    """Weights ``(d,)`` whose product with distances is high for members: a ridge regression, scaled by the spread."""
    both = torch.cat([members, others])
    target = torch.cat([torch.ones(len(members)), -torch.ones(len(others))]).to(both)
    centred = both - both.mean(0)
    gram = centred.T @ centred
    strength = gram.diagonal().mean().clamp(min=1e-9)
    wanted = centred.T @ (target - target.mean())
    weights: Tensor = torch.linalg.solve(gram + strength * torch.eye(len(gram)).to(gram), wanted)
    return weights
