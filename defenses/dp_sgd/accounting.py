"""What a history of noisy steps costs, by several accountants, and the noise that a budget asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache, lru_cache

from defenses.dp_sgd.prv import Bounds, prv_bounds, reach_of
from defenses.dp_sgd.renyi import History, composed, to_epsilon
from secure_ml.errors import UsageError

APPROXIMATION = "GDP (approximation, never a headline)"
PROTECTS_NOTHING = 400.0
MOST_NOISE = 1e5
BREAKDOWN = (RuntimeError, ValueError, ArithmeticError, MemoryError)
"""How PRV's numbers fail: cut off too early, no epsilon found, a grid too fine for the memory."""


@cache
def noise_for(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The least noise multiplier whose upper bound stays within the budget: it spends 0.999 to 1 of it.

    Raises `UsageError` for a budget that no noise keeps, with the smallest that one does.
    """
    aim = 0.9995 * epsilon

    def spent(noise: float) -> float:
        return epsilon_of([(noise, rate, steps)], delta)[0]

    noise = _coarsely(aim, delta, rate, steps)
    for _ in range(6 if noise < MOST_NOISE else 0):
        now = spent(noise)
        if 0.999 * epsilon <= now <= epsilon:
            return noise
        noise = min(noise * (now / aim) ** 0.5, MOST_NOISE)
    if spent(MOST_NOISE) > epsilon:
        raise UsageError(
            f"epsilon {epsilon:g} at delta {delta:g} is out of reach in {steps} steps at sampling rate {rate:.3g}: the "
            f"smallest that is in reach is {smallest_epsilon(delta, rate, steps):g}"
        )
    return _least(lambda tried: spent(tried) <= epsilon, noise)


def smallest_epsilon(delta: float, rate: float, steps: int) -> float:
    """The smallest budget that some noise keeps, rounded up to two digits: the accountant's error is not 0."""
    least = epsilon_of([(MOST_NOISE, rate, steps)], delta)[0]
    digit = 10.0 ** (math.floor(math.log10(least)) - 1)
    return float(f"{math.ceil(1.001 * least / digit) * digit:.2g}")


def epsilon_of(history: Iterable[tuple[float, float, int]], delta: float) -> tuple[float, str]:
    """An upper bound on epsilon for a history of (noise, sampling rate, steps), and the accountant that gives it.

    PRV's. RDP's, which is looser, for a budget that protects nothing (above 400) and where PRV's numbers break down.
    """
    return _epsilon_of(_merged(history), delta)


def cross_check(noise: float, rate: float, steps: int, delta: float) -> dict[str, float | None]:
    """Epsilon of some noisy steps by every accountant there is; None where one breaks down or is not installed.

    PLD is dp-accounting's (``pip install 'secure-ml[accounting]'``). GDP is the central limit's (Bu et al. 2020,
    https://arxiv.org/abs/1911.11607): it often reports too little, and is there to show that.
    """
    history = _merged([(noise, rate, steps)])
    rdp = to_epsilon(composed(history), delta)
    bounds: Bounds | None
    try:
        bounds = prv_bounds(history, delta, _error(rdp))
    except BREAKDOWN:
        bounds = None
    return {
        "PRV lower": bounds.lower if bounds else None,
        "PRV estimate": bounds.estimate if bounds else None,
        "PRV upper": bounds.upper if bounds else None,
        "RDP": rdp,
        "PLD": pld(history, delta) if rdp <= PROTECTS_NOTHING else None,
        APPROXIMATION: gdp(noise, rate, steps, delta),
    }


def disagreements(found: dict[str, float | None]) -> list[str]:
    """How the bounds of a `cross_check` contradict each other; empty where they agree."""
    known = {name: value for name, value in found.items() if value is not None}
    rdp, upper = known["RDP"], known.get("PRV upper")
    wrong = []
    if upper is not None and known["PRV lower"] > rdp + 1e-3:
        wrong.append(f"PRV says at least {known['PRV lower']:.4g}, RDP at most {rdp:.4g}")
    if "PLD" in known and known["PLD"] > rdp + 1e-3:
        wrong.append(f"PLD says {known['PLD']:.4g}, RDP at most {rdp:.4g}")
    if "PLD" in known and upper is not None and not known["PRV lower"] - 1e-3 <= known["PLD"] <= upper + 1e-3:
        wrong.append(f"PLD says {known['PLD']:.4g}, PRV {known['PRV lower']:.4g} to {upper:.4g}")
    return wrong


def pld(history: History, delta: float) -> float | None:
    """Epsilon by dp-accounting's privacy loss distributions, both ways of add/remove-one; None without that package."""
    try:
        from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
        from dp_accounting.pld import PLDAccountant
    except ImportError:
        return None
    accountant = PLDAccountant()
    for noise, rate, steps in history:
        accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), steps)
    return float(accountant.get_epsilon(delta))


