"""What the users of a model care about."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from secure_ml.batch import Batch, Tree
from secure_ml.errors import UsageError
from secure_ml.stats import Estimate, Floats, auc, bootstrap, clopper_pearson, pooled

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
    """A figure of merit: something for each example, and one number for all of them.

    Of each example it keeps ``(B,)``, how well it was answered, or ``(B, k)`` where the figure needs more than
    that of each (its class, say); the first column is then how well.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    higher_is_better: ClassVar[bool]
    ceiling: ClassVar[float] = math.inf
    """The harm at which an example could not be answered worse: an attack may leave it there."""

    @abstractmethod
    def per_example(self, outputs: Tensor, target: Tree) -> Tensor:
        """What the score keeps of each example, ``(B,)`` or ``(B, k)``."""

    @abstractmethod
    def aggregate(self, values: Tensor) -> Estimate:
        """The score of many examples from what was kept of each."""

    def values(self, predict: Predict, split: Batch) -> Tensor:
        """What the score keeps of each example of a split that a predictor answered."""
        return self.per_example(predict(split.inputs), split.target)

    def measure(self, predict: Predict, split: Batch) -> Estimate:
        """The score of a predictor on a split."""
        return self.aggregate(self.values(predict, split))

    def harm(self, values: Tensor) -> Tensor:
        """How badly each example was answered, ``(B,)``; higher is worse."""
        good = values if values.ndim == 1 else values[:, 0]
        return -good if self.higher_is_better else good

    def worse(self, first: Tensor, second: Tensor) -> Tensor:
        """Of each example, the worse of two values."""
        keep = self.harm(first) >= self.harm(second)
        return torch.where(keep if first.ndim == 1 else keep[:, None], first, second)


class ClosedLoop(Score):
    """A score that lets the predictor act: each answer changes what it is asked next."""

    @abstractmethod
    def values(self, predict: Predict, split: Batch) -> Tensor:
        """The outcome of each episode, ``(episodes,)``; the same episodes begin alike at every call on a split."""

    @abstractmethod
    def target(self, outputs: Tensor) -> Tree:
        """The target by which the task's loss is the lower, the surer a module is of these own answers ``(B, A)``."""

    def per_example(self, outputs: Tensor, target: Tree) -> Tensor:
        """Nothing: one answer of an episode has no score of its own."""
        raise UsageError(f"{self.name} is a score of whole episodes, not of one answer: measure it in the closed loop")


@dataclass(frozen=True)
class Accuracy(Score):
    """Share of examples whose class ``(B,)`` the answer names; logits ``(B, K)``, or ``(B,)`` for one logit."""

    name: ClassVar[str] = "accuracy"
    unit: ClassVar[str] = "share"
    higher_is_better: ClassVar[bool] = True
    ceiling: ClassVar[float] = 0.0

    def per_example(self, outputs: Tensor, target: Tree) -> Tensor:
        """1 where the class is right, 0 where it is wrong."""
        assert isinstance(target, Tensor)
        decision = (outputs > 0).long() if outputs.ndim == 1 else outputs.argmax(-1)
        return decision.eq(target).float()

    def aggregate(self, values: Tensor) -> Estimate:
        """The share with its Clopper-Pearson interval."""
        return clopper_pearson(int(values.sum().item()), len(values))


@dataclass(frozen=True)
class Reached(Score):
    """Share of examples ``(B,)`` that are answered with the class that an adversary asked for."""

    name: ClassVar[str] = "targeted success"
    unit: ClassVar[str] = "share"
    higher_is_better: ClassVar[bool] = False
    ceiling: ClassVar[float] = 1.0

    def per_example(self, outputs: Tensor, target: Tree) -> Tensor:
        """1 where the class asked for is named, 0 elsewhere."""
        return Accuracy().per_example(outputs, target)

    def aggregate(self, values: Tensor) -> Estimate:
        """The share with its Clopper-Pearson interval."""
        return Accuracy().aggregate(values)


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


