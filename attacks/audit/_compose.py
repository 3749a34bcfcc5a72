"""What many steps of a leak come to."""

from __future__ import annotations

import warnings

import numpy as np

MOST = 100.0
"""Above it, fewer steps are composed than there were: what they show is a bound already."""
LEAST_NOISE = 0.2
"""A greater mu is taken for less."""


def composed_epsilon(mu: float, rate: float, steps: int, delta: float) -> float:
    """A lower bound on the epsilon of so many Poisson-sampled steps, each a Gaussian mechanism of at least ``mu``.

    By the lower end of PRV's interval (Gopi et al. 2021, https://arxiv.org/abs/2106.02848). Where a budget is beyond
    what PRV's grid can hold, as many steps, and as small a mu, as it can hold.
    """
    from opacus.accountants import PRVAccountant, RDPAccountant

    if mu <= 0 or rate <= 0:
        return 0.0
    noise = max(1 / mu, LEAST_NOISE)
    with warnings.catch_warnings(), np.errstate(divide="ignore"):  # at rate 1, PRV takes a logarithm of 0
        warnings.filterwarnings("ignore", message="Optimal order is the")
        loose, tight = RDPAccountant(), PRVAccountant()
        while True:
            loose.history = [(noise, rate, steps)]
            if steps == 1 or loose.get_epsilon(delta) <= MOST:
                break
            steps = max(1, steps // 2)
        tight.history = loose.history
        error = max(0.005, 0.003 * float(loose.get_epsilon(delta)))
        return max(0.0, float(tight.get_epsilon(delta, eps_error=error)) - 2 * error)
