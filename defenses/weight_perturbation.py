"""Gradients taken at the worst weights nearby, so that training ends where the loss is flat."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from defenses._robust import refuse_private
from secure_ml.batch import Batch
from secure_ml.defense import Defense
from secure_ml.errors import require
from secure_ml.modes import evaluating
from secure_ml.training import Plan, Step


@dataclass(frozen=True, kw_only=True)
class WeightPerturbation(Defense):
    """Adversarial weight perturbation, AWP, around any training before it (Wu et al. 2020, https://arxiv.org/abs/2004.05884).

    Before each update, every weight matrix and kernel moves up the loss of the batch ``(B, *shape)`` by
    ``gamma`` times its own length; the update is computed there and applied to the weights as they were. List it
    after the adversarial training that it flattens. Covers: the gap of robust accuracy between training and test,
    measured, never guaranteed. Does not cover anything without adversarial training before it. ``gamma=0`` is plain
    training.

    Differs from the paper: the gradient itself, rather than a step of a proxy's optimizer, gives the direction (which
    is the same, since the step is rescaled), with the module in evaluation mode; weight decay acts on the weights as
    they were. Raises `UsageError` for settings out of range and together with DP-SGD, whose bound it would break.
    """

    gamma: float = 0.01
    """How far the weights of a layer move, as a share of their length: 0.005 to 0.01 in the paper."""
    start: float = 0.0
    """Share of training after which it begins."""

    def __post_init__(self) -> None:
        require(0 <= self.gamma < math.inf, f"WeightPerturbation needs a gamma >= 0; given {self.gamma}")
        require(0 <= self.start <= 1, f"WeightPerturbation needs a start between 0 and 1; given {self.start}")

    def prepare(self, plan: Plan) -> Plan:
        """The plan whose gradients are taken at perturbed weights."""
        shift = Shift(self, plan)
        return replace(
            plan,
            transform=shift.transform,
            observers=(shift, *plan.observers),
            state={**plan.state, f"weights {len(plan.state)}": shift},
        )

    @classmethod
    def neutral(cls) -> WeightPerturbation:
        """Weights that do not move."""
        return cls(gamma=0.0)


class Shift:
    """Moves the weights after a batch is made, and back, exactly, once its gradient is there."""

    def __init__(self, settings: WeightPerturbation, plan: Plan) -> None:
        self.settings, self.plan = settings, plan
        self.done = 0.0
        self.kept: list[tuple[nn.Parameter, Tensor]] = []

    def transform(self, module: nn.Module, batch: Batch) -> Batch:
        """The batch as the plan transforms it; the weights are moved for what comes next."""
        refuse_private("WeightPerturbation", module, "weights that move with the batch carry every example of it")
        batch = self.plan.transform(module, batch)
        if len(batch) and self.done >= self.settings.start:
            self._move(module, batch)
        return batch

    def __call__(self, step: Step) -> None:
        """The gradient is there: the weights return, before the update."""
        with torch.no_grad():
            for parameter, before in self.kept:
                parameter.copy_(before)
        self.kept = []
        self.done = (step.epoch + (step.index + 1) / step.plan.loader.steps) / step.plan.epochs

    def state_dict(self) -> float:
        """The share of training that is done."""
        return self.done

    def load_state_dict(self, done: float) -> None:
        """Go on from there."""
        self.done = done

    def _move(self, module: nn.Module, batch: Batch) -> None:
        wide = [parameter for parameter in module.parameters() if parameter.requires_grad and parameter.ndim > 1]
        with evaluating(module), torch.enable_grad():
            losses = self.plan.loss(module, batch)
            slopes = torch.autograd.grad(losses.mean(), wide, allow_unused=True)
        with torch.no_grad():
            for parameter, slope in zip(wide, slopes, strict=True):
                if slope is None:
                    continue
                self.kept.append((parameter, parameter.detach().clone()))
                length = self.settings.gamma * parameter.norm() / slope.norm().clamp(min=1e-20)
                parameter.add_(slope * length)
