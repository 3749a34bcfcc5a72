"""Twelve reasons to believe an epsilon, or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from attacks.scrutiny import _books as books
from attacks.scrutiny import _mechanism as mechanism
from attacks.scrutiny._trial import Trial
from secure_ml.errors import NotApplicable, UsageError, require
from secure_ml.families.audit import privacy_claim
from secure_ml.families.scrutiny import Finding, Scrutiny
from secure_ml.task import Task
from secure_ml.threats import Threat
from secure_ml.victim import Victim

Check = Callable[[Trial], Finding]
CHECKS: tuple[tuple[str, Check], ...] = (
    (books.BOOKS, books.books),
    (books.DELTA, books.delta),
    (books.ACCOUNTANTS, books.accountants),
    (mechanism.NOISE, mechanism.noise),
    (mechanism.SENSITIVITY, mechanism.sensitivity),
    (mechanism.LEAKAGE, mechanism.leakage),
    (mechanism.SAMPLING, mechanism.sampling),
    (mechanism.RESUME, mechanism.resume),
    (books.WITHDRAWN, books.withdrawn),
    (books.STOPPING, books.stopping),
    (books.AUDIT, books.audit),
)
ON_PAPER = (books.BOOKS, books.DELTA, books.ACCOUNTANTS, books.STOPPING)
"""What can be checked where no noise is added at all."""


@dataclass(frozen=True, kw_only=True)
class PrivacyChecks(Scrutiny):
    """Twelve checks of a claim of differential privacy, each with its evidence (Tramer et al. 2022).

    https://arxiv.org/abs/2202.12219. Takes a victim and runs fresh plans of its training for a few steps on its own
    examples ``(B, *shape)``: books, delta, accountants, noise, sensitivity, leaks between examples, Poisson sampling,
    what a resumed run repeats, claims without noise, early stopping, a per-step audit; and whether members differ from
    others to begin with, which alone is looked at where nothing is claimed. Other papers' checks are on paper; these
    watch what moves the weights. Raises `UsageError` for settings out of range, `NotApplicable` where no example is
    fixed.
    """

    needs_threat: ClassVar[bool] = False
    members: int = 500
    """Members that are told from as many others without the model, at most."""

    def __post_init__(self) -> None:
        require(self.members >= 1, f"PrivacyChecks needs at least 1 member; given {self.members}")

    def check(self, task: Task, threat: Threat | None) -> None:
        """Raise `NotApplicable` where no set of examples is trained on throughout."""
        super().check(task, threat)
        if task.renew is not None:
            raise NotApplicable(f"the examples of {task.name} are drawn anew by what the model does: none is protected")

    def examine(self, victim: Victim, threat: Threat | None, examples: int, rng: torch.Generator) -> Iterator[Finding]:
        """One finding for each check, in their order; what needs noise is skipped where a plan adds none."""
        seed, claim = int(torch.randint(2**31, (1,), generator=rng)), privacy_claim(victim)
        if claim is not None:
            trial = Trial(victim, claim, seed)
            for name, check in CHECKS:
                if trial.private or name in ON_PAPER:
                    yield _guarded(name, check, trial)
                else:
                    yield Finding(name, "SKIP", "the plan that training follows adds no noise")
        yield books.blind(victim, min(self.members, examples), seed)

    @classmethod
    def tiny(cls) -> PrivacyChecks:
        """Twenty members."""
        return cls(members=20)


def _guarded(name: str, check: Check, trial: Trial) -> Finding:
    try:
        return check(trial)
    except UsageError as error:
        return Finding(name, "FAIL", str(error))
