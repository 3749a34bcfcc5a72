"""Bounds on epsilon from the distribution of the privacy loss, put together from Opacus's parts."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from defenses.dp_sgd.renyi import History, composed, to_epsilon

POINTS = 2**21
"""Of a grid, at most: some hundred megabytes. What would need more gets a coarser grid, and wider bounds."""


@dataclass(frozen=True)
class Bounds:
    """Epsilon lies between ``lower`` and ``upper``; it is likely ``estimate``."""

    lower: float
    estimate: float
    upper: float


def prv_bounds(history: History, delta: float, error: float, reach: float | None = None) -> Bounds:
    """What a history costs, within ``error`` (Gopi et al. 2021, https://arxiv.org/abs/2106.02848).

    Opacus's `PRVAccountant`, on a grid whose length suits the Fourier transform; where that grid would not fit, the
    bounds are wider. ``reach``, where the loss of privacy is cut off, is worked out unless given. Raises
    `RuntimeError` or `ValueError` where the numbers break down.
    """
    from opacus.accountants.analysis import prv

    slack = delta / 1000
    steps = sum(step[2] for step in history)
    reach = reach or reach_of(history, slack)
    unit = math.sqrt(steps * math.log(12 / slack) / 2)
    error = max(error, 2.01 * reach * unit / POINTS)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        domain = _domain(reach, error / unit)
        parts = [prv.PoissonSubsampledGaussianPRV(rate, noise) for noise, rate, _ in history]
        cut = [prv.TruncatedPrivacyRandomVariable(part, domain.t_min, domain.t_max) for part in parts]
        grids = [prv.discretize(part, domain) for part in cut]
        whole = prv.compose_heterogeneous(grids, [step[2] for step in history])
        found = [float(value) for value in whole.compute_epsilon(delta, slack, error)]
    if not all(map(math.isfinite, found)):
        raise ValueError("the privacy loss is not a number")
    lower, estimate, upper = (max(value, 0.0) for value in found)
    return Bounds(lower, estimate, upper)


def reach_of(history: History, slack: float) -> float:
    """Where the loss may be cut off at the price of ``slack`` in delta (remark 5.6 of the paper)."""
    steps = sum(step[2] for step in history)
    single = max(to_epsilon(composed([(noise, rate, 1)]), slack / (8 * steps)) for noise, rate, _ in history)
    return max(to_epsilon(composed(history), slack / 4), single) + 3


def _domain(reach: float, mesh: float) -> Any:
    """A grid from -reach to reach at least, aligned as the composition needs it, of a length that transforms fast."""
    from opacus.accountants.analysis.prv import Domain
    from scipy.fft import next_fast_len

    half = next_fast_len(math.ceil(reach / mesh) + 1, real=True)
    return Domain(-(half - 1) * mesh, half * mesh, 2 * half)
