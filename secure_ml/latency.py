"""How long whoever asks waits for an answer."""

from __future__ import annotations

from secure_ml.attack import stopwatch
from secure_ml.outside.opaque import opaque
from secure_ml.rows import Row, make_row
from secure_ml.stats import median
from secure_ml.victim import Victim

MEASURE, UNIT = "milliseconds a query", "milliseconds"
ASKED, WARMING = 15, 2
"""Questions that are timed, and those before them that are not. They are counted, so their number never varies."""
SPARE = 20
"""Times as many questions as are asked here must be left of those that are allowed."""


def latency(victim: Victim) -> Row:
    """The median time of one answer to one input, as served, with its interval; no number where questions are scarce.

    Inputs are test examples, asked one after another; what else the machine does meanwhile is part of it.
    """
    part, test = opaque(victim.module), victim.splits.test
    if part is not None and part.spare() < SPARE * (ASKED + WARMING):
        return make_row(victim, MEASURE, unit=UNIT, note=f"left out: {part.spare():.0f} more inputs may be asked about")
    times = []
    for turn in range(WARMING + ASKED):
        place = turn % len(test)
        one = test.take(slice(place, place + 1)).inputs
        with stopwatch(victim.device) as seconds:
            victim.served(one)
        times.append(1e3 * seconds[0])
    return make_row(victim, MEASURE, median(times[WARMING:]), unit=UNIT)
