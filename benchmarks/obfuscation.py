"""What a few hidden weights are worth: the score of the ruin, and of whoever repairs it with k labelled examples.

    python -m benchmarks.obfuscation

takes three minutes on one core and writes ``benchmarks/results/obfuscation.json``.
"""

from __future__ import annotations

import json
from typing import Any

import secure_ml as sm
from benchmarks.record import RESULTS, hardware
from secure_ml.obfuscation import join_weights, recovered, split_weights
from secure_ml.rows import package_version
from secure_ml.stats import over_seeds
from secure_ml.victim import Plain

TASKS = ("digits_cnn", "digits_mlp")
SEEDS = (0, 1, 2)
HIDDEN = (5, 20, 100)
LABELLED = (10, 30, 100, 500)
RATES = (1.0, 0.1)
"""Of the victim's learning rate: the better of them counts, for each victim."""


def main() -> None:
    """Hide, ruin, repair; print and record means over seeds with their intervals."""
    rows = [row for name in TASKS for row in _task(name)]
    for row in rows:
        print(row)
    record = {
        "command": "python -m benchmarks.obfuscation",
        "versions": {name: package_version(name) for name in ("secure-ml", "torch")},
        "hardware": hardware(),
        "rows": rows,
    }
    (RESULTS / "obfuscation.json").write_text(json.dumps(record, indent=1) + "\n")


def _task(name: str) -> list[dict[str, Any]]:
    victims = [sm.fit(sm.task(name), seed=seed, device="cpu") for seed in SEEDS]
    rows = [_row(name, "the victim", 0, 0, [victim.score().value for victim in victims])]
    for count in HIDDEN:
        halves = [split_weights(victim, count) for victim in victims]
        for victim, (ruin, secret) in zip(victims, halves, strict=True):
            pairs = zip(join_weights(ruin, secret).parameters(), victim.module.parameters(), strict=True)
            assert all(bool((one == other).all()) for one, other in pairs)
        scores = [_score(victim, ruin) for victim, (ruin, _) in zip(victims, halves, strict=True)]
        rows.append(_row(name, "the ruin", count, 0, scores))
    for labelled in LABELLED:
        repaired = [
            max(recovered(victim, ruin, labelled, 0, rate).value for rate in RATES)
            for victim, (ruin, _) in zip(victims, halves, strict=True)
        ]
        anew = [max(recovered(victim, None, labelled, 0, rate).value for rate in RATES) for victim in victims]
        rows.append(_row(name, "repaired", HIDDEN[-1], labelled, repaired))
        rows.append(_row(name, "trained anew", 0, labelled, anew))
    return rows


def _score(victim: sm.Victim, module: Any) -> float:
    return victim.task.score.measure(Plain(module, victim.task.chunk), victim.splits.test).value


def _row(task: str, what: str, hidden: int, labelled: int, values: list[float]) -> dict[str, Any]:
    mean = over_seeds(values)
    return {
        "task": task,
        "what": what,
        "hidden": hidden,
        "labelled": labelled,
        "accuracy": round(mean.value, 4),
        "low": round(mean.low, 4),
        "high": round(mean.high, 4),
        "seeds": len(values),
    }


if __name__ == "__main__":
    main()
