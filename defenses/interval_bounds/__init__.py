"""Interval bound propagation: training for a certificate."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from defenses._probe import box_of, one_class
from defenses.interval_bounds.certificate import IntervalCertificate
from defenses.interval_bounds.chain import chain_of
from defenses.interval_bounds.layers import Layer
from defenses.interval_bounds.propagate import ball, boxes, margins, worst_answers
from defenses.interval_bounds.recipe import Mix, Stages, regulariser, suit_intervals
from defenses.label_only import LabelOnly, Labels
from secure_ml.access import WhiteBox
from secure_ml.batch import Batch
from secure_ml.defense import Defense
from secure_ml.errors import NotApplicable, require
from secure_ml.families.evasion import Evasion, attack_batch
from secure_ml.randomness import generator, seeded
from secure_ml.surfaces import Box
from secure_ml.task import Predictor, Task
from secure_ml.threats import Linf
from secure_ml.training import Plan
from secure_ml.victim import Claim, Plain, Victim


@dataclass(frozen=True, kw_only=True)
class IBP(Defense):
    """Trains on worst answers by interval arithmetic, and serves proofs (Gowal et al. 2018, https://arxiv.org/abs/1810.12715).

    The loss is ``kappa`` times the task's own plus ``1 - kappa`` times the task's loss of the worst answers that
    interval bounds allow within ``radius`` of the inputs ``(B, *shape)``, in the unit of the box. The radius grows from
    0, and ``kappa`` falls from 1, while training passes from ``warmup`` to ``ramp``. With ``beta`` the bounds of the
    ramp are CROWN-IBP's (Zhang et al. 2020, https://arxiv.org/abs/1906.06316). With an ``attack`` the task's own loss
    is that of attacked inputs (MTL-IBP, De Palma et al. 2024, https://arxiv.org/abs/2305.13991).

    Covers: changes of the input that are small in Linf, by a deterministic proof for each example. Does not cover:
    other norms, examples without a proof, privacy or extraction. Radius 0 is plain training, but for dropout.

    Differs from the papers: the regulariser takes its means over an example instead of a batch; dropout acts in the
    task's own loss only; the schedules are shares of training. Early stopping is switched off: it looks at clean
    examples. Raises `NotApplicable` for modules that are not chains of layers whose bounds are known, for inputs that
    are not one box, for answers that are not classes, and where something else than the module's class is served.
    """

    radius: float | None = None
    """Trained for; that of the task's own Linf threat unless given. A little more than is to be proved proves more."""
    kappa: float = 0.5
    """The weight of the ordinary loss when the ramp is over."""
    warmup: float = 1 / 30
    """Share of training before the radius grows (2,000 of 60,000 steps)."""
    ramp: float = 1 / 5
    """Share of training at which the radius is whole (12,000 of 60,000 steps)."""
    regular: float = 0.0
    """Weight of the regulariser of Shi et al. 2021 (https://arxiv.org/abs/2103.17268), who take 0.5; fades in the ramp.

    Above 0, the weights are drawn anew as they do, so that intervals do not explode at the start.
    """
    beta: float = 0.0
    """The share of CROWN in the bounds when the ramp begins; it falls to 0 until the ramp is over."""
    attack: Evasion | None = None
    """What inputs of the ordinary loss are attacked with, within the radius of the moment; none unless given."""

    def __post_init__(self) -> None:
        require(self.radius is None or 0 <= self.radius < float("inf"), f"IBP needs a radius >= 0; given {self.radius}")
        for name in ("kappa", "beta"):
            require(0 <= getattr(self, name) <= 1, f"IBP needs a {name} between 0 and 1; given {getattr(self, name)}")
        require(
            0 <= self.warmup <= self.ramp <= 1,
            f"IBP needs 0 <= warmup <= ramp <= 1; given warmup {self.warmup} and ramp {self.ramp}",
        )
        require(0 <= self.regular < float("inf"), f"IBP needs a regular >= 0; given {self.regular}")

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` where there is nothing to be proved, or no way to prove it."""
        if not one_class(task) or task.renew is not None:
            raise NotApplicable(f"IBP proves that a class stays the same; {task.name} does not name one class")
        if len(task.surfaces) != 1 or type(task.surfaces[0]) is not Box or task.surfaces[0].path:
            raise NotApplicable(f"IBP needs inputs that are one box of numbers; {task.name} has others")
        box_of(task, "IBP")
        if self.radius is None and not isinstance(task.threat, Linf):
            raise NotApplicable(f"{task.name} declares no Linf threat to train for: give IBP a radius")
        with seeded(0, "bounds"):
            chain_of(task.build())

    def prepare(self, plan: Plan) -> Plan:
        """The plan with the mixed loss, in stages; `NotApplicable` where another defense changed or wrapped layers."""
        chain_of(plan.module)
        stages = Stages(self.warmup, self.ramp)
        if self.regular and self._radius(plan.task):
            suit_intervals(plan.module, generator(plan.seed, "interval bounds"))

        def loss(predictor: Predictor, batch: Batch) -> Tensor:
            return self._loss(plan, predictor, batch, stages.share)

        state = {**plan.state, f"stages {len(plan.state)}": stages}
        return replace(plan, loss=loss, observers=(*plan.observers, stages), state=state, patience=None)

    def serve(self, victim: Victim) -> Victim:
        """The victim with a certificate and a claim; `NotApplicable` where the stack serves another class than its."""
        others = [type(d).__name__ for d in victim.defenses if type(d).serve not in _HARMLESS]
        inner = victim.served.inner if isinstance(victim.served, Labels) else victim.served
        if others or not isinstance(inner, Plain):
            raise NotApplicable(
                "IBP proves what the module itself answers, which is not what "
                f"{' and '.join(others) or type(inner).__name__} serves: leave one of them out"
            )
        radius = self._radius(victim.task)
        asked = victim.task.threat
        first = asked.radius if isinstance(asked, Linf) else radius
        certificate = IntervalCertificate(module=victim.module, surface=_box(victim.task), first=first)
        return replace(
            victim,
            certificates=(*victim.certificates, certificate),
            claims=(*victim.claims, _claim(radius)),
        )

    @classmethod
    def neutral(cls) -> IBP:
        """Radius 0, and the ordinary loss alone: the other sees no dropout."""
        return cls(radius=0, kappa=1.0)

    def _radius(self, task: Task) -> float:
        return self.radius if self.radius is not None else task.threat.radius  # type: ignore[union-attr]

    def _mix(self, share: float) -> Mix:
        return Mix(
            plain=1 - (1 - self.kappa) * share,
            crown=self.beta * (1 - share),
            regular=self.regular * (1 - share),
        )

    def _loss(self, plan: Plan, predictor: Predictor, batch: Batch, share: float) -> Tensor:
        """The mixed loss of each example, ``(B,)``."""
        if not isinstance(predictor, nn.Module):
            raise NotApplicable("IBP bounds the module itself, which a defense after it hides: list IBP last")
        mix, radius = self._mix(share), self._radius(plan.task) * share
        chain = chain_of(predictor)
        losses = torch.zeros(len(batch), device=plan.device)
        if mix.plain:
            losses = losses + mix.plain * plan.loss(predictor, self._attacked(plan, predictor, batch, radius))
        if mix.plain < 1 or mix.regular:
            losses = losses + self._worst(plan.task, chain, batch, radius, mix)
        return losses

    def _attacked(self, plan: Plan, module: nn.Module, batch: Batch, radius: float) -> Batch:
        if self.attack is None or not radius:
            return batch
        with plan.crafting(module):
            return attack_batch(self.attack, WhiteBox(plan.task, module), batch, Linf(radius), plan.rng)

    def _worst(self, task: Task, chain: list[Layer], batch: Batch, radius: float, mix: Mix) -> Tensor:
        """The worst answers' share of the loss, and the regulariser's."""
        assert isinstance(batch.inputs, Tensor)
        assert isinstance(batch.target, Tensor)
        target = batch.target
        reached = boxes(chain, ball(_box(task), batch.inputs, radius))
        single = reached[-1].lower.ndim == 1
        answers = worst_answers(margins(chain, reached, target, "ibp"), target, single)
        if mix.crown:
            tighter = worst_answers(margins(chain, reached, target, "crown"), target, single)
            answers = (1 - mix.crown) * answers + mix.crown * tighter
        losses = (1 - mix.plain) * task.loss(lambda _: answers, batch)
        return losses + mix.regular * regulariser(chain, reached) if mix.regular and radius else losses


_HARMLESS = (Defense.serve, LabelOnly.serve, IBP.serve)
"""What is served leaves the module's class as it is."""


def _box(task: Task) -> Box:
    (surface,) = task.surfaces
    assert isinstance(surface, Box)
    return surface


def _claim(radius: float) -> Claim:
    return Claim(
        kind="robustness",
        short="Linf radius proved by example",
        statement=(
            "the class of an example cannot change within its certified Linf radius: deterministic, by interval and "
            "CROWN bounds that cover the rounding of the module's own sums; how many examples have a radius of "
            f"{radius:g}, which training aimed at, is told by their certified accuracy"
        ),
        values={"norm": "Linf", "radius": radius, "alpha": 0.0, "method": "interval and CROWN bounds"},
        stage="serving",
    )
