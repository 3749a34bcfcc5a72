"""What the defenses that train against an adversary share: how far it may go, how it climbs, what is compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

from defenses.dp_sgd.engine import is_private
from secure_ml.batch import Batch, Tree, leaves, tree_map
from secure_ml.errors import NotApplicable, UsageError, require
from secure_ml.outputs import Classes, Ranking
from secure_ml.task import Task
from secure_ml.threats import Threat, Walk
from secure_ml.training import Plan, Step


class Growth:
    """The share of the radius at which training stands."""

    def __init__(self, warmup: float) -> None:
        self.warmup = warmup
        self.share = 0.0 if warmup else 1.0

    def __call__(self, step: Step) -> None:
        """Grow with the share of training that is done."""
        done = (step.epoch + (step.index + 1) / step.plan.loader.steps) / step.plan.epochs
        self.share = min(1.0, done / self.warmup) if self.warmup else 1.0

    def state_dict(self) -> float:
        """The share."""
        return self.share

    def load_state_dict(self, share: float) -> None:
        """Go on from that share."""
        self.share = share


def check_reach(name: str, radius: float | None, warmup: float) -> None:
    """Raise `UsageError` for a radius or a warmup out of range."""
    require(radius is None or 0 <= radius < math.inf, f"{name} needs a radius >= 0; given {radius}")
    require(0 <= warmup <= 1, f"{name} needs a warmup between 0 and 1; given {warmup}")


def check_climb(name: str, steps: int, step_size: float | None) -> None:
    """Raise `UsageError` for a number or a length of steps out of range."""
    require(steps >= 1, f"{name} needs at least 1 step; given {steps}")
    require(step_size is None or step_size > 0, f"{name} needs a step size above 0; given {step_size}")


def threat_of(task: Task, radius: float | None) -> Threat:
    """The task's own threat, at another radius where one is given; `NotApplicable` without a threat."""
    if task.threat is None:
        raise NotApplicable(f"{task.name} declares no threat to train against")
    return task.threat if radius is None else task.threat.within(radius)


def check_gradients(name: str, task: Task) -> None:
    """Raise `NotApplicable` where an adversary cannot follow a gradient to changed inputs."""
    for part in threat_of(task, None).parts():
        if not isinstance(part, Walk):
            raise NotApplicable(
                f"{name} follows gradients, which {part} on {task.name} does not: its changes are whole"
            )


def check_classes(name: str, task: Task) -> None:
    """Raise `NotApplicable` where answers are not logits of classes."""
    if not isinstance(task.output, Classes) or isinstance(task.output, Ranking):
        raise NotApplicable(f"{name} needs logits of classes; {task.name} answers with {type(task.output).__name__}")


class Pairs:
    """Each batch beside its attacked twin: crafted where a plan's transform runs, compared where its loss does.

    The batch itself stays clean, so that other defenses and observers see what they would see without this one.
    """

    def __init__(self, name: str, plan: Plan, craft: Callable[[nn.Module, Batch], Tree]) -> None:
        self.name, self.inner, self.craft = name, plan.transform, craft
        self.clean: Tree = ()
        self.attacked: Tree = ()

    def transform(self, module: nn.Module, batch: Batch) -> Batch:
        """The batch as the plan transforms it; its attacked twin is kept."""
        batch = self.inner(module, batch)
        self.clean, self.attacked = batch.inputs, self.craft(module, batch)
        return batch

    def twin(self, batch: Batch) -> Tree:
        """The attacked inputs of a batch, or of a piece of it; a batch that was not transformed is its own twin."""
        if batch.inputs is self.clean:
            return self.attacked
        piece, whole = (next(leaves(inputs), None) for inputs in (batch.inputs, self.clean))
        if piece is None or whole is None or piece.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
            return batch.inputs
        start = (piece.storage_offset() - whole.storage_offset()) // whole.stride(0)
        return tree_map(lambda tensor: tensor[start : start + len(piece)], self.attacked)

    def __call__(self, step: Step) -> None:
        """Raise `UsageError` where a later defense replaced the batch, so that the loss never met its twin."""
        if step.batch.inputs is not self.clean:
            raise UsageError(f"{self.name} compares a batch that a later defense replaces: list {self.name} after it")


class Recorder:
    """A module that is called as ever, and whose answers to some inputs are kept."""

    def __init__(self, module: nn.Module, inputs: Tree) -> None:
        self.module, self.inputs = module, inputs
        self.answers: Tensor | None = None

    def __call__(self, inputs: Tree) -> Tensor:
        """The module's answers."""
        answers = cast("Tensor", self.module(inputs))
        if inputs is self.inputs:
            self.answers = answers
        return answers


def refuse_private(name: str, module: nn.Module, reason: str) -> None:
    """Raise `UsageError` for a module that is wrapped so that each example's gradient is clipped on its own."""
    if is_private(module):
        raise UsageError(f"{name} does not go with DP-SGD: {reason}; leave one of them out")
