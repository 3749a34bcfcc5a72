"""Deceit: what a server that lies about its answers learns from what its client then does for all to see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias, final

import torch
from torch import Tensor

from secure_ml.attack import Attack, Result, stopwatch
from secure_ml.batch import Tree
from secure_ml.errors import BudgetExceeded, NotApplicable, require
from secure_ml.outputs import Classes, Output
from secure_ml.randomness import generator
from secure_ml.ring import Integers
from secure_ml.rows import Row, make_row, pool_rows
from secure_ml.stats import Estimate, clopper_pearson
from secure_ml.task import Task
from secure_ml.threats import Threat
from secure_ml.victim import Served, Victim

Secret: TypeAlias = Literal["key", "input"]
NEAR = 0.05
"""Share of an input's range within which a guess of one of its numbers counts as right."""


@dataclass(frozen=True, eq=False)
class Line:
    """What the client and everybody else knows of the conversation."""

    degree: int
    """Of the ring; half as many slots are in a ciphertext, one for each query of a batch."""
    modulus: int
    """The prime that is left of the modulus in an answer."""
    queries: int
    """Different inputs in the batch, which fill its first slots and are asked again in the others."""
    scale: float
    """By which numbers in answers are multiplied."""
    room: float
    """Answers beyond this are refused; honest ones stay below a quarter of it."""
    inputs: int
    outputs: int
    low: float
    high: float
    """Between which numbers inputs lie."""


class Dupe(ABC):
    """A client that asks about the same batch again and again, and acts on what it decrypts.

    Each lie costs one answer; beyond ``answers`` of them comes `BudgetExceeded`. A lie that the client's checks catch
    raises `UsageError`, as it would tell the client.
    """

    def __init__(self, line: Line, answers: int) -> None:
        self.line, self.answers, self.spent = line, answers, 0

    def substituted(self, weights: Tensor, biases: Tensor) -> Tensor:
        """Decisions ``(N/2,)`` on affine functions of the query ``weights (K, in)``, ``biases (K, N/2)``."""
        self._spend()
        return self._substituted(weights, biases)

    def forged(self, c0: Integers, c1: Integers) -> Tensor:
        """Decisions ``(N/2,)`` on ciphertexts ``c0 + c1 * key`` of the server's own making, coefs ``(K, N)``."""
        self._spend()
        return self._forged(c0, c1)

    def _spend(self) -> None:
        if self.spent >= self.answers:
            raise BudgetExceeded(f"the client asked {self.answers} times; there is no further answer to lie in")
        self.spent += 1

    @abstractmethod
    def _substituted(self, weights: Tensor, biases: Tensor) -> Tensor:
        """What is decided on affine functions of the query."""

    @abstractmethod
    def _forged(self, c0: Integers, c1: Integers) -> Tensor:
        """What is decided on ciphertexts of these coefficients."""


class Gullible(Served, ABC):
    """Answers that travel as ciphertexts, to a client that believes them."""

    @abstractmethod
    def duped(self, inputs: Tree, answers: int) -> tuple[Dupe, Mapping[Secret, Tensor]]:
        """The client that asks about inputs ``(B, *shape)``, and its secrets: the key ``(N,)``, the inputs ``(B, in)``.

        Raises `NotApplicable` where a ciphertext is of one query.
        """


class Deceit(Attack):
    """The adversary is the server: it answers as it likes, and sees which class the client then acts on, no number."""

    family: ClassVar[str] = "protocol"
    outputs: ClassVar[tuple[type[Output], ...]] = (Classes,)
    after: ClassVar[Secret]
    """What it is after."""
    answers: int
    """Answers that it may lie in, at most."""

    @abstractmethod
    def deceive(self, dupe: Dupe, rng: torch.Generator) -> Tensor:
        """The secret: the key ``(N,)``, or the inputs ``(B, in)``."""

    @final
    def evaluate(self, victim: Victim, *, threat: Threat | None, seed: int, examples: int) -> Result:
        """Lie to a batch of queries, and compare; a guess without any answer stands beside it."""
        self.check(victim.task, threat)
        if not isinstance(victim.served, Gullible):
            raise NotApplicable(
                f"{type(self).__name__} answers with ciphertexts; none travel to {victim.task.name} as it is served"
            )
        dupe, secrets = victim.served.duped(victim.tested(examples).inputs, self.answers)
        truth, blind = secrets[self.after], self._blind(victim, secrets[self.after])
        with stopwatch(torch.device("cpu")) as seconds:
            guess = self.deceive(dupe, generator(seed, "deceit", repr(self)))
        require(
            tuple(guess.shape) == tuple(truth.shape),
            f"{self!r} guessed a secret of shape {tuple(guess.shape)}; expected {tuple(truth.shape)}",
        )
        within = 0.0 if self.after == "key" else NEAR * (dupe.line.high - dupe.line.low)
        rows = [
            make_row(
                victim,
                f"{self.after} {what}",
                _share(tried, truth, within),
                attack=repr(self),
                queries=spent,
                seconds=took,
            )
            for what, tried, spent, took in (
                ("recovered from decisions on false answers", guess, dupe.spent, seconds[0]),
                ("guessed without any answer", blind, 0, 0.0),
            )
        ]
        return Result(tuple(rows))

    def _blind(self, victim: Victim, truth: Tensor) -> Tensor:
        """A key of zeros, or the adversary's own examples' mean."""
        if self.after == "key":
            return torch.zeros_like(truth)
        known = victim.splits.aux if len(victim.splits.aux) else victim.splits.validation
        assert isinstance(known.inputs, Tensor)
        return known.inputs.cpu().double().flatten(1).mean(0).expand_as(truth)

    @final
    @classmethod
    def pool(cls, task: Task, attempts: Sequence[tuple[Attack, Result]]) -> list[Row]:
        """Of every attack, the share of all victims' secrets."""
        by_attack: dict[str, list[Result]] = {}
        for attack, result in attempts:
            by_attack.setdefault(repr(attack), []).append(result)
        return [
            replace(pool_rows(rows), note=rows[0].note)
            for results in by_attack.values()
            for rows in zip(*(result.rows for result in results), strict=True)
        ]


def thresholded(edges: Tensor, size: float) -> tuple[Tensor, Tensor]:
    """Lines over ``u`` of which the k-th is the largest where ``u`` is in the k-th interval of ``edges (K + 1, B)``.

    Slopes ``(K,)``, the same everywhere, and offsets ``(K, B)``; no line exceeds ``size`` between the outer edges.
    """
    centre, half = (edges[0] + edges[-1]) / 2, (edges[-1] - edges[0]) / 2
    slopes = torch.arange(len(edges) - 1, dtype=torch.float64) - (len(edges) - 2) / 2
    offsets = torch.cat([torch.zeros_like(edges[:1]), -(edges[1:-1] - centre).cumsum(0)])
    middle = (offsets.amax(0) + offsets.amin(0)) / 2
    offsets = offsets - middle
    largest = float((offsets.abs() + slopes.abs()[:, None] * half).max())
    factor = size / max(largest, 1e-12)
    return slopes * factor, (offsets - slopes[:, None] * centre) * factor


def _share(guess: Tensor, truth: Tensor, within: float) -> Estimate:
    right = (guess.double() - truth.double()).abs() <= within
    return clopper_pearson(int(right.sum()), right.numel())
