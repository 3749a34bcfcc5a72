"""Lower bounds on epsilon from what an auditor saw, each with its confidence: formulas, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from secure_ml.errors import require
from secure_ml.stats import Floats

Mask: TypeAlias = NDArray[np.bool_]
Choice: TypeAlias = Literal["fixed", "bonferroni", "split"]
"""How a threshold, or a number of guesses, is chosen so that the bound stays valid: it is given; it is the best of a
few that are given, each of which has its share of the error; or half of the observations choose it for the others."""
CHOICES: tuple[Choice, ...] = ("fixed", "bonferroni", "split")
CAP = 50.0
"""No bound is looked for above it."""


@dataclass(frozen=True)
class Errors:
    """Counts of a test that says who was in: false positives of ``outs`` trials, false negatives of ``ins``."""

    false_positives: int
    outs: int
    false_negatives: int
    ins: int

    def upper(self, alpha: float) -> tuple[float, float]:
        """Upper bounds on both rates, which hold together but for a chance of ``alpha``."""
        return (
            clopper_pearson_upper(self.false_positives, self.outs, alpha / 2),
            clopper_pearson_upper(self.false_negatives, self.ins, alpha / 2),
        )


def clopper_pearson_upper(successes: int, n: int, alpha: float) -> float:
    """The one-sided upper bound on a proportion, https://doi.org/10.1093/biomet/26.4.404."""
    from scipy.stats import beta

    return 1.0 if successes >= n else float(beta.ppf(1 - alpha, successes + 1, n - successes))


def clopper_pearson_lower(successes: int, n: int, alpha: float) -> float:
    """The one-sided lower bound on a proportion."""
    return 1.0 - clopper_pearson_upper(n - successes, n, alpha)


def region_epsilon(errors: Errors, delta: float, alpha: float = 0.05) -> float:
    """The least epsilon whose region of error rates holds both upper bounds (Kairouz et al. 2015).

    https://arxiv.org/abs/1311.0776: ``FPR + e^eps FNR >= 1 - delta`` and the same the other way round. Assumes nothing
    of the mechanism; 0 where nothing is shown.
    """
    false_positives, false_negatives = errors.upper(alpha)
    first, second = (1 - delta - one for one in (false_positives, false_negatives))
    ratios = [top / below for top, below in ((first, false_negatives), (second, false_positives)) if top > 0]
    return max([0.0, *(math.log(ratio) for ratio in ratios if ratio > 0)])


def gaussian_mu(errors: Errors, alpha: float = 0.05) -> float:
    """A lower bound on mu where the trade-off of errors is a Gaussian's (Nasr et al. 2023), else an estimate.

    https://arxiv.org/abs/2302.07956; never below 0.
    """
    from scipy.stats import norm

    false_positives, false_negatives = errors.upper(alpha)
    return max(0.0, float(norm.isf(false_positives) - norm.ppf(false_negatives)))