def gdp(noise: float, rate: float, steps: int, delta: float) -> float:
    """Epsilon by the central limit of many small steps: no bound; infinite where the limit has left the numbers."""
    from scipy.optimize import brentq

    exponent = noise**-2 if noise > 0 else math.inf
    mu = rate * math.sqrt(steps * math.expm1(exponent)) if exponent < 700 else math.inf
    if mu > 1000:
        return math.inf
    if _gaussian_delta(0.0, mu) <= delta:
        return 0.0
    return float(brentq(lambda epsilon: _gaussian_delta(epsilon, mu) - delta, 0.0, mu**2 / 2 + 40 * mu))


def _gaussian_delta(epsilon: float, mu: float) -> float:
    """Delta at epsilon of the Gaussian mechanism with signal over noise ``mu``."""
    from scipy.special import log_ndtr, ndtr

    return float(ndtr(mu / 2 - epsilon / mu) - math.exp(min(0.0, epsilon + log_ndtr(-mu / 2 - epsilon / mu))))


@lru_cache(maxsize=256)
def _epsilon_of(history: History, delta: float) -> tuple[float, str]:
    return _bound(history, delta)


def _bound(history: History, delta: float, coarser: float = 1.0, reach: float | None = None) -> tuple[float, str]:
    """The upper bound by PRV if it can be, else by RDP; on a grid that is coarser, an estimate of it."""
    if not history:
        return 0.0, "PRV"
    loose = to_epsilon(composed(history), delta)
    if loose > PROTECTS_NOTHING:
        return loose, "RDP"
    error = _error(loose)
    try:
        return max(0.0, prv_bounds(history, delta, coarser * error, reach).upper - (coarser - 1) * error), "PRV"
    except BREAKDOWN:
        return loose, "RDP"


def _error(epsilon: float) -> float:
    """The error that PRV may make: 0.3 % of epsilon, between 0.0001 (what memory allows) and 0.01."""
    return min(0.01, max(0.0001, 0.003 * epsilon))


def _merged(history: Iterable[tuple[float, float, int]]) -> History:
    """The history with equal steps counted together, in an order of its own, without those that see no data."""
    total: dict[tuple[float, float], int] = {}
    for noise, rate, steps in history:
        total[noise, rate] = total.get((noise, rate), 0) + steps
    return tuple((noise, rate, steps) for (noise, rate), steps in sorted(total.items()) if steps and rate)


def _coarsely(aim: float, delta: float, rate: float, steps: int) -> float:
    """The noise that spends about ``aim``, from a first guess by the central limit and a coarse grid."""
    from scipy.optimize import brentq

    def excess(log_noise: float) -> float:
        history = ((math.exp(log_noise), rate, steps),)
        reach = known if log_noise >= start else None
        return math.log(max(_bound(history, delta, 10.0, reach)[0], 1e-12) / aim)

    guess = math.log(_central(aim, delta, rate, steps))
    start = guess - 0.2
    known = reach_of(((math.exp(start), rate, steps),), delta / 1000)
    low, high, most = guess - 0.05, guess + 0.15, math.log(MOST_NOISE)
    while excess(low) < 0:
        low, high = low - 3 * (high - low), low
    while excess(high) > 0:
        if high >= most:
            return MOST_NOISE
        low, high = high, min(high + 3 * (high - low), most)
    return math.exp(float(brentq(excess, low, high, xtol=1e-5, rtol=1e-5)))


def _central(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The noise at which the central limit gives epsilon, kept to numbers that the accountants can start from."""
    from scipy.optimize import brentq

    top = math.sqrt(2 * epsilon) + 1.0
    mu = float(brentq(lambda mu: _gaussian_delta(epsilon, mu) - delta, 1e-9, 40 * top))
    return min(max(1 / math.sqrt(math.log1p(mu**2 / (rate**2 * steps))), 0.05), MOST_NOISE / 2)


def _least(enough: Callable[[float], bool], guess: float) -> float:
    """The least noise that is enough, where epsilon jumps from one accountant to the other."""
    low = high = guess
    while not enough(high):
        low, high = high, min(2 * high, MOST_NOISE)
    while enough(low):
        low, high = low / 2, low
    while high / low > 1.0001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
