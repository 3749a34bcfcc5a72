"""The client's inputs from its decisions on answers of another program than the one it asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secure_ml.errors import NotApplicable, require
from secure_ml.families.deceit import Deceit, Dupe, Secret, thresholded


@dataclass(frozen=True, kw_only=True)
class FalsePrograms(Deceit):
    """A server that computes what it likes on the query reads it from the client's decisions (https://eprint.iacr.org/2020/1533).

    The paper's model of an adversary that sees decryptions, made active: instead of logits ``(B, K)`` the server
    returns K lines over one number of the encrypted input. Which of them is the largest, and hence the class that
    the client acts on, tells in which of K intervals that number lies; ``rounds`` answers tell K^rounds of them, for
    every query of the batch at once. Such answers are well-formed ciphertexts of the usual size, scale and level with
    numbers of the usual size: no check of the client's can tell them, since nothing proves what was computed.

    Needs a client that asks about the same inputs again (a retry, a sensor) and whose acts are seen. Raises
    `NotApplicable` where no ciphertexts travel, or each is of one query, or there is one logit alone.
    """

    after: ClassVar[Secret] = "input"
    rounds: int = 2
    """Answers spent on each number: the interval it is known to lie in gets K times shorter with each."""
    answers: int = 200
    """In all: numbers of an input beyond what they suffice for stay at the middle of their range."""

    def __post_init__(self) -> None:
        require(self.rounds >= 1, f"FalsePrograms needs at least 1 round; given {self.rounds}")
        require(self.answers >= 0, f"FalsePrograms needs at least 0 answers; given {self.answers}")

    def deceive(self, dupe: Dupe, rng: torch.Generator) -> Tensor:
        """The inputs ``(B, in)``."""
        line = dupe.line
        if line.outputs < 2:
            raise NotApplicable("a decision between two classes by one logit is not read here; two logits or more are")
        slots, numbers = line.degree // 2, min(line.inputs, self.answers // self.rounds)
        middle = torch.full((slots, line.inputs), (line.low + line.high) / 2, dtype=torch.float64)
        for number in range(numbers):
            low, high = (torch.full((slots,), end, dtype=torch.float64) for end in (line.low, line.high))
            for _ in range(self.rounds):
                low, high = self._narrowed(dupe, number, low, high)
            middle[:, number] = (low + high) / 2
        return middle[: line.queries]

    def _narrowed(self, dupe: Dupe, number: int, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The part of each interval in which the number lies."""
        line = dupe.line
        shares = torch.linspace(0, 1, line.outputs + 1, dtype=torch.float64)[:, None]
        edges = low + shares * (high - low)
        slopes, offsets = thresholded(edges, line.room / 4)
        weights = torch.zeros(line.outputs, line.inputs, dtype=torch.float64)
        weights[:, number] = slopes
        chosen = dupe.substituted(weights, offsets)[None]
        return edges.gather(0, chosen)[0], edges.gather(0, chosen + 1)[0]

    @classmethod
    def tiny(cls) -> FalsePrograms:
        """Three numbers, to a tenth."""
        return cls(rounds=1, answers=3)
