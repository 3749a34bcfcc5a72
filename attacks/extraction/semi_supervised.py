"""A copy that also learns from inputs that nobody was asked about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from attacks.extraction._learned import Asked, Learned, images, joined, mean_answer, shuffled
from secure_ml.access import BlackBox
from secure_ml.adaptive import log_probabilities
from secure_ml.batch import Batch
from secure_ml.errors import require
from secure_ml.imitation import Imitation, Net
from secure_ml.outputs import Output, Reveal, Values
from secure_ml.randomness import derive
from secure_ml.task import unchanged
from secure_ml.victim import Plain


@dataclass(frozen=True, kw_only=True)
class SemiSupervised(Learned):
    """The rest of the pool, answered by copies instead of the victim (Jagielski et al. 2020).

    https://arxiv.org/abs/1909.01838. Asks about ``queries`` random inputs ``(queries, *shape)`` and trains ``members``
    copies on the answers; what they say on average is taken for the answer to inputs that nobody was asked about, where
    it is sure enough, and a last copy learns from both. In further ``rounds`` they learn from both and answer the rest
    anew. Where only labels are revealed, images are varied in training, and guessed answers are averaged over
    ``views`` of each; a probability belongs to the very image. Raises `UsageError` for settings out of range.

    Differs from the paper: self-training on the soft answers of an ensemble, by the victim's recipe, in the place of
    MixMatch.
    """

    queries: int = 300
    """The budget."""
    budgets: tuple[int, ...] = ()
    """Smaller budgets at which the copy is judged on the way."""
    reveal: Reveal = "probabilities"
    """How much of each answer the adversary sees."""
    source: str = ""
    """The document model whose training inputs are asked about; the victim's auxiliary split unless given."""
    varied: bool = False
    """Whether every image is turned, zoomed, stretched and moved at random before it is asked about."""
    members: int = 3
    """Copies whose answers are averaged."""
    rounds: int = 1
    """How often the rest of the pool is answered anew."""
    views: int = 4
    """Variations of each image over which guessed answers are averaged, where only labels are revealed."""
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
        pool, asked = self.wide(pool, self.queries + self.rest, rng), Asked(access)
        order = shuffled(len(pool), len(pool), rng)
        for budget in self.stages:
            asked.ask(pool.take(order[len(asked) : budget]).inputs)
            rest = pool.take(order[len(asked) : len(asked) + self.rest])
            yield self.distil(train, asked.data, rest, rng)
            if asked.refused or len(asked) == len(order):
                return

    def distil(self, train: Imitation, asked: Batch, rest: Batch, rng: torch.Generator) -> nn.Module:
        """The last copy."""
        vary = images(train.task, rest.inputs) if self.reveal == "label" else None
        views, data = [rest], asked
        if vary is not None and vary is not unchanged:
            views += [vary(rest, rng) for _ in range(self.views)]
        for turn in range(self.rounds if len(rest) else 0):
            seeds = [derive(train.seed, "member", turn, i) for i in range(self.members)]
            members = [Plain(self.learn(replace(train, seed=s), data, vary), train.task.chunk) for s in seeds]
            guessed = mean_answer(train.task.output, [member(v.inputs) for member in members for v in views])
            sure = self.sure(train.task.output, guessed)
            data = joined(asked, Batch(rest.inputs, guessed).take(sure))
        return self.learn(train, data, vary)

    def sure(self, output: Output, guessed: Tensor) -> Tensor:
        """Which guessed answers are believed, ``(B,)``."""
        if not self.confidence or isinstance(output, Values):
            return torch.ones(len(guessed), dtype=torch.bool, device=guessed.device)
        first = log_probabilities(guessed).amax(-1).exp()
        return first.reshape(len(guessed), -1).mean(1) >= self.confidence

    @classmethod
    def tiny(cls) -> SemiSupervised:
        """Eight queries, two copies."""
        return cls(queries=8, budgets=(4,), members=2, views=1, epochs=2)