@dataclass(frozen=True)
class R2(RMSE):
    """Share of the target's variance that the answers explain, for values ``(B,)``; 1 is perfect, 0 is the mean."""

    name: ClassVar[str] = "R2"
    unit: ClassVar[str] = "R2"
    higher_is_better: ClassVar[bool] = True

    def per_example(self, outputs: Tensor, target: Tree) -> Tensor:
        """Minus the squared error of each example, and its target."""
        assert isinstance(target, Tensor)
        return torch.stack([-squared_difference(outputs, target), target], 1)

    def aggregate(self, values: Tensor) -> Estimate:
        """One minus squared error over variance, with a bootstrap interval."""

        def explained(v: Floats) -> float:
            return 1 + float(v[:, 0].mean()) / max(float(v[:, 1].var()), 1e-30)

        return bootstrap(explained, values.double().cpu().numpy())


@dataclass(frozen=True)
class AUC(Score):
    """Area under the ROC curve of one logit ``(B,)`` (or two, ``(B, 2)``) for classes 0 and 1."""

    name: ClassVar[str] = "AUC"
    unit: ClassVar[str] = "share"
    higher_is_better: ClassVar[bool] = True

    def per_example(self, outputs: Tensor, target: Tree) -> Tensor:
        """The logit with the sign of the true class, and that class."""
        assert isinstance(target, Tensor)
        logit = outputs if outputs.ndim == 1 else outputs[:, 1] - outputs[:, 0]
        return torch.stack([logit * (target * 2 - 1), target.to(logit.dtype)], 1)

    def aggregate(self, values: Tensor) -> Estimate:
        """The area, with an interval by a bootstrap in each class; no number where a class is missing."""
        kept = values.double().cpu().numpy()
        positive = kept[:, 1] > 0.5
        if positive.all() or not positive.any():
            return Estimate(float("nan"), float("nan"), float("nan"), len(kept), "one class only: no AUC")
        found = pooled(auc, [(kept[positive, 0], -kept[~positive, 0])])
        return replace(found, method="bootstrap over examples, class by class")


@dataclass(frozen=True)
class F1(Score):
    """Harmonic mean of precision and recall: of class 1 where there are two classes, else their mean over classes."""

    name: ClassVar[str] = "F1"
    unit: ClassVar[str] = "share"
    higher_is_better: ClassVar[bool] = True
    ceiling: ClassVar[float] = 0.0

    def per_example(self, outputs: Tensor, target: Tree) -> Tensor:
        """Whether each example was right, its class, the class it was given, and how many classes there are."""
        assert isinstance(target, Tensor)
        guess = (outputs > 0).long() if outputs.ndim == 1 else outputs.argmax(-1)
        classes = torch.full_like(guess, 2 if outputs.ndim == 1 else outputs.shape[1])
        return torch.stack([(guess == target).long(), target, guess, classes], 1)

    def aggregate(self, values: Tensor) -> Estimate:
        """The mean with a bootstrap interval."""
        from sklearn.metrics import f1_score

        def score(kept: Floats) -> float:
            binary = kept[0, 3] == 2
            average = "binary" if binary else "macro"
            return float(f1_score(kept[:, 1], kept[:, 2], average=average, zero_division=0.0))

        return bootstrap(score, values.double().cpu().numpy(), rounds=200)


@dataclass(frozen=True)
class GroupAccuracy(Accuracy):
    """Accuracy in the worse of two groups: feature ``column`` of inputs ``(B, d)`` is above 0.5, or is not."""

    column: int
    group: str
    """What the column says, as in "sex"."""

    @property
    def name(self) -> str:  # type: ignore[override]
        """``accuracy, worse sex``."""
        return f"accuracy, worse {self.group}"

    def values(self, predict: Predict, split: Batch) -> Tensor:
        """Whether each example was right, and its group."""
        assert isinstance(split.inputs, Tensor)
        right = self.per_example(predict(split.inputs), split.target)
        return torch.stack([right, (split.inputs[:, self.column] > 0.5).to(right)], 1)

    def aggregate(self, values: Tensor) -> Estimate:
        """The lower of both accuracies with its own Clopper-Pearson interval."""
        groups = [values[values[:, 1] == side, 0] for side in (0, 1)]
        return min((super(GroupAccuracy, self).aggregate(g) for g in groups if len(g)), key=lambda e: e.value)


