"""A task's network with more activations, for sweeps over the depth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import nn

from defenses.homomorphic.polynomial import BENDS, flatten
from secure_ml.errors import UsageError
from secure_ml.task import Task

WIDTH = 32
"""Units of each layer that is added."""


@dataclass(frozen=True)
class Deeper:
    """Builds a Sequential with so many activations: dense layers with ReLU are put before its last dense layer."""

    build: Callable[[], nn.Module]
    activations: int

    def __call__(self) -> nn.Module:
        """The network; raises `UsageError` where it has no such variant."""
        layers = flatten(self.build())
        last, have = layers[-1], sum(isinstance(layer, BENDS) for layer in layers)
        if not isinstance(last, nn.Linear) or self.activations < have:
            raise UsageError(
                f"a network of {have} activations that ends in {type(last).__name__} was asked for {self.activations}: "
                f"expected a Sequential that ends in a Linear layer, and at least {max(have, 1)} activations"
            )
        sizes = [last.in_features, *[WIDTH] * (self.activations - have)]
        for before, behind in pairwise(sizes):
            layers[-1:] = [nn.Linear(before, behind), nn.ReLU(), last]
        if self.activations > have:
            layers[-1] = nn.Linear(WIDTH, last.out_features)
        return nn.Sequential(*layers)


def deeper(task: Task, activations: int) -> Task:
    """The task with a network of so many activations, and a name that says so."""
    options = ", ".join(filter(None, (task.options, f"activations={activations}")))
    made = replace(task, build=Deeper(task.build, activations), options=options)
    made.build()
    return made
