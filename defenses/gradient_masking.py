"""Gradients hidden, and nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from defenses._probe import whole
from defenses._wrappers import ScaledAnswers, ScaledModule
from secure_ml.defense import Defense
from secure_ml.errors import NotApplicable, require
from secure_ml.task import Task
from secure_ml.victim import Victim


@dataclass(frozen=True, kw_only=True)
class GradientMasking(Defense):
    """A weak baseline: logits so large that gradients vanish (Athalye et al. 2018, https://arxiv.org/abs/1802.00420).

    The trained model's outputs for inputs ``(B, *shape)`` are multiplied: every decision stays, so nobody is safer,
    but the cross-entropy of a right answer is 0 in floating-point numbers, and so is its gradient. What a naive attack
    by cross-entropy reports is not robustness: a loss that does not saturate (a margin, logits scaled back), an attack
    without gradients or one from a surrogate takes it away. Covers: nothing. Does not cover: anything; probabilities
    become useless too.

    Raises `NotApplicable` for answers without a decision and behind encryption, `UsageError` for a factor below 1.
    """

    factor: float = 1000.0
    """What the outputs are multiplied by; at 1 they stay."""

    def __post_init__(self) -> None:
        require(
            1 <= self.factor < math.inf, f"gradient masking needs a finite factor of at least 1; given {self.factor}"
        )

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` unless answers hold a decision that a factor does not change."""
        if not task.output.labels:
            raise NotApplicable(
                f"GradientMasking keeps decisions; {task.name} answers {type(task.output).__name__}, which hold none"
            )
        if not whole(task):
            raise NotApplicable(f"the loss of {task.name} runs parts of its module, whose outputs cannot be scaled")

    def serve(self, victim: Victim) -> Victim:
        """The victim with module and answers scaled; `NotApplicable` behind encryption."""
        if victim.served.decrypted_by_client:
            raise NotApplicable(
                "GradientMasking cannot stand behind encryption: the client decrypts the logits themselves"
            )
        module = ScaledModule(victim.module, self.factor).eval()
        return replace(victim, module=module, served=ScaledAnswers(victim.served, self.factor))
