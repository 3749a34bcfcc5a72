"""Adversarial training at the price of one extra gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from defenses._collapse import Guard
from defenses._robust import Growth, check_climb, check_gradients, check_reach, threat_of
from secure_ml.access import WhiteBox
from secure_ml.batch import Batch
from secure_ml.checkpoint import Randomness, Stateful
from secure_ml.climb import climb
from secure_ml.defense import Defense
from secure_ml.errors import require
from secure_ml.randomness import generator
from secure_ml.task import Task
from secure_ml.training import Plan


@dataclass(frozen=True, kw_only=True)
class FastTraining(Defense):
    """One signed step from a random start, FGSM-RS, attacks every batch (Wong et al. 2020, https://arxiv.org/abs/2001.03994).

    Changes inputs ``(B, *shape)`` by a random change and one step of ``step`` radii. Such training can collapse within
    an epoch: the model then survives single steps only. So ``guard`` training examples are attacked with 10 steps
    after each epoch; where more than a fifth of them survive one step but not ten, a warning says so, the weights
    of the epoch before return, and training goes on with 10 steps. Covers: evasion within the radius, measured,
    never guaranteed, and less of it than many steps would give. Does not cover: other norms, larger radii, privacy or
    extraction. Radius 0 is plain training.

    Differs from the paper: it goes on after a collapse instead of stopping. Early stopping by clean validation is
    switched off. Raises `NotApplicable` where no gradient leads to changed inputs, `UsageError` for settings
    out of range and, while it is on guard, together with DP-SGD. Where answers are not classes there is no guard.
    """

    radius: float | None = None
    """The task's own radius unless given, in the unit of its threat."""
    step: float = 1.25
    """Length of the step, in radii: longer ones collapse sooner. The change is projected afterwards."""
    warmup: float = 0.0
    """Share of training over which the radius grows from 0."""
    guard: int = 200
    """Training examples that are looked at for a collapse after each epoch; 0 for none."""

    def __post_init__(self) -> None:
        check_reach("FastTraining", self.radius, self.warmup)
        check_climb("FastTraining", 1, self.step)
        require(self.guard >= 0, f"FastTraining needs a guard of at least 0 examples; given {self.guard}")

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` where there is no threat along which a gradient can be followed."""
        check_gradients("FastTraining", task)

    def prepare(self, plan: Plan) -> Plan:
        """The plan with every batch attacked by one step, or by ten after a collapse."""
        task, threat, grow = plan.task, threat_of(plan.task, self.radius), Growth(self.warmup)
        rng = generator(plan.seed, "collapse")
        guard = Guard.over("FastTraining", plan, threat, self.guard, rng)

        def craft(module: nn.Module, batch: Batch) -> Batch:
            guard.watch(module)
            batch, reach = plan.transform(module, batch), threat.scaled(grow.share)
            access = WhiteBox(task, module)
            long = self.step if guard.steps == 1 else None
            return Batch(climb(access, batch, reach, None, plan.rng, steps=guard.steps, radii=long), batch.target)

        state: dict[str, Stateful] = {"growth": grow, "guard": guard, "guard rng": Randomness(rng)}
        return replace(
            plan,
            transform=craft,
            observers=(*plan.observers, grow, guard),
            state={**plan.state, **{f"{name} {len(plan.state)}": part for name, part in state.items()}},
            patience=None,
        )

    @classmethod
    def tiny(cls) -> FastTraining:
        """Nobody on guard: a model that has learned little yet looks much like one that collapsed."""
        return cls(guard=0)

    @classmethod
    def neutral(cls) -> FastTraining:
        """Radius 0."""
        return cls(radius=0)
