"""A watch over the distances between a client's queries."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from defenses._answers import first_inputs, require_classes, require_open
from secure_ml.batch import Batch, Tree
from secure_ml.defense import Defense
from secure_ml.errors import NotApplicable, require
from secure_ml.outputs import Classes
from secure_ml.randomness import generator
from secure_ml.stats import Estimate, Floats, clopper_pearson
from secure_ml.surfaces import Box
from secure_ml.task import Task
from secure_ml.victim import Served, Victim, Wrapped

FEW = 10
"""Distances below which a class does not count, and queries between two tests, as in the authors' code."""


@dataclass(frozen=True, kw_only=True)
class QueryDetector(Defense):
    """PRADA: refuses clients whose queries lie at unnatural distances (Juuti et al. 2019, https://arxiv.org/abs/1805.02628).

    Of each query, of inputs ``(B, *shape)``, the distance to the nearest of the client's earlier ones of the same
    served class is kept; once there are more than ``least``, less outliers beyond 3 deviations, an alarm is raised
    where Shapiro and Wilk's statistic of all of them falls below ``threshold``. Every tenth query is tested. The query
    that raises the alarm is refused, and so is all that this client asks later; what was answered before stays
    answered. One adversary is one client; who measures what is served is none, and is not watched.

    Covers: queries that are made from each other, such as those of a Jacobian augmentation. Does not cover: natural
    queries, among which those of a random pool may look honest; clients who share a watch's blind spot of ``least``
    queries each; an adversary who adds queries that make the distances normal: those of uniform noise are more normal
    than those of honest users. Its false alarms on honest traffic are
    measured by `false_alarms`: read them before its alarms. Raises `NotApplicable` unless classes of real inputs are
    served, and behind encryption; `UsageError` for a threshold outside (0, 1) or fewer than 3 distances.
    """

    threshold: float = 0.9
    """Of Shapiro and Wilk's statistic, which is 1 for what is perfectly normal."""
    least: int = 100
    """Distances that are not tested yet."""

    def __post_init__(self) -> None:
        require(0 < self.threshold < 1, f"a threshold on the statistic lies in (0, 1); given {self.threshold}")
        require(self.least >= 3, f"a test needs at least 3 distances; given least={self.least}")

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` unless inputs have distances and answers classes."""
        require_classes(self, task, places=False)
        if not any(isinstance(surface, Box) for surface in task.surfaces):
            kinds = " and ".join(type(surface).__name__ for surface in task.surfaces) or "no surface"
            raise NotApplicable(f"QueryDetector measures distances between real inputs; {task.name} has {kinds}")

    def serve(self, victim: Victim) -> Victim:
        """The victim that watches each client; `NotApplicable` behind encryption."""
        require_open(self, victim)
        return replace(victim, served=Watched(victim.served, self, victim.task))

    @classmethod
    def tiny(cls) -> QueryDetector:
        """Twenty distances."""
        return cls(least=20)


@dataclass(eq=False)
class Shelf:
    """Queries ``(n, d)`` of one class, in a tensor that doubles when it is full."""

    rows: Tensor
    n: int = 1

    @classmethod
    def of(cls, query: Tensor) -> Shelf:
        """A shelf that holds one query ``(d,)``."""
        return cls(query[None].clone())

    def add(self, query: Tensor) -> None:
        """One query more."""
        if self.n == len(self.rows):
            self.rows = torch.cat([self.rows, torch.empty_like(self.rows)])
        self.rows[self.n] = query
        self.n += 1

    def nearest(self, query: Tensor) -> float:
        """The Euclidean distance of a query to the nearest one here."""
        return float((self.rows[: self.n] - query).square().sum(1).min().sqrt())


@dataclass(eq=False)
class Watch:
    """What is remembered of one client."""

    settings: QueryDetector
    raised: bool = False
    asked: int = 0
    known: dict[int, Shelf] = field(default_factory=dict)
    """By class, the queries that later ones are compared with."""
    spread: dict[int, list[float]] = field(default_factory=dict)
    """By class, the distances at which these were added."""
    reach: dict[int, float] = field(default_factory=dict)
    """By class, the distance beyond which a query is added."""
    distances: dict[int, list[float]] = field(default_factory=dict)
    """By class, the distance of each query to the nearest known one."""

    def admits(self, query: Tensor, served: int) -> bool:
        """Whether a query ``(d,)`` that is answered with a class raises no alarm, now or before."""
        if self.raised:
            return False
        if served not in self.known:
            self.known[served], self.spread[served], self.reach[served] = Shelf.of(query), [0.0], 0.0
        else:
            self._compare(query, served)
        if self.asked % FEW == 0:
            self.raised = self.statistic() < self.settings.threshold
        self.asked += 1
        return not self.raised

    def statistic(self) -> float:
        """Shapiro and Wilk's W of the distances; 1 while there are too few."""
        counted = [values for values in self.distances.values() if len(values) >= FEW]
        found = np.concatenate([np.asarray(values) for values in counted]) if counted else np.zeros(0)
        found = found[np.abs(found - found.mean()) < 3 * found.std()] if len(found) else found
        return normality(found) if len(found) > self.settings.least else 1.0

    def _compare(self, query: Tensor, served: int) -> None:
        near = self.known[served].nearest(query)
        self.distances.setdefault(served, []).append(near)
        if near > self.reach[served]:
            self.known[served].add(query)
            spread = self.spread[served]
            spread.append(near)
            self.reach[served] = max(self.reach[served], float(np.mean(spread) - np.std(spread)))


def normality(values: Floats) -> float:
    """Shapiro and Wilk's W; of more than 5000 values, that of 5000 at equal steps, for which it is known."""
    from scipy.stats import shapiro

    if np.ptp(values) == 0:
        return 0.0
    if len(values) > 5000:
        values = values[np.linspace(0, len(values) - 1, 5000).round().astype(int)]
    return float(shapiro(values).statistic)


class Watched(Wrapped):
    """Another predictor's answers, until what a client asks raises an alarm."""

    def __init__(self, inner: Served, settings: QueryDetector, task: Task) -> None:
        super().__init__(inner)
        self.settings, self.output = settings, task.output
        self.surface = next(surface for surface in task.surfaces if isinstance(surface, Box))
        self.watch: Watch | None = None

    def session(self) -> Served:
        """A client of whom nothing is known."""
        view = super().session()
        assert isinstance(view, Watched)
        view.watch = Watch(self.settings)
        return view

    def __call__(self, inputs: Tree) -> Tensor:
        """Answers to the inputs, or to those before the alarm."""
        if self.watch is None:
            return self.inner(inputs)
        if self.watch.raised:
            return self.inner(first_inputs(inputs, 0))
        answers = self.inner(inputs)
        assert isinstance(self.output, Classes)
        served = self.output.decide(answers).tolist()
        queries = self.surface.get(inputs)[: len(served)].detach().cpu().double().flatten(1)
        for i, (query, name) in enumerate(zip(queries, served, strict=True)):
            if not self.watch.admits(query, name):
                return answers[:i]
        return answers


def false_alarms(victim: Victim, queries: int, clients: int = 20, seed: int = 0) -> Estimate:
    """The share of honest clients that a victim's stack refuses: each asks about test inputs in an order of its own.

    Each client asks ``queries`` times, at most once about an input. Clients share inputs, so that the interval, which
    takes them for independent, is too narrow. Raises `UsageError` for no client, no query, or more than test inputs.
    """
    test = victim.splits.test
    require(clients >= 1, f"false alarms are counted over at least 1 client; given {clients}")
    require(1 <= queries <= len(test), f"an honest client asks 1 to {len(test)} queries here; given {queries}")
    refused = 0
    for client in range(clients):
        rng = generator(seed, "honest client", client)
        asked: Batch = test.take(torch.randperm(len(test), generator=rng)[:queries])
        refused += len(victim.served.session()(asked.inputs)) < queries
    return clopper_pearson(refused, clients)
