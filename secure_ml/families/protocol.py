"""Protocol: a secret that never travels, from what travels between client and server and what the client shows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias, final

import torch
from torch import Tensor

from secure_ml.attack import Attack, Result, stopwatch
from secure_ml.batch import Tree
from secure_ml.errors import NotApplicable, require
from secure_ml.randomness import generator
from secure_ml.ring import Integers
from secure_ml.rows import Row, make_row, pool_rows
from secure_ml.stats import clopper_pearson
from secure_ml.task import Task
from secure_ml.threats import Threat
from secure_ml.victim import Served, Victim

Shown: TypeAlias = Literal["full", "float32", "released"]
"""What the client shows of its decrypted answers: all digits, those of single precision, or what it thinks is safe."""


@dataclass(frozen=True, eq=False)
class Exchange:
    """A ciphertext ``c0 + c1 * key`` as it travelled, and the numbers in it as the client showed them."""

    c0: Integers
    """Values ``(N,)`` in the ring, in its order."""
    c1: Integers
    scale: float
    """By which numbers were multiplied before they became integers."""
    shown: Tensor
    """``(N/2,)`` in float64: one number a slot."""


@dataclass(frozen=True, eq=False)
class Transcript:
    """Everything that an eavesdropper holds, who also reads what the client shows."""

    degree: int
    modulus: int
    exchanges: tuple[Exchange, ...]


class Conversation(Served, ABC):
    """Answers that travel as ciphertexts under a key that the client keeps."""

    @abstractmethod
    def overheard(self, inputs: Tree, shown: Shown) -> tuple[Transcript, Tensor]:
        """What travels when the client asks about inputs ``(B, *shape)``, and the secret key ``(N,)`` of -1, 0, 1.

        Raises `NotApplicable` where an answer shows only some of the slots.
        """


class Protocol(Attack):
    """The adversary listens, passively, and reads what the client shows to others; the key alone is the secret."""

    family: ClassVar[str] = "protocol"
    shown: Shown
    """What the client shows of its answers."""

    @abstractmethod
    def attack(self, transcript: Transcript, rng: torch.Generator) -> Tensor:
        """The secret key ``(N,)``, each coefficient -1, 0 or 1."""

    @final
    def evaluate(self, victim: Victim, *, threat: Threat | None, seed: int, examples: int) -> Result:
        """Listen to a batch of queries, attack, and compare with the key; a guess of zeros stands beside it."""
        self.check(victim.task, threat)
        if not isinstance(victim.served, Conversation):
            raise NotApplicable(
                f"{type(self).__name__} listens to ciphertexts; none travel to {victim.task.name} as it is served"
            )
        transcript, secret = victim.served.overheard(victim.tested(examples).inputs, self.shown)
        with stopwatch(torch.device("cpu")) as seconds:
            guess = self.attack(transcript, generator(seed, "protocol", repr(self)))
        require(
            tuple(guess.shape) == tuple(secret.shape),
            f"{self!r} guessed a key of shape {tuple(guess.shape)}; expected {tuple(secret.shape)}",
        )
        rows = [
            make_row(
                victim,
                f"{what} (answers shown: {self.shown})",
                clopper_pearson(int((tried == secret).sum()), len(secret)),
                attack=repr(self),
                queries=transcript.degree // 2,
                seconds=spent,
            )
            for what, tried, spent in (
                ("key recovered", guess, seconds[0]),
                ("key guessed as zeros", torch.zeros_like(secret), 0.0),
            )
        ]
        return Result(tuple(rows), {"right": guess == secret})

    @final
    @classmethod
    def pool(cls, task: Task, attempts: Sequence[tuple[Attack, Result]]) -> list[Row]:
        """Of every attack, the share of all victims' keys."""
        by_attack: dict[str, list[Result]] = {}
        for attack, result in attempts:
            by_attack.setdefault(repr(attack), []).append(result)
        return [
            replace(pool_rows(rows), note=rows[0].note)
            for results in by_attack.values()
            for rows in zip(*(result.rows for result in results), strict=True)
        ]
