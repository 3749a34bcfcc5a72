"""What exact attacks share: the adversary's own module of the victim's kind, queries in a box, answers as numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secure_ml.access import BlackBox
from secure_ml.errors import NotApplicable
from secure_ml.outputs import Values
from secure_ml.randomness import seeded
from secure_ml.surfaces import Box
from secure_ml.task import Task

SHAPES = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout)
"""Layers that only arrange numbers when a model is asked."""


def at_home(task: Task) -> nn.Module:
    """A module of the task's architecture, untrained, with random weights that say nothing about the victim."""
    with seeded(0, "at home"):
        return task.build().eval()


def chain(task: Task, who: str) -> list[nn.Module]:
    """The layers of a module that applies one after the other; `NotApplicable` where it does more than that."""
    module, found = at_home(task), list[nn.Module]()
    waiting = [module]
    while waiting:
        layer = waiting.pop(0)
        if isinstance(layer, nn.Sequential):
            waiting = [*layer, *waiting]
        elif next(layer.children(), None) is not None:
            raise NotApplicable(f"{who} needs layers that follow one another; {task.name} has a {type(layer).__name__}")
        else:
            found.append(layer)
    return found


def box(task: Task, who: str) -> Box:
    """The box that the inputs live in; `NotApplicable` where they are anything but one tensor of free numbers."""
    if len(task.surfaces) != 1 or type(task.surfaces[0]) is not Box or task.surfaces[0].path:
        raise NotApplicable(f"{who} asks about any point of a box; {task.name} has other inputs")
    return task.surfaces[0]


def numbers(access: BlackBox, answers: Tensor) -> Tensor:
    """Answers as ``(B, K)`` of float64: log-odds where probabilities are revealed, so that classes sum to 0.

    The logits of a model are known from its probabilities up to one number an example, which is thereby chosen.
    """
    table = answers.detach().cpu().double()
    table = table[:, None] if table.ndim == 1 else table
    several = not isinstance(access.task.output, Values) and table.shape[1] > 1
    return table - table.mean(1, keepdim=True) if several and access.reveal != "logits" else table


def solve(features: Tensor, values: Tensor) -> Tensor:
    """Weights and bias ``(d + 1, K)`` by least squares on features ``(n, d)``: the shortest where several fit."""
    table = torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], 1)
    solution: Tensor = torch.linalg.lstsq(table, values, driver="gelsd").solution
    return solution


class Spent(Exception):  # noqa: N818
    """The queries that may be made at this stage have been made."""


class Asked:
    """Every question and answer so far. A search that starts again is answered from here, and pays for what is new."""

    def __init__(self, access: BlackBox, shape: torch.Size, kind: torch.dtype) -> None:
        self.access, self.shape, self.kind, self.eps = access, shape, kind, torch.finfo(kind).eps
        self.place = self.limit = self.known = 0
        self._points = torch.empty(0, shape.numel(), dtype=torch.float64)
        self._values = torch.empty(0, 0, dtype=torch.float64)
        self.largest = 1e-30

    @property
    def points(self) -> Tensor:
        """What was asked about, ``(n, d)``, rounded as the model's inputs are."""
        return self._points[: self.known]

    @property
    def values(self) -> Tensor:
        """What was answered, ``(n, K)``."""
        return self._values[: self.known]

    @property
    def noise(self) -> float:
        """How far a sum of answers can be off by rounding: a hundred units in the last place of the largest."""
        return 100 * self.eps * self.largest

    def start(self, limit: int) -> None:
        """From the first question again, up to so many."""
        self.place, self.limit = 0, limit

    def __call__(self, points: Tensor) -> Tensor:
        """Answers ``(n, K)`` to points ``(n, d)``; `Spent` where not all may be asked about, after those that may."""
        end = min(self.place + len(points), self.limit)
        new = points[self.known - self.place : end - self.place]
        if len(new):
            new = new.to(self.kind)
            self._keep(new.double(), numbers(self.access, self.access(new.reshape(-1, *self.shape))))
        found, self.place = self.values[self.place : end], end
        if len(found) < len(points):
            raise Spent
        return found

    def _keep(self, points: Tensor, values: Tensor) -> None:
        end = self.known + len(points)
        if end > len(self._points):
            room = 2 * end - self.known
            self._points = torch.cat([self.points, points.new_empty(room, points.shape[1])])
            kept = self.values if self.known else values[:0]
            self._values = torch.cat([kept, values.new_empty(room, values.shape[1])])
        self._points[self.known : end], self._values[self.known : end] = points, values
        self.largest, self.known = max(self.largest, float(values.abs().max())), end
