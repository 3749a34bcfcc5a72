"""Rényi differential privacy of noisy steps: the loose accountant that never fails, and what selections stand on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache

import numpy as np

from secure_ml.stats import Floats

History = tuple[tuple[float, float, int], ...]
"""What was done to the data: (noise multiplier, Poisson sampling rate, steps), one after the other."""
FRACTIONS = np.array([k / 10 for k in range(11, 110) if k % 10])
WHOLE = np.array([*range(2, 64), 128, 256, 512, 1024], dtype=float)
RANK = np.concatenate([FRACTIONS, WHOLE]).argsort()
ORDERS = np.concatenate([FRACTIONS, WHOLE])[RANK]


def composed(history: Iterable[tuple[float, float, int]]) -> Floats:
    """The divergence of a whole history at each of `ORDERS`; what is done in turn adds up."""
    zero = np.zeros_like(ORDERS)
    return sum((steps * _one_step(noise, rate) for noise, rate, steps in history), start=zero)


def to_epsilon(divergences: Floats, delta: float, orders: Floats = ORDERS) -> float:
    """The least epsilon that divergences allow at delta, at least 0 (Balle et al. 2020, https://arxiv.org/abs/1905.09982)."""
    bounds = divergences + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    return max(0.0, float(np.min(np.where(np.isnan(bounds), np.inf, bounds))))


def to_delta(divergences: Floats, epsilon: float) -> float:
    """The least delta that divergences allow at epsilon, at most 1 (Canonne et al. 2020, https://arxiv.org/abs/2004.00010)."""
    logs = (ORDERS - 1) * (divergences - epsilon + np.log1p(-1 / ORDERS)) - np.log(ORDERS)
    with np.errstate(divide="ignore"):
        by_kl = 0.5 * np.log(-np.expm1(-divergences))
    return math.exp(min(0.0, float(np.min(logs)), float(np.min(by_kl))))


@cache
def _one_step(noise: float, rate: float) -> Floats:
    """One step at each of `ORDERS`; read-only, for it is shared."""
    curve = np.concatenate([_fractions(noise, rate, FRACTIONS), _whole(noise, rate, WHOLE)])[RANK]
    curve.flags.writeable = False
    return curve


def _fractions(noise: float, rate: float, orders: Floats) -> Floats:
    """One step at any orders up to 11: the integral over the noise, by the trapezoidal rule.

    Its error falls exponentially, and is below 1e-8 of the integral here: the integrand is analytic up to a distance of
    pi noise^2 from the real line. Noise below 0.05 would ask for too fine a rule, and protects nothing: infinity.
    """
    from scipy.special import logsumexp

    if noise < 0.05:
        return np.full_like(orders, math.inf)
    if rate == 1:
        return orders / (2 * noise**2)
    z = np.arange(-12 * noise, orders.max() + 12 * noise, min(noise / 4, noise**2))
    gain = np.logaddexp(np.log1p(-rate), np.log(rate) + (z - 0.5) / noise**2)
    weights = -(z**2) / (2 * noise**2)
    weights -= logsumexp(weights)
    terms = orders[:, None] * gain
    near = np.expm1(np.minimum(terms, 1.0)) @ np.exp(weights)
    logs = np.where(terms.max(1) < 1, np.log1p(near), logsumexp(terms + weights, axis=1))
    return np.asarray(np.maximum(logs, 0) / (orders - 1))


def _whole(noise: float, rate: float, orders: Floats) -> Floats:
    """One step at whole orders (Mironov et al. 2019, section 3.3, https://arxiv.org/abs/1908.10530)."""
    from scipy.special import gammaln, logsumexp

    if noise == 0:
        return np.full_like(orders, math.inf)
    if rate == 1:
        return orders / (2 * noise**2)
    order, i = orders[:, None], np.arange(orders.max() + 1)
    left = np.maximum(order - i, 0)
    terms = gammaln(order + 1) - gammaln(i + 1) - gammaln(left + 1) + i * np.log(rate) + left * np.log1p(-rate)
    terms = np.where(i <= order, terms + (i * i - i) / (2 * noise**2), -np.inf)
    return np.asarray(np.maximum(logsumexp(terms, axis=1), 0) / (orders - 1))
