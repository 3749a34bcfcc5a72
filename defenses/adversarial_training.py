"""Training on the inputs that an adversary would send."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from attacks.evasion.pgd import PGD
from attacks.evasion.relay import Relay
from attacks.evasion.token_swap import TokenSwap
from defenses._robust import Growth, check_reach, threat_of
from secure_ml.access import WhiteBox
from secure_ml.batch import Batch
from secure_ml.defense import Defense
from secure_ml.errors import NotApplicable
from secure_ml.families.evasion import Evasion, attack_batch
from secure_ml.surfaces import Box, Surface, Table, Tokens
from secure_ml.task import Task
from secure_ml.training import Plan

TRAINED = PGD(steps=7, early=False)
SWAP = TokenSwap(candidates=1, beam=1, again=0, early=False)
DEFAULTS: dict[type[Surface], Evasion] = {Box: TRAINED, Table: TRAINED, Tokens: SWAP}
"""What is trained against on each kind of surface, unless an attack is given."""


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining(Defense):
    """Every training batch is attacked before the update (Madry et al. 2018, https://arxiv.org/abs/1706.06083).

    Covers: evasion within the radius trained for (in the unit of the task's threat), as far as the attack used in
    training finds the worst inputs ``(B, *shape)``; measured, never guaranteed. Does not cover: other norms, larger
    radii, privacy or extraction. Radius 0 is plain training. Differs from the paper: the
    radius grows over the first half of training. Raises `NotApplicable` for a task without a threat or
    with inputs that the attack cannot change, `UsageError` for a negative radius.
    """

    radius: float | None = None
    """The task's own radius unless given."""
    attack: Evasion | None = None
    """PGD with 7 steps for boxes, one-candidate token swaps for text, both in turn for both, unless given."""
    warmup: float = 0.5
    """Share of training over which the radius grows from 0: at once, a large one can keep a model from learning."""

    def __post_init__(self) -> None:
        check_reach("adversarial training", self.radius, self.warmup)

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` where there is no threat to train against, or no attack for it."""
        self._attack(task).check(task, threat_of(task, self.radius))

    def prepare(self, plan: Plan) -> Plan:
        """The plan with every batch attacked after its augmentation, within a radius that grows to its full size.

        Early stopping is switched off: it looks at clean examples, and would return to a time before the radius grew.
        """
        task, threat = plan.task, threat_of(plan.task, self.radius)
        attack = self._attack(task)
        grow = Growth(self.warmup)

        def craft(module: nn.Module, batch: Batch) -> Batch:
            batch = plan.transform(module, batch)
            return attack_batch(attack, WhiteBox(task, module), batch, threat.scaled(grow.share), plan.rng)

        state = {**plan.state, f"growth {len(plan.state)}": grow}
        return replace(plan, transform=craft, observers=(*plan.observers, grow), state=state, patience=None)

    def rehearses(self, task: Task) -> Evasion | None:
        """The attack of training."""
        return self._attack(task)

    @classmethod
    def neutral(cls) -> AdversarialTraining:
        """Radius 0."""
        return cls(radius=0)

    def _attack(self, task: Task) -> Evasion:
        if self.attack is not None:
            return self.attack
        kinds = [part.surface for part in threat_of(task, None).parts()]
        for kind in kinds:
            if kind not in DEFAULTS:
                raise NotApplicable(f"no attack is known for {kind.__name__}: give AdversarialTraining one")
        return DEFAULTS[kinds[0]] if len(kinds) == 1 else Relay(numbers=TRAINED, tokens=SWAP)
