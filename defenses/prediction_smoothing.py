"""Answers with less confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from defenses._wrappers import ScaledAnswers
from secure_ml.defense import Defense
from secure_ml.errors import NotApplicable, require
from secure_ml.task import Task
from secure_ml.victim import Victim


@dataclass(frozen=True, kw_only=True)
class PredictionSmoothing(Defense):
    """Serves smoother probabilities (Shokri et al. 2017, https://arxiv.org/abs/1610.05820, section VIII).

    Answers to ``(B, *shape)`` inputs are divided by the temperature, which raises their entropy and keeps every
    decision. Covers: attacks that read confidence, as far as answers are rounded or noisy: the exact answer can be
    divided back. Does not cover: evasion in any way (the decisions and the weights are the bare model's), labels.

    Raises `NotApplicable` for answers without a decision and behind encryption, `UsageError` for a temperature below 1.
    """

    temperature: float = 5.0
    """What the logits are divided by; at 1 they stay."""

    def __post_init__(self) -> None:
        require(
            1 <= self.temperature < math.inf,
            f"prediction smoothing needs a finite temperature of at least 1; given {self.temperature}",
        )

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` unless the task's answers hold a decision."""
        if not task.output.labels:
            raise NotApplicable(
                f"PredictionSmoothing serves probabilities; {task.name} answers {type(task.output).__name__}"
            )

    def serve(self, victim: Victim) -> Victim:
        """The victim answering at the temperature; `NotApplicable` behind encryption."""
        if victim.served.decrypted_by_client:
            raise NotApplicable(
                "PredictionSmoothing cannot stand behind encryption: the client decrypts the logits themselves"
            )
        return replace(victim, served=ScaledAnswers(victim.served, 1 / self.temperature))
