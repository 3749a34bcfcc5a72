"""Accusation by a mark that a copy took over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from attacks.ownership._thief import check_settings, default_thief
from secure_ml.access import BlackBox
from secure_ml.errors import NotApplicable
from secure_ml.families.extraction import Extraction
from secure_ml.families.ownership import (
    SHARED,
    Evidence,
    Owner,
    Ownership,
    Watermark,
    binomial_p,
    decide,
    predictive_p,
)


@dataclass(frozen=True, kw_only=True)
class WatermarkTest(Ownership):
    """Counts the marked questions that a suspect answers as the owner marked them (Szyller et al. 2019, https://arxiv.org/abs/1906.00830).

    The victim must be protected by a watermark (`DAWN`, `EntangledWatermark`), which says what it marked. Where it
    knows how likely, at most, a model that was not copied agrees on a question ``(B, *shape)``, the p-value is the
    binomial tail of the agreements, and exact; else the suspect is compared with models that were not copied, by
    Student's t. One label of each question is asked of the suspect. With several watermarks the first is tested.

    Raises `NotApplicable` for a victim without a watermark and where an answer is not one class, `UsageError` for
    settings out of range. Differs from the paper: a test at a level instead of a fixed share of agreements.
    """

    logged: ClassVar[bool] = True

    queries: int = 2000
    """Budget of each thief, who asks random questions and imitates the probabilities."""
    stealing: Extraction | None = None
    """Another thief, in the place of that one."""
    copies: int = 3
    """Stolen models."""
    independents: int = 10
    """Models of the same task, on other data, that were not stolen."""
    level: float = 0.01
    """Of the test: the most p that is an accusation."""

    def __post_init__(self) -> None:
        check_settings("WatermarkTest", self.copies, self.independents, self.level, self.queries)

    @property
    def thief(self) -> Extraction:
        """Who makes the copies."""
        return self.stealing or default_thief(self.queries)

    def collect(self, owner: Owner, rng: torch.Generator) -> Evidence:
        """What was marked; `NotApplicable` without a watermark."""
        for defense in owner.victim.defenses:
            if isinstance(defense, Watermark):
                return defense.marks(owner)
        raise NotApplicable("the victim carries no watermark: protect it with DAWN or EntangledWatermark")

    def accuse(self, evidence: Evidence, suspect: BlackBox, rng: torch.Generator) -> float:
        """How likely an innocent suspect agrees as often."""
        wanted, answers = evidence.questions.target, decide(suspect, evidence.questions.inputs)
        assert isinstance(wanted, torch.Tensor)
        if evidence.rates:
            return predictive_p(float((answers == wanted).double().mean()), evidence.rates, len(wanted), SHARED)
        return binomial_p(answers, wanted, evidence.chance)

    @classmethod
    def tiny(cls) -> WatermarkTest:
        """One copy by eight queries, two independent models."""
        return cls(queries=8, copies=1, independents=2)
