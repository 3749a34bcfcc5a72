"""A document model: architecture, data, a loss for every example, and what an adversary may change."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secure_ml.batch import Batch, Splits, Tree
from secure_ml.errors import UsageError, require, unknown
from secure_ml.modes import evaluating
from secure_ml.outputs import Classes, Output
from secure_ml.randomness import generator
from secure_ml.scores import Accuracy, Score, next_token_entropy, squared_difference
from secure_ml.surfaces import Box, Surface
from secure_ml.threats import Change, Threat

Predictor: TypeAlias = Callable[[Tree], Any]
"""A module or a served model: inputs ``(B, *shape)`` to outputs of the task's kind."""
Loss: TypeAlias = Callable[[Any, Batch], Tensor]
"""``(predictor, batch) -> (B,)``: one loss per example; it may call the predictor more than once."""
Augment: TypeAlias = Callable[[Batch, torch.Generator], Batch]
Renew: TypeAlias = Callable[[nn.Module, Batch, torch.Generator], Batch]
"""The module and the examples of one epoch, to the examples of the next: roll-outs of what the module does by now."""


@dataclass(frozen=True)
class Sample:
    """What a model makes: text to be read, and files (sound, say) by name."""

    text: str
    files: Mapping[str, bytes] = field(default_factory=dict)


Show: TypeAlias = Callable[[Predictor, str, torch.Generator], Sample]
"""A predictor, a prompt (it may be empty) and randomness, to what the model makes of it."""


OPTIMIZERS = ("SGD", "Adam", "AdamW")
SCHEDULES = ("constant", "cosine", "linear")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a task is trained."""

    epochs: int = 20
    batch_size: int = 64
    optimizer: Literal["SGD", "Adam", "AdamW"] = "SGD"
    learning_rate: float = 0.1
    momentum: float = 0.9
    """of SGD; the others keep their own."""
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """of the learning rate, from its full value to 0 over the whole training unless constant."""
    patience: int | None = None
    """Epochs without a better validation score after which training stops and the best weights return."""

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"a recipe needs at least 1 epoch; given {self.epochs}")
        require(
            self.patience is None or self.patience >= 1,
            f"a recipe needs a patience of at least 1 epoch; given {self.patience}",
        )
        require(self.batch_size >= 1, f"a recipe needs a batch size of at least 1; given {self.batch_size}")
        require(
            0 < self.learning_rate < math.inf,
            f"a recipe needs a finite learning rate above 0; given {self.learning_rate}",
        )
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise unknown(f"{name} of a recipe", str(getattr(self, name)), known)


def cross_entropy(predictor: Predictor, batch: Batch) -> Tensor:
    """Cross-entropy ``(B,)`` in nats of logits ``(B, K)``, or ``(B,)`` for one logit, and classes ``(B,)``."""
    outputs = predictor(batch.inputs)
    assert isinstance(batch.target, Tensor)
    if outputs.ndim == 1:
        target = batch.target.to(outputs.dtype)
        return F.binary_cross_entropy_with_logits(outputs, target, reduction="none")
    return F.cross_entropy(outputs, batch.target, reduction="none")


def next_token_loss(predictor: Predictor, batch: Batch) -> Tensor:
    """Mean cross-entropy ``(B,)`` in nats of logits ``(B, T, V)`` for the symbols ``(B, T)`` that come next."""
    return next_token_entropy(predictor(batch.inputs), batch.target)


def squared_error(predictor: Predictor, batch: Batch) -> Tensor:
    """Squared error ``(B,)`` of values ``(B,)`` or, averaged, ``(B, D)``."""
    return squared_difference(predictor(batch.inputs), batch.target)


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
    also: tuple[Score, ...] = ()
    """Further scores of the served answers, beside the one by which attacks are judged."""
    surfaces: tuple[Surface, ...] = (Box(),)
    threat: Threat | None = None
    """The task's default adversary; without one, evasion needs ``threat=``."""
    recipe: Recipe = Recipe()
    augment: Augment = unchanged
    renew: Renew | None = None
    """How the examples of an epoch follow from those of the last one, where they are not the same; pure."""
    sample: Show | None = None
    """What the model makes, where it generates something or acts."""
    chunk: int = 1000
    """Examples that a module is shown at a time outside training; bounds memory and changes no answer."""
    unit: str = "record"
    """The unit of privacy: what one example is."""
    assumes: tuple[str, ...] = ()
    """What every claim about the training data takes for public: bounds read off the data, a vocabulary."""
    options: str = ""
    """What was asked of the function that made this task, as in its repr."""

    def __repr__(self) -> str:
        return f"{self.name}({self.options})"

    def draw(self, seed: int) -> Splits:
        """The splits of one seed."""
        return self.data(generator(seed, "data"))

    def surface(self, threat: Change) -> Surface:
        """The surface that a threat changes; `UsageError` if the task has none of that kind."""
        for surface in self.surfaces:
            if isinstance(surface, threat.surface):
                return surface
        mine = " and ".join(type(s).__name__ for s in self.surfaces) or "nothing"
        raise UsageError(f"{threat} changes {threat.surface.__name__} inputs; {self.name} has {mine}")

    def check(self, module: nn.Module, splits: Splits) -> None:
        """Raise `UsageError` where data, module and loss do not fit what this task declares."""
        require(len(splits.train) > 0, f"{self.name} has no training examples")
        require(
            self.recipe.patience is None or len(splits.validation) > 0,
            f"{self.name} stops early by the validation split, which is empty: fill it, or set patience to None",
        )
        for name, part in splits.parts().items():
            for surface in self.surfaces:
                try:
                    surface.check(part.inputs)
                except UsageError as error:
                    raise UsageError(f"{self.name}, {name} split: {error}") from None
        few = splits.train.take(slice(0, 3))
        with torch.no_grad(), evaluating(module):
            try:
                outputs = module(few.inputs)
                self.output.check(outputs, len(few))
                for part in splits.parts().values():
                    self.output.check_target(outputs, part.target)
            except UsageError as error:
                raise UsageError(f"{self.name}: {error}") from None
            shape = tuple(self.loss(module, few).shape)
        require(
            shape == (len(few),),
            f"{self.name}: the loss of {len(few)} examples has shape {shape}; expected one per example, ({len(few)},)",
        )
