"""An assessment that is killed goes on where it was, with the same card; what cannot be told apart is not kept."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secure_ml as sm
from attacks import PGD, Knockoff, LossThreshold
from defenses import DPSGD
from secure_ml.assess import assess
from secure_ml.identity import Unidentifiable
from secure_ml.keeping import Keeper, identity
from secure_ml.suite import Facts, Rung, Step, Suite
from tests.laws import tiny_task
from tests.test_assess import QUICK, TEST, TRAIN, simple

ROOT = Path(__file__).parent.parent


def card(keep: Path | None, model: Any = None, **settings: Any) -> sm.Assessment:
    asked = {"attacks": QUICK, "defenses": (), "box": (0, 1), "keep": keep, **settings}
    data = () if isinstance(model, sm.Task) else (TRAIN, TEST)
    return assess(simple() if model is None else model, *data, **asked)


def timeless(done: sm.Assessment) -> list[sm.Row]:
    """Every number but times, and every assumption but what was measured of time."""
    rows = [row for row in done.rows if row.measure not in ("cost", "kept") and "second" not in row.unit]
    return [replace(row, seconds=0.0) for row in rows]


def stop(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("this is done already")


def test_killed_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in its third attack, the call does the third alone when it is made again, and then nothing at all."""
    whole = card(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Knockoff, "steal", stop)
        with pytest.raises(KeyboardInterrupt):
            card(tmp_path / "killed")
    assert len(list((tmp_path / "killed" / "cells").iterdir())) == 3
    monkeypatch.setattr(PGD, "perturb", never)
    monkeypatch.setattr(LossThreshold, "score", never)
    gone_on = card(tmp_path / "killed")
    assert timeless(gone_on) == timeless(whole)
    assert not gone_on.failed
    monkeypatch.setattr(Knockoff, "steal", never)
    again = card(tmp_path / "killed")
    assert again.rows == gone_on.rows
    assert [replace(row, seconds=0) for row in again.card] == [replace(row, seconds=0) for row in gone_on.card]
    assert card(None).failed, "an attack that must not be run is not run by a call that keeps nothing"


