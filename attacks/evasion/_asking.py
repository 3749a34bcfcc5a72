"""A batch under attack by somebody who can only ask: what answers say, and the worst point of each example so far."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.evasion._losses import check_meaning, objective
from secure_ml.access import BlackBox
from secure_ml.batch import Batch, Tree
from secure_ml.errors import NotApplicable
from secure_ml.scores import ClosedLoop
from secure_ml.surfaces import Box
from secure_ml.task import Loss, Task
from secure_ml.threats import Change


class Asking:
    """Asks about points ``(n, *shape)`` of the examples in play, ``rows`` of the batch, each look one query of each.

    It looks at the clean examples first: what is wrong already needs no attack. Worst is first what is answered
    wrongly and then what has the higher loss.
    """

    def __init__(self, access: BlackBox, batch: Batch, threat: Change, loss: str | Loss = "task") -> None:
        self.access, self.batch, self.threat = access, batch, threat
        self.climbed: Loss = objective(access.task, loss) or access.task.loss
        self.tells = loss == "margin" and access.task.score.ceiling < torch.inf
        surface = access.task.surface(threat)
        assert isinstance(surface, Box)
        self.surface = surface
        self.origin = surface.get(batch.inputs)
        self.worst = self.origin.clone()
        self.plain = type(surface) is Box
        self._enter(torch.arange(len(batch), device=self.origin.device))
        self.peak, self.broken = self.look(self.origin)

    def inputs(self) -> Tree:
        """The batch's inputs, each example at its worst point."""
        return self.surface.put(self.batch.inputs, self.worst)

    def look(self, point: Tensor, which: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Losses ``(n,)`` of points, and which of them are answered wrongly; an unruly table is asked by its rules.

        Point i is one of the i-th example in play, or of example ``which[i]`` in play.
        """
        here = self.here if which is None else self.here.take(which)
        if not self.plain:
            point = self.threat.project(self.surface, self.surface.get(here.inputs), point)
        here = Batch(self.surface.put(here.inputs, point), here.target)
        return answers(self.access, self.climbed, here, self.tells)

    def restart(self) -> Tensor:
        """Put every example that is not broken yet in play, and return which they are."""
        self._enter((~self.broken).nonzero()[:, 0])
        return self.rows

    def keep(self, point: Tensor, loss: Tensor, broken: Tensor) -> None:
        """Remember each point in play that is worse for its example than all before it."""
        rows = self.rows
        better = (broken & ~self.broken[rows]) | ((broken == self.broken[rows]) & (loss > self.peak[rows]))
        chosen = rows[better]
        self.worst[chosen], self.peak[chosen] = point[better], loss[better]
        self.broken[chosen] = broken[better]

    def stay(self, those: Tensor) -> None:
        """Only ``those`` ``(n,)`` of the examples in play stay in it."""
        self._enter(self.rows[those])

    def _enter(self, rows: Tensor) -> None:
        self.rows = rows
        self.here = self.batch if len(rows) == len(self.batch) else self.batch.take(rows)
        self.clean = self.surface.get(self.here.inputs)


def answers(access: BlackBox, climbed: Loss, batch: Batch, tells: bool = False) -> tuple[Tensor, Tensor]:
    """Losses ``(B,)`` of a batch and which of it is answered wrongly, by one query of each example.

    A loss that looks at other inputs too asks about them itself. Where the loss ``tells``, an answer is wrong where
    it is above 0; a tie, which may be wrong too, is kept all the same, as nothing less is worse.
    """
    outputs = access(batch.inputs)
    score = access.task.score

    def known(inputs: Tree) -> Tensor:
        return outputs if inputs is batch.inputs else access(inputs)

    with torch.no_grad():
        losses = climbed(known, batch)
        if tells:
            return losses, losses > 0
        return losses, score.harm(score.per_example(outputs, batch.target)) >= score.ceiling


def check_askable(task: Task, loss: str | Loss) -> None:
    """Raise `NotApplicable` where the loss has no meaning, or where what an answer does comes before its worth."""
    check_meaning(loss, task)
    if isinstance(task.score, ClosedLoop):
        raise NotApplicable(f"{task.name} is judged by what its answers do: no single answer tells how bad it is")


PATIENCE = 10
"""On a GPU, whose queue would run empty if it were asked after each query who may leave: queries between questions."""
