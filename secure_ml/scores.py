"""What the users of a model care about."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secure_ml.batch import Batch, Tree
from secure_ml.errors import UsageError
from secure_ml.stats import Estimate, bootstrap, clopper_pearson

Predict = Callable[[Tree], Tensor]


def squared_difference(outputs: Tensor, target: Tree) -> Tensor:
    """Squared error ``(B,)`` of values ``(B,)`` or, averaged, ``(B, D)``; `UsageError` where shapes differ."""
    if not isinstance(target, Tensor) or outputs.shape != target.shape:
        there = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
        raise UsageError(
            f"values of shape {tuple(outputs.shape)} meet targets of shape {there}: give both one, (B,) say"
        )
    error = (outputs - target).square()
    return error if error.ndim == 1 else error.flatten(1).mean(1)


class Score(ABC):
    """A figure of merit: a number for each example, and one for all of them."""

    name: ClassVar[str]
    unit: ClassVar[str]
    higher_is_better: ClassVar[bool]

    @abstractmethod
    def per_example(self, outputs: Tensor, target: Tree) -> Tensor:
        """How well each example was answered, ``(B,)``."""

    @abstractmethod
    def aggregate(self, values: Tensor) -> Estimate:
        """The score of many examples from the values ``(B,)`` of each."""

    def measure(self, predict: Predict, split: Batch) -> Estimate:
        """The score of a predictor on a split."""
        return self.aggregate(self.per_example(predict(split.inputs), split.target))

    def worse(self, first: Tensor, second: Tensor) -> Tensor:
        """The worse of two values for each example, ``(B,)``."""
        return torch.minimum(first, second) if self.higher_is_better else torch.maximum(first, second)


@dataclass(frozen=True)
class Accuracy(Score):
    """Share of examples whose class ``(B,)`` the answer names; logits ``(B, K)``, or ``(B,)`` for one logit."""

    name: ClassVar[str] = "accuracy"
    unit: ClassVar[str] = "share"
    higher_is_better: ClassVar[bool] = True

    def per_example(self, outputs: Tensor, target: Tree) -> Tensor:
        """1 where the class is right, 0 where it is wrong."""
        assert isinstance(target, Tensor)
        decision = (outputs > 0).long() if outputs.ndim == 1 else outputs.argmax(-1)
        return decision.eq(target).float()

    def aggregate(self, values: Tensor) -> Estimate:
        """The share with its Clopper-Pearson interval."""
        return clopper_pearson(int(values.sum().item()), len(values))


@dataclass(frozen=True)
class RMSE(Score):
    """Root of the mean squared error, in the unit of the target ``(B,)`` or ``(B, D)``."""

    name: ClassVar[str] = "RMSE"
    unit: ClassVar[str] = "target"
    higher_is_better: ClassVar[bool] = False

    def per_example(self, outputs: Tensor, target: Tree) -> Tensor:
        """Squared error of each example."""
        return squared_difference(outputs, target)

    def aggregate(self, values: Tensor) -> Estimate:
        """The root of the mean with a bootstrap interval."""
        return bootstrap(lambda v: float(v.mean()) ** 0.5, values.double().cpu().numpy())
