"""The ROC of a membership attack, as far down as its non-members bear it, with an interval at every point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from secure_ml.errors import require
from secure_ml.stats import Floats, Pair, redrawn, together


@dataclass(frozen=True, eq=False)
class Roc:
    """True-positive rates ``tpr`` at false-positive rates ``fpr``, each with its 95 % interval; all ``(P,)``."""

    fpr: Floats
    tpr: Floats
    low: Floats
    high: Floats
    others: int
    """Non-members behind it."""


def roc(victims: Sequence[Pair], *, points: int = 60, false_positives: int = 10, rounds: int = 400) -> Roc:
    """The ROC of the pooled (member, non-member) scores of several victims, at rates evenly spaced in the logarithm.

    It begins where the non-members allow ``false_positives``; the intervals are pointwise, from a bootstrap over
    victims and their examples. Raises `UsageError` where there are no more non-members than that.
    """
    members, others = together(victims)
    require(
        len(others) > false_positives,
        f"a ROC from {false_positives} false positives on needs more non-members than {len(others)}",
    )
    rates = np.geomspace(false_positives / len(others), 1.0, points)
    drawn = np.stack([true_positives(*pair, rates) for pair in redrawn(victims, rounds)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return Roc(rates, true_positives(members, others, rates), low, high, len(others))


def true_positives(members: Floats, others: Floats, rates: Floats) -> Floats:
    """`secure_ml.stats.tpr_at` at many false-positive rates ``(P,)``, from one sort."""
    mine, theirs = np.sort(members), np.sort(others)
    allowed = rates * len(theirs)
    threshold = theirs[::-1][np.minimum(allowed.astype(int), len(theirs) - 1)]
    (above, level), (over, tied) = _counts(mine, threshold), _counts(theirs, threshold)
    found = (above + (allowed - over) / tied * level) / len(mine)
    return np.where(allowed >= len(theirs), 1.0, found)


def _counts(ranked: Floats, threshold: Floats) -> tuple[Floats, Floats]:
    """How many of the sorted scores lie above each threshold, and how many on it."""
    below, up_to = (np.searchsorted(ranked, threshold, side) for side in ("left", "right"))
    return (len(ranked) - up_to).astype(np.float64), (up_to - below).astype(np.float64)
