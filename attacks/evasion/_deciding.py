"""A batch under attack by somebody who is told nothing but the class: where each example's nearest error is."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from secure_ml.access import BlackBox
from secure_ml.batch import Batch, Tree
from secure_ml.outputs import Classes
from secure_ml.surfaces import Box
from secure_ml.threats import Ball
from secure_ml.threats.base import broadcast


class Deciding:
    """Asks what class points ``(n, *shape)`` have, and keeps the nearest point of each example that has a wrong one.

    All examples in play, ``rows``, ask in step; ``left`` is the number of queries that each of them still has. The
    clean inputs are asked about first: what is wrong already is its own nearest error.
    """

    def __init__(self, access: BlackBox, batch: Batch, threat: Ball, queries: int, early: bool) -> None:
        self.access, self.batch, self.threat, self.early = access, batch, threat, early
        surface = access.task.surface(threat)
        assert isinstance(surface, Box)
        self.surface = surface
        self.clean = surface.get(batch.inputs)
        self.rows = torch.arange(len(batch), device=self.clean.device)
        self.left = queries
        self.nearest = self.clean.clone()
        self.answered = self._answer(batch.inputs)
        self.left -= 1
        wrong = self._wrong(self.answered, cast("Tensor", batch.target))
        self.distance = torch.where(wrong, 0.0, torch.inf)
        self.rows = (~wrong).nonzero()[:, 0]

    def inputs(self) -> Tree:
        """The batch's inputs, each example at its nearest error, or clean where none was found."""
        return self.surface.put(self.batch.inputs, self.nearest)

    def wrong(self, point: Tensor, rows: Tensor | None = None, cost: int = 1) -> Tensor:
        """Whether each point is answered wrongly, ``(n,)``; of the examples in play, or of some ``rows`` of the batch.

        It takes ``cost`` queries of each of them.
        """
        rows = self.rows if rows is None else rows
        self.left -= cost
        if not len(rows):
            return rows.bool()
        here = self.batch.take(rows)
        clean = self.surface.get(here.inputs)
        asked = self.surface.put(here.inputs, self.surface.snap(clean, self.surface.clamp(clean, point)))
        return self._wrong(self._answer(asked), cast("Tensor", here.target))

    def keep(self, point: Tensor, rows: Tensor | None = None) -> None:
        """Remember wrong points that are nearer to their examples than all before."""
        rows = self.rows if rows is None else rows
        distance = self.threat.size(self.clean[rows], point)
        nearer = distance < self.distance[rows]
        self.nearest[rows[nearer]], self.distance[rows[nearer]] = point[nearer], distance[nearer]

    def place(self, point: Tensor, rows: Tensor) -> None:
        """Go on from other wrong points of some rows, though they are no nearer (but for rounding)."""
        self.nearest[rows], self.distance[rows] = point, self.threat.size(self.clean[rows], point)

    def leave(self) -> None:
        """Who has an error inside the threat needs no nearer one (unless asked to go on)."""
        if self.early:
            self.rows = self.rows[self.distance[self.rows] > self.threat.radius]

    def begin(self, draws: int, rng: torch.Generator) -> None:
        """First errors: uniform noise, else the nearest of the batch's own inputs that is answered otherwise.

        Where there is neither, the example leaves.
        """
        shape, whole = self.clean.shape[1:], self.surface.high - self.surface.low
        for _ in range(min(draws, self.left)):
            without = self.rows[self.distance[self.rows] == torch.inf]
            if not len(without):
                break
            noise = torch.rand(len(without), *shape, generator=rng).to(self.clean) * whole + self.surface.low
            found = self.wrong(noise, without)
            self.keep(noise[found], without[found])
        self._borrow(self.rows[self.distance[self.rows] == torch.inf])
        self.rows = self.rows[self.distance[self.rows] < torch.inf]

    def _borrow(self, rows: Tensor) -> None:
        """Errors among what the adversary holds and has asked about anyway; a table's rules are kept."""
        if not len(rows) or type(self.surface) is not Box:
            return
        for row in rows.split(_BLOCK):
            target = cast("Tensor", self.batch.target)[row]
            classes = self.answered.expand(len(row), -1)
            fits = (classes == target[:, None]) == self._reach
            apart = torch.cdist(self.clean[row].flatten(1), self.clean.flatten(1)).masked_fill(~fits, torch.inf)
            near, index = apart.min(1)
            there = near < torch.inf
            self.keep(self.clean[index[there]], row[there])

    def halve(self, point: Tensor, steps: int) -> Tensor:
        """Wrong points at the border, on the way from each wrong point in play to its clean one, by halving.

        In Linf the way cuts every coordinate at the same length, else it is the straight line.
        """
        clean, size = self.clean[self.rows], self.threat.size(self.clean[self.rows], point)
        low, high = torch.zeros_like(size), torch.ones_like(size)
        best = point
        for _ in range(steps):
            middle = (low + high) / 2
            trial = self.between(clean, point, size, middle)
            found = self.wrong(trial)
            best = torch.where(broadcast(found, point), trial, best)
            low, high = torch.where(found, low, middle), torch.where(found, middle, high)
        self.keep(best)
        return best

    def between(self, clean: Tensor, point: Tensor, size: Tensor, part: Tensor) -> Tensor:
        """The point at a part ``(n,)`` of the way from the clean one."""
        if self.round:
            return clean + broadcast(part, point) * (point - clean)
        length = broadcast(part * size, point)
        return torch.minimum(torch.maximum(point, clean - length), clean + length)

    @property
    def round(self) -> bool:
        """Whether the norm is one whose balls have no flat sides."""
        return type(self.threat).__name__ != "Linf"

    @property
    def _reach(self) -> bool:
        return not self.access.task.score.higher_is_better

    def _answer(self, inputs: Tree) -> Tensor:
        output = self.access.task.output
        assert isinstance(output, Classes)
        return output.decide(self.access(inputs))

    def _wrong(self, classes: Tensor, target: Tensor) -> Tensor:
        return (classes == target) == self._reach


_BLOCK = 256
"""Examples whose distances to all others are computed at a time."""
