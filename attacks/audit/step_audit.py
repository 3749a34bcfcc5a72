"""The cheapest strong audit: single steps with and without a canary, seen from inside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from attacks.audit._compose import composed_epsilon
from attacks.audit._marks import SLOPE, marked, marks_of, with_marks
from attacks.audit._planting import floats
from attacks.audit._released import again, private_optimizer, reading, rows_per_unit, run_on, stand_still
from secure_ml.auditing import (
    CHOICES,
    Choice,
    chosen_threshold,
    clopper_pearson_lower,
    gaussian_epsilon,
    gaussian_mu,
    region_epsilon,
)
from secure_ml.errors import require
from secure_ml.families.audit import Audit, Bound, Laboratory, claimed, privacy_claim
from secure_ml.randomness import seeded
from secure_ml.training import Loader, Plan
from secure_ml.victim import Victim


@dataclass(frozen=True, kw_only=True)
class StepAudit(Audit):
    """Tells single noisy steps with a canary from those without it (Nasr et al. 2023).

    https://arxiv.org/abs/2302.07956. One of the victim's training examples ``(B, *shape)`` becomes a canary, whose
    gradient is steep in one number of its own and 0 elsewhere. Steps of the victim's own plan are run with and without
    it, and the gradient that moves that number is read. Errors of a threshold bound mu of one step from below, as for a
    Gaussian mechanism; Poisson sampling at no more than the observed rate composes as many steps as the victim took.
    Unlike the paper's, the canary is in a batch or not at our will, and from each sum the noise is drawn several times.

    Raises `UsageError` for too few observations, `NotApplicable` where no example is fixed.
    """

    observations: int = 10_000
    """Steps seen, half of them with the canary."""
    draws: int = 20
    """Observations made of one sum, each with noise of its own; 1 runs every step in full."""
    choice: Choice = "split"
    """How the threshold is chosen; halfway between what is expected with and without the canary if it is ``fixed``."""
    delta: float = 1e-5
    """Of the bound, where nothing is claimed."""

    def __post_init__(self) -> None:
        require(self.observations >= 20, f"StepAudit needs at least 20 observations; given {self.observations}")
        require(self.draws >= 1, f"StepAudit needs at least 1 draw; given {self.draws}")
        require(self.choice in CHOICES, f"StepAudit chooses by one of {', '.join(CHOICES)}; given {self.choice!r}")
        require(0 <= self.delta < 1, f"StepAudit needs a delta in [0, 1); given {self.delta}")

    def bounds(self, lab: Laboratory, rng: torch.Generator) -> Iterator[Bound]:
        """One step's bound for any mechanism and for a Gaussian, then the composed one where anything is claimed."""
        plan = self._plan(lab)
        rate = observed_rate(plan)
        expected = 1.0
        if (optimizer := private_optimizer(plan)) is not None:
            expected = min(optimizer.max_grad_norm, SLOPE) / optimizer.expected_batch_size
        ins, outs = (floats(part) for part in self._observed(plan, lab.seed))
        epsilon, delta = claimed(lab.victim, self.delta)
        alone = _one_step(lab.victim, delta)
        grid = (
            (expected / 2,) if self.choice == "fixed" else tuple(expected * x for x in (-1, 0, 0.25, 0.5, 0.75, 1, 2))
        )
        errors, alpha = chosen_threshold(ins, outs, lambda e, a: region_epsilon(e, delta, a), self.choice, grid)
        seen = f"{len(ins) + len(outs)} steps seen, threshold {self.choice}"
        yield Bound(
            name="one step",
            epsilon=region_epsilon(errors, delta, alpha),
            delta=delta,
            method=f"Clopper-Pearson, {seen}",
            n=errors.ins + errors.outs,
            upper=alone,
        )
        errors, alpha = chosen_threshold(ins, outs, gaussian_mu, self.choice, grid)
        yield Bound(
            name="one step f-DP",
            epsilon=gaussian_epsilon(gaussian_mu(errors, alpha), delta),
            delta=delta,
            method=f"Gaussian trade-off, {seen}",
            n=errors.ins + errors.outs,
            upper=alone,
            rests_on="if a step's trade-off is a Gaussian's",
        )
        if (claim := privacy_claim(lab.victim)) is None:
            return
        steps, mu = int(claim.values["steps"]), gaussian_mu(errors, 0.8 * alpha)
        yield Bound(
            name="all steps",
            epsilon=composed_epsilon(mu, rate, steps, delta),
            delta=delta,
            method=f"{steps} steps of mu {mu:.3g} at rate {rate:.3g} composed, {seen}",
            n=errors.ins + errors.outs,
            upper=epsilon,
            rests_on="if a step's trade-off is a Gaussian's and batches are drawn by Poisson sampling",
        )

    def _plan(self, lab: Laboratory) -> Plan:
        """The victim's plan, in whose data the last example is the canary."""
        n = len(lab.splits.train)
        require(n >= 2, f"{lab.task} has {n} training examples; a step is audited beside another one: it needs 2")
        marks = torch.zeros(n)
        marks[-1] = 1
        if lab.splits.owner is not None:  # the canary is all that its person has
            marks[lab.splits.owner == lab.splits.owner[-1]] = 1
        return lab.plan(lab.task_on(with_marks(lab.splits, marks), marked(lab.task, 1)))

    def _observed(self, plan: Plan, seed: int) -> tuple[Tensor, Tensor]:
        """The gradient that moves the canary's number, with it ``(n,)`` and without it ``(n,)``."""
        rows, n = rows_per_unit(plan), len(cast("Loader", plan.loader).data)
        draws = self.draws if private_optimizer(plan) is not None else 1
        pairs = max(3, -(-self.observations // (2 * draws)))
        weight, seen = marks_of(plan.module).weight, list[Tensor]()
        ordinary, canary = torch.zeros(rows, dtype=torch.long), torch.full((rows,), n - 1)
        batches = [torch.cat([ordinary, canary]), ordinary] * pairs

        def look() -> None:
            assert weight.grad is not None
            seen.append(weight.grad[1, 0].detach().clone())

        def read() -> None:
            look()
            again(plan, look, draws - 1)

        stand_still(plan)
        with seeded(seed, "step audit"), reading(plan, read):
            run_on(plan, batches)
        found = torch.stack(seen).reshape(pairs, 2, draws)
        return found[:, 0].flatten(), found[:, 1].flatten()

    @classmethod
    def tiny(cls) -> StepAudit:
        """Two hundred observations."""
        return cls(observations=200)


def observed_rate(plan: Plan, alpha: float = 0.01, batches: int = 300) -> float:
    """A lower bound on the rate at which the plan's own loader draws each unit, from batches that it makes."""
    loader, owner = cast("Loader", plan.loader), plan.splits.owner
    units, rows = len(loader.data), rows_per_unit(plan)
    if rows > 1 and owner is not None:
        units = len(owner.unique())
    sizes: list[int] = []
    while len(sizes) < batches:
        before = len(sizes)
        sizes += [len(index) // rows for index in loader.sampler]
        require(len(sizes) > before, f"the loader of {plan.task} gives no batches")
    return clopper_pearson_lower(sum(sizes), units * len(sizes), alpha)


def _one_step(victim: Victim, delta: float) -> float:
    """What one step may show by the noise that is claimed, when it is known who is in its batch."""
    claim = privacy_claim(victim)
    sigma = 0.0 if claim is None else float(claim.values.get("sigma", 0.0))
    return gaussian_epsilon(1 / sigma, delta) if sigma > 0 else float("inf")
