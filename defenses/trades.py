"""Accuracy on clean inputs, and answers that stay the same around them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from defenses._robust import Growth, Pairs, Recorder, check_climb, check_gradients, check_reach, threat_of
from secure_ml.access import WhiteBox
from secure_ml.batch import Batch, Tree
from secure_ml.climb import climb, divergence
from secure_ml.defense import Defense
from secure_ml.errors import UsageError, require
from secure_ml.task import Task
from secure_ml.training import Plan


@dataclass(frozen=True, kw_only=True)
class TRADES(Defense):
    """Clean loss plus ``beta`` times how far the worst answer nearby lies (Zhang et al. 2019, https://arxiv.org/abs/1901.08573).

    The inner adversary climbs the Kullback-Leibler divergence from the clean answer to the answer on inputs
    ``(B, *shape)`` within the radius; the same divergence is then weighed against the task's loss on the clean inputs.
    Of a regression's values it is the squared difference. Covers: evasion within the radius, measured, never
    guaranteed. Does not cover: other norms, larger radii, privacy or extraction. ``beta=0`` is plain training.

    Differs from the paper: the start is uniform in the ball rather than a tiny Gaussian one, the module is in
    evaluation mode while the adversary climbs, the radius may grow. Early stopping, which looks at clean examples,
    is switched off. Raises `NotApplicable` where no gradient leads to changed inputs, `UsageError` for
    settings out of range and for a defense after it that replaces the batch.
    """

    beta: float = 6.0
    """Weight of staying the same against being right: 1 to 6 in the paper."""
    radius: float | None = None
    """The task's own radius unless given, in the unit of its threat."""
    steps: int = 10
    """Gradient steps of the inner adversary."""
    step_size: float | None = None
    """Length of a step; 2.5 times the radius over the number of steps unless given."""
    warmup: float = 0.0
    """Share of training over which the radius grows from 0."""

    def __post_init__(self) -> None:
        require(self.beta >= 0, f"TRADES needs a beta >= 0; given {self.beta}")
        check_reach("TRADES", self.radius, self.warmup)
        check_climb("TRADES", self.steps, self.step_size)

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` where there is no threat along which a gradient can be followed."""
        check_gradients("TRADES", task)

    def prepare(self, plan: Plan) -> Plan:
        """The plan whose loss also compares the answers to each example and to its attacked twin."""
        task, threat, grow = plan.task, threat_of(plan.task, self.radius), Growth(self.warmup)

        def craft(module: nn.Module, batch: Batch) -> Tree:
            access = WhiteBox(task, module)
            apart = partial(_apart, task, access(batch.inputs))
            reach = threat.scaled(grow.share)
            return climb(access, batch, reach, apart, plan.rng, steps=self.steps, step_size=self.step_size)

        pairs = Pairs("TRADES", plan, craft)

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            recorder = Recorder(module, batch.inputs)
            right = plan.loss(recorder, batch)
            with torch.random.fork_rng(devices=[plan.device] if plan.device.type == "cuda" else []):
                answers = module(batch.inputs) if recorder.answers is None else recorder.answers
                apart = divergence(task, answers, module(pairs.twin(batch)))
            if len(apart) != len(right):
                raise UsageError("TRADES compares single examples, and a defense before it averages: list TRADES first")
            return right + self.beta * apart

        return replace(
            plan,
            transform=pairs.transform,
            loss=loss,
            observers=(*plan.observers, pairs, grow),
            state={**plan.state, f"growth {len(plan.state)}": grow},
            patience=None,
        )

    @classmethod
    def tiny(cls) -> TRADES:
        """Two steps, and a weight under which a net that has learned nothing yet feels them."""
        return cls(beta=1000.0, steps=2)

    @classmethod
    def neutral(cls) -> TRADES:
        """No weight on staying the same."""
        return cls(beta=0.0, steps=1)


def _apart(task: Task, answers: Tensor, module: nn.Module, batch: Batch) -> Tensor:
    """What the inner adversary climbs: the divergence from answers that stand still, ``(B,)``."""
    return divergence(task, answers, module(batch.inputs))
