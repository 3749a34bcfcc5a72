"""Adversarial training that minds the examples which are misclassified even without an adversary."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from torch import Tensor, nn

from defenses._robust import Growth, Pairs, check_classes, check_climb, check_gradients, check_reach, threat_of
from secure_ml.access import WhiteBox
from secure_ml.adaptive import log_probabilities
from secure_ml.batch import Batch, Tree
from secure_ml.climb import climb
from secure_ml.defense import Defense
from secure_ml.errors import NotApplicable, UsageError, require
from secure_ml.task import Task, cross_entropy
from secure_ml.training import Plan


@dataclass(frozen=True, kw_only=True)
class MART(Defense):
    """Boosted cross-entropy on attacked inputs, and more stability where the clean answer is unsure (Wang et al. 2020).

    https://openreview.net/forum?id=rklOg6EFwS, among the nets of https://arxiv.org/abs/2003.01690. With ``p`` the
    answer to inputs ``(B, *shape)`` and ``q`` the one to their attacked twins, the loss is
    ``-log q_y - log(1 - max_k!=y q_k) + weight * KL(p || q) * (1 - p_y)``; the twins climb the cross-entropy.
    Covers: evasion within the radius, measured, never guaranteed. Does not cover: other norms, larger radii, privacy
    or extraction. It has a loss of its own, so no setting of it is plain training.

    Differs from the paper: the start is uniform in the ball, the module is in evaluation mode while the adversary
    climbs, the radius may grow. Early stopping is switched off. Raises `NotApplicable` for anything but
    classes under cross-entropy and threats without gradients, `UsageError` for settings out of range and beside a
    defense before it that has a loss of its own.
    """

    weight: float = 5.0
    """Of the stability of unsure answers: 5 to 6 in the paper."""
    radius: float | None = None
    """The task's own radius unless given, in the unit of its threat."""
    steps: int = 10
    """Gradient steps of the adversary."""
    step_size: float | None = None
    """Length of a step; 2.5 times the radius over the number of steps unless given."""
    warmup: float = 0.0
    """Share of training over which the radius grows from 0."""

    def __post_init__(self) -> None:
        require(self.weight >= 0, f"MART needs a weight >= 0; given {self.weight}")
        check_reach("MART", self.radius, self.warmup)
        check_climb("MART", self.steps, self.step_size)

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` for anything but classes under cross-entropy, and threats without gradients."""
        check_gradients("MART", task)
        check_classes("MART", task)
        if task.loss is not cross_entropy:
            raise NotApplicable(f"MART replaces the cross-entropy, and {task.name} has another loss")

    def prepare(self, plan: Plan) -> Plan:
        """The plan with MART's loss in the place of the cross-entropy."""
        if plan.loss is not plan.task.loss:
            raise UsageError(
                "MART has a loss of its own, and so has a defense before it: list MART first, or one of them"
            )
        task, threat, grow = plan.task, threat_of(plan.task, self.radius), Growth(self.warmup)

        def craft(module: nn.Module, batch: Batch) -> Tree:
            reach = threat.scaled(grow.share)
            access = WhiteBox(task, module)
            return climb(access, batch, reach, None, plan.rng, steps=self.steps, step_size=self.step_size)

        pairs = Pairs("MART", plan, craft)

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            target = cast("Tensor", batch.target).long()
            return mart_loss(module(batch.inputs), module(pairs.twin(batch)), target, self.weight)

        return replace(
            plan,
            transform=pairs.transform,
            loss=loss,
            observers=(*plan.observers, pairs, grow),
            state={**plan.state, f"growth {len(plan.state)}": grow},
            patience=None,
        )

    @classmethod
    def tiny(cls) -> MART:
        """Two steps."""
        return cls(steps=2)


def mart_loss(clean: Tensor, attacked: Tensor, target: Tensor, weight: float) -> Tensor:
    """MART's loss ``(B,)`` of the logits of clean and attacked inputs, ``(B, K)`` or ``(B,)``, and classes ``(B,)``."""
    p, q = log_probabilities(clean), log_probabilities(attacked)
    at = target[:, None]
    others = q.scatter(1, at, -float("inf")).exp().amax(1)
    boosted = -q.gather(1, at)[:, 0] - (1 + 1e-7 - others).log()
    unsure = 1 - p.exp().gather(1, at)[:, 0]
    return boosted + weight * (p.exp() * (p - q)).sum(1) * unsure
