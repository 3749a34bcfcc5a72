"""What every accountant makes of the golden settings, and how long the search for a noise takes.

    python -m benchmarks.accountants

takes half a minute on one core and writes ``benchmarks/results/accountants.json``. PLD needs the extra ``accounting``.

The bars: PRV, RDP, PLD and GDP within 0.01 of the golden values, no two bounds at odds, 0.999 to 1 of a budget spent.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from benchmarks.record import RESULTS, hardware
from defenses.dp_sgd import accounting
from defenses.dp_sgd.accounting import APPROXIMATION, cross_check, disagreements, epsilon_of, noise_for
from defenses.dp_sgd.prv import prv_bounds
from defenses.dp_sgd.selection import SHAPES, Selection
from secure_ml.cells import PACKAGES
from secure_ml.rows import package_version

DELTA, BAR = 1e-5, 0.01
NAMES = ("RDP", "PRV lower", "PRV estimate", "PRV upper", "PLD", APPROXIMATION)
GOLDEN: dict[tuple[float, float, int], tuple[float, ...]] = {
    (1.23, 512 / 6e4, 4680): (2.5788, 2.3512, 2.3613, 2.3715, 2.3614, 2.2852),
    (2.15, 2048 / 6e4, 1160): (2.5910, 2.3660, 2.3761, 2.3862, 2.3761, 2.3140),
    (1.54, 1024 / 5e4, 1440): (2.5854, 2.3549, 2.3651, 2.3752, 2.3651, 2.2754),
    (10.0, 4096 / 5e4, 875): (0.9877, 0.8927, 0.9028, 0.9128, 0.9028, 0.8977),
    (1.0, 512 / 5e4, 1940): (2.8973, 2.6011, 2.6113, 2.6215, 2.6113, 2.4047),
    (1.1, 0.01, 6000): (4.2466, 3.8895, 3.8997, 3.9100, 3.8998, 3.7682),
    (1.0, 64 / 6e4, 9370): (0.8034, 0.4833, 0.4934, 0.5034, 0.4936, 0.4737),
    (0.5, 0.05, 100): (20.909, 18.1825, 18.1938, 18.2050, 18.1938, 21.651),
}
"""(noise, rate, steps): what each accountant gives, by other programs; PRV at an error of 0.01."""
SEARCHES = [(rate, steps) for rate, steps in ((0.2, 100), (512 / 6e4, 4680), (2048 / 6e4, 1160))]
BUDGETS = (1.0, 3.0, 8.0)
RUN = (1.07, 512 / 6e4, 4680)
PRICES = {
    "geometric": (5.55, 6.16, 7.34, 7.79),
    "logarithmic": (4.91, 5.29, 6.03, 6.31),
    "poisson": (5.25, 7.06, 19.8, 30.8),
}
"""Of choosing the best of a random number of runs of `RUN`, at a mean of 5, 10, 50 and 100."""


def main() -> int:
    """Work out, compare, print, record; 1 if a bar is missed."""
    rows = [_setting(step, golden) for step, golden in GOLDEN.items()]
    worst = {name: max((row["deviations"][name] or 0.0) for row in rows) for name in NAMES}
    prices = _prices()
    searches = [_search(epsilon, rate, steps) for rate, steps in SEARCHES for epsilon in BUDGETS]
    for row in rows:
        print(row["setting"], {k: v and round(v, 4) for k, v in row["found"].items()}, *row["at odds"])
    print("largest deviation from the golden values:", {k: round(v, 5) for k, v in worst.items()})
    print("largest deviation of a price of choosing:", round(prices["deviation"], 3))
    for found in searches:
        print({k: round(v, 4) for k, v in found.items()})
    record = {
        "command": "python -m benchmarks.accountants",
        "versions": {name: package_version(name) for name in (*PACKAGES, "scipy", "dp-accounting")},
        "hardware": hardware(),
        "delta": DELTA,
        "settings": rows,
        "largest deviation": worst,
        "prices of choosing": prices,
        "searches": searches,
    }
    (RESULTS / "accountants.json").write_text(json.dumps(record, indent=1) + "\n")
    odd = any(row["at odds"] for row in rows) or not all(0.999 <= s["share spent"] <= 1 for s in searches)
    return int(odd or max(worst.values()) > BAR)


def _setting(step: tuple[float, float, int], golden: tuple[float, ...]) -> dict[str, Any]:
    bounds = prv_bounds((step,), DELTA, 0.01)
    found = cross_check(*step, DELTA)
    odd = disagreements(found)
    found |= {"PRV lower": bounds.lower, "PRV estimate": bounds.estimate, "PRV upper": bounds.upper}
    wanted = dict(zip(NAMES, golden, strict=True))
    off = {name: None if (value := found[name]) is None else abs(value - wanted[name]) for name in NAMES}
    setting = dict(zip(("noise", "rate", "steps"), step, strict=True))
    return {"setting": setting, "found": found, "golden": wanted, "deviations": off, "at odds": odd}


def _prices() -> dict[str, Any]:
    found = {
        law: [Selection(shape=SHAPES[law], mean=mean).epsilon([(RUN,)], DELTA) for mean in (5, 10, 50, 100)]
        for law in PRICES
    }
    off = [abs(a - b) for law in PRICES for a, b in zip(found[law], PRICES[law], strict=True)]
    return {"run": RUN, "means": (5, 10, 50, 100), "found": found, "golden": PRICES, "deviation": max(off)}


def _search(epsilon: float, rate: float, steps: int) -> dict[str, float]:
    """The search as it is, and as it was: by PRV's final grid from the first bracket on."""
    noise, seconds, cpu = _timed(lambda: noise_for(epsilon, DELTA, rate, steps))
    before, seconds_before, cpu_before = _timed(lambda: _bisected(epsilon, rate, steps))
    spent = epsilon_of([(noise, rate, steps)], DELTA)[0] / epsilon
    return {
        "epsilon": epsilon,
        "rate": rate,
        "steps": steps,
        "noise": noise,
        "share spent": spent,
        "seconds": seconds,
        "CPU seconds": cpu,
        "noise by bisection": before,
        "seconds by bisection": seconds_before,
        "CPU seconds by bisection": cpu_before,
    }


def _timed(search: Callable[[], float]) -> tuple[float, float, float]:
    noise_for.cache_clear()
    accounting._epsilon_of.cache_clear()
    wall, cpu = time.perf_counter(), time.process_time()
    found = search()
    return found, time.perf_counter() - wall, time.process_time() - cpu


def _bisected(epsilon: float, rate: float, steps: int) -> float:
    """Opacus's own accountant at the final error in each of a root finder's evaluations."""
    import warnings

    from opacus.accountants import PRVAccountant, RDPAccountant
    from scipy.optimize import brentq

    def excess(noise: float) -> float:
        loose, tight = RDPAccountant(), PRVAccountant()
        loose.history = tight.history = [(noise, rate, steps)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            error = min(0.01, max(0.0001, 0.003 * loose.get_epsilon(DELTA)))
            return float(tight.get_epsilon(DELTA, eps_error=error)) - 0.9995 * epsilon

    high = 1.0
    while excess(high) > 0:
        high *= 2
    low = high / 2
    while excess(low) < 0:
        low /= 2
    return float(brentq(excess, low, high, xtol=1e-4 * low, rtol=1e-5))


if __name__ == "__main__":
    raise SystemExit(main())
