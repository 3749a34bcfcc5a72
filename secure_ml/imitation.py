"""What an adversary can do at home with the answers that were paid for: train copies, and models to practise on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from secure_ml.averaging import Average
from secure_ml.batch import Batch, Splits, Tree, leaves
from secure_ml.errors import NotApplicable, require, unknown
from secure_ml.randomness import derive
from secure_ml.task import Augment, Predictor, Recipe, Task, unchanged
from secure_ml.training import fit
from secure_ml.victim import Victim

Net = Literal["same", "dense", "convolutional"]
"""The architecture of a copy: the victim's own, or one that does not match."""


def check_net(net: str) -> None:
    """Raise `UsageError` for an architecture that does not exist."""
    if net not in get_args(Net):
        raise unknown("architecture of a copy", net, get_args(Net))


@dataclass(frozen=True)
class Imitation:
    """Training of surrogates, through the shared loop; the adversary knows the victim's task and recipe.

    Copies have the victim's architecture (or another), and as many steps as the victim had unless epochs are given.
    """

    victim: Victim
    """Only its task, the number of its members and its device are looked at, and its defenses for `practice`."""
    seed: int

    @property
    def task(self) -> Task:
        """The victim's task."""
        return self.victim.task

    def __call__(
        self,
        inputs: Tree,
        answers: Tensor,
        epochs: int | None = None,
        *,
        net: Net = "same",
        recipe: Recipe | None = None,
        rate: float | None = None,
        weights: Tensor | None = None,
        augment: Augment | None = None,
    ) -> nn.Module:
        """A module trained to give these answers to inputs ``(n, *shape)``, each weighed by ``(n,)`` where given.

        An augmentation that is given stands in the place of the task's own. A ``rate`` stays as it is to the end, and
        the copy is then the running average of the weights: better than a rate that falls where epochs are few.
        """
        n = len(next(leaves(inputs)))
        require(n > 0, "a surrogate needs at least one answer to learn from")
        data = Batch(inputs, answers if weights is None else (answers, weights))
        surrogate = self.surrogate(data, epochs, net=net, recipe=recipe)
        surrogate = surrogate if augment is None else replace(surrogate, augment=augment)
        if rate is None:
            return fit(surrogate, seed=self.seed, device=self.victim.device).module
        steady = replace(surrogate, recipe=replace(surrogate.recipe, learning_rate=rate, schedule="constant"))
        average = Average(decay=0.998, start=0.0)
        return average.finish(fit(steady, seed=self.seed, device=self.victim.device, observers=(average,))).module

    def surrogate(
        self, data: Batch, epochs: int | None = None, *, net: Net = "same", recipe: Recipe | None = None
    ) -> Task:
        """The task of imitating answers, the targets of ``data``."""
        task, none = self.task, data.take(slice(0, 0))
        recipe = recipe or task.recipe

        def imitation(predictor: Predictor, batch: Batch) -> Tensor:
            answers, weights = _parts(batch)
            losses = task.output.imitate(predictor(batch.inputs), answers)
            return losses if weights is None else losses * weights

        return replace(
            task,
            name=f"{task.name}_surrogate",
            build=task.build if net == "same" else lambda: _other(net, task, data),
            data=lambda _: Splits(data, none, none, none),
            loss=imitation,
            renew=None,
            augment=unchanged if task.renew else task.augment,  # that of transitions has no meaning for answers
            recipe=replace(recipe, epochs=epochs or self._epochs(len(data), recipe), patience=None),
        )

    def practice(self, data: Batch, number: int = 0, held_out: Batch | None = None) -> Victim:
        """A model of the adversary's own on labelled data, served as the victim is, whose every part is known.

        What is held out is its validation split, on which some defenses set their thresholds.
        """
        none = data.take(slice(0, 0))
        task = replace(
            self.task,
            name=f"{self.task.name}_practice",
            data=lambda _: Splits(data, none if held_out is None else held_out, none, none),
            recipe=replace(self.task.recipe, epochs=self._epochs(len(data), self.task.recipe), patience=None),
        )
        return fit(task, self.victim.defenses, seed=derive(self.seed, "practice", number), device=self.victim.device)

    def _epochs(self, n: int, recipe: Recipe) -> int:
        own = self.task.recipe
        steps = own.epochs * -(-len(self.victim.splits.train) // own.batch_size)
        return -(-steps // -(-n // recipe.batch_size))


def _parts(batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Answers, and their weights where there are any."""
    if isinstance(batch.target, Tensor):
        return batch.target, None
    assert isinstance(batch.target, tuple)
    answers, weights = batch.target
    assert isinstance(answers, Tensor)
    assert isinstance(weights, Tensor)
    return answers, weights


def _other(net: Net, task: Task, data: Batch) -> nn.Module:
    """A small net of a kind that knows nothing of the victim's, for tensors of numbers."""
    example = data.inputs[:1] if isinstance(data.inputs, Tensor) else None
    if example is None or not example.is_floating_point():
        raise NotApplicable(f"a {net} copy needs inputs that are one tensor of numbers; {task.name} has others")
    answers, _ = _parts(data)
    if answers.ndim > 2:
        raise NotApplicable(f"a {net} copy gives one answer an example; {task.name} gives several")
    outputs = 1 if answers.ndim == 1 else answers.shape[1]
    last = [nn.Flatten(0)] if answers.ndim == 1 else []
    if net == "dense":
        return nn.Sequential(
            nn.Flatten(), nn.Linear(math.prod(example.shape[1:]), 256), nn.ReLU(), nn.Linear(256, outputs), *last
        )
    if example.ndim != 4 or min(example.shape[2:]) < 4:
        raise NotApplicable(f"a convolutional copy needs images of at least 4x4; {task.name} has other inputs")
    body = nn.Sequential(
        nn.Conv2d(example.shape[1], 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    with torch.no_grad():
        width = body(torch.zeros(1, *example.shape[1:])).shape[1]
    return nn.Sequential(*body, nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, outputs), *last)