def gaussian_delta(epsilon: float, mu: float) -> float:
    """The least delta of a mu-Gaussian mechanism at an epsilon (Dong et al. 2019, https://arxiv.org/abs/1905.02383)."""
    from scipy.stats import norm

    if mu <= 0:
        return 0.0
    tail = epsilon + norm.logcdf(-epsilon / mu - mu / 2)
    return float(norm.cdf(-epsilon / mu + mu / 2) - math.exp(min(tail, 0.0)))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The least epsilon of a mu-Gaussian mechanism at a delta."""
    return 0.0 if gaussian_delta(0.0, mu) <= delta else _crossing(lambda eps: gaussian_delta(eps, mu) > delta)


def one_run_p_value(epsilon: float, canaries: int, guesses: int, right: int, delta: float) -> float:
    """The chance of so many right guesses about canaries that were included by fair coins, if epsilon held.

    Steinke et al. 2023, https://arxiv.org/abs/2305.08846: ``beta + 2 m delta alpha``, with the number of ``guesses``
    fixed before the coins.
    """
    from scipy.stats import binom

    odds = 1 / (1 + math.exp(-epsilon))
    beta = float(binom.sf(right - 1, guesses, odds))
    if delta == 0 or right == 0:
        return min(1.0, beta)
    places = np.arange(1, right + 1)
    within = binom.cdf(right - 1, guesses, odds) - binom.cdf(right - places - 1, guesses, odds)
    return min(1.0, beta + 2 * canaries * delta * float((within / places).max()))


def one_run_epsilon(canaries: int, guesses: int, right: int, delta: float, alpha: float = 0.05) -> float:
    """The greatest epsilon that so many right guesses reject (Steinke et al. 2023); 0 where none is."""
    _check_guesses(canaries, guesses, right)
    return _crossing(lambda eps: one_run_p_value(eps, canaries, guesses, right, delta) <= alpha)


def one_run_mu(canaries: int, guesses: int, right: int, alpha: float = 0.05) -> float:
    """The greatest mu whose Gaussian trade-off so many right guesses reject; 0 where none is.

    Mahloujifar et al. 2024, https://arxiv.org/abs/2410.22235: a rigorous bound for one run under the hypothesis that
    the trade-off of the whole run is a Gaussian's.
    """
    _check_guesses(canaries, guesses, right)
    return _crossing(lambda mu: _rejected(mu, canaries, guesses, right, alpha))


def one_run_fdp_epsilon(canaries: int, guesses: int, right: int, delta: float, alpha: float = 0.05) -> float:
    """The epsilon of the Gaussian of `one_run_mu` at a delta."""
    return gaussian_epsilon(one_run_mu(canaries, guesses, right, alpha), delta)


def _rejected(mu: float, canaries: int, guesses: int, right: int, alpha: float) -> bool:
    """Whether so many right guesses have a chance below alpha under a mu-Gaussian trade-off: the paper's recursion."""
    from scipy.special import ndtr, ndtri

    hits, misses = alpha * right / canaries, alpha * (guesses - right) / canaries
    for i in range(right - 1, -1, -1):
        grown = max(misses, float(ndtr(ndtri(min(hits, 1.0)) - mu)))
        hits += i / (guesses - i) * (grown - misses)
        misses = grown
    return hits + misses > guesses / canaries


