"""A secret: settings that say what is hidden, what an adversary is handed towards it, and how its guess is judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from secure_ml.access import Access
from secure_ml.batch import Splits
from secure_ml.errors import NotApplicable, UsageError
from secure_ml.families.poisoning import answers_one_class
from secure_ml.stats import Estimate, bootstrap
from secure_ml.surfaces import Box
from secure_ml.task import Task
from secure_ml.victim import Victim

A = TypeVar("A", bound=Access)


@dataclass(frozen=True)
class Measured:
    """One number about a guess; a note says why there is none, or what it would be by chance."""

    measure: str
    estimate: Estimate | None
    unit: str = "share"
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a guess is worth, the headline first, and the numbers behind it."""

    measured: Sequence[Measured]
    evidence: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Hidden(Generic[A]):
    """A secret that was hidden: the access to it, the shape of a guess, and the judge, who alone knows the truth."""

    access: A
    shape: tuple[int, ...]
    judge: Callable[[Tensor], Verdict]


class Secret(ABC, Generic[A]):
    """A frozen dataclass of settings."""

    @abstractmethod
    def check(self, name: str, task: Task) -> None:
        """Raise `NotApplicable` where the attack called ``name`` finds no such secret in a task."""

    @abstractmethod
    def hide(self, victim: Victim, examples: int, seed: int) -> Hidden[A]:
        """The secret of a victim, about at most ``examples`` examples."""


def withheld(task: Task) -> Task:
    """The task as an adversary knows it: without its data."""
    return replace(task, data=_refuse)


def _refuse(rng: torch.Generator) -> Splits:
    raise UsageError("an adversary who reconstructs does not hold the data: use what its access hands over")


def require_box(name: str, task: Task) -> Box:
    """The box that is all of a task's inputs; `NotApplicable` where they are something else."""
    for surface in task.surfaces:
        if isinstance(surface, Box) and surface.path == ():
            return surface
    theirs = " and ".join(type(surface).__name__ for surface in task.surfaces) or "no surface"
    raise NotApplicable(f"{name} reconstructs inputs that are one box of numbers; {task.name} has {theirs}")


def require_class(name: str, task: Task) -> None:
    """Raise `NotApplicable` where an answer is not one class."""
    if not answers_one_class(task):
        raise NotApplicable(f"{name} needs answers that are one class; those of {task.name} are not")


def count_classes(outputs: Tensor) -> int:
    """How many classes logits ``(B, K)`` or ``(B,)`` tell apart."""
    return 2 if outputs.ndim == 1 else outputs.shape[1]


def averaged(values: Tensor) -> Estimate:
    """The mean of values ``(n,)`` with a bootstrap interval over examples."""
    return bootstrap(lambda v: float(v.mean()), values.detach().double().cpu().numpy())
