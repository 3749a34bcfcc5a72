"""Shadows trained side by side, beside the same shadows trained one by one: seconds, and what they learned.

    python -m benchmarks.shadow_training digits_mlp digits_cnn
    python -m benchmarks.shadow_training mnist_cnn --device cuda

trains ``--models`` shadows of each task, each on its own random half of a pool, once by `fit` in a loop and twice,
before and after, by `fit_many`. Both sides run in two processes of one thread, half of the shadows each (on a GPU the
shadows that are trained side by side are all in one). Wall seconds are those of the slower process from the moment at
which both are ready; processor seconds are those of both, and say more where the machine has other work. Data are
loaded beforehand. The figures go to ``benchmarks/results/shadow_training.json``, task by task.

The bars: at least 2 times faster by the wall on two cores, 10 times on a GPU, and accuracies of one distribution.
No GPU has been measured yet.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

import secure_ml as sm
from benchmarks.record import RESULTS, hardware
from secure_ml.batch import Splits
from secure_ml.randomness import generator
from secure_ml.rows import package_version
from secure_ml.training import fit_many
from secure_ml.vectorised import join_batches

PROCESSES, SEED = 2, 0
BARS = {"cpu": 2.0, "cuda": 10.0}
LEAST_P = 0.05
Way = Literal["one by one", "side by side"]


@dataclass(frozen=True)
class Trained:
    """What training some shadows took and gave."""

    wall: float
    cpu: float
    accuracies: list[float]


def main() -> int:
    """Train both ways, print and record; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shadow_training")
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--models", type=int, default=64)
    parser.add_argument("--device", choices=tuple(BARS), default="cpu")
    options = parser.parse_args()
    rows = [compare(task, options.models, options.device) for task in options.tasks]
    for row in rows:
        print(json.dumps(row, indent=1))
    path = RESULTS / "shadow_training.json"
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    new = {(row["task"], row["device"]) for row in rows}
    rows = [row for row in kept if (row["task"], row["device"]) not in new] + rows
    path.write_text(
        json.dumps({"command": "python -m benchmarks.shadow_training TASKS", "rows": rows}, indent=1) + "\n"
    )
    return int(not all(row["passed"] for row in rows))


def compare(name: str, models: int, device: str) -> dict[str, Any]:
    """Both ways on one task, interleaved, as a row of the record."""
    from scipy.stats import ks_2samp

    runs: dict[Way, list[Trained]] = {"one by one": [], "side by side": []}
    order: tuple[Way, ...] = ("side by side", "one by one", "side by side")
    for way in order:
        runs[way].append(run(name, way, models, device))
        print(f"{name}, {way}: {runs[way][-1].wall:.1f} s, processor {runs[way][-1].cpu:.1f} s", flush=True)
    single, several = runs["one by one"], runs["side by side"]
    accuracies = {way: done[0].accuracies for way, done in runs.items()}
    p_value = float(ks_2samp(accuracies["one by one"], accuracies["side by side"]).pvalue)
    faster = _mean(t.wall for t in single) / _mean(t.wall for t in several)
    return {
        "task": name,
        "device": device,
        "models": models,
        "faster, by the wall": round(faster, 2),
        "faster, by processor time": round(_mean(t.cpu for t in single) / _mean(t.cpu for t in several), 2),
        "bar": BARS[device],
        "passed": faster >= BARS[device] and p_value >= LEAST_P,
        "Kolmogorov-Smirnov p": p_value,
        "largest difference of two accuracies": max(abs(a - b) for a, b in zip(*accuracies.values(), strict=True)),
        **{
            way: {
                "wall seconds": [round(t.wall, 2) for t in done],
                "processor seconds": [round(t.cpu, 2) for t in done],
                "mean accuracy": statistics.mean(done[0].accuracies),
                "sd of accuracies": statistics.stdev(done[0].accuracies),
                "accuracies": [round(value, 4) for value in done[0].accuracies],
            }
            for way, done in runs.items()
        },
        "hardware": hardware() | {"processes": PROCESSES, "threads of each": 1},
        "versions": {package: package_version(package) for package in ("secure-ml", "torch", "numpy", "scipy")}
        | {"python": platform.python_version()},
    }


def run(name: str, way: Way, models: int, device: str) -> Trained:
    """All shadows, in processes that begin together."""
    workers = 1 if device == "cuda" and way == "side by side" else PROCESSES
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(workers), context.SimpleQueue()
    shares = [list(range(models))[i::workers] for i in range(workers)]
    processes = [
        context.Process(target=work, args=(i, name, way, share, device, ready, results))
        for i, share in enumerate(shares)
    ]
    for process in processes:
        process.start()
    parts = dict(results.get() for _ in processes)
    failed = [part for part in parts.values() if isinstance(part, str)]
    for process in processes:
        process.join()
    if failed:
        raise RuntimeError(failed[0])
    accuracies = {
        i: value for place, share in enumerate(shares) for i, value in zip(share, parts[place][2], strict=True)
    }
    return Trained(
        max(wall for wall, _, _ in parts.values()),
        sum(cpu for _, cpu, _ in parts.values()),
        [accuracies[i] for i in range(models)],
    )


def work(place: int, name: str, way: Way, share: list[int], device: str, ready: Any, results: Any) -> None:
    """Train some of the shadows in this process, and put what that took, or what went wrong, into the results."""
    torch.set_num_threads(1)
    try:
        results.put((place, timed(name, way, share, device, ready)))
    except Exception as error:  # the parent waits for an answer from each process
        ready.abort()
        results.put((place, f"{type(error).__name__}: {error}"))


def timed(name: str, way: Way, share: list[int], device: str, ready: Any) -> tuple[float, float, list[float]]:
    """Wall seconds, processor seconds and accuracies of some of the shadows."""
    tasks = shadows(name, share)
    sm.fit(replace(tasks[0], recipe=replace(tasks[0].recipe, epochs=1)), device=device)  # imports and starts everything
    ready.wait()
    wall, cpu = time.perf_counter(), time.process_time()
    if way == "one by one":
        victims = [sm.fit(task, seed=i, device=device) for task, i in zip(tasks, share, strict=True)]
    else:
        victims = fit_many(tasks, seeds=share, device=device)
    spent = time.perf_counter() - wall, time.process_time() - cpu
    return *spent, [victim.score().value for victim in victims]


def shadows(name: str, share: list[int]) -> list[sm.Task]:
    """The task on random halves of what its victim and its adversary are trained on."""
    task = sm.task(name)
    splits = task.draw(SEED)
    pool = join_batches([splits.train, splits.aux])
    tasks = []
    for i in share:
        half = torch.randperm(len(pool), generator=generator(SEED, "half", i))[: len(pool) // 2]
        parts = replace(splits, train=pool.take(half))
        tasks.append(replace(task, data=partial(_given, parts)))
    return tasks


def _given(splits: Splits, rng: torch.Generator) -> Splits:
    return splits


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(list(values))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except sm.SecureMLError as error:
        sys.exit(f"benchmarks.shadow_training: {error}")
