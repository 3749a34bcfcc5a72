"""The search for the nearest broken point: who is still searched, and the nearest that was found for each."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from attacks.evasion._losses import margin, objective, rivals, two_columns
from attacks.evasion._plane import DUAL
from secure_ml.access import WhiteBox
from secure_ml.batch import Batch, Tree
from secure_ml.families.evasion import Evasion
from secure_ml.surfaces import Box, Surface
from secure_ml.task import Loss, Predictor
from secure_ml.threats import L1, L2, Change, Linf
from secure_ml.threats.balls import Ball
from secure_ml.threats.base import broadcast


class Nearest:
    """Looks at points of the examples in play, and keeps the nearest broken point of each.

    ``rows`` says which example each row in play belongs to: an example is in play once, or once for each class that
    it is sent to. An example whose nearest point is no farther than ``enough`` leaves; with 0, none does but those
    that are broken as they are. ``size`` ``(B,)`` is the distance found, in the threat's norm, infinite until then.
    """

    def __init__(
        self, access: WhiteBox, batch: Batch, threat: Ball, enough: float = 0.0, confidence: float = 0.0
    ) -> None:
        surface = access.task.surface(threat)
        assert isinstance(surface, Box)
        self.access, self.batch, self.threat, self.enough = access, batch, threat, enough
        self.confidence = confidence
        self.surface: Box = surface
        self.origin = surface.get(batch.inputs)
        self.point = self.origin.clone()
        self.size = self.origin.new_full((len(batch),), torch.inf)
        self.steps = 0
        self._enter(torch.arange(len(batch), device=self.origin.device), None)
        if len(batch):
            self.check(self.origin)

    def found(self) -> tuple[Tree, Tensor]:
        """The inputs at their nearest broken points (as they were, where none was found), and the distances."""
        return self.surface.put(self.batch.inputs, self.point), self.size

    def restart(self, others: Tensor | None = None) -> Tensor:
        """Put every example in play that is still searched (once for each of its ``others`` ``(B, n)``), say which."""
        rows = (self.size > self.enough).nonzero()[:, 0]
        if others is None:
            self._enter(rows, None)
        else:
            self._enter(rows.repeat_interleave(others.shape[1]), others[rows].flatten())
        return self.rows

    def rounds(self, targets: int) -> list[Tensor | None]:
        """Other classes ``(B, n)`` to be sent to together, the closest first; without targets one round of None.

        As many together as fit into a chunk; where one class is to be reached, there is no other to choose.
        """
        if not targets or not self.access.task.score.higher_is_better:
            return [None]
        ranked = rivals(self.access, self.batch, targets)
        standing = max(int((self.size > self.enough).sum()), 1)
        return list(ranked.split(max(1, self.access.task.chunk // standing), dim=1))

    def look(self, point: Tensor, loss: Loss | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Which points ``(n, *shape)`` are broken, how far the other class leads there, and that lead's gradient.

        The other class is the one that each row is sent to, or the strongest, or the one that a loss picks.
        """
        here = Batch(self.surface.put(self.here.inputs, point), self.here.target)
        seen = self.access.ascend(here, self.surface, loss or objective(self.access.task, "margin", self.others))
        return self.note(point, seen.outputs), seen.losses, seen.gradient.nan_to_num(0.0, 0.0, 0.0)

    def plane(self, point: Tensor, ranked: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The lead ``(n,)`` and its slope of the class whose boundary, as it looks from here, is the nearest.

        Of all other classes, or of those in ``ranked`` ``(n, m)``; one gradient for each of them, and one forward pass
        for all. Of a row that is sent to a class, or that is to reach one, that class's.
        """
        if self.others is not None or not self.access.task.score.higher_is_better:
            _, lead, slope = self.look(point)
            return lead, slope
        planes: list[tuple[Tensor, Tensor]] = []

        def leads(predictor: Predictor, batch: Batch) -> Tensor:
            """The last class's lead, which is what is climbed; those of the others are climbed here, in passing."""
            logits, leaf = two_columns(predictor(batch.inputs)), self.surface.get(batch.inputs)
            assert isinstance(batch.target, Tensor)
            others = _others(logits, batch.target) if ranked is None else ranked
            *early, last = (logits.gather(1, others) - logits.gather(1, batch.target[:, None])).unbind(1)
            for one in early:
                (slope,) = torch.autograd.grad(one.sum(), leaf, retain_graph=True)
                planes.append((one.detach(), slope.nan_to_num(0.0, 0.0, 0.0)))
            return last

        _, lead, slope = self.look(point, leads)
        self.access.gradients += len(planes) * len(point)
        dual = DUAL[type(self.threat)]
        nearest = lead.abs() / (dual.norm(slope) + 1e-12)
        for other, its_slope in planes:
            distance = other.abs() / (dual.norm(its_slope) + 1e-12)
            nearer = distance < nearest
            nearest, lead = torch.where(nearer, distance, nearest), torch.where(nearer, other, lead)
            slope = torch.where(broadcast(nearer, slope), its_slope, slope)
        return lead, slope

    def check(self, point: Tensor) -> Tensor:
        """Which points ``(n, *shape)`` are broken, without a gradient; the nearest are kept."""
        point = self.surface.snap(self.clean, point)
        return self.note(point, self.access(self.surface.put(self.here.inputs, point)))

    def lead(self, outputs: Tensor) -> Tensor:
        """How far the goal is reached by answers to the rows in play, ``(n,)``: above 0 it is."""
        assert isinstance(self.here.target, Tensor)
        sign = 1 if self.access.task.score.higher_is_better else -1
        return sign * margin(two_columns(outputs), self.here.target, None)

    def broken(self, outputs: Tensor) -> Tensor:
        """Whether the goal is reached, by the task's own score where that can tell, and with the confidence asked."""
        score = self.access.task.score
        if self.confidence:
            return self.lead(outputs) >= self.confidence
        if score.ceiling == torch.inf:
            return self.lead(outputs) > 0
        return score.harm(score.per_example(outputs, self.here.target)) >= score.ceiling

    def note(self, point: Tensor, outputs: Tensor) -> Tensor:
        """Keep each point that is broken and nearer than all before; of several rows of one example, the nearest."""
        hit = self.broken(outputs)
        size = torch.where(hit, self.threat.norm(point - self.clean), torch.inf).to(self.size)
        best = self.size.scatter_reduce(0, self.rows, size, "amin")
        winner = (size < self.size[self.rows]) & (size == best[self.rows])
        place = torch.where(winner, torch.arange(len(size), device=size.device), len(size))
        first = self.rows.new_full((len(self.batch),), len(size)).scatter_reduce(0, self.rows, place, "amin")
        changed = (first < len(size)).nonzero()[:, 0]
        self.point[changed] = point[first[changed]]
        self.size = best
        return hit

    def leave(self, *state: Tensor) -> tuple[Tensor, ...]:
        """Let examples leave that are near enough; what is left of the state ``(n, ...)`` of each row in play."""
        self.steps += 1
        if self.origin.is_cuda and self.steps % _PATIENCE:
            return state
        return self.keep(self.size[self.rows] > self.enough, *state)

    def keep(self, stay: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Let all rows leave but those that stay ``(n,)``, and return what is left of the state."""
        if bool(stay.all()):
            return state
        self._enter(self.rows[stay], None if self.others is None else self.others[stay])
        return tuple(values[stay] for values in state)

    def refine(self, steps: int) -> None:
        """Draw each nearest point towards the clean one, to where a straight line puts the boundary between them."""
        self._enter(((self.size > self.enough) & self.size.isfinite()).nonzero()[:, 0], None)
        if not len(self.rows):
            return
        inner, outer = self.clean, self.point[self.rows]
        low, high = (self.lead(self.access(self.surface.put(self.here.inputs, end))) for end in (inner, outer))
        for _ in range(steps):
            share = (low / (low - high)).nan_to_num(0.5).clamp(0, 1).reshape(-1, *[1] * (inner.ndim - 1))
            middle = self.surface.snap(self.clean, inner + share * (outer - inner))
            outputs = self.access(self.surface.put(self.here.inputs, middle))
            hit, lead = self.note(middle, outputs), self.lead(outputs)
            wide = hit.reshape(share.shape)
            inner, outer = torch.where(wide, inner, middle), torch.where(wide, middle, outer)
            low, high = torch.where(hit, low, lead), torch.where(hit, lead, high)

    def _enter(self, rows: Tensor, others: Tensor | None) -> None:
        self.rows, self.others = rows, others
        self.here = self.batch.take(rows)
        self.clean = self.surface.get(self.here.inputs)


class MinimumNorm(Evasion):
    """An attack that looks for the nearest broken point, in the norm of the threat.

    Where only the radius counts, it stops searching an example that is broken within it.
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Box,)
    threats: ClassVar[tuple[type[Change], ...]] = (Linf, L2, L1)
    classifies: ClassVar[bool] = True

    @abstractmethod
    def search(self, near: Nearest, rng: torch.Generator) -> None:
        """Look at points of the examples that are still searched; the nearest broken ones are kept."""

    def confidence(self) -> float:
        """How far the other class must lead for a point to count as broken."""
        return 0.0

    def perturb(self, access: WhiteBox, batch: Batch, threat: Ball, rng: torch.Generator) -> Tree:
        """The nearest broken inputs, of the shape of the batch's; those within the radius are searched no further."""
        return self._hunt(Nearest(access, batch, threat, threat.radius, self.confidence()), rng)[0]

    def distances(self, access: WhiteBox, batch: Batch, threat: Ball, rng: torch.Generator) -> tuple[Tree, Tensor]:
        """The nearest broken inputs at any distance, and the distances ``(B,)`` in the threat's norm.

        A distance is 0 where the answer is wrong already, and infinite where no broken input was found. The share of
        distances above a radius is the accuracy within it: one run gives the whole curve.
        """
        return self._hunt(Nearest(access, batch, threat, 0.0, self.confidence()), rng)

    def _hunt(self, near: Nearest, rng: torch.Generator) -> tuple[Tree, Tensor]:
        near.restart()
        if len(near.rows):
            self.search(near, rng)
        return near.found()


def _others(logits: Tensor, label: Tensor) -> Tensor:
    """All classes ``(n, K - 1)`` but the label."""
    classes = torch.arange(logits.shape[1] - 1, device=logits.device)
    return classes + (classes >= label[:, None]).long()


_PATIENCE = 10
"""On a GPU, whose queue would run empty if it were asked after each step who may leave: steps between questions."""
