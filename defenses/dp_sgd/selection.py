"""What it costs to train privately several times and keep the best run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from defenses.dp_sgd.renyi import ORDERS, History, composed, to_delta, to_epsilon
from secure_ml.errors import require
from secure_ml.stats import Floats

SHAPES = {"geometric": 1.0, "logarithmic": 0.0, "poisson": math.inf}
"""The laws of the number of runs that have a name, by their shape eta."""
UNPROTECTED = "the validation examples that the choice looked at are not protected by it, unless they are public"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The best of a random number of private runs (Papernot and Steinke 2022, https://arxiv.org/abs/2110.03620).

    Each run draws one of the candidate settings, uniformly and with replacement, and noise of its own; the best by a
    public rule is released, and nothing else: neither the other runs nor how many there were. The number of runs is
    truncated negative binomial of shape ``shape`` (1: geometric, 0: logarithmic) or, with an infinite shape, Poisson,
    which may give no run at all. A fixed number of runs has no such price; they compose.

    Raises `UsageError` for a mean or a shape out of range.
    """

    shape: float = SHAPES["geometric"]
    """The paper's eta, at least 0; a smaller one costs less and makes the number of runs less certain."""
    mean: float = 10.0
    """Runs to be expected."""

    def __post_init__(self) -> None:
        least = "above 0" if self.shape == math.inf else "of at least 1"
        sound = self.mean > 0 if self.shape == math.inf else self.mean >= 1
        require(sound and self.mean < math.inf, f"the number of runs needs a finite mean {least}; given {self.mean:g}")
        require(self.shape >= 0, f"the law of the number of runs needs a shape of at least 0; given {self.shape:g}")

    def epsilon(self, candidates: Sequence[History], delta: float) -> float:
        """Of the run that is released, at delta, by what one run of each candidate does to the data."""
        require(len(candidates) > 0, "a selection needs at least one candidate")
        return to_epsilon(self.divergences(mixed([composed(history) for history in candidates])), delta)

    def divergences(self, one: Floats) -> Floats:
        """Of the run that is released, at `ORDERS`, from those of one run: theorem 2, theorem 6 for Poisson."""
        if self.shape == math.inf:
            missed = np.array([to_delta(one, math.log1p(1 / (order - 1))) for order in ORDERS])
            price = self.mean * missed + math.log(self.mean) / (ORDERS - 1)
        elif self.mean == 1:
            return one
        else:
            once = (1 + self.shape) * np.min((1 - 1 / ORDERS) * one - math.log(self.gamma) / ORDERS)
            price = once + math.log(self.mean) / (ORDERS - 1)
        return np.minimum.accumulate((one + price)[::-1])[::-1]  # a divergence grows with its order

    @property
    def gamma(self) -> float:
        """The paper's gamma, in (0, 1): the one that makes ``mean`` the mean of a truncated negative binomial."""
        return math.exp(-_exponent(self.shape, self.mean))

    def draw(self, rng: torch.Generator) -> int:
        """How many runs."""
        left = float(torch.rand((), generator=rng, dtype=torch.float64))
        for runs, chance in self.chances():
            left -= chance
            if left < 0 or runs > 100 * self.mean + 1000:
                break
        return runs

    def chances(self) -> Iterator[tuple[int, float]]:
        """Each number of runs with its probability, without end."""
        if self.shape == math.inf:
            runs, chance = 0, math.exp(-self.mean)
        elif self.mean == 1:
            runs, chance = 1, 1.0
        else:
            runs, chance = 1, -math.expm1(math.log(self.gamma)) * _first(self.shape, -math.log(self.gamma))
        while True:
            yield runs, chance
            if self.shape == math.inf:
                chance *= self.mean / (runs + 1)
            else:
                chance *= 0.0 if self.mean == 1 else (1 - self.gamma) * (runs + self.shape) / (runs + 1)
            runs += 1


def mixed(each: Sequence[Floats]) -> Floats:
    """The divergences, at `ORDERS`, of a run of one of several mechanisms that is drawn uniformly and told."""
    from scipy.special import logsumexp

    return np.asarray(logsumexp((ORDERS - 1) * np.stack(each) - math.log(len(each)), axis=0) / (ORDERS - 1))


@cache
def _exponent(shape: float, mean: float) -> float:
    """The x at which exp(-x) is the gamma of that mean."""
    from scipy.optimize import brentq

    return float(brentq(lambda x: math.log(_mean(shape, x) / mean), 1e-12, 600.0))


def _mean(shape: float, x: float) -> float:
    """The mean of a truncated negative binomial with gamma = exp(-x)."""
    if shape == 0:
        return math.expm1(x) / x
    return shape * math.expm1(x) / -math.expm1(-shape * x)


def _first(shape: float, x: float) -> float:
    """The probability of a single run over 1 - gamma, where gamma = exp(-x)."""
    return 1 / x if shape == 0 else shape / math.expm1(shape * x)
