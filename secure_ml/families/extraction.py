"""Extraction: a copy of the served model from its answers to a budget of queries."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, TypeAlias, final

import torch
from torch import Tensor

from secure_ml.access import BlackBox
from secure_ml.attack import Attack, Result, stopwatch
from secure_ml.batch import Batch, Splits, Tree
from secure_ml.errors import require
from secure_ml.outputs import Reveal
from secure_ml.randomness import derive, generator
from secure_ml.rows import Row, make_row, pool_rows
from secure_ml.scores import Predict
from secure_ml.task import Predictor, Task, unchanged
from secure_ml.threats import Threat
from secure_ml.training import fit
from secure_ml.victim import Victim

Train: TypeAlias = Callable[[Tree, Tensor, int | None], Predict]
"""Inputs, the answers to them and epochs (None for as many steps as the victim had), to a surrogate's predictor."""


class Extraction(Attack):
    """The adversary asks the served model at most ``queries`` times, and knows architecture and recipe."""

    family: ClassVar[str] = "extraction"
    reveal: Reveal
    """How much of each answer the adversary sees."""
    queries: int
    """The budget; asking for more raises `BudgetExceeded`."""

    @abstractmethod
    def steal(self, access: BlackBox, pool: Batch, train: Train, rng: torch.Generator) -> Predict:
        """A predictor that imitates the victim, made from answers to inputs of the pool."""

    @final
    def evaluate(self, victim: Victim, *, threat: Threat | None, seed: int, examples: int) -> Result:
        """Compare the copy with what the victim serves, on test examples that neither has seen."""
        self.check(victim.task, threat)
        task, test = victim.task, victim.tested(examples)
        access = BlackBox(task, victim.served, self.reveal, self.queries)
        train = _trainer(victim, derive(seed, "extraction", repr(self)))
        with stopwatch(victim.device) as seconds:
            rng = generator(seed, "extraction", repr(self))
            copy = self.steal(access, victim.splits.aux, train, rng)
        access.budget = access.queries  # a copy that still asks the victim is none
        fidelity = task.output.fidelity(copy(test.inputs).to(victim.device), victim.served(test.inputs))
        accuracy = task.score.measure(lambda inputs: copy(inputs).to(victim.device), test)
        share = f"fidelity at {access.queries} queries"
        rows = [
            make_row(victim, name, estimate, attack=repr(self), unit=unit, queries=access.queries, seconds=seconds[0])
            for name, estimate, unit in (
                (share, fidelity, "share"),
                (f"copy's {task.score.name}", accuracy, task.score.unit),
            )
        ]
        return Result(tuple(rows))

    @final
    @classmethod
    def pool(cls, task: Task, attempts: Sequence[tuple[Attack, Result]]) -> list[Row]:
        """The most faithful copy at each budget, and its own score: means over victims."""
        by_attack: dict[str, list[Result]] = {}
        for attack, result in attempts:
            by_attack.setdefault(repr(attack), []).append(result)
        best: dict[str, list[Row]] = {}
        for results in by_attack.values():
            rows = [pool_rows(same) for same in zip(*(result.rows for result in results), strict=True)]
            rival = best.get(rows[0].measure)
            if rival is None or (rows[0].value or 0.0) > (rival[0].value or 0.0):
                best[rows[0].measure] = rows
        return [row for rows in best.values() for row in rows]


def _trainer(victim: Victim, seed: int) -> Train:
    """Training of a surrogate: the task's own architecture and recipe, as many steps as the victim had."""
    task, recipe = victim.task, victim.task.recipe

    def imitation(predictor: Predictor, batch: Batch) -> Tensor:
        assert isinstance(batch.target, Tensor)
        return task.output.imitate(predictor(batch.inputs), batch.target)

    def train(inputs: Tree, answers: Tensor, epochs: int | None) -> Predict:
        data = Batch(inputs, answers)
        require(len(data) > 0, "a surrogate needs at least one answer to learn from")
        none = data.take(slice(0, 0))
        steps = recipe.epochs * -(-len(victim.splits.train) // recipe.batch_size)
        epochs = epochs or -(-steps // -(-len(data) // recipe.batch_size))
        surrogate = replace(
            task,
            name=f"{task.name}_surrogate",
            data=lambda _: Splits(data, none, none, none),
            loss=imitation,
            renew=None,
            augment=unchanged if task.renew else task.augment,  # that of transitions has no meaning for answers
            recipe=replace(recipe, epochs=epochs, patience=None),
        )
        return fit(surrogate, seed=seed, device=victim.device).served

    return train
