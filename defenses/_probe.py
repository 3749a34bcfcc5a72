"""What an example of a task looks like, for defenses that have a meaning only for some inputs and answers."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from secure_ml.batch import Batch, Tree
from secure_ml.errors import NotApplicable, UsageError
from secure_ml.outputs import Classes
from secure_ml.surfaces import Box
from secure_ml.task import Task
from secure_ml.training import Plan
from secure_ml.victim import build


class _This:
    """A task, equal to itself alone: a task that somebody made need not be hashable."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __hash__(self) -> int:
        return id(self.task)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _This) and other.task is self.task


def example(task: Task) -> Batch:
    """One training example of a task, as a batch."""
    return _example(_This(task))


def whole(task: Task) -> bool:
    """Whether the task's loss asks the module for its answers to inputs, and for nothing else (part of the way)."""
    return _whole(_This(task))


def classes(task: Task) -> int:
    """How many classes an answer tells apart; of one logit, 2."""
    return _classes(_This(task))


@lru_cache(maxsize=16)
def _classes(this: _This) -> int:
    with torch.no_grad():
        answers: Tensor = build(this.task, (), seed=0).eval()(_example(this).inputs)
    return 2 if answers.ndim == 1 else answers.shape[-1]


@lru_cache(maxsize=16)
def _example(this: _This) -> Batch:
    return this.task.draw(0).train.take(slice(0, 1))


@lru_cache(maxsize=16)
def _whole(this: _This) -> bool:
    module, batch, parts = build(this.task, (), seed=0).eval(), _example(this), []

    def ask(inputs: Tree) -> Tensor:
        parts.append(inputs is not batch.inputs)
        answer: Tensor = module(inputs)
        return answer

    with torch.no_grad():
        this.task.loss(ask, batch)
    return not any(parts)


def box_of(task: Task, name: str) -> Box:
    """The task's box; `NotApplicable` where it has none, or where its loss runs the module by halves."""
    for surface in task.surfaces:
        if isinstance(surface, Box):
            if not whole(task):
                raise NotApplicable(
                    f"the loss of {task.name} runs parts of its module, before which {name} cannot stand"
                )
            return surface
    raise NotApplicable(f"{name} changes inputs of real numbers; {task.name} has {_kinds(task)}")


def one_class(task: Task) -> bool:
    """Whether an answer names one class, and the target ``(B,)`` is the right one."""
    target = example(task).target
    named = isinstance(target, Tensor) and target.ndim == 1 and not target.is_floating_point()
    return type(task.output) is Classes and named


def refuse_other_losses(name: str, plan: Plan) -> None:
    """Raise `UsageError` where a defense listed before has a loss of its own, which would be lost."""
    if plan.loss is not plan.task.loss:
        raise UsageError(
            f"{name} changes the task's own loss, and so did a defense before it: list {name} first, or alone"
        )


def _kinds(task: Task) -> str:
    return " and ".join(type(surface).__name__ for surface in task.surfaces) or "no surface"
