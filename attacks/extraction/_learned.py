"""What attacks share that learn a copy from answers: checked settings, what was asked so far, and how it is learnt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from secure_ml.access import BlackBox
from secure_ml.adaptive import log_probabilities
from secure_ml.augmentation import Chain, Rotation, Shift, Zoom
from secure_ml.batch import Batch, Tree, join, leaves
from secure_ml.errors import require
from secure_ml.families.extraction import Extraction
from secure_ml.imitation import Imitation, Net, check_net
from secure_ml.outputs import Output, Values, check_reveal
from secure_ml.task import Augment, Task, unchanged
from secure_ml.threats import Threat
from secure_ml.training import fit

IMAGES: Augment = Chain((Shift(0.1), Rotation(10), Zoom(0.1)))
"""How images are varied that keep their answers."""


class Learned(Extraction):
    """An extraction whose copy is trained through the shared loop."""

    net: Net
    """Architecture of the copy."""
    epochs: int | None
    """Of the copy, over the answers; as many steps as the victim had unless given."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        require(self.queries >= 1, f"{name} needs a budget of at least 1 query; given {self.queries}")
        require(all(b >= 1 for b in self.budgets), f"{name} needs budgets of at least 1 query; given {self.budgets}")
        require(self.epochs is None or self.epochs >= 1, f"{name} needs at least 1 epoch; given {self.epochs}")
        check_reveal(self.reveal)
        check_net(self.net)

    def check(self, task: Task, threat: Threat | None) -> None:
        """Raise `NotApplicable` with the reason where this attack has no meaning for a task."""
        super().check(task, threat)
        self.check_task(task)

    def check_task(self, task: Task) -> None:
        """Raise `NotApplicable` where the attack's settings have no meaning for a task."""

    def learn(self, train: Imitation, data: Batch, augment: Augment | None = None) -> nn.Module:
        """A copy trained on inputs and answers; varied as the task's own examples are unless told."""
        surrogate = train.surrogate(data, self.epochs, net=self.net)
        if augment is not None:
            surrogate = replace(surrogate, augment=augment)
        return fit(surrogate, seed=train.seed, device=train.victim.device).module


class Asked:
    """Inputs that were asked about, and their answers, in their order."""

    def __init__(self, access: BlackBox) -> None:
        self.access = access
        self._pieces: list[Batch] = []

    def __len__(self) -> int:
        return sum(map(len, self._pieces))

    def ask(self, inputs: Tree) -> Batch:
        """The inputs with their answers, which are kept; about no input, nobody is asked."""
        if not len(next(leaves(inputs))) and self._pieces:
            return self._pieces[0].take(slice(0, 0))
        self._pieces.append(Batch(inputs, self.access(inputs)))
        return self._pieces[-1]

    @property
    def data(self) -> Batch:
        """All of it."""
        if len(self._pieces) > 1:
            inputs, answers = (join([getattr(p, name) for p in self._pieces]) for name in ("inputs", "target"))
            self._pieces = [Batch(inputs, answers)]
        return self._pieces[0]

    @property
    def answers(self) -> Tensor:
        """All answers, in the form of the module's own outputs."""
        answers = self.data.target
        assert isinstance(answers, Tensor)
        return answers


def marks(stages: Iterable[int], first: int, rounds: int) -> list[int]:
    """The numbers of queries after which a copy is trained: the first, each stage, and evenly in between."""
    *_, last = ends = sorted(stages)
    first = min(first, last)
    between = {first + round((last - first) * i / rounds) for i in range(rounds + 1)}
    return sorted(between | set(ends))


def images(task: Task, inputs: Tree) -> Augment:
    """How a task's inputs may be varied without another answer: as in its training, or as images are; or not at all."""
    if task.renew is not None:  # what a model that acts observes is no picture
        return unchanged
    if task.augment is not unchanged:
        return task.augment
    return IMAGES if isinstance(inputs, Tensor) and inputs.ndim == 4 and inputs.is_floating_point() else unchanged


def shares(output: Output, answers: Tensor) -> Tensor:
    """Answers as rows ``(B, D)`` that can be compared: probabilities (at every place), or values."""
    rows = answers if isinstance(output, Values) else log_probabilities(answers).exp()
    return rows.reshape(len(answers), -1)


def uncertainty(answers: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy in nats and the lead of the first class over the second, each ``(B,)``; of several places the mean."""
    logs = log_probabilities(answers)
    entropy = -(logs.exp() * logs).sum(-1)
    first, second = logs.exp().topk(2, dim=-1).values.unbind(-1)
    return entropy.reshape(len(answers), -1).mean(1), (first - second).reshape(len(answers), -1).mean(1)


def shuffled(n: int, most: int, rng: torch.Generator) -> Tensor:
    """At most so many of n places, in an order of their own, ``(min(n, most),)``."""
    return torch.randperm(n, generator=rng)[:most]
