"""Targets that leave some doubt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from defenses._probe import refuse_other_losses
from secure_ml.batch import Batch, Tree
from secure_ml.defense import Defense
from secure_ml.errors import NotApplicable, require
from secure_ml.outputs import Output
from secure_ml.task import Loss, Task
from secure_ml.training import Plan


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing(Defense):
    """Trains towards labels mixed with the uniform distribution (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567).

    The loss ``(B,)`` of inputs ``(B, *shape)`` becomes ``(1 - amount)`` times the task's plus ``amount`` times the
    cross-entropy to all classes alike. As a defense (Goibert and Dohmatob 2019, https://arxiv.org/abs/1906.11567) it
    keeps margins small and logits bounded. Covers: attacks that need large margins, weakly and without any guarantee;
    what is gained is often gradients that are small, not robustness. Does not cover: evasion by somebody who looks at
    the margin.

    Raises `NotApplicable` for answers that are no distribution and where training is no imitation of labels,
    `UsageError` for an amount out of range and after a defense that has a loss of its own.
    """

    amount: float = 0.1
    """Share of the uniform distribution in every label; 0 is plain training."""

    def __post_init__(self) -> None:
        require(0 <= self.amount < 1, f"label smoothing needs an amount in [0, 1); given {self.amount}")

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` unless the task is trained on labels."""
        if not task.output.labels:
            raise NotApplicable(f"LabelSmoothing smooths labels; {task.name} answers {type(task.output).__name__}")
        if task.renew is not None:
            raise NotApplicable(f"{task.name} learns by acting: it has no labels to smooth")

    def prepare(self, plan: Plan) -> Plan:
        """The plan with the smoothed loss; `UsageError` after a defense that has a loss of its own."""
        refuse_other_losses("LabelSmoothing", plan)
        return replace(plan, loss=_smoothed(plan.loss, plan.task.output, self.amount))

    @classmethod
    def neutral(cls) -> LabelSmoothing:
        """No smoothing."""
        return cls(amount=0.0)


def _smoothed(loss: Loss, output: Output, amount: float) -> Loss:
    """The mixture, of one and the same forward pass."""

    def mixed(predictor: Any, batch: Batch) -> Tensor:
        answers: list[Tensor] = []

        def ask(inputs: Tree) -> Tensor:
            answers.append(predictor(inputs))
            return answers[-1]

        losses = loss(ask, batch)
        uniform = output.imitate(answers[-1], torch.zeros_like(answers[-1]))
        return (1 - amount) * losses + amount * uniform

    return mixed
