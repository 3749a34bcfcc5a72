"""Training examples that stand out of their class, left out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from secure_ml.defense import Defense
from secure_ml.errors import NotApplicable, require
from secure_ml.families.poisoning import answers_one_class
from secure_ml.randomness import derive, generator
from secure_ml.signatures import representations, spectral_scores
from secure_ml.task import Task
from secure_ml.training import Loader, Plan, fit
from secure_ml.victim import Victim


@dataclass(frozen=True, kw_only=True)
class SpectralSignatures(Defense):
    """A first model finds the training examples that stand out; a second does without (Tran et al. 2018, https://arxiv.org/abs/1811.00636).

    Covers: backdoors by examples ``(B, *shape)`` that share a direction in the first model's last representation, as
    long as they are few in their class; measured, never guaranteed. Does not cover: poison that is a large part of its
    class, or a task whose first model does not learn the trigger. Costs a second training and good examples of every
    class; what was left out still counts as a member. A claim of differential privacy is withdrawn: which examples
    train depends on all of them. Expecting no poison is plain training. Raises `UsageError` for an expectation out
    of range, `NotApplicable` where a target is not one class or the model has no linear layer.

    Differs from the paper: at least half of each class stays, and an example that is left out gives its place to a
    random one that stays, so that an epoch is as long as before.
    """

    expected: float = 0.01
    """Share of all training examples thought to be poisoned, at most; 1.5 times as many leave each class."""

    def __post_init__(self) -> None:
        require(0 <= self.expected < 1, f"spectral signatures expect a share from 0 to 1; given {self.expected}")

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` where examples are not fixed, or have no class to stand out of."""
        if task.renew is not None:
            raise NotApplicable(f"the examples of {task.name} are drawn anew by what the model does: none is supplied")
        if not answers_one_class(task):
            raise NotApplicable(f"SpectralSignatures looks into classes; a target of {task.name} is not one class")

    def prepare(self, plan: Plan) -> Plan:
        """The plan with the loader's outstanding examples replaced."""
        assert isinstance(plan.loader, Loader)
        data = plan.loader.data
        task = replace(plan.task, name=f"{plan.task.name}_first", data=lambda _: replace(plan.splits, train=data))
        first = fit(task, seed=derive(plan.seed, "spectral signatures"), device=plan.device)
        assert isinstance(data.target, Tensor)
        scores = spectral_scores(representations(first.module, data.inputs, task.chunk), data.target)
        stays = self._stays(scores, data.target)
        chosen = torch.arange(len(data))
        kept, left = chosen[stays], chosen[~stays]
        rng = generator(plan.seed, "spectral signatures")
        chosen[left] = kept[torch.randint(len(kept), (len(left),), generator=rng)]
        loader = replace(plan.loader, data=data.take(chosen.to(plan.device)))
        return replace(plan, loader=loader, finish=(_withdraw, *plan.finish))  # runs after those that add a claim

    @classmethod
    def tiny(cls) -> SpectralSignatures:
        """More is expected, so that something leaves few examples."""
        return cls(expected=0.05)

    @classmethod
    def neutral(cls) -> SpectralSignatures:
        """No poison is expected."""
        return cls(expected=0.0)

    def _stays(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Mask ``(B,)`` of the examples to train on, on the CPU."""
        scores, labels = scores.cpu(), labels.cpu()
        stays = torch.ones(len(scores), dtype=torch.bool)
        most = math.ceil(1.5 * self.expected * len(scores))
        for label in labels.unique():
            mine = (labels == label).nonzero()[:, 0]
            worst = scores[mine].topk(min(most, len(mine) // 2)).indices
            stays[mine[worst]] = False
        return stays


def _withdraw(victim: Victim) -> Victim:
    """The victim without the claims that hold only if each example's part in training is its own."""
    return replace(victim, claims=tuple(c for c in victim.claims if c.kind != "differential privacy"))
