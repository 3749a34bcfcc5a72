"""Examples whose whole gradient lies along one direction that no other example touches: Dirac canaries."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from secure_ml.batch import Batch, Splits, Tree, leaves
from secure_ml.errors import require
from secure_ml.task import Loss, Predictor, Task

SLOPE = 1e4
"""Length of a canary's gradient, far above any clip."""


class Marked(nn.Module):
    """A module beside a table of numbers, one for each canary, which take no part in its answers."""

    def __init__(self, base: nn.Module, count: int) -> None:
        super().__init__()
        self.base, self.marks = base, nn.Embedding(count + 1, 1)
        nn.init.zeros_(self.marks.weight)

    def forward(self, inputs: Tree) -> Tensor:
        """What the module answers to the inputs ``(B, *shape)`` beside the marks."""
        return cast("Tensor", self.base(cast("dict[str, Tree]", inputs)["example"]))


def marks_of(module: nn.Module) -> nn.Embedding:
    """The table of a marked module, whatever a defense wrapped around it."""
    found = [part for part in module.modules() if isinstance(part, Marked)]
    require(len(found) == 1, "a defense replaced the module, so that its canaries are lost: use mislabelled ones")
    return found[0].marks


def signal(module: nn.Module) -> Tensor:
    """How far training moved each canary's own number down, ``(m,)``."""
    return -marks_of(module).weight.detach()[1:, 0].double().cpu()


def marked(task: Task, count: int) -> Task:
    """The task with room for canaries; its splits are made by `with_marks`.

    A canary is an example with a mark of 1 to ``count``: its loss is a steep line in its own number and nothing else.
    All other examples train the module as they did.
    """
    return replace(
        task,
        build=partial(_build, task.build, count),
        loss=partial(_loss, task.loss),
        augment=partial(_augment, task),
        surfaces=(),
        threat=None,
        also=(),
        recipe=replace(task.recipe, patience=None),
    )


def with_marks(splits: Splits, marks: Tensor) -> Splits:
    """Splits whose training examples bear these marks ``(n,)``, and no others."""
    parts: dict[str, Any] = {name: _wrapped(part, torch.zeros(len(part))) for name, part in splits.parts().items()}
    return replace(splits, **{**parts, "train": _wrapped(splits.train, marks)})


def _wrapped(batch: Batch, marks: Tensor) -> Batch:
    device = next(leaves(batch.inputs)).device
    return Batch({"example": batch.inputs, "mark": marks.long().to(device)[:, None]}, batch.target)


def _build(base: Callable[[], nn.Module], count: int) -> nn.Module:
    return Marked(base(), count)


def _inner(batch: Batch) -> tuple[Batch, Tensor]:
    inputs = cast("dict[str, Tree]", batch.inputs)
    return Batch(inputs["example"], batch.target), cast("Tensor", inputs["mark"])


def _loss(base: Loss, predictor: nn.Module, batch: Batch) -> Tensor:
    """The task's loss of ordinary examples, a line for canaries: ``(B,)``."""
    inner, mark = _inner(batch)
    ask: Predictor = lambda inputs: predictor({"example": inputs, "mark": mark})  # noqa: E731
    plain = mark[:, 0] == 0
    losses = base(ask, inner)
    line = SLOPE * marks_of(predictor)(mark).reshape(-1)
    return torch.where(plain, losses, 0.0) + torch.where(plain, 0.0, line)


def _augment(task: Task, batch: Batch, rng: torch.Generator) -> Batch:
    inner, mark = _inner(batch)
    done = task.augment(inner, rng)
    return Batch({"example": done.inputs, "mark": mark}, done.target)


def frozen(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Modules that all begin as this one does."""
    return partial(deepcopy, build())
