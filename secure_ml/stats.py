"""Numbers with their uncertainty."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Pair = tuple[Floats, Floats]


@dataclass(frozen=True)
class Estimate:
    """A measured ``value``, its 95 % interval, the number of observations, and how the interval was made."""

    value: float
    low: float
    high: float
    n: int
    method: str


def clopper_pearson(successes: int, n: int, alpha: float = 0.05) -> Estimate:
    """A proportion with its exact interval (Clopper and Pearson 1934, https://doi.org/10.1093/biomet/26.4.404)."""
    from scipy.special import betaincinv  # scipy.stats, which asks the same function, takes a second to load

    if n == 0:
        return Estimate(float("nan"), 0.0, 1.0, 0, "Clopper-Pearson")
    low = float(betaincinv(successes, n - successes + 1, alpha / 2)) if successes else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - alpha / 2)) if successes < n else 1.0
    return Estimate(successes / n, low, high, n, "Clopper-Pearson")


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean over independent runs with Student's t interval; of a single run, no interval."""
    from scipy.special import stdtrit

    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return Estimate(mean, float("nan"), float("nan"), 1, "one run: no interval")
    half = float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n, f"t over {n} seeds")


def median(values: Sequence[float], alpha: float = 0.05) -> Estimate:
    """The median of independent observations, between order statistics (exact; https://doi.org/10.1002/0471722162).

    The median lies below the k-th smallest of n with the chance that fewer than k of n fair coins come up heads. Of
    fewer than 6 observations no two lie around it surely enough.
    """
    from scipy.special import bdtr

    ordered, n = np.sort(np.asarray(values, dtype=np.float64)), len(values)
    k = max((k for k in range(1, n // 2 + 1) if 2 * bdtr(k - 1, n, 0.5) <= alpha), default=0)
    low, high = (float(ordered[k - 1]), float(ordered[n - k])) if k else (float("nan"), float("nan"))
    return Estimate(float(np.median(ordered)), low, high, n, f"median of {n}")


def bootstrap(statistic: Callable[[Floats], float], values: Floats, rounds: int = 1000) -> Estimate:
    """A statistic of independent observations ``(n,)`` or ``(n, k)`` with its percentile bootstrap interval."""
    if not len(values):
        return Estimate(float("nan"), float("nan"), float("nan"), 0, "bootstrap")
    rng = np.random.default_rng(0)
    draws = [statistic(rng.choice(values, len(values), axis=0)) for _ in range(rounds)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(statistic(values), float(low), float(high), len(values), "bootstrap over examples")


def auc(members: Floats, others: Floats) -> float:
    """Area under the ROC curve: the chance that a member scores above a non-member, ties counting half."""
    ranked, asked = np.sort(others), np.sort(members)  # neighbours are found twice as fast as what lies anywhere
    below, up_to = (np.searchsorted(ranked, asked, side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(others)))


def tpr_at(members: Floats, others: Floats, fpr: float) -> float:
    """True-positive rate at a false-positive rate, where scores tied at the threshold are decided by a biased coin.

    This is the ROC curve with straight lines between its points.
    """
    allowed = fpr * len(others)
    if allowed >= len(others):
        return 1.0
    threshold = np.sort(others)[::-1][int(allowed)]
    coin = (allowed - (others > threshold).sum()) / (others == threshold).sum()
    return float((members > threshold).mean() + coin * (members == threshold).mean())


def pooled(statistic: Callable[[Floats, Floats], float], victims: Sequence[Pair], rounds: int = 400) -> Estimate:
    """A statistic of the pooled (member, non-member) scores of several victims.

    The interval is a percentile bootstrap that draws victims and then, inside each, examples, so that it
    covers the randomness of training as well as that of the sample.
    """
    low, high = np.quantile([statistic(*pair) for pair in redrawn(victims, rounds)], [0.025, 0.975])
    n = sum(len(m) + len(o) for m, o in victims)
    method = f"bootstrap over {len(victims)} victims and their examples"
    return Estimate(statistic(*together(victims)), float(low), float(high), n, method)


def redrawn(victims: Sequence[Pair], rounds: int) -> Iterator[Pair]:
    """The pooled scores of victims drawn with replacement, and inside each of examples drawn so."""
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        chosen = [victims[i] for i in rng.integers(len(victims), size=len(victims))]
        yield together([(rng.choice(m, len(m)), rng.choice(o, len(o))) for m, o in chosen])


def together(victims: Sequence[Pair]) -> Pair:
    """The scores of all victims' members, and of all their non-members."""
    members, others = zip(*victims, strict=True)
    return np.concatenate(members), np.concatenate(others)