def _crossing(holds: Callable[[float], bool]) -> float:
    """Where a condition that holds up to some number above 0 stops to hold, to 1e-7; 0 if it does not hold at all."""
    if not holds(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while holds(high):
        low, high = high, 2 * high
        if low >= CAP:
            return low
    while high - low > 1e-7 * max(1.0, low):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _check_guesses(canaries: int, guesses: int, right: int) -> None:
    require(
        0 <= right <= guesses <= canaries and canaries >= 1,
        f"of {canaries} canaries, {guesses} guesses can not be {right} times right: give right <= guesses <= canaries",
    )


# -- valid choices ---------------------------------------------------------------------------------------------------


def count(ins: Floats, outs: Floats, threshold: float) -> Errors:
    """Errors of saying *in* to every score above a threshold."""
    return Errors(int((outs > threshold).sum()), len(outs), int((ins <= threshold).sum()), len(ins))


def chosen_threshold(
    ins: Floats,
    outs: Floats,
    bound: Callable[[Errors, float], float],
    choice: Choice = "split",
    thresholds: Sequence[float] = (),
    alpha: float = 0.05,
) -> tuple[Errors, float]:
    """Counts at the threshold that a valid ``choice`` makes between scores ``(i,)`` with and ``(o,)`` without.

    ``fixed`` takes the one of ``thresholds``, ``bonferroni`` the best of them; both must be set before the scores are
    seen. ``split`` reserves a fifth of the scores to choose, as if they were normal, for the others. Also gives the
    share of ``alpha`` that is left for the bound. Raises `UsageError` where thresholds are missing or too many.
    """
    require(choice in CHOICES, f"a threshold is chosen by one of {', '.join(CHOICES)}; given {choice!r}")
    if choice == "split":
        first, second = (max(2, len(part) // 5) for part in (ins, outs))
        rest = ins[first:], outs[second:]
        require(min(map(len, rest)) >= 1, f"a split needs 3 scores of each kind; given {len(ins)} and {len(outs)}")
        return count(*rest, _likely(ins[:first], outs[:second], bound, (len(rest[0]), len(rest[1])), alpha)), alpha
    require(
        len(thresholds) == 1 if choice == "fixed" else len(thresholds) >= 1,
        f"{choice} needs {'one threshold' if choice == 'fixed' else 'thresholds'} set before the scores are seen",
    )
    share = alpha / len(thresholds)
    best = max(thresholds, key=lambda threshold: bound(count(ins, outs, threshold), share))
    return count(ins, outs, best), share


def _likely(
    ins: Floats, outs: Floats, bound: Callable[[Errors, float], float], sizes: tuple[int, int], alpha: float
) -> float:
    """The threshold that promises most if the scores are normal like these; in the middle where nothing is promised."""
    from scipy.special import ndtr

    high, low = ins.mean(), outs.mean()
    spread = float(np.sqrt((ins.var() + outs.var()) / 2)) + 1e-12 * (1 + abs(high) + abs(low))
    middle, width = (high + low) / 2, abs(high - low) / 2 + 3 * spread
    grid = middle + width * np.linspace(-1, 1, 81)

    def promised(threshold: float) -> tuple[float, float]:
        missed, false = ndtr((threshold - high) / spread), ndtr((low - threshold) / spread)
        expected = Errors(round(sizes[1] * false), sizes[1], round(sizes[0] * missed), sizes[0])
        return bound(expected, alpha), -abs(threshold - middle)

    return float(max(grid, key=promised))


@dataclass(frozen=True)
class Guessed:
    """How many canaries, guesses about them and right ones there were, and the error that is left for the bound."""

    canaries: int
    guesses: int
    right: int
    alpha: float = 0.05


def guess(scores: Floats, included: Mask, guesses: int, alpha: float = 0.05) -> Guessed:
    """Half of the guesses say that the highest scores were in, the others that the lowest were out."""
    order = np.argsort(scores, kind="stable")
    down = guesses // 2
    right = int(included[order[len(order) - guesses + down :]].sum()) + int((~included[order[:down]]).sum())
    return Guessed(len(scores), guesses, right, alpha)


def chosen_guesses(
    scores: Floats,
    included: Mask,
    bound: Callable[[Guessed], float],
    choice: Choice = "bonferroni",
    shares: Sequence[float] = (0.05, 0.2, 0.5, 0.9),
    alpha: float = 0.05,
) -> Guessed:
    """The guesses about canaries with scores ``(m,)``, as many of them as a valid ``choice`` among ``shares`` says.

    ``split`` reserves half of the canaries to choose for the others, whose coins are independent. Raises `UsageError`
    for shares outside (0, 1], and for several with ``fixed``.
    """
    require(choice in CHOICES, f"guesses are chosen by one of {', '.join(CHOICES)}; given {choice!r}")
    require(
        len(shares) >= 1 and all(0 < share <= 1 for share in shares),
        f"guesses are shares in (0, 1] of the canaries; given {tuple(shares)}",
    )
    require(choice != "fixed" or len(shares) == 1, f"fixed needs one share of the canaries; given {tuple(shares)}")
    require(len(scores) >= 2, f"guessing needs at least 2 canaries; given {len(scores)}")
    own, rest = (slice(0, None, 2), slice(1, None, 2)) if choice == "split" else (slice(None), slice(None))
    error = alpha / len(shares) if choice == "bonferroni" else alpha

    def tried(share: float, part: slice) -> Guessed:
        return guess(scores[part], included[part], max(1, round(share * len(scores[part]))), error)

    return tried(max(shares, key=lambda share: bound(tried(share, own))), rest)
