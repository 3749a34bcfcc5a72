"""The average of the weights along the way, in the place of the last ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from secure_ml.defense import Defense
from secure_ml.errors import require
from secure_ml.training import Plan, Step
from secure_ml.victim import Victim


class Average:
    """A running average of a module's trained weights, taken before each step and once after the last."""

    def __init__(self, decay: float | None, start: float) -> None:
        self.decay, self.start = decay, start
        self.seen = 0
        self.weights: list[Tensor] = []

    def __call__(self, step: Step) -> None:
        """Take the weights in, once the share of training that is done has reached ``start``."""
        done = (step.epoch + step.index / step.plan.loader.steps) / step.plan.epochs
        if done >= self.start:
            self.add(step.plan.module)

    @torch.no_grad()
    def add(self, module: nn.Module) -> None:
        """Take in the weights as they are."""
        now = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.seen += 1
        if not self.weights:
            self.weights = [parameter.detach().clone() for parameter in now]
            return
        kept = (self.seen - 1) / self.seen if self.decay is None else min(self.decay, self.seen / (self.seen + 9))
        for average, parameter in zip(self.weights, now, strict=True):
            average.lerp_(parameter.detach(), 1 - kept)

    def finish(self, victim: Victim) -> Victim:
        """The victim with the average as its weights."""
        self.add(victim.module)
        trained = [parameter for parameter in victim.module.parameters() if parameter.requires_grad]
        with torch.no_grad():
            for parameter, average in zip(trained, self.weights, strict=True):
                parameter.copy_(average)
        return victim

    def state_dict(self) -> dict[str, Any]:
        """The average, and of how many."""
        return {"seen": self.seen, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.seen, self.weights = state["seen"], list(state["weights"])


@dataclass(frozen=True, kw_only=True)
class WeightAveraging(Defense):
    """An average over the steps of training replaces the last weights (Izmailov et al. 2018, https://arxiv.org/abs/1803.05407).

    Exponential with ``decay``, or with equal shares from ``start`` on where there is no decay (their SWA). Under
    adversarial training it is smoother and more robust than any of the weights in it (Gowal et al. 2020,
    https://arxiv.org/abs/2010.03593), and it costs no gradient. Covers nothing alone. Does not cover: privacy beyond
    what training already gives. Buffers stay the last ones. ``decay=0`` ends with the last weights,
    which are those of plain training; the steps on batches ``(B, *shape)`` are the same at any setting.

    Differs from the papers: the first steps are averaged with a shorter memory, ``n / (n + 9)`` after n of them, so
    that the random start is forgotten. Early stopping is switched off. Raises `UsageError` for settings out of range.
    """

    decay: float | None = 0.999
    """Share of the average that a step keeps; none for equal shares."""
    start: float = 0.0
    """Share of training after which averaging begins."""

    def __post_init__(self) -> None:
        require(
            self.decay is None or 0 <= self.decay < 1,
            f"WeightAveraging needs a decay of at least 0 and below 1; given {self.decay}",
        )
        require(0 <= self.start < 1, f"WeightAveraging needs a start of at least 0 and below 1; given {self.start}")

    def prepare(self, plan: Plan) -> Plan:
        """The plan that keeps an average and ends with it."""
        average = Average(self.decay, self.start)
        return replace(
            plan,
            observers=(*plan.observers, average),
            finish=(*plan.finish, average.finish),
            state={**plan.state, f"average {len(plan.state)}": average},
            patience=None,
        )
