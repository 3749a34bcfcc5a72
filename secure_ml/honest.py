"""What a defense at serving time costs those who mean no harm."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from secure_ml.errors import require
from secure_ml.outputs import Values
from secure_ml.stats import Estimate, bootstrap
from secure_ml.victim import Victim


@dataclass(frozen=True)
class HonestCost:
    """What the test split is answered with and without a defense."""

    kept: Estimate
    """How faithfully what is served reproduces the bare answers: share of equal decisions, of lists, R2 of values."""
    moved: Estimate
    """Mean L1 distance, 0 to 2, between the served and the bare probabilities (of values, between these)."""
    score: Estimate
    """The task's score of what is served."""
    bare: Estimate
    """The task's score of the bare answers."""


def honest_cost(victim: Victim, bare: Victim) -> HonestCost:
    """Compare what two victims of one task serve on the test split, without a session: nothing is refused.

    Raises `UsageError` where their test splits are not the same or empty.
    """
    test, output = victim.splits.test, victim.task.output
    require(len(test) > 0, f"{victim.task.name} has no test examples to compare answers on")
    require(
        victim.splits.fingerprint() == bare.splits.fingerprint(),
        "the cost of a defense is read off two victims with the same data; these two have different splits",
    )
    served, plain = victim.served(test.inputs), bare.served(test.inputs).to(victim.device)
    return HonestCost(
        kept=output.fidelity(served, plain),
        moved=bootstrap(lambda d: float(d.mean()), distances(served, plain, isinstance(output, Values)).cpu().numpy()),
        score=victim.score(),
        bare=bare.score(),
    )


def distances(served: Tensor, plain: Tensor, values: bool) -> Tensor:
    """L1 distances ``(B,)`` between answers, averaged over the places of a generator."""
    if values:
        return (served.double() - plain.double()).abs().reshape(len(served), -1).sum(1)
    if served.ndim == 1:
        return 2 * (served.double().sigmoid() - plain.double().sigmoid()).abs()
    distance = (served.double().softmax(-1) - plain.double().softmax(-1)).abs().sum(-1)
    return distance.reshape(len(served), -1).mean(1)