@pytest.mark.parametrize("other", ["weights", "attribute", "data", "seed"])
def test_another_model_is_another(other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found is found for this model only: not for other weights, another temperature, or other data."""

    class Cooled(nn.Module):
        def __init__(self, temperature: float) -> None:
            super().__init__()
            self.inner, self.temperature = simple(), temperature

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) / self.temperature

    attacks = (PGD(steps=2),)
    assert not card(tmp_path, Cooled(1.0), attacks=attacks).failed
    monkeypatch.setattr(PGD, "perturb", never)
    assert not card(tmp_path, Cooled(1.0), attacks=attacks).failed
    model, settings = Cooled(2.0 if other == "attribute" else 1.0), {}
    if other == "weights":
        model.inner[0].weight.data[0, 0] += 1e-3
    if other == "seed":
        settings = {"seed": 1}
    train = (TRAIN[0].flip(0), TRAIN[1].flip(0)) if other == "data" else TRAIN
    assert assess(model, train, TEST, attacks=attacks, defenses=(), box=(0, 1), keep=tmp_path, **settings).failed


def test_trained_models_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task's victims and those under a defense that trains are trained once."""
    task = tiny_task("digits_mlp")
    asked = {"attacks": (LossThreshold(),), "defenses": (DPSGD(noise=1.0),), "seeds": 2, "box": None}
    once = card(tmp_path, task, **asked)
    assert len(list((tmp_path / "models").iterdir())) == 4
    monkeypatch.setattr("secure_ml.store.fit", never)
    again = card(tmp_path, task, **asked)
    assert again.rows == once.rows


@dataclass(frozen=True, kw_only=True)
class Moody(Suite):
    """Its most thorough way takes longer in the second call, as a measured cost may have it."""

    protections: tuple[str, ...] = ()
    seconds: float = 0.0

    def steps(self, facts: Facts) -> tuple[Step, ...]:
        """One step."""
        ways = Rung((PGD(steps=3),), 40, self.seconds), Rung((PGD(steps=1),), 20, 0.001)
        return (Step(name="either", rungs=ways),)


def test_decisions_are_kept(tmp_path: Path) -> None:
    """How thorough a step is was decided by the call that was killed."""
    settings = {"attacks": None, "suite": Moody(seconds=0.001)}
    first = card(tmp_path, **settings)
    slow = card(tmp_path, **{**settings, "suite": Moody(seconds=1e6)})
    assert {row.attack for row in slow.rows} == {row.attack for row in first.rows}
    fresh = card(tmp_path / "other", **{**settings, "suite": Moody(seconds=1e6)})
    assert "PGD(steps=1)" in {row.attack for row in fresh.rows}
    more = card(tmp_path, **{**settings, "suite": Moody(seconds=1e6), "minutes": 11.0})
    assert "PGD(steps=1)" in {row.attack for row in more.rows}, "other minutes are decided upon anew"


def test_what_only_answers_is_not_kept(tmp_path: Path) -> None:
    """It is said, and done anew each time."""
    model = simple()

    def answers(x: Any) -> Any:
        return model(torch.as_tensor(x, dtype=torch.float32)).softmax(1).detach().numpy()

    done = card(tmp_path, answers, attacks=(LossThreshold(),))
    (said,) = [line for line in done.findings if line.check == "kept"]
    assert said.verdict == "WARN"
    assert "only answers" in said.evidence
    assert not (tmp_path / "cells").exists()
    assert not [line for line in card(None).findings if line.check == "kept"]


def test_a_keeper_without_a_store_keeps_nothing() -> None:
    keeper = Keeper()
    victim = sm.fit(tiny_task("digits_mlp"), seed=0, device="cpu")
    calls: list[int] = []

    def work() -> Any:
        calls.append(1)
        return LossThreshold().evaluate(victim, threat=None, seed=0, examples=10)

    for _ in range(2):
        keeper.result(victim, LossThreshold(), 10, 0, work)
    assert len(calls) == 2
    made = replace(victim, task=replace(victim.task, loss=partial(eval("lambda p, b: p(b.inputs).sum(1)"))))
    with pytest.raises(Unidentifiable):
        identity(made, None)


MODEL = """
import os, signal, time
from dataclasses import dataclass
from attacks import PGD, LossThreshold
from tests.test_assess import TEST, TRAIN, simple

@dataclass(frozen=True, kw_only=True)
class Slow(PGD):
    def perturb(self, *given):
        print("slow", flush=True)
        time.sleep(0 if os.environ.get("FAST") else 60)
        return super().perturb(*given)

card = dict(model=simple(), train=TRAIN, test=TEST, box=(0, 1), attacks=(LossThreshold(), Slow(steps=2)), defenses=())
"""


@pytest.mark.slow
def test_the_command_goes_on(tmp_path: Path) -> None:
    """``secure-ml assess``, killed by the system."""
    (tmp_path / "mine.py").write_text(MODEL)
    command = [sys.executable, "-m", "experiments._main", "assess", f"{tmp_path}/mine.py:card", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(out: str, **more: str) -> subprocess.Popen[str]:
        place = ["--out", str(tmp_path / out)]
        env = {**environment, **more}
        return subprocess.Popen([*command, *place], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=env)

    with start("killed") as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "slow\n"
        killed.send_signal(signal.SIGKILL)
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "cells").iterdir()}
    assert len(cells) == 2
    time.sleep(0.01)
    said = {}
    for out in ("killed", "whole"):
        with start(out, FAST="1") as process:
            said[out] = process.communicate()[0]
        assert process.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in cells} == cells
    table = [line for line in said["killed"].splitlines() if line.startswith("|") and "second" not in line]
    assert table == [line for line in said["whole"].splitlines() if line.startswith("|") and "second" not in line]
    assert len(table) > 5
