"""Answers with fewer digits."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from defenses._answers import Altered, normalised, require_classes, require_open
from secure_ml.batch import Tree
from secure_ml.defense import Defense
from secure_ml.errors import require
from secure_ml.outputs import Values
from secure_ml.task import Task
from secure_ml.victim import Served, Victim, Wrapped


@dataclass(frozen=True, kw_only=True)
class Rounding(Defense):
    """Serves rounded probabilities (Tramèr et al. 2016, https://arxiv.org/abs/1609.02943).

    Answers to ``(B, *shape)`` inputs are the logarithms of probabilities rounded to ``decimals`` digits and normalised
    again, at each place of a generator; 0 is written as 1e-12. Where all are rounded to 0, they are served as equal.
    The decision is kept: where rounding makes it tie, it is served one part in a thousand above the others. The
    values of a regression are rounded themselves.

    Covers: exact solving for weights, and what reads the last digits. Does not cover: a surrogate that learns from
    rounded answers, which loses little, or from labels. Raises `NotApplicable` for rankings, of whose probabilities
    nothing would be left, and behind encryption; `UsageError` for less than 0 digits.
    """

    decimals: int = 2
    """Digits after the point that are kept."""

    def __post_init__(self) -> None:
        require(self.decimals >= 0, f"rounding keeps 0 digits after the point or more; given {self.decimals}")

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` unless answers are values or probabilities."""
        if not isinstance(task.output, Values):
            require_classes(self, task)

    def serve(self, victim: Victim) -> Victim:
        """The victim answering with rounded numbers; `NotApplicable` behind encryption."""
        require_open(self, victim)
        if isinstance(victim.task.output, Values):
            return replace(victim, served=RoundedValues(victim.served, self.decimals))
        return replace(victim, served=Altered(victim.served, self.change))

    def change(self, shares: Tensor, inputs: Tree) -> Tensor:
        """Rounded probabilities ``(N, K)``."""
        return normalised(shares.round(decimals=self.decimals))

    @classmethod
    def tiny(cls) -> Rounding:
        """Four digits."""
        return cls(decimals=4)


class RoundedValues(Wrapped):
    """The values of another predictor, rounded."""

    def __init__(self, inner: Served, decimals: int) -> None:
        super().__init__(inner)
        self.decimals = decimals

    def __call__(self, inputs: Tree) -> Tensor:
        """The rounded values."""
        return self.inner(inputs).round(decimals=self.decimals)
