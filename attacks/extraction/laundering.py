"""A copy that does not take over what only a mark would explain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.extraction._learned import Asked, Learned, joined, mean_answer, shuffled
from secure_ml.access import BlackBox
from secure_ml.adaptive import log_probabilities
from secure_ml.batch import Batch
from secure_ml.errors import NotApplicable, require
from secure_ml.imitation import Imitation, Net
from secure_ml.outputs import Classes, Output, Ranking, Reveal
from secure_ml.randomness import derive
from secure_ml.task import Task
from secure_ml.victim import Plain


@dataclass(frozen=True, kw_only=True)
class Laundering(Learned):
    """Answers checked against one another before they are copied, so that marks among them stay behind.

    After confident learning (Northcutt et al. 2021, https://arxiv.org/abs/1911.00068), against watermarks of answers
    such as DAWN (https://arxiv.org/abs/1906.00830). Asks about ``queries`` random inputs ``(queries, *shape)``, parts
    them into ``folds``, and trains a copy on all folds but one for each. A mark is an answer that nothing else
    explains: the copy that did not see it names another class. Such an answer is replaced by what that copy says, or
    left out where it is not sure by ``confidence``; the last copy learns from all the others, and from what the copies
    say on average about at most ``rest`` inputs that nobody was asked about, which carry no mark. Raises `UsageError`
    for settings out of range, `NotApplicable` where answers are no classes.

    Differs from the paper: soft answers, by the victim's recipe, and no estimate of how labels are confused.
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
    folds: int = 5
    """Parts of the answers, each of which is checked by a copy of the others."""
    confidence: float = 0.5
    """The least probability of the class by which an answer is replaced."""
    rest: int = 2000
    """Most inputs that nobody was asked about and that the copies answer, drawn at random."""
    net: Net = "same"
    """Architecture of the copy."""
    epochs: int | None = None
    """Of each copy; as many steps as the victim had unless given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.folds >= 2, f"Laundering needs at least 2 folds; given {self.folds}")
        require(0 <= self.confidence < 1, f"Laundering needs a confidence in [0, 1); given {self.confidence}")
        require(self.rest >= 0, f"Laundering needs a number of further inputs of at least 0; given {self.rest}")

    def check_task(self, task: Task) -> None:
        """Raise `NotApplicable` where an answer is not one class."""
        if isinstance(task.output, Ranking):
            raise NotApplicable(f"Laundering checks which class is named; {task.name} answers with lists")

    def steal(self, access: BlackBox, pool: Batch, train: Imitation, rng: torch.Generator) -> Iterator[nn.Module]:
        """A copy at each budget, from the answers so far that stood the check."""
        asked = Asked(access)
        order = shuffled(len(pool), len(pool), rng)
        for budget in self.stages:
            asked.ask(pool.take(order[len(asked) : budget]).inputs)
            rest = pool.take(order[len(asked) : len(asked) + self.rest])
            yield self.learn(train, self.washed(train, asked.data, Batch(rest.inputs, ())))
            if asked.refused or len(asked) == len(order):
                return

    def washed(self, train: Imitation, asked: Batch, rest: Batch) -> Batch:
        """The answers that stay, those that are put in the place of others, and answers to the rest."""
        output, answers = train.task.output, asked.target
        assert isinstance(output, Classes)
        assert isinstance(answers, Tensor)
        folds = min(self.folds, len(asked))
        if folds < 2:
            return asked
        fold = torch.arange(len(asked), device=answers.device) % folds
        checked = torch.empty_like(answers)
        spoken = []
        for i in range(folds):
            others = asked.take((fold != i).nonzero()[:, 0])
            copy = Plain(self.learn(replace(train, seed=derive(train.seed, "fold", i)), others), train.task.chunk)
            checked[fold == i] = copy(asked.take((fold == i).nonzero()[:, 0]).inputs).to(answers)
            spoken += [copy(rest.inputs)] if len(rest) else []
        named, doubted = output.decide(answers), output.decide(checked)
        told = named != doubted
        first = log_probabilities(checked)
        sure = first.amax(-1).exp().reshape(len(checked), -1).mean(1) >= self.confidence
        clean = torch.where(told.reshape(-1, *[1] * (answers.ndim - 1)), checked, answers)
        stays = (~told | sure).nonzero()[:, 0]
        kept = Batch(asked.inputs, clean).take(stays) if len(stays) else asked
        if not len(rest):
            return kept
        return joined(kept, Batch(rest.inputs, mean_answer(output, spoken).to(answers)))

    @classmethod
    def tiny(cls) -> Laundering:
        """Eight queries, two folds."""
        return cls(queries=8, budgets=(4,), folds=2, rest=4, epochs=2)