@dataclass(frozen=True)
class Nats(Score):
    """Cross-entropy of the next symbol, from logits ``(B, T, V)`` and symbols ``(B, T)``; lower is better."""

    name: ClassVar[str] = "nats per token"
    unit: ClassVar[str] = "nats"
    higher_is_better: ClassVar[bool] = False

    def per_example(self, outputs: Tensor, target: Tree) -> Tensor:
        """Mean cross-entropy of each example."""
        return next_token_entropy(outputs, target)

    def aggregate(self, values: Tensor) -> Estimate:
        """The mean with a bootstrap interval over examples."""
        return bootstrap(lambda v: float(v.mean()), values.double().cpu().numpy())


class NatsPerCharacter(Nats):
    """Cross-entropy of the next character."""

    name: ClassVar[str] = "nats per character"


class NatsPerToken(Nats):
    """Cross-entropy of the next token."""


class NatsPerSample(Nats):
    """Cross-entropy of the next sample of a waveform."""

    name: ClassVar[str] = "nats per sample"


def next_token_entropy(outputs: Tensor, target: Tree) -> Tensor:
    """Mean cross-entropy ``(B,)`` in nats of logits ``(B, T, V)`` for symbols ``(B, T)``."""
    assert isinstance(target, Tensor)
    if outputs.shape[:-1] != target.shape:
        raise UsageError(
            f"logits of shape {tuple(outputs.shape)} meet symbols of shape {tuple(target.shape)}; "
            "expected (B, T, V) and (B, T)"
        )
    return F.cross_entropy(outputs.transpose(1, 2), target, reduction="none").mean(1)


@dataclass(frozen=True)
class HitRate(Score):
    """Share of examples whose item ``(B,)`` is among the ten that scores ``(B, V)`` of all items put first.

    Equal scores count against the item, so that a constant scores nothing.
    """

    name: ClassVar[str] = "hit rate@10"
    unit: ClassVar[str] = "share"
    higher_is_better: ClassVar[bool] = True
    ceiling: ClassVar[float] = 0.0

    def per_example(self, outputs: Tensor, target: Tree) -> Tensor:
        """1 where the item is among the first ten."""
        return (rank(outputs, target) < TOP).float()

    def aggregate(self, values: Tensor) -> Estimate:
        """The share with its Clopper-Pearson interval."""
        return clopper_pearson(int(values.sum().item()), len(values))


@dataclass(frozen=True)
class NDCG(HitRate):
    """Normalised discounted cumulative gain of one right item: ``1 / log2(2 + rank)`` among the first ten, else 0."""

    name: ClassVar[str] = "NDCG@10"

    def per_example(self, outputs: Tensor, target: Tree) -> Tensor:
        """The gain of each example."""
        place = rank(outputs, target)
        return torch.where(place < TOP, 1 / torch.log2(place + 2.0), torch.zeros(len(place)).to(place.device))

    def aggregate(self, values: Tensor) -> Estimate:
        """The mean with a bootstrap interval."""
        return bootstrap(lambda v: float(v.mean()), values.double().cpu().numpy())


TOP = 10
"""Length of a list of recommendations."""


def rank(outputs: Tensor, target: Tree) -> Tensor:
    """How many other items score at least as high as the right one, ``(B,)``."""
    assert isinstance(target, Tensor)
    return (outputs >= outputs.gather(1, target[:, None])).sum(1) - 1
