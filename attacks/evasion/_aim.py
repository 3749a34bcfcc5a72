"""A batch under attack: the examples still to be broken, the worst point of each so far, and what it took."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attacks.evasion._losses import objective, rivals
from secure_ml.access import WhiteBox
from secure_ml.batch import Batch, Tree
from secure_ml.scores import ClosedLoop
from secure_ml.surfaces import Surface
from secure_ml.task import Loss
from secure_ml.threats import Change, Walk


class Aim:
    """Looks at points of the examples in play, keeps the worst point of each, and lets broken examples leave.

    ``rows`` says which example of the batch each row in play belongs to; an example is in play once, or once for
    each class that it is to reach. Worst is first by the task's score and then by the loss.
    """

    def __init__(
        self,
        access: WhiteBox,
        batch: Batch,
        threat: Change,
        loss: str | Loss = "task",
        early: bool = True,
        samples: int = 1,
    ) -> None:
        self.access, self.batch, self.threat, self.loss = access, batch, threat, loss
        self.samples = samples
        self.surface: Surface = access.task.surface(threat)
        self.origin = self.surface.get(batch.inputs)
        self.worst = self.origin
        self.harm = self.origin.new_full((len(batch),), -torch.inf, dtype=torch.float32)
        self.peak = self.harm.clone()
        self.ceiling = access.task.score.ceiling if early else torch.inf
        self.steps = 0
        self._enter(torch.arange(len(batch), device=self.origin.device), None)

    def inputs(self) -> Tree:
        """The batch's inputs, each example at its worst point."""
        return self.surface.put(self.batch.inputs, self.worst)

    def standing(self) -> Tensor:
        """Which examples ``(B,)`` are not broken yet."""
        return self.harm < self.ceiling

    def restart(self, others: Tensor | None = None) -> Tensor:
        """Put every standing example in play again, and return which they are.

        With ``others`` ``(B, n)``, classes to be reached, an example is in play once for each of them that it has;
        -1 stands for no class.
        """
        rows = self.standing().nonzero()[:, 0]
        if others is None:
            self._enter(rows, None)
            return rows
        targets = others[rows]
        rows, targets = rows.repeat_interleave(targets.shape[1]), targets.flatten()
        self._enter(rows[targets >= 0], targets[targets >= 0])
        return self.rows

    def rounds(self, targets: int) -> Iterator[Tensor | None]:
        """Classes ``(B, n)`` to be sent to together, the closest first, until each example was sent to ``targets``.

        As many at once as fit into a chunk beside those that still stand; without targets one round of None.
        """
        if not targets:
            yield None
            return
        ranked = rivals(self.access, self.batch, targets)
        while ranked.shape[1]:
            standing = max(int(self.standing().sum()), 1)
            n = max(1, self.access.task.chunk // standing)
            yield ranked[:, :n]
            ranked = ranked[:, n:]

    def look(self, point: Tensor, gradient: bool = True, keep: bool = True) -> tuple[Tensor, Tensor]:
        """Losses ``(n,)`` of the points ``(n, *shape)`` in play and the gradient there; keeps what is the worst yet.

        Without ``gradient`` the second is meaningless. Of modules that answer at random, the mean of ``samples``.
        """
        if isinstance(self.threat, Walk):
            point = self.threat.realise(self.surface, self.clean, point)
        here = Batch(self.surface.put(self.here.inputs, point), self.here.target)
        climbed = objective(self.access.task, self.loss, self.others)
        looks = [self._once(here, climbed, gradient) for _ in range(self.samples)]
        losses, outputs, slope = (
            looks[0] if len(looks) == 1 else (torch.stack(part).mean(0) for part in zip(*looks, strict=True))
        )
        if keep:
            self.keep(point, outputs, losses)
        return losses, slope

    def _once(self, here: Batch, climbed: Loss | None, gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
        if gradient:
            seen = self.access.ascend(here, self.surface, climbed)
            return seen.losses, seen.outputs, seen.gradient
        losses, outputs = self.access.observe(here, climbed)
        return losses, outputs, self.surface.get(here.inputs)

    def keep(self, point: Tensor, outputs: Tensor, losses: Tensor) -> None:
        """Remember each point that is worse for its example than all before it."""
        score = self.access.task.score
        losses = losses.float()
        harm = torch.full_like(losses, -torch.inf)
        if not isinstance(score, ClosedLoop):
            harm = score.harm(score.per_example(outputs, self.here.target)).float()
        if self.others is not None:
            self._keep_of_many(point, harm, losses)
            return
        before, peak = self.harm[self.rows], self.peak[self.rows]
        better = (harm > before) | ((harm == before) & (losses > peak))
        self.harm[self.rows] = torch.where(better, harm, before)
        self.peak[self.rows] = torch.where(better, losses, peak)
        shape = better.reshape(-1, *[1] * (point.ndim - 1))
        self._place(self.rows, torch.where(shape, point, self.worst[self.rows]))

    def leave(self, *state: Tensor) -> tuple[Tensor, ...]:
        """Let broken examples leave, and return what is left of the state ``(n, ...)`` of each row in play."""
        self.steps += 1
        if self.ceiling == torch.inf or (self.origin.is_cuda and self.steps % _PATIENCE):
            return state
        stay = self.harm[self.rows] < self.ceiling
        if bool(stay.all()):
            return state
        self._enter(self.rows[stay], None if self.others is None else self.others[stay])
        return tuple(values[stay] for values in state)

    def _enter(self, rows: Tensor, others: Tensor | None) -> None:
        self.rows, self.others = rows, others
        self.here = self.batch if len(rows) == len(self.batch) and others is None else self.batch.take(rows)
        self.clean = self.surface.get(self.here.inputs)

    def _keep_of_many(self, point: Tensor, harm: Tensor, losses: Tensor) -> None:
        """The same where an example has several rows: the first row that breaks it is kept."""
        score = losses.masked_fill(harm >= self.ceiling, torch.inf)
        best = self.peak.scatter_reduce(0, self.rows, score, "amax")
        winner = (score == best[self.rows]) & (score > self.peak[self.rows])
        place = torch.where(winner, torch.arange(len(score), device=score.device), len(score))
        first = torch.full_like(self.rows, len(score)).new_full((len(self.batch),), len(score))
        first = first.scatter_reduce(0, self.rows, place, "amin")
        changed = (first < len(score)).nonzero()[:, 0]
        chosen = first[changed]
        self._place(changed, point[chosen])
        self.harm[changed], self.peak[changed] = harm[chosen], score[chosen]

    def _place(self, rows: Tensor, points: Tensor) -> None:
        if self.worst is self.origin:
            self.worst = self.origin.clone()
        self.worst[rows] = points


_PATIENCE = 10
"""On a GPU, whose queue would run empty if it were asked after each step who may leave: steps between questions."""
