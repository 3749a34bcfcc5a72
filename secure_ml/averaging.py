"""A running average of weights: an observer of training, and what puts the average into the trained module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from secure_ml.training import Step
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
