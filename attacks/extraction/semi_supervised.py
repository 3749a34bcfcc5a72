"""A copy that also learns from inputs that nobody was asked about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from attacks.extraction._learned import Asked, Learned, images, shuffled
from secure_ml.access import BlackBox
from secure_ml.adaptive import average, log_probabilities
from secure_ml.batch import Batch, join
from secure_ml.errors import require
from secure_ml.imitation import Imitation, Net
from secure_ml.outputs import Output, Reveal, Values
from secure_ml.randomness import derive
from secure_ml.task import Augment
from secure_ml.victim import Plain


@dataclass(frozen=True, kw_only=True)
class SemiSupervised(Learned):
    """The rest of the pool, answered by copies instead of the victim (Jagielski et al. 2020).

    https://arxiv.org/abs/1909.01838. Asks about ``queries`` random inputs ``(queries, *shape)`` and trains ``members``
    copies on the answers; what they say on average, over ``views`` variations of each image, is taken for the answer to
    inputs that were not asked about, where it is at least so sure; and a last copy learns from both kinds of answers.
    Repeated in ``rounds``, with the copies of a round trained on the pseudo-answers of the one before. Raises
    `UsageError` for settings out of range.

    Differs from the paper: self-training with soft answers of an ensemble, by the victim's recipe, where the paper has
    MixMatch; in training, images are varied.
    """

    queries: int = 300
    """The budget."""
    budgets: tuple[int, ...] = ()
    """Smaller budgets at which the copy is judged on the way."""
    reveal: Reveal = "probabilities"
    """How much of each answer the adversary sees."""
    source: str = ""
    """The document model whose training inputs are asked about; the victim's auxiliary split unless given."""
    members: int = 3
    """Copies whose answers are averaged."""
    rounds: int = 1
    """How often the rest of the pool is answered anew."""
    views: int = 4
    """Variations of each image over which a copy's answers are averaged, beside the image itself."""
    confidence: float = 0.0
    """The least probability of the class that is named; below it an input is left out, where answers are classes."""
    rest: int = 10_000
    """Most inputs that were not asked about, drawn at random."""
    net: Net = "same"
    """Architecture of the copy."""
    epochs: int | None = None
    """Of each copy; as many steps as the victim had unless given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("members", 1), ("rounds", 1), ("views", 0), ("rest", 0)):
            value = getattr(self, name)
            require(value >= least, f"SemiSupervised needs {name} of at least {least}; given {value}")
        require(0 <= self.confidence < 1, f"SemiSupervised needs a confidence in [0, 1); given {self.confidence}")

    def steal(self, access: BlackBox, pool: Batch, train: Imitation, rng: torch.Generator) -> Iterator[nn.Module]:
        """A copy at each budget, from the answers so far and the copies' own answers to the rest."""
        order, asked = shuffled(len(pool), len(pool), rng), Asked(access)
        for budget in self.stages:
            asked.ask(pool.take(order[len(asked) : budget]).inputs)
            rest = pool.take(order[len(asked) : len(asked) + self.rest])
            yield self.distil(train, asked.data, rest, rng)

    def distil(self, train: Imitation, asked: Batch, rest: Batch, rng: torch.Generator) -> nn.Module:
        """The last copy."""
        vary, data = images(train.task, rest.inputs), asked
        for turn in range(self.rounds if len(rest) else 0):
            seeds = [derive(train.seed, "member", turn, i) for i in range(self.members)]
            members = [self.learn(replace(train, seed=seed), data, vary) for seed in seeds]
            data = self.both(train.task.output, asked, rest, self.guess(train, members, rest, vary, rng))
        return self.learn(train, data, vary)

    def guess(
        self, train: Imitation, members: list[nn.Module], rest: Batch, vary: Augment, rng: torch.Generator
    ) -> Tensor:
        """What copies answer on average, in the form of the victim's answers."""
        bare = Batch(rest.inputs, ())
        views = [bare, *(vary(bare, rng) for _ in range(self.views if vary is images(train.task, rest.inputs) else 0))]
        answers = [Plain(member, train.task.chunk)(view.inputs) for member in members for view in views]
        return mean_answer(train.task.output, answers)

    def both(self, output: Output, asked: Batch, rest: Batch, guessed: Tensor) -> Batch:
        """Paid and guessed answers; the paid ones repeated until they are a third of all."""
        sure = torch.ones(len(rest), dtype=torch.bool, device=guessed.device)
        if self.confidence and not isinstance(output, Values):
            top = log_probabilities(guessed).amax(-1).exp()
            sure = top.reshape(len(rest), -1).mean(1) >= self.confidence
        kept = Batch(rest.inputs, guessed.to(_tensor(asked))).take(sure)
        again = max(1, round(len(kept) / 2 / len(asked)))
        return joined([asked] * again + [kept])

    @classmethod
    def tiny(cls) -> SemiSupervised:
        """Eight queries, two copies."""
        return cls(queries=8, budgets=(4,), members=2, views=1, epochs=2)


def mean_answer(output: Output, answers: list[Tensor]) -> Tensor:
    """The mean of several answers, of probabilities or of values, in the form of the answers."""
    if isinstance(output, Values):
        return torch.stack(answers).mean(0)
    return average(torch.stack([log_probabilities(answer) for answer in answers]), answers[0].ndim == 1)


def joined(batches: list[Batch]) -> Batch:
    """All examples of several batches."""
    return Batch(join([batch.inputs for batch in batches]), join([batch.target for batch in batches]))


def _tensor(batch: Batch) -> Tensor:
    assert isinstance(batch.target, Tensor)
    return batch.target
