"""What every attack is: a configured value that a family judges."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from secure_ml.errors import NotApplicable
from secure_ml.outputs import Output
from secure_ml.rows import Row
from secure_ml.settings import brief
from secure_ml.task import Task
from secure_ml.threats import Threat
from secure_ml.victim import Victim


@dataclass(frozen=True)
class Result:
    """What one attack did to one victim: rows, and the numbers for each example that pooling needs."""

    rows: tuple[Row, ...]
    evidence: Mapping[str, Tensor] = field(default_factory=dict)
    usage: tuple[Row, ...] = ()
    """What serving the answers cost, in counts: queries that were encrypted, say."""
    obstacle: str = ""
    """Why there is nothing to measure; then the one row says so."""
    failed: bool = False
    """Whether the obstacle is an error or a limit, so that trying again may end otherwise."""


class Attack(ABC):
    """A frozen dataclass of settings. Its family hands out the access and judges; a method implements one verb."""

    family: ClassVar[str]
    outputs: ClassVar[tuple[type[Output], ...]] = (Output,)
    """The kinds of answers that this attack understands."""

    def __init_subclass__(cls) -> None:
        cls.__repr__ = brief  # type: ignore[method-assign]

    def check(self, task: Task, threat: Threat | None) -> None:
        """Raise `NotApplicable` with the reason where this attack has no meaning for a task."""
        if not isinstance(task.output, self.outputs):
            known = " or ".join(kind.__name__ for kind in self.outputs)
            raise NotApplicable(
                f"{type(self).__name__} understands {known}; {task.name} answers {type(task.output).__name__}"
            )

    @abstractmethod
    def evaluate(self, victim: Victim, *, threat: Threat | None, seed: int, examples: int) -> Result:
        """Attack a victim and judge the outcome; final in each family."""

    @classmethod
    @abstractmethod
    def pool(cls, task: Task, attempts: Sequence[tuple[Attack, Result]]) -> list[Row]:
        """The family's verdict on one stack from all attempts of its attacks on all of the stack's victims."""

    @classmethod
    def tiny(cls) -> Self:
        """A setting on which the laws run in a second."""
        return cls()


@contextmanager
def stopwatch(device: torch.device) -> Iterator[list[float]]:
    """Seconds spent inside the block, the device's queue included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elapsed = [0.0]
    start = time.perf_counter()
    yield elapsed
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elapsed[0] = time.perf_counter() - start
