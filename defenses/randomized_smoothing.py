"""Answers by majority vote over noisy copies, and the radius that is proved for them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from defenses._probe import box_of, one_class
from defenses._smoothing import SmoothedTwin, Smoothing, Votes
from secure_ml.batch import Batch
from secure_ml.checkpoint import Randomness
from secure_ml.defense import Defense
from secure_ml.errors import NotApplicable, UsageError, require
from secure_ml.randomness import generator
from secure_ml.surfaces import Box
from secure_ml.task import Task
from secure_ml.threats import L2
from secure_ml.training import Plan
from secure_ml.victim import Claim, Plain, Victim


@dataclass(frozen=True, kw_only=True)
class RandomizedSmoothing(Defense):
    """Randomized smoothing, certified in L2 by CERTIFY (Cohen et al. 2019, https://arxiv.org/abs/1902.02918).

    Trained on inputs ``(B, *shape)`` plus Gaussian noise (in the unit of the box, and leaving it), drawn anew for every
    batch after its augmentation. Served is the majority of ``votes`` copies with a bank of noise that is fixed
    by the victim's seed: equal inputs get equal answers. The certificate is about ``g``, the majority over infinitely
    many copies, by fresh noise: a selection by ``n0``, a Clopper-Pearson bound by ``n``, and no radius where that is
    not above one half. White-box attacks differentiate the mean probabilities over the served bank (Salman et al.
    2019, https://arxiv.org/abs/1906.04584), at ``votes`` gradients each.

    Covers: evasion of ``g`` in L2 within each example's radius, but for a chance of ``alpha`` each. Does not cover: the
    served vote, where ``g`` is so close to a tie that ``votes`` copies may decide otherwise, for which an adversary can
    look; other norms, beyond what L2 implies; rounding of floating-point numbers; privacy.

    Differs from the paper: early stopping, which looks at clean inputs, is switched off. Raises `NotApplicable` for
    models whose answer is not one class or whose inputs are not all real numbers; `UsageError` for settings out of
    range, for two in one stack, and behind defenses that change answers.
    """

    sigma: float = 0.25
    """Standard deviation of the noise, in the unit of the box; at 0 training and answers are plain."""
    votes: int = 32
    """Copies of each input that vote on what is served."""
    n0: int = 100
    """Copies that select the class to certify."""
    n: int = 100_000
    """Copies that bound its probability; with N, no radius is above ``sigma * Phi^-1(alpha^(1/N))``."""
    alpha: float = 0.001
    """Chance, for each example, that its radius is wrong."""

    def __post_init__(self) -> None:
        require(0 <= self.sigma < math.inf, f"smoothing needs a finite sigma of at least 0; given {self.sigma}")
        require(0 < self.alpha < 0.5, f"smoothing needs an alpha between 0 and 0.5; given {self.alpha}")
        for name in ("votes", "n0", "n"):
            value = getattr(self, name)
            require(value >= 1, f"smoothing needs {name} of at least 1; given {value}")

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` unless all inputs are real numbers and the answer is one class."""
        box_of(task, "RandomizedSmoothing")
        others = [type(surface).__name__ for surface in task.surfaces if not isinstance(surface, Box)]
        if others:
            raise NotApplicable(
                f"RandomizedSmoothing adds noise to real numbers; an adversary of {task.name} may change "
                f"{' and '.join(others)} too, about which that proves nothing"
            )
        if not one_class(task):
            raise NotApplicable(f"RandomizedSmoothing votes on one class an example; {task.name} has other targets")

    def prepare(self, plan: Plan) -> Plan:
        """The plan with noise on every batch, from a stream of its own."""
        surface, rng = plan.task.surface(L2(0)), generator(plan.seed, "smoothing", len(plan.state))

        def add(module: nn.Module, batch: Batch) -> Batch:
            batch = plan.transform(module, batch)
            clean = surface.get(batch.inputs)
            noise = torch.randn(clean.shape, generator=rng, dtype=clean.dtype).to(clean.device)
            return Batch(surface.put(batch.inputs, clean + self.sigma * noise), batch.target)

        state = {**plan.state, f"smoothing {len(plan.state)}": Randomness(rng)}
        return replace(plan, transform=add, state=state, patience=None)

    def serve(self, victim: Victim) -> Victim:
        """The victim answering by votes, with its certificate; without noise there is none."""
        if any(isinstance(known, Smoothing) for known in victim.certificates):
            raise UsageError("RandomizedSmoothing stands twice in the stack: list it once, with the larger sigma")
        if not isinstance(victim.served, Plain):
            raise UsageError(
                "RandomizedSmoothing votes with the module's own answers: list it before defenses that change them"
            )
        task, module, surface = victim.task, victim.module, victim.task.surface(L2(0))
        assert isinstance(surface, Box)
        clean = surface.get(victim.splits.train.take(slice(0, 1)).inputs)
        draws = torch.randn(self.votes, *clean.shape[1:], generator=generator(victim.seed, "votes"), dtype=clean.dtype)
        bank = self.sigma * draws.to(victim.device)
        twin = SmoothedTwin(module, surface, bank, task.chunk).eval()
        victim = replace(victim, module=twin, served=Votes(module, surface, bank, task.chunk))
        if self.sigma == 0:
            return victim
        proof = Smoothing(
            module=module,
            surface=surface,
            sigma=self.sigma,
            n0=self.n0,
            n=self.n,
            rows=task.chunk,
            alpha=self.alpha,
        )
        return replace(victim, claims=(*victim.claims, self._claim()), certificates=(*victim.certificates, proof))

    @classmethod
    def tiny(cls) -> RandomizedSmoothing:
        """Little noise, and few copies."""
        return cls(sigma=0.02, votes=9, n0=10, n=100)

    @classmethod
    def neutral(cls) -> RandomizedSmoothing:
        """No noise."""
        return cls(sigma=0.0)

    def _claim(self) -> Claim:
        return Claim(
            kind="certified robustness",
            short=f"smoothed, sigma={self.sigma:g}: L2 radii, alpha={self.alpha:g}",
            statement=(
                "randomized smoothing: where the class that the module gives most often under Gaussian noise of "
                f"standard deviation {self.sigma:g} has a probability of at least p > 1/2, no change of L2 length "
                f"below {self.sigma:g} * Phi^-1(p) changes which class that is; p is a Clopper-Pearson bound from "
                f"{self.n} copies, so that each radius is wrong with a chance of at most {self.alpha:g}; the served "
                f"answer is a vote of {self.votes} copies with fixed noise, which may differ near a tie"
            ),
            values={
                "norm": "L2",
                "sigma": self.sigma,
                "alpha": self.alpha,
                "n0": self.n0,
                "n": self.n,
                "votes": self.votes,
            },
            stage="serving",
        )
