"""What can be reconstructed from a bare model and from private ones, beside what is guessed without access.

    python -m benchmarks.reconstruction

takes about three minutes on one core and needs no files. The record is ``benchmarks/results/reconstruction.json``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace

import torch

import secure_ml as sm
from attacks import AttributeInference, CanaryExposure, GradientInversion, ModelInversion, PropertyInference
from benchmarks._peers import surroundings
from benchmarks.record import RESULTS
from defenses import DPSGD
from secure_ml.attack import Attack
from secure_ml.rows import Row

EPSILONS = (None, 8.0, 1.0)


def main() -> int:
    """Train, attack, print, write the record; 1 if a bare model gives nothing away, or a private one as much."""
    torch.set_num_threads(1)
    start, rows = time.perf_counter(), []
    for task, attacks in cases():
        for epsilon in EPSILONS:
            stack = [DPSGD(epsilon=epsilon, delta=1e-4)] if epsilon else []
            victim = sm.fit(task, stack, seed=0, device="cpu")
            for attack in attacks:
                for row in attack.evaluate(victim, threat=None, seed=0, examples=1000).rows:
                    rows.append(row)
                    print(f"{row.task:34} {row.defenses:34} {row.measure:44} {_shown(row)}", flush=True)
    record = {"command": "python -m benchmarks.reconstruction", "seconds": time.perf_counter() - start}
    RESULTS.mkdir(exist_ok=True)
    rest = {**surroundings(), "rows": [asdict(row) for row in rows]}
    (RESULTS / "reconstruction.json").write_text(json.dumps(record | rest, indent=1) + "\n")
    print(f"{time.perf_counter() - start:.0f} s")
    return int(not _as_expected(rows))


def cases() -> Iterator[tuple[sm.Task, list[Attack]]]:
    """Tasks, and what is tried on each."""
    digits: list[Attack] = [
        GradientInversion(),
        GradientInversion(batch=4, batches=4),
        GradientInversion(trained=True),
        ModelInversion(),
        PropertyInference(),
    ]
    yield sm.task("digits_cnn"), digits
    yield sm.task("digits_mlp"), [GradientInversion()]
    yield sm.task("table_mlp", bundled="breast_cancer"), [AttributeInference(column=22), AttributeInference(column=9)]
    text = sm.task("char_rnn", tiny=True)
    yield replace(text, recipe=replace(text.recipe, epochs=20)), [CanaryExposure(length=3, each=8, references=1000)]


def _shown(row: Row) -> str:
    if row.value is None:
        return row.note
    ends = "" if row.low is None or row.high is None else f" [{row.low:.2f}, {row.high:.2f}]"
    return f"{row.value:.3f}{ends} {row.unit}"


def _as_expected(rows: list[Row]) -> bool:
    """Gradients of the bare model give examples away and those of private ones do not; exposure falls."""
    gains = [row for row in rows if row.measure == "PSNR gain"]
    often = [row.value or 0.0 for row in rows if row.measure == "exposure, planted 16 times"]
    bare = all((row.low or 0.0) > 10 for row in gains if row.defenses == "none")
    private = all((row.high or 0.0) < 0 for row in gains if row.defenses != "none")
    return bare and private and often == sorted(often, reverse=True)


if __name__ == "__main__":
    raise SystemExit(main())
