"""What a history of noisy steps costs, and the noise that a budget asks for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from secure_ml.errors import UsageError


@cache
def noise_for(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The least noise multiplier, to 0.1 % of epsilon, whose upper bound stays within the budget."""
    from scipy.optimize import brentq

    def excess(noise: float) -> float:
        return epsilon_of([(noise, rate, steps)], delta)[0] - 0.9995 * epsilon

    high = 1.0
    while excess(high) > 0:
        high *= 2
        if high > 1e5:
            raise UsageError(
                f"epsilon {epsilon:g} at delta {delta:g} is out of reach in {steps} steps at sampling rate {rate:.3g}: "
                "allow more, train for fewer epochs, or use smaller batches"
            )
    low = high / 2
    while excess(low) < 0:
        low /= 2
    noise = float(brentq(excess, low, high, xtol=1e-4 * low, rtol=1e-5))
    while excess(noise) > 0.0005 * epsilon:
        noise *= 1.0001
    return noise


def epsilon_of(history: list[tuple[float, float, int]], delta: float) -> tuple[float, str]:
    """An upper bound on epsilon for a history of (noise, sampling rate, steps), and the accountant that gives it.

    PRV's; of budgets that protect nothing (RDP says above 100), RDP's, since PRV's grid would not fit in memory.
    """
    from opacus.accountants import PRVAccountant, RDPAccountant

    with _quiet_orders():
        loose = RDPAccountant()
        loose.history = history
        epsilon = float(loose.get_epsilon(delta))
        if epsilon > 100:
            return epsilon, "RDP"
        tight = PRVAccountant()
        tight.history = history
        return float(tight.get_epsilon(delta, eps_error=_grid(epsilon))), "PRV"


def _grid(epsilon: float) -> float:
    """The error that PRV may make: 0.3 % of epsilon, between 0.0001 (what memory allows) and 0.01."""
    return min(0.01, max(0.0001, 0.003 * epsilon))


@contextmanager
def _quiet_orders() -> Iterator[None]:
    """PRV brackets epsilon by RDP first, whose advice to try more orders does not concern the result."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the")
        warnings.filterwarnings("ignore", message="divide by zero", category=RuntimeWarning)  # at sampling rate 1
        yield
