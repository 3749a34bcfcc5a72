"""Which way a measurement is better for who defends the model, read off its name and unit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from secure_ml.scores import Score

UP, DOWN = 1, -1
NEUTRAL = (
    r"without access",
    r"without the model",
    r"by imputation",
    r"on non-members",
    r"never planted",
    r"guessed as zeros",
    r"^trigger on the clean model",
    r"^share changed",
    r"^detection AUC before poisoning",
    r"^fidelity of the (copies|others)$",
    r"^(median p of copies|least p of others)",
    r"^hidden width",
)
"""What is measured to compare with: it tells of the data or of chance, not of the defense."""
BETTER_LOW = (
    r"^membership AUC",
    r"^TPR at ",
    r"^epsilon ",
    r"^fidelity",
    r"^transfer",
    r"^answers moved",
    r"^targeted success",
    r"^backdoor success",
    r"^(PSNR|SSIM|identified|member gain|nearest is a member|recognised by|skew |exposure|attribute )",
    r"^key recovered",
    r"^false accusations",
    r"(^| )latency",
    r"seconds",
    r"^largest logit error",
)
BETTER_HIGH = (
    r"^certified ",
    r"^answers kept",
    r"^copy's (divergence|squared distance|worst )",
    r"^projection missed",
    r"^power ",
    r"^distance ratio",
    r"^detection AUC$",
    r"^detection AUC,",
)
EXTRA_SCORES = {"return": UP, "task success": UP, "asked again": DOWN, "task success, answer understood": UP}
"""Scores that single tasks define."""


def direction(measure: str, unit: str = "share") -> int:
    """1 where more is better for the defender, -1 where less is, 0 where neither is.

    A copy's score is bad for the defender as far as it is good for the copy; verdicts are better low, counts neither.
    """
    if unit == "verdict":
        return DOWN
    if unit in ("count", "p-value") or any(re.search(pattern, measure) for pattern in NEUTRAL):
        return 0
    if any(re.search(pattern, measure) for pattern in BETTER_HIGH):
        return UP
    if any(re.search(pattern, measure) for pattern in BETTER_LOW):
        return DOWN
    stolen = measure.startswith("copy's ")
    return (-1 if stolen else 1) * _score(measure.removeprefix("copy's "))


def is_score(measure: str) -> bool:
    """Whether a measure is a task's own score, with no adversary about."""
    return measure in scores()


def attacked(measure: str) -> str | None:
    """The score that a measure is about, where it is that score under an adversary's changes; else None."""
    name, found, _ = measure.partition(" under ")
    return name if found and name in scores() else None


@cache
def scores() -> dict[str, int]:
    """Every score's name, and which way it is better."""
    return {**EXTRA_SCORES, **dict(_named(Score))}  # type: ignore[type-abstract]


def _score(measure: str) -> int:
    """The direction of the longest score name that a measure begins with."""
    for name in sorted(scores(), key=len, reverse=True):
        if re.match(rf"{re.escape(name)}($|,| at | under )", measure):
            return scores()[name]
    return 0


def _named(cls: type[Score]) -> Iterator[tuple[str, int]]:
    for child in cls.__subclasses__():
        name = vars(child).get("name")
        if isinstance(name, str):
            yield name, UP if child.higher_is_better else DOWN
        yield from _named(child)
