"""What membership inference finds in bare models and under differential privacy.

    python -m benchmarks.membership RUN [--data digits mnist] [--data-dir DIR] [--device cuda] [--shadows 64]

attacks bare victims and victims under DP-SGD at epsilon 8, 3 and 1 with the loss alone, the calibrated loss, LiRA
and RMIA, both online and offline, each on shadows that were trained like the victim, DP-SGD included. Every
attack on every victim is a cell in RUN (a killed call goes on where it was); pooled rows are printed as they come, ROCs
are drawn to RUN, and the rows go to ``benchmarks/results/membership.json``, where those of the other data stay.

Digits: 597 members and 600 others a victim. MNIST: 10,000 members and 10,000 others, which bear a rate of 0.1 %.

The bars: on a bare victim the best attack's AUC lies above one half, interval and all; under DP-SGD no attack's
true-positive rate lies above what its epsilon and delta allow.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import attacks
import secure_ml as sm
from benchmarks._peers import surroundings
from benchmarks.record import RESULTS
from defenses.dp_sgd import DPSGD
from experiments._catalog import set_data_directory
from experiments._roc import draw_rocs
from secure_ml.attack import Result
from secure_ml.cells import Cell, Store, run_cells
from secure_ml.families.membership import AUC_NAME, RATES, Membership
from secure_ml.roc import Roc, roc
from secure_ml.rows import Row
from secure_ml.victim import resolve_device, writable

BUDGETS = (8.0, 3.0, 1.0)
DELTA = 1e-5


@dataclass(frozen=True, kw_only=True)
class Part:
    """One data set: its task, how DP-SGD trains it, and how much of it is done unless asked otherwise."""

    task: str
    options: dict[str, Any]
    private: dict[str, Any]
    seeds: int
    shadows: int


PARTS = {
    "digits": Part(task="digits_mlp", options={}, private={}, seeds=3, shadows=16),
    "mnist": Part(
        task="mnist_cnn",
        options={"activation": "tanh", "examples": 10_000},
        private={"clip": 0.1, "batch_size": 512, "learning_rate": 0.5, "epochs": 10, "schedule": "constant"},
        seeds=2,
        shadows=64,
    ),
}


def main() -> int:
    """Run what is not there yet, print, draw, record; 1 if a bar is missed."""
    options = _options()
    set_data_directory(options.data_dir)
    torch.set_num_threads(options.threads)
    folder = writable(options.run)
    store = Store(folder=folder, device=resolve_device(options.device).type, threads=options.threads)
    passed = True
    for name in options.data:
        rows: list[dict[str, Any]] = []
        panels: dict[str, dict[str, Roc]] = {}
        for found in _groups(name, options, store):
            rows.append(found[0])
            panels.setdefault(found[0]["protection"], {})[found[0]["name"]] = found[1]
            print(json.dumps(found[0]), flush=True)
        draw_rocs(panels, folder / f"roc-{name}.png", f"{PARTS[name].task}: members found against false alarms")
        best = max((row for row in rows if row["protection"] == "none"), key=lambda row: float(row[AUC_NAME]["value"]))
        passed &= best[AUC_NAME]["low"] > 0.5 and all(row["passed"] is not False for row in rows)
        _record(name, rows, options)
    return int(not passed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.membership")
    parser.add_argument("run", type=Path, help="folder that keeps victims and every attack's scores")
    parser.add_argument("--data", nargs="+", choices=PARTS, default=["digits"])
    parser.add_argument("--data-dir", type=Path, help="where MNIST lies")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, help="victims of each kind")
    parser.add_argument("--shadows", type=int, help="shadow models of each victim, online and as many offline")
    return parser.parse_args()


def tried(shadows: int) -> dict[str, Membership]:
    """The attacks, by the name that a curve has; two sets of shadows serve all of them."""
    return {
        "loss": attacks.LossThreshold(),
        "calibrated loss": attacks.CalibratedLoss(shadows=shadows),
        "LiRA online": attacks.LiRA(shadows=shadows),
        "LiRA offline": attacks.LiRA(shadows=shadows, online=False),
        "RMIA online": attacks.RMIA(shadows=shadows, online=True),
        "RMIA offline": attacks.RMIA(shadows=shadows),
    }


def _groups(name: str, options: argparse.Namespace, store: Store) -> Iterator[tuple[dict[str, Any], Roc]]:
    """A row and a ROC for each protection and attack, over all victims.

    Cells run one victim after the other with all attacks, so that these share its shadows.
    """
    part = PARTS[name]
    task = sm.task(part.task, **part.options)
    seeds, shadows = options.seeds or part.seeds, options.shadows or part.shadows
    stacks = [(), *((DPSGD(epsilon=epsilon, delta=DELTA, **part.private),) for epsilon in BUDGETS)]
    methods = tried(shadows)
    for stack in stacks:
        cells = [
            Cell(task=task, defenses=stack, attack=attack, seed=seed, examples=10_000)
            for seed in range(seeds)
            for attack in (None, *methods.values())
        ]
        done = run_cells(cells, store, 1, lambda *_: None)
        by_attack = {repr(attack): [done[i] for i in range(len(cells)) if cells[i].attack == attack]
                     for attack in (None, *methods.values())}  # fmt: skip
        score = [result.rows[0].value or 0.0 for result in by_attack["None"]]
        for shown, attack in methods.items():
            results = by_attack[repr(attack)]
            rows = Membership.pool(task, [(attack, result) for result in results])
            curve = roc([_scores(result) for result in results])
            yield _row(name, shown, rows, score, curve), curve


def _scores(result: Result) -> Any:
    return tuple(result.evidence[kind].numpy() for kind in ("members", "others"))


def _row(name: str, shown: str, rows: Sequence[Row], score: Sequence[float], curve: Roc) -> dict[str, Any]:
    first, claim = rows[0], rows[0].claims[0].values if rows[0].claims else None
    found: dict[str, Any] = {
        "data": name,
        "task": first.task,
        "protection": f"DP-SGD, epsilon {float(claim['epsilon']):.2g}" if claim else "none",
        "name": shown,
        "attack": first.attack,
        "accuracy": round(sum(score) / len(score), 4),
        "seeds": len(first.seeds),
        "others": curve.others,
    }
    for row in rows:
        found[row.measure] = {
            key: None if getattr(row, key) is None else round(getattr(row, key), 5) for key in ("value", "low", "high")
        } | ({"note": row.note} if row.note else {})
    found["seconds"] = round(first.seconds, 1)
    found["passed"] = None
    if claim:
        found["passed"] = all(
            found[measure]["low"] is None or found[measure]["low"] <= most(rate, float(claim["epsilon"]), DELTA)
            for measure, rate in RATES.items()
        )
    return found


def most(rate: float, epsilon: float, delta: float) -> float:
    """The highest true-positive rate that (epsilon, delta)-DP leaves any test at a false-positive rate.

    From ``TPR <= e^eps FPR + delta`` and ``1 - FPR <= e^eps (1 - TPR) + delta`` (Kairouz et al. 2015).
    """
    return min(math.exp(epsilon) * rate + delta, 1 - math.exp(-epsilon) * (1 - delta - rate), 1.0)


def _record(name: str, rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Write the rows of one data set; what was recorded of the others stays."""
    path = RESULTS / "membership.json"
    kept = json.loads(path.read_text()) if path.exists() else {"measured": {}, "rows": []}
    command = f"python -m benchmarks.membership RUN --data {name} --device {options.device}"
    for option in ("seeds", "shadows"):
        command += f" --{option} {getattr(options, option)}" if getattr(options, option) else ""
    record = {
        "command": "python -m benchmarks.membership RUN --data digits mnist",
        "measured": {**kept["measured"], name: {"command": command, **surroundings()}},
        "rows": [*(row for row in kept["rows"] if row["data"] != name), *rows],
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except sm.SecureMLError as error:
        sys.exit(f"benchmarks.membership: {error}")
