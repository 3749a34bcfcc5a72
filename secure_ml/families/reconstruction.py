"""Reconstruction: what was not released, from what was: inputs, attributes, secrets, properties of the training set."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Generic, final

import torch
from torch import Tensor

from secure_ml.attack import Attack, Result, stopwatch
from secure_ml.errors import NotApplicable, require
from secure_ml.randomness import derive, generator
from secure_ml.rows import Row, make_row, pool_rows
from secure_ml.secrets.base import A, Secret
from secure_ml.task import Task
from secure_ml.threats import Threat
from secure_ml.victim import Victim


class Reconstruction(Generic[A], Attack):
    """The adversary is handed what its secret leaves in the open, and guesses; it never meets the victim itself.

    The secret alone knows the truth. It judges the guess against it, and beside it a guess without access: the prior
    or an imputation. What the latter knows too is no leakage, however good it looks.
    """

    family: ClassVar[str] = "reconstruction"

    @property
    @abstractmethod
    def secret(self) -> Secret[A]:
        """What is hidden and handed over, by this attack's settings."""

    @abstractmethod
    def recover(self, access: A, rng: torch.Generator) -> Tensor:
        """The guess, of the shape that the access names."""

    @final
    def check(self, task: Task, threat: Threat | None) -> None:
        """Raise `NotApplicable` where a task has no fixed training set, or no such secret."""
        super().check(task, threat)
        name = type(self).__name__
        if task.renew is not None:
            raise NotApplicable(f"the examples of {task.name} are drawn anew by what the model does: none is a secret")
        self.secret.check(name, task)

    @final
    def evaluate(self, victim: Victim, *, threat: Threat | None, seed: int, examples: int) -> Result:
        """Hide the secret, let the adversary guess, and judge the guess; what is no number counts as 0."""
        self.check(victim.task, threat)
        require(examples >= 1, f"at least 1 example must be attacked; given {examples}")
        hidden = self.secret.hide(victim, examples, derive(seed, "secret", repr(self.secret)))
        access = hidden.access
        with stopwatch(victim.device) as seconds:
            guess = self.recover(access, generator(seed, "reconstruction", repr(self)))
        require(
            isinstance(guess, Tensor) and tuple(guess.shape) == hidden.shape,
            f"{self!r} guessed something of shape {tuple(guess.shape)}; expected {hidden.shape}",
        )
        verdict = hidden.judge(guess.detach().to(victim.device).float().nan_to_num(posinf=0.0, neginf=0.0))
        rows = [
            make_row(
                victim,
                found.measure,
                found.estimate,
                attack=repr(self),
                unit=found.unit,
                queries=access.queries,
                gradients=access.gradients,
                seconds=seconds[0],
                note=found.note,
            )
            for found in verdict.measured
        ]
        return Result(tuple(rows), {name: value.detach().cpu() for name, value in verdict.evidence.items()})

    @final
    @classmethod
    def pool(cls, task: Task, attempts: Sequence[tuple[Attack, Result]]) -> list[Row]:
        """Of every kind of secret, the attack that found most by its headline: means over victims."""
        by_attack: dict[str, list[Result]] = {}
        for attack, result in attempts:
            by_attack.setdefault(repr(attack), []).append(result)
        best: dict[str, list[Row]] = {}
        for results in by_attack.values():
            rows = [_over_victims(same) for same in zip(*(result.rows for result in results), strict=True)]
            rival = best.get(rows[0].measure)
            if rival is None or (rows[0].value or 0.0) > (rival[0].value or 0.0):
                best[rows[0].measure] = rows
        return [row for rows in best.values() for row in rows]


def _over_victims(rows: Sequence[Row]) -> Row:
    """The mean over victims, with an interval no narrower than the examples of one victim allow."""
    known = [row for row in rows if row.value is not None]
    row = replace(pool_rows(rows, note=rows[0].note), note=rows[0].note)
    if row.value is None or row.low is None or row.high is None or len(known) < 2:
        return row
    alone = sum(((one.high or 0.0) - (one.low or 0.0)) / 2 for one in known) / len(known)
    half = max((row.high - row.low) / 2, alone)
    low, high = row.value - half, row.value + half
    if row.unit == "share":
        low, high = max(low, 0.0), min(high, 1.0)
    return replace(row, low=low, high=high, interval=f"{row.interval}, at least that of one victim")
