"""Clean probabilities guessed from altered answers, and a copy trained on the guesses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.extraction._inverse import Inverse, Pairs
from attacks.extraction._learned import Asked, Learned, shuffled
from secure_ml.access import BlackBox
from secure_ml.batch import Batch, join
from secure_ml.errors import NotApplicable, require
from secure_ml.imitation import Imitation, Net
from secure_ml.outputs import Classes, Output, Ranking, Reveal
from secure_ml.task import Task
from secure_ml.victim import Plain


@dataclass(frozen=True, kw_only=True)
class Recovery(Learned):
    """Answers cleaned of a defense that the adversary can run at home: D-DAE (Chen et al. 2023).

    https://doi.org/10.1109/SP46215.2023.10179406; as in ModelGuard (Tang et al. 2024) what is guessed is the mean of
    clean probabilities given an answer. Asks about ``queries`` random inputs ``(queries, *shape)``; trains
    ``practices`` models on the answered classes of a half of them, serves each through the victim's defenses, and
    fits a small net that maps what they serve for all other inputs to what they say; then trains a copy on the
    victim's answers so mapped. The adversary knows the defenses with all their settings. Raises `UsageError` for
    settings out of range, `NotApplicable` unless answers are classes that labelled inputs teach.

    Differs from the papers: probabilities are sorted before the map and put back after it, so that all classes share
    it; practice models have the victim's recipe and see nothing but what was asked.
    """

    outputs: ClassVar[tuple[type[Output], ...]] = (Classes,)

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
    practices: int = 4
    """Models of the adversary's own."""
    rest: int = 2000
    """Most inputs that nobody was asked about and that each of them answers, drawn at random."""
    net: Net = "same"
    """Architecture of the copy."""
    epochs: int | None = None
    """Of the copy, over the answers; as many steps as the victim had unless given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.practices >= 1, f"Recovery needs at least 1 model to practise on; given {self.practices}")
        require(self.rest >= 0, f"Recovery needs a number of further inputs of at least 0; given {self.rest}")

    def check_task(self, task: Task) -> None:
        """Raise `NotApplicable` where answers are no probabilities of classes, or labels do not teach them."""
        if isinstance(task.output, Ranking):
            raise NotApplicable(f"Recovery guesses probabilities of classes; {task.name} answers with lists")
        if task.renew is not None:
            raise NotApplicable(
                f"Recovery practises on labelled inputs; {task.name} learns from what its actions lead to"
            )

    def steal(self, access: BlackBox, pool: Batch, train: Imitation, rng: torch.Generator) -> Iterator[nn.Module]:
        """A copy at each budget, from the answers so far."""
        pool, asked = self.wide(pool, self.queries + self.rest, rng), Asked(access)
        order = shuffled(len(pool), len(pool), rng)
        for budget in self.stages:
            asked.ask(pool.take(order[len(asked) : min(budget, self.queries)]).inputs)
            rest = pool.take(order[len(asked) : len(asked) + self.rest])
            inverse = self.inverse(train, asked.data, rest, rng)
            yield self.learn(train, Batch(asked.data.inputs, inverse(asked.answers)))
            if asked.refused or len(asked) == len(order):
                return

    def inverse(self, train: Imitation, asked: Batch, rest: Batch, rng: torch.Generator) -> Inverse:
        """What maps served answers to clean ones, learnt from models whose both are known."""
        output, answers = train.task.output, asked.target
        assert isinstance(output, Classes)
        assert isinstance(answers, Tensor)
        pairs = Pairs()
        for number in range(self.practices):
            order = torch.randperm(len(asked), generator=rng)
            mine, others = asked.take(order[: -(-len(asked) // 2)]), asked.take(order[-(-len(asked) // 2) :])
            known, held_out = (Batch(half.inputs, output.decide(_answers(half))) for half in (mine, others))
            practice = train.practice(known, number, held_out)
            looked = join([others.inputs, rest.inputs]) if len(others) + len(rest) else mine.inputs
            served = output.reveal(practice.served.session()(looked), self.reveal)
            pairs.add(served, Plain(practice.module, train.task.chunk)(looked))
        return pairs.inverse(train)

    @classmethod
    def tiny(cls) -> Recovery:
        """Eight queries, one model to practise on."""
        return cls(queries=8, budgets=(4,), practices=1, epochs=2)


def _answers(batch: Batch) -> Tensor:
    assert isinstance(batch.target, Tensor)
    return batch.target
