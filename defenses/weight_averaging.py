"""The average of the weights along the way, in the place of the last ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

from secure_ml.averaging import Average
from secure_ml.defense import Defense
from secure_ml.errors import require
from secure_ml.training import Plan


@dataclass(frozen=True, kw_only=True)
class WeightAveraging(Defense):
    """An average over the steps of training replaces the last weights (Izmailov et al. 2018, https://arxiv.org/abs/1803.05407).

    Exponential with ``decay``, or with equal shares from ``start`` on where there is no decay (their SWA). Under
    adversarial training it is smoother and more robust than any of the weights in it (Gowal et al. 2020,
    https://arxiv.org/abs/2010.03593), and it costs no gradient. Covers nothing alone. Does not cover: privacy beyond
    what training already gives. Buffers stay the last ones. ``decay=0`` ends with the last weights,
    which are those of plain training; the steps on batches ``(B, *shape)`` are the same at any setting.

    Differs from the papers: the first steps are averaged with a shorter memory, ``n / (n + 9)`` after n of them, so
    that the random start is forgotten. Early stopping is switched off. Raises `UsageError` for settings out of range.
    """

    decay: float | None = 0.999
    """Share of the average that a step keeps; none for equal shares."""
    start: float = 0.0
    """Share of training after which averaging begins."""

    def __post_init__(self) -> None:
        require(
            self.decay is None or 0 <= self.decay < 1,
            f"WeightAveraging needs a decay of at least 0 and below 1; given {self.decay}",
        )
        require(0 <= self.start < 1, f"WeightAveraging needs a start of at least 0 and below 1; given {self.start}")

    def prepare(self, plan: Plan) -> Plan:
        """The plan that keeps an average and ends with it."""
        average = Average(self.decay, self.start)
        return replace(
            plan,
            observers=(*plan.observers, average),
            finish=(*plan.finish, average.finish),
            state={**plan.state, f"average {len(plan.state)}": average},
            patience=None,
        )
