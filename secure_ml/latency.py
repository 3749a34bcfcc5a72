"""How long whoever asks waits for an answer."""

from __future__ import annotations

from secure_ml.attack import stopwatch
from secure_ml.outside.opaque import opaque
from secure_ml.rows import Row, make_row
from secure_ml.stats import median
from secure_ml.victim import Victim

MEASURE, UNIT = "milliseconds a query", "milliseconds"
ASKED, WARMING = 15, 2
"""Questions that are timed, and those before them that are not."""
LONG = 5.0
"""Seconds after which no more questions are asked."""
SPARE = 20
"""Times as many questions as are asked here must be left of those that are allowed."""


def latency(victim: Victim) -> Row:
    """The median time of one answer to one input, as served, with its interval; no number where questions are scarce.

    Inputs are test examples, asked one after another; what else the machine does meanwhile is part of it. Where the
    server counts its answers, as one that decrypts does, only one is timed: what is counted must not vary.
    """
    part, test = opaque(victim.module), victim.splits.test
    if part is not None and part.spare() < SPARE * (ASKED + WARMING):
        return make_row(victim, MEASURE, unit=UNIT, note=f"left out: {part.spare():.0f} more inputs may be asked about")
    counted = part is None and bool(victim.served.usage())
    warming, asked = (0, 1) if counted else (WARMING, ASKED)
    times: list[float] = []
    while len(times) < warming + asked and (len(times) <= warming or sum(times) < 1e3 * LONG):
        place = len(times) % len(test)
        one = test.take(slice(place, place + 1)).inputs
        with stopwatch(victim.device) as seconds:
            victim.served(one)
        times.append(1e3 * seconds[0])
    return make_row(victim, MEASURE, median(times[warming:]), unit=UNIT)
