"""Cells: found again, resumed, never stale, never half-written."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import secure_ml as sm
from attacks.evasion.pgd import PGD
from attacks.extraction.knockoff import Knockoff
from attacks.membership.loss_threshold import LossThreshold
from defenses.dp_sgd import DPSGD
from defenses.label_only import LabelOnly
from secure_ml.cells import Cell, Store, run_cells
from secure_ml.identity import Unidentifiable, identify
from secure_ml.report import verdict
from secure_ml.rows import Row, row_from, table
from tests.laws import same, timeless, tiny_task

ATTACKS = (None, PGD.tiny(), LossThreshold(), Knockoff.tiny())


def cells(seeds: int = 2) -> list[Cell]:
    """Two stacks of a tiny task."""
    task = tiny_task("digits_mlp")
    stacks = ((), (LabelOnly(),))
    return [Cell(task=task, defenses=d, attack=a, seed=s) for d in stacks for a in ATTACKS for s in range(seeds)]


def run(store: Store, some: list[Cell], workers: int = 1) -> tuple[list[object], list[str]]:
    """Results without seconds, and what was done for them."""
    heard: list[str] = []
    results = run_cells(some, store, workers, lambda event: heard.append(f"{event.kind} {event.cells}"))
    return [timeless(result) for result in results], heard


def test_found_again_and_shared(tmp_path: Path) -> None:
    """A second call computes nothing; a stack that only serves shares the bare model; workers change nothing."""
    store = Store(folder=tmp_path / "a")
    first, heard = run(store, cells())
    assert heard.count("trained 0") == 2
    assert heard.count("attacked 1") == 16
    again, heard = run(store, cells())
    assert heard == ["found 16"]
    assert same(first, again)
    other, _ = run(Store(folder=tmp_path / "b"), cells(), workers=2)
    assert same(first, other)
    assert not list(tmp_path.rglob(".*")), "drafts were left behind"
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}


def test_every_setting_is_in_the_key() -> None:
    task = tiny_task("digits_mlp")
    base = Cell(task=task, defenses=(DPSGD(epsilon=3.0),), attack=PGD(), seed=0)
    store = Store(folder=Path("nowhere"))
    others = [
        replace(base, seed=1),
        replace(base, examples=7),
        replace(base, threat=sm.Linf(0.2)),
        replace(base, attack=PGD(steps=41)),
        replace(base, attack=None),
        replace(base, defenses=(DPSGD(epsilon=3.1),)),
        replace(base, defenses=(DPSGD(epsilon=3.0), LabelOnly())),
        replace(base, task=replace(task, recipe=sm.Recipe(epochs=4))),
        replace(base, task=replace(task, build=partial(task.build))),
    ]
    names = [job.name for job in store.jobs([base, *others])]
    names += [job.name for job in replace(store, threads=2).jobs([base])]
    assert len(set(names)) == len(names)
    assert store.jobs([base, replace(base, seed=0)])[1].name == names[0]
    models = [job.model for job in store.jobs([base, others[0], others[5], others[6], replace(base, attack=None)])]
    assert models[0] == models[3] == models[4]
    assert len(set(models)) == 3


def test_sources_and_closures_are_identified() -> None:
    def make(width: int) -> object:
        return lambda: nn.Linear(2, width)

    assert identify(make(2)) == identify(make(2)) != identify(make(3))
    assert identify(torch.zeros(3)) != identify(torch.ones(3))
    assert identify(partial(max, 3)) != identify(partial(max, 4))
    assert identify(PGD()) != identify(PGD(steps=3))
    with pytest.raises(Unidentifiable):
        identify(object())
    with pytest.raises(Unidentifiable):
        identify(eval("lambda x: x + 1"))


def test_a_changed_source_is_another_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key follows a user's module, and what that module imports."""
    (tmp_path / "helper.py").write_text("WIDTH = 2\n")
    (tmp_path / "mine.py").write_text("import helper\ndef build():\n    return helper.WIDTH\n")
    code = "import mine; from secure_ml.identity import identify; print(identify(mine.build))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def key() -> str:
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    first = key()
    assert key() == first
    (tmp_path / "helper.py").write_text("WIDTH = 3\n")
    assert key() != first


def test_a_callable_without_source_is_not_cached(tmp_path: Path) -> None:
    task = replace(tiny_task("digits_mlp"), augment=eval("lambda batch, rng: batch"))
    store = Store(folder=tmp_path)
    with pytest.warns(UserWarning, match="no readable source, so its cells are not cached"):
        results, _ = run(store, [Cell(task=task, defenses=(), attack=None, seed=0)])
    assert results
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["rows.json", "evidence.safetensors"])
def test_a_corrupt_cell(tmp_path: Path, name: str) -> None:
    store, some = Store(folder=tmp_path), cells(1)[1:2]
    run(store, some)
    (path,) = tmp_path.glob(f"cells/*/{name}")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(sm.UsageError, match="is corrupt: delete that folder"):
        run(store, some)


