"""What attacks share that learn a copy from answers: checked settings, what was asked so far, and how it is learnt."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from attacks.extraction._variation import nudged, varied
from secure_ml.access import BlackBox
from secure_ml.adaptive import average, log_probabilities
from secure_ml.batch import Batch, Tree, join, leaves
from secure_ml.errors import Refused, require
from secure_ml.families.extraction import Extraction
from secure_ml.imitation import Imitation, Net, check_net
from secure_ml.outputs import Output, Values, check_reveal
from secure_ml.task import Augment, Task, unchanged
from secure_ml.threats import Threat


class Learned(Extraction):
    """An extraction whose copy is trained through the shared loop."""

    net: Net
    """Architecture of the copy."""
    epochs: int | None
    """Of the copy, over the answers; as many steps as the victim had unless given."""
    varied: bool = False
    """Whether every image of the pool is turned, zoomed, stretched and moved at random before it is asked about."""

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

    def wide(self, pool: Batch, n: int, rng: torch.Generator) -> Batch:
        """The inputs of the pool, or, where they are to be varied, ``n`` variations of them."""
        return Batch(varied(pool, n, rng) if self.varied else pool.inputs, ())

    def learn(self, train: Imitation, data: Batch, augment: Augment | None = None) -> nn.Module:
        """A copy trained on inputs and answers; varied as the task's own examples are unless told."""
        answers = data.target
        assert isinstance(answers, Tensor)
        return train(data.inputs, answers, self.epochs, net=self.net, augment=augment)


class Asked:
    """Inputs that were asked about, and their answers, in their order."""

    def __init__(self, access: BlackBox) -> None:
        self.access = access
        self.refused = False
        """Whether this client is answered no more."""
        self._pieces: list[Batch] = []

    def __len__(self) -> int:
        return sum(map(len, self._pieces))

    def ask(self, inputs: Tree) -> Batch:
        """The inputs that are answered, with the answers, which are kept; about no input, nobody is asked.

        Raises `Refused` where not even the first input ever asked about is answered.
        """
        n = len(next(leaves(inputs)))
        if self._pieces and (self.refused or not n):
            return self._pieces[0].take(slice(0, 0))
        try:
            new = Batch(inputs, self.access(inputs))
        except Refused as stop:
            if not len(self) + len(stop.answers):
                raise
            self.refused = True
            new = Batch(Batch(inputs, ()).take(slice(0, len(stop.answers))).inputs, stop.answers)
        self._pieces.append(new)
        return new

    @property
    def data(self) -> Batch:
        """All of it."""
        return joined(*self._pieces)

    def some(self, calls: int, rng: torch.Generator) -> Batch:
        """What was answered in a few calls, drawn at random."""
        return joined(*(self._pieces[i] for i in torch.randint(len(self._pieces), (calls,), generator=rng)))

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
    return nudged if isinstance(inputs, Tensor) and inputs.ndim == 4 and inputs.is_floating_point() else unchanged


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


def mean_answer(output: Output, answers: list[Tensor]) -> Tensor:
    """The mean of several answers, of probabilities or of values, in the form of the answers."""
    if isinstance(output, Values):
        return torch.stack(answers).mean(0)
    return average(torch.stack([log_probabilities(answer) for answer in answers]), answers[0].ndim == 1)


def joined(*batches: Batch) -> Batch:
    """The examples of all batches."""
    return Batch(join([batch.inputs for batch in batches]), join([batch.target for batch in batches]))


def shuffled(n: int, most: int, rng: torch.Generator) -> Tensor:
    """At most so many of n places, in an order of their own, ``(min(n, most),)``."""
    return torch.randperm(n, generator=rng)[:most]
