"""A document model: architecture, data, a loss for every example, and what an adversary may change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secure_ml.batch import Batch, Splits, Tree
from secure_ml.errors import UsageError, require
from secure_ml.outputs import Classes, Output
from secure_ml.randomness import generator
from secure_ml.scores import Accuracy, Score
from secure_ml.surfaces import Box, Surface
from secure_ml.threats import Threat

Predictor: TypeAlias = Callable[[Tree], Any]
"""A module or a served model: inputs ``(B, *shape)`` to outputs of the task's kind."""
Loss: TypeAlias = Callable[[Any, Batch], Tensor]
"""``(predictor, batch) -> (B,)``: one loss per example; it may call the predictor more than once."""
Augment: TypeAlias = Callable[[Batch, torch.Generator], Batch]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a task is trained. The schedule takes the learning rate from its start to 0 over the whole training."""

    epochs: int = 20
    batch_size: int = 64
    optimizer: Literal["SGD", "Adam", "AdamW"] = "SGD"
    learning_rate: float = 0.1
    momentum: float = 0.9
    """of SGD; the others keep their own."""
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    patience: int | None = None
    """Epochs without a better validation score after which training stops and the best weights return."""

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"a recipe needs at least 1 epoch; given {self.epochs}")
        require(self.batch_size >= 1, f"a recipe needs a batch size of at least 1; given {self.batch_size}")
        require(self.learning_rate > 0, f"a recipe needs a learning rate above 0; given {self.learning_rate}")


def cross_entropy(predictor: Predictor, batch: Batch) -> Tensor:
    """Cross-entropy ``(B,)`` in nats of logits ``(B, K)``, or ``(B,)`` for one logit, and classes ``(B,)``."""
    outputs = predictor(batch.inputs)
    assert isinstance(batch.target, Tensor)
    if outputs.ndim == 1:
        target = batch.target.to(outputs.dtype)
        return F.binary_cross_entropy_with_logits(outputs, target, reduction="none")
    return F.cross_entropy(outputs, batch.target, reduction="none")


def squared_error(predictor: Predictor, batch: Batch) -> Tensor:
    """Squared error ``(B,)`` of values ``(B,)`` or, averaged, ``(B, D)``."""
    assert isinstance(batch.target, Tensor)
    error: Tensor = (predictor(batch.inputs) - batch.target).square()
    return error if error.ndim == 1 else error.mean(1)


def unchanged(batch: Batch, rng: torch.Generator) -> Batch:
    """No augmentation."""
    return batch


@dataclass(frozen=True, kw_only=True, repr=False)
class Task:
    """Everything that is known about a model before it is trained.

    ``build`` returns a fresh module whose ``forward`` takes ``batch.inputs``; ``data`` draws the splits from
    a generator; ``loss`` gives one number per example, on which training, DP-SGD, evasion and membership
    inference all stand. The rest has the values of an image classifier in [0, 1].
    """

    name: str
    build: Callable[[], nn.Module]
    data: Callable[[torch.Generator], Splits]
    loss: Loss = cross_entropy
    output: Output = Classes()
    score: Score = Accuracy()
    surfaces: tuple[Surface, ...] = (Box(),)
    threat: Threat | None = None
    """The task's default adversary; without one, evasion needs ``threat=``."""
    recipe: Recipe = Recipe()
    augment: Augment = unchanged
    unit: str = "record"
    """The unit of privacy: what one example is."""
    options: str = ""
    """What was asked of the function that made this task, as in its repr."""

    def __repr__(self) -> str:
        return f"{self.name}({self.options})"

    def draw(self, seed: int) -> Splits:
        """The splits of one seed."""
        return self.data(generator(seed, "data"))

    def surface(self, threat: Threat) -> Surface:
        """The surface that a threat changes; `UsageError` if the task has none of that kind."""
        for surface in self.surfaces:
            if isinstance(surface, threat.surface):
                return surface
        mine = " and ".join(type(s).__name__ for s in self.surfaces) or "nothing"
        raise UsageError(f"{threat} changes {threat.surface.__name__} inputs; {self.name} has {mine}")

    def check(self, module: nn.Module, splits: Splits) -> None:
        """Raise `UsageError` where data, module and loss do not fit what this task declares."""
        require(len(splits.train) > 0, f"{self.name} has no training examples")
        for name, part in splits.parts().items():
            for surface in self.surfaces:
                try:
                    surface.check(part.inputs)
                except UsageError as error:
                    raise UsageError(f"{self.name}, {name} split: {error}") from None
        few = splits.train.take(slice(0, 2))
        with torch.no_grad():
            try:
                self.output.check(module(few.inputs), len(few))
            except UsageError as error:
                raise UsageError(f"{self.name}: {error}") from None
            shape = tuple(self.loss(module, few).shape)
        require(
            shape == (len(few),),
            f"{self.name}: the loss of {len(few)} examples has shape {shape}; expected one per example, ({len(few)},)",
        )
