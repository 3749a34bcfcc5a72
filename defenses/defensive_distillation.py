"""A student of a teacher that was softened by a temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from defenses._probe import one_class, refuse_other_losses
from defenses._robust import refuse_private
from secure_ml.batch import Batch
from secure_ml.defense import Defense
from secure_ml.errors import NotApplicable, require
from secure_ml.modes import evaluating
from secure_ml.randomness import derive
from secure_ml.task import Task
from secure_ml.training import Plan, Transform, fit

WHY = "its teacher is trained on the same examples without noise, so that no guarantee would hold"


@dataclass(frozen=True, kw_only=True)
class DefensiveDistillation(Defense):
    """A weak baseline: defensive distillation (Papernot et al. 2016, https://arxiv.org/abs/1511.04508), long broken.

    A teacher of the task's own architecture is trained at a temperature; a student of the plan's learns the teacher's
    probabilities for the clean inputs ``(B, *shape)`` at the same temperature, and answers at temperature 1. Its logits
    are then about a temperature as large, and the gradients of its cross-entropy are 0 in floating-point numbers, which
    hides the bare model's weakness from attacks by cross-entropy and removes nothing of it (Carlini and Wagner 2017,
    https://arxiv.org/abs/1608.04644). Covers: nothing that an attack by margin does not reach. Does not cover: privacy.

    Differs from the paper: the loss is multiplied by the temperature, so that learning rates keep their meaning; the
    teacher is trained without the other defenses of the stack, and again when a training goes on from a checkpoint.
    Raises `NotApplicable` for models that do not answer with one class, `UsageError` together with DP-SGD, whose
    guarantee cannot hold for a student of a teacher without it, after defenses that have a loss of their own, and for a
    temperature below 1.
    """

    temperature: float = 20.0
    """What logits are divided by in training; the paper's best for MNIST."""

    def __post_init__(self) -> None:
        require(
            1 <= self.temperature < math.inf,
            f"defensive distillation needs a finite temperature of at least 1; given {self.temperature}",
        )

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` unless an answer names one class."""
        if not one_class(task):
            raise NotApplicable(f"DefensiveDistillation teaches one class an example; {task.name} has other targets")

    def prepare(self, plan: Plan) -> Plan:
        """The plan with a trained teacher's labels; `UsageError` after DP-SGD, or a defense with a loss of its own."""
        refuse_private("DefensiveDistillation", plan.module, WHY)
        refuse_other_losses("DefensiveDistillation", plan)
        splits = plan.splits
        task = replace(plan.task, loss=self._softened(plan), data=lambda _: splits)
        teacher = fit(task, seed=derive(plan.seed, "teacher"), device=plan.device).module
        lesson = Lesson(plan, teacher, self.temperature)
        return replace(plan, transform=lesson.transform, loss=lesson.loss)

    def _softened(self, plan: Plan) -> Any:
        """The task's own loss at the temperature, times the temperature."""
        loss, t = plan.task.loss, self.temperature
        return lambda module, batch: t * loss(lambda inputs: module(inputs) / t, batch)


class Lesson:
    """The teacher's answers to the clean batch, kept from where it is first seen until its loss is taken."""

    def __init__(self, plan: Plan, teacher: nn.Module, temperature: float) -> None:
        self.output, self.before, self.teacher, self.temperature = (
            plan.task.output,
            plan.transform,
            teacher,
            temperature,
        )
        self.answers: Tensor | None = None

    @property
    def transform(self) -> Transform:
        """What the batch goes through, asked about before anything else is done to it."""

        def ask(module: nn.Module, batch: Batch) -> Batch:
            refuse_private("DefensiveDistillation", module, WHY)
            self.answers = self._asked(batch)
            return self.before(module, batch)

        return ask

    def loss(self, module: Any, batch: Batch) -> Tensor:
        """How badly the student reproduces the teacher's probabilities, ``(B,)``."""
        answers = self.answers if self.answers is not None else self._asked(batch)
        t = self.temperature
        return t * self.output.imitate(module(batch.inputs) / t, answers / t)

    def _asked(self, batch: Batch) -> Tensor:
        with evaluating(self.teacher), torch.no_grad():
            answers: Tensor = self.teacher(batch.inputs)
            return answers
