"""A copy that needs no data: a generator looks for inputs on which it errs."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.extraction._generation import Field, Source
from attacks.extraction._learned import Asked, Learned, joined
from secure_ml.access import BlackBox
from secure_ml.adaptive import log_probabilities
from secure_ml.batch import Batch
from secure_ml.errors import NotApplicable, require
from secure_ml.imitation import Imitation, Net
from secure_ml.outputs import Classes, Output, Ranking, Reveal, Values
from secure_ml.surfaces import Box
from secure_ml.task import Task
from secure_ml.training import fit


@dataclass(frozen=True, kw_only=True)
class DataFree(Learned):
    """DFME: a generator is taught to make inputs that copy and victim answer apart (Truong et al. 2021).

    https://arxiv.org/abs/2011.14779. In turn the generator takes a step up the L1 distance of logits, by slopes that
    forward differences estimate, and the copy learns from ``copy_steps`` batches of what the generator makes; of the
    pool nothing is used but the shape of inputs ``(B, *shape)``. Every answer that was paid for, those along the
    differences too, is kept, replayed, and in the end teaches a copy from scratch. Needs tens of thousands of queries
    where others need hundreds, and where only labels are revealed the slopes say little. Raises `UsageError` for
    settings out of range, `NotApplicable` unless inputs are one plain tensor of numbers and answers classes or values.

    Differs from the paper: a smaller generator, without batch statistics, that begins with uniform noise; replay; the
    victim's recipe.
    """

    outputs: ClassVar[tuple[type[Output], ...]] = (Classes, Values)

    queries: int = 20_000
    """The budget."""
    budgets: tuple[int, ...] = ()
    """Smaller budgets at which the copy is judged on the way."""
    reveal: Reveal = "probabilities"
    """How much of each answer the adversary sees."""
    source: str = ""
    """The document model whose inputs have the victim's shape; the victim's own unless given."""
    batch: int = 64
    """Inputs of a step."""
    copy_steps: int = 5
    """Steps of the copy between two of the generator."""
    directions: int = 1
    """Random directions in which a slope is estimated; each costs a query an input."""
    width: float = 1e-3
    """Length of a step in such a direction, before the numbers are squeezed into their range."""
    latent: int = 32
    """Dimensions of the noise from which inputs are made."""
    rate: float = 1e-3
    """Learning rate of the generator, of Adam."""
    net: Net = "same"
    """Architecture of the copy."""
    epochs: int | None = 10
    """Of the last copy, over all answers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch", "copy_steps", "directions", "latent"):
            require(getattr(self, name) >= 1, f"DataFree needs {name} of at least 1; given {getattr(self, name)}")
        for name in ("width", "rate"):
            value = getattr(self, name)
            require(0 < value < float("inf"), f"DataFree needs a finite {name} above 0; given {value}")

    def check_task(self, task: Task) -> None:
        """Raise `NotApplicable` unless inputs are one plain tensor of numbers."""
        if isinstance(task.output, Ranking):
            raise NotApplicable(f"DataFree compares logits of classes; {task.name} answers with lists")
        if [type(surface) for surface in task.surfaces] != [Box] or task.surfaces[0].path:
            raise NotApplicable(f"DataFree makes one tensor of real numbers; {task.name} takes other inputs")

    def steal(self, access: BlackBox, pool: Batch, train: Imitation, rng: torch.Generator) -> Iterator[nn.Module]:
        """A copy at each budget, from the answers so far."""
        box = train.task.surfaces[0]
        assert isinstance(box, Box)
        example = box.get(pool.inputs)
        source = Source(tuple(example.shape[1:]), box, self.latent, self.rate, rng).to(example.device)
        asked, module = Asked(access), None
        for budget in self.stages:
            module = self.duel(train, asked, source, module, budget)
            yield self.learn(train, asked.data)
            if asked.refused:
                return

    def duel(self, train: Imitation, asked: Asked, source: Source, module: nn.Module | None, budget: int) -> nn.Module:
        """The copy after generator and copy have taken turns until the budget is spent."""

        def ask(n: int) -> Batch:
            return asked.ask(source.inputs(source.raw(n)))

        def renew(copy: nn.Module, last: Batch, rng: torch.Generator) -> Batch:
            turn = self.batch * (self.directions + 1)
            if budget - len(asked) > turn and not asked.refused:
                source.climb(self.batch, apart(train.task, asked, source, copy), self.directions, self.width)
            new = ask(min(self.copy_steps * self.batch, budget - len(asked)))
            old = asked.some(REPLAYED, rng)
            return joined(new, old)

        data = ask(min(self.copy_steps * self.batch, budget - len(asked)))
        turns = -(-(budget - len(asked)) // (self.batch * (self.copy_steps + self.directions + 1)))
        surrogate = train.surrogate(data, 1 + turns, net=self.net)
        start = surrogate.build if module is None else lambda: deepcopy(module)
        recipe = replace(surrogate.recipe, batch_size=self.batch, schedule="constant")
        surrogate = replace(surrogate, build=start, renew=renew, recipe=recipe)
        trained = fit(surrogate, seed=train.seed, device=train.victim.device).module
        ask(budget - len(asked))  # what was left of the last turn
        return trained

    @classmethod
    def tiny(cls) -> DataFree:
        """Twenty-four queries, four at a time."""
        return cls(queries=24, budgets=(10,), batch=4, copy_steps=1, epochs=2)


def apart(task: Task, asked: Asked, source: Source, copy: nn.Module) -> Field:
    """How far copy and victim are apart, as a function of raw numbers; the victim is asked, and its answers kept."""

    def distance(raw: Tensor) -> Tensor:
        inputs = source.inputs(raw)
        before = len(asked)
        theirs = asked.ask(inputs).target
        assert isinstance(theirs, Tensor)
        if len(asked) - before < len(inputs):  # refused: there is no slope any more
            return raw.new_zeros(len(raw))
        with torch.no_grad():
            mine = copy(inputs)
        return (logits(task, theirs) - logits(task, mine)).abs().sum(1)

    return distance


def logits(task: Task, answers: Tensor) -> Tensor:
    """Logits ``(B, K)`` of mean 0, as log-probabilities give them away; values as they are."""
    if isinstance(task.output, Values):
        return answers.reshape(len(answers), -1)
    logs = log_probabilities(answers)
    return logs - logs.mean(1, keepdim=True)


REPLAYED = 5
"""Earlier batches that the copy sees again in each turn."""