def test_reasons_instead_of_numbers(tmp_path: Path) -> None:
    """A method without meaning is a row that says why, and the rest goes on."""
    task = tiny_task("linear_regression")
    some = [Cell(task=task, defenses=d, attack=a, seed=0) for d in ((), (LabelOnly(),)) for a in ATTACKS]
    results = run_cells(some, Store(folder=tmp_path), 1, lambda event: None)
    assert [bool(result.obstacle) for result in results] == [False] * 4 + [True] * 4
    rows = verdict(task, [(cell.attack, result) for cell, result in zip(some[4:], results[4:], strict=True)])
    assert [(row.value, row.measure) for row in rows] == [(None, "RMSE")]
    assert "answers Values" in table(rows)


SCRIPT = """
import sys
from pathlib import Path
from tests.test_cells import cells
from secure_ml.cells import Store, run_cells
print("ready", flush=True)
run_cells(cells(6), Store(folder=Path(sys.argv[1])), 1, lambda event: print(event.kind, flush=True))
"""


def test_killed_and_resumed(tmp_path: Path) -> None:
    """Killed without warning in the middle, the same call computes the rest and ends with the same rows."""
    root = Path(__file__).parent.parent
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == "attacked\n":
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = len(list((tmp_path / "killed" / "cells").glob("[!.]*")))
    assert 1 <= kept < 48
    resumed, heard = run(Store(folder=tmp_path / "killed"), cells(6))
    assert heard[0] == f"found {kept}"
    undisturbed, _ = run(Store(folder=tmp_path / "whole"), cells(6))
    assert same(resumed, undisturbed)


PARENT = """
import queue, time
from pathlib import Path
from secure_ml.executors import Worker
news = queue.SimpleQueue()
worker = Worker(news, 1)
news.get()
print(worker.process.pid, flush=True)
import cloudpickle
worker.start(cloudpickle.dumps(lambda: None), b"cos\\nsystem\\n(S'sleep 60'\\ntR.")
time.sleep(60)
"""


def test_a_worker_ends_with_its_killed_parent() -> None:
    """A worker in the middle of a long cell does not outlive the run."""
    process = subprocess.Popen([sys.executable, "-uc", PARENT], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = Path("/proc") / process.stdout.readline().strip()
    process.stdout.close()
    time.sleep(0.5)
    assert worker.exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    start = time.monotonic()
    while worker.exists() and time.monotonic() - start < 30:
        time.sleep(0.1)
    assert not worker.exists()


def test_rows_survive_json() -> None:
    victim = sm.fit(tiny_task("digits_mlp"), [DPSGD(noise=1.0)], device="cpu")
    for row in sm.evaluate(victim, [PGD.tiny(), LossThreshold()]):
        from dataclasses import asdict

        assert row_from(json.loads(json.dumps(asdict(row)))) == row


def row(measure: str, value: float | None, **more: object) -> Row:
    """A row about nothing."""
    return Row(
        **{"task": "t()", "defenses": "none", "attack": "", "seeds": (0,), "measure": measure, "value": value} | more
    )


def test_table() -> None:
    text = table(
        [
            row("accuracy", 0.5, low=0.4, high=0.6),
            row("TPR", None, note="too few"),
            row("accuracy", 0.9, low=0.85, high=0.95, defenses="D()"),
            row("queries", 12345.0, unit="count", defenses="D()"),
        ]
    )
    header, _, first, second, note = text.splitlines()
    assert [cell.strip() for cell in header.split("|")[1:-1]] == ["protection", "accuracy", "TPR", "queries", "claims"]
    assert [cell.strip() for cell in first.split("|")[1:-1]] == ["none", "0.50 [0.40, 0.60]", "n/a [1]", "-", "-"]
    assert "12,345" in second
    assert note == "[1] too few"


def test_rivals_are_not_averaged() -> None:
    """Two attacks that measured the same thing are two columns, not two seeds."""
    text = table([row("accuracy", 0.15, attack="PGD(steps=1)"), row("accuracy", 0.0, attack="PGD()")])
    assert "accuracy: PGD(steps=1)" in text
    assert "0.07" not in text


def test_equal_proportions_are_not_exact() -> None:
    """Five victims that all fail on every one of 40 examples leave the doubt that 40 examples leave."""
    rows = [row("accuracy", 0.0, n=40, interval="Clopper-Pearson", seeds=(seed,)) for seed in range(5)]
    assert "0.000 [0.000, 0.088]" in table(rows)


def test_seeds_are_averaged_with_an_interval() -> None:
    text = table([row("accuracy", value, seeds=(seed,)) for seed, value in enumerate((0.90, 0.92, 0.94))])
    assert "0.920 [0.870, 0.970]" in text
