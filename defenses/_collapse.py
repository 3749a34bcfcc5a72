"""Catastrophic overfitting: a model that learns to survive a single step, and nothing else."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from defenses._robust import refuse_private
from secure_ml.access import WhiteBox
from secure_ml.batch import Batch
from secure_ml.climb import climb
from secure_ml.outputs import Classes, Ranking
from secure_ml.task import Task
from secure_ml.threats import Threat
from secure_ml.training import Plan, Step

GAP = 0.2
"""Share of examples that may survive a single step but not many, before it counts as a collapse."""
STEPS = 10
"""Steps of the check, and of the training that goes on after a collapse."""


@dataclass
class Guard:
    """Looks, after each epoch, at whether many steps break what a single one does not; returns to sound weights.

    After a collapse the weights of the last sound look are back, the optimizer starts afresh, and ``steps``, which the
    training asks for, is that of the check. What it saw stays in ``history``: epoch, and the shares of examples that
    are right under one step and under many. It looks at training examples: nothing is spent of validation or test.
    """

    name: str
    task: Task
    threat: Threat
    examples: int
    """Training examples that it looks at; 0 for none."""
    rng: torch.Generator
    steps: int = 1
    history: list[tuple[int, float, float]] = field(default_factory=list)
    collapses: list[int] = field(default_factory=list)
    sound: list[Tensor] = field(default_factory=list)

    @classmethod
    def over(cls, name: str, plan: Plan, threat: Threat, examples: int, rng: torch.Generator) -> Guard:
        """The guard of a plan; it looks at nothing where an answer is not plainly right or wrong."""
        output, target = plan.task.output, plan.loader.data.target
        classes = isinstance(output, Classes) and not isinstance(output, Ranking)
        plain = classes and isinstance(target, Tensor) and target.ndim == 1
        return cls(name, plan.task, threat, examples if plain else 0, rng)

    def watch(self, module: nn.Module) -> None:
        """Raise `UsageError` where looking at training examples would break a promise about them."""
        if self.examples:
            refuse_private(self.name, module, "its look for a collapse reads training examples that no budget counts")

    def __call__(self, step: Step) -> None:
        """Look at the end of an epoch."""
        if not self.examples or step.index + 1 < step.plan.loader.steps:
            return
        module, data = step.plan.module, step.plan.loader.data.take(slice(0, self.examples))
        one, many = (self.right(module, data, steps) for steps in (1, STEPS))
        self.history.append((step.epoch, one, many))
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if self.collapses:  # what trains with many steps has nothing to fall back from
            return
        if not self.collapsed(one, many, (step.epoch + 1) / step.plan.epochs):
            self.sound = [parameter.detach().clone() for parameter in trained]
            return
        self.collapses.append(step.epoch)
        warnings.warn(
            f"{self.name} collapsed in epoch {step.epoch + 1}: {one:.0%} of {len(data)} training examples survive one "
            f"step and {many:.0%} survive {STEPS}; the last sound weights are back, and training goes on with {STEPS} "
            "steps",
            stacklevel=2,
        )
        self._return(step, trained)

    def collapsed(self, one: float, many: float, done: float) -> bool:
        """Whether a gap is a collapse: many steps break more than they did, or half of training was too short.

        A model that has learned little yet has such a gap as well.
        """
        fell = many < max(seen for _, _, seen in self.history) - GAP / 2
        never = done > 0.5 and many < one / 2
        return one - many > GAP and (fell or never)

    def right(self, module: nn.Module, data: Batch, steps: int) -> float:
        """The share of examples that the module gets right after so many steps up its loss."""
        access = WhiteBox(self.task, module)
        assert isinstance(self.task.output, Classes)
        assert isinstance(data.target, Tensor)
        attacked = climb(access, data, self.threat, None, self.rng, steps=steps)
        return float((self.task.output.decide(access(attacked)) == data.target).double().mean())

    def _return(self, step: Step, trained: list[nn.Parameter]) -> None:
        self.steps = STEPS
        step.plan.optimizer.state.clear()
        for parameter in trained:
            parameter.grad = None  # it belongs to the weights that are thrown away: no update follows from it
        with torch.no_grad():
            for parameter, before in zip(trained, self.sound, strict=bool(self.sound)):
                parameter.copy_(before)

    def state_dict(self) -> dict[str, Any]:
        """What it saw, and the last sound weights."""
        return {name: getattr(self, name) for name in ("steps", "history", "collapses", "sound")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        for name, value in state.items():
            setattr(self, name, value)
