"""What audits show of epsilon from below, beside what is claimed, and which broken trainers are caught by what.

    python -m benchmarks.audits [--task digits_mlp] [--seed 0]

trains the task bare and under DP-SGD at epsilon 8, 3 and 1, audits each by one run (two bounds), by single steps and
by many runs, then fits every mutant of ``tests/mutants.py`` on the tiny task and notes which checks fail. About two
minutes on one core; the record is ``benchmarks/results/audits.json``.

The bars: no bound above what is claimed; one step at noise 1 shows at least 0.8 of what it spends; every mutant is
caught, and a sound trainer by nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import torch

import attacks
import secure_ml as sm
from attacks.scrutiny.privacy_checks import PrivacyChecks
from benchmarks._peers import surroundings
from benchmarks.record import RESULTS
from defenses.dp_sgd import DPSGD
from secure_ml.families.scrutiny import VERDICTS
from secure_ml.rows import Row
from tests.mutants import MUTANTS, SETTINGS

BUDGETS = (8.0, 3.0, 1.0)
ONE_STEP = DPSGD(noise=1.0, epochs=20)
FAIL = VERDICTS.index("FAIL")


def main() -> int:
    """Audit, break, print, record; 1 if a bar is missed."""
    options = _options()
    torch.set_num_threads(1)
    start = time.perf_counter()
    rows = audited(options.task, options.seed)
    broken = mutants()
    for row in (*rows, *broken):
        print(json.dumps(row), flush=True)
    record = {
        "command": f"python -m benchmarks.audits --task {options.task} --seed {options.seed}",
        **surroundings(),
        "seconds": round(time.perf_counter() - start, 1),
        "rows": rows,
        "mutants": broken,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "audits.json").write_text(json.dumps(record, indent=1) + "\n")
    return int(not all(row["passed"] for row in (*rows, *broken)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audits")
    parser.add_argument("--task", default="digits_mlp")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def audited(name: str, seed: int) -> list[dict[str, Any]]:
    """One row for each protection and bound."""
    task, rows = sm.task(name), []
    methods = (attacks.OneRun(), attacks.OneRun(canary="mislabelled"), attacks.StepAudit(), attacks.ManyRun())
    stacks = [(), *((DPSGD(epsilon=epsilon),) for epsilon in BUDGETS), (ONE_STEP,)]
    for stack in stacks:
        victim = sm.fit(task, stack, seed=seed, device="cpu")
        accuracy = victim.score().value
        for attack in methods[2:3] if stack == (ONE_STEP,) else methods:
            *found, verdict = attack.evaluate(victim, threat=None, seed=seed, examples=1).rows
            rows += [_row(victim, row, accuracy, verdict) for row in found if row.unit == "epsilon"]
    return rows


def _row(victim: sm.Victim, row: Row, accuracy: float, verdict: Row) -> dict[str, Any]:
    value, high = row.value or 0.0, row.high
    passed = high is None or value <= high or "estimate" in row.measure
    if victim.defenses == (ONE_STEP,) and row.measure.endswith("one step f-DP"):
        assert high is not None
        passed &= value >= 0.8 * high
    return {
        "task": row.task,
        "protection": row.defenses,
        "accuracy": round(accuracy, 4),
        "measure": row.measure,
        "at least": round(value, 3),
        "claimed": None if high is None else round(high, 3),
        "how": row.interval,
        "attack": row.attack,
        "n": row.n,
        "seconds": round(row.seconds, 2),
        "passed": bool(passed and verdict.value != FAIL),
    }


def mutants() -> list[dict[str, Any]]:
    """One row for each trainer that is broken on purpose, and the sound one: the checks that fail."""
    task, rows = sm.task("digits_mlp", tiny=True), []
    for trainer in (DPSGD, *MUTANTS):
        victim = sm.fit(task, [trainer(**SETTINGS)], seed=0, device="cpu")
        found = PrivacyChecks(members=40).evaluate(victim, threat=None, seed=0, examples=100).rows
        caught = [row.measure for row in found if row.value == FAIL]
        rows.append(
            {
                "trainer": trainer.__name__,
                "what it does": (trainer.__doc__ or "").splitlines()[0] if trainer is not DPSGD else "Nothing wrong.",
                "caught by": caught,
                "passed": bool(caught) == (trainer is not DPSGD),
            }
        )
    return rows


if __name__ == "__main__":
    try:
        sys.exit(main())
    except sm.SecureMLError as error:
        sys.exit(f"benchmarks.audits: {error}")
