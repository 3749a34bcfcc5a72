"""The search for settings as its users meet it, and the total that it prints against prices worked out elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from opacus.accountants import PRVAccountant

import secure_ml as sm
from defenses.dp_sgd import DPSGD
from defenses.dp_sgd.selection import Selection
from experiments import _search, tune
from experiments._main import main
from experiments._search import Run, SameSplit, composed_price, planned, training_seed, varied
from secure_ml.rows import Row
from tests.laws import tiny_task

QUICK = ["tune", "--task", "digits_mlp(tiny=True)", "--workers", "1", "--setting", "dp_sgd(noise=1.3, epochs=1)"]
STEP = (1.3, 1.0, 1)
"""Noise, rate and steps of one such run: its batch holds all examples."""


def asked(capsys: pytest.CaptureFixture[str], out: Path, *argv: str) -> dict[str, Any]:
    """The rows that a search prints, by measure; of several, the last."""
    capsys.readouterr()
    assert main([*QUICK, "--out", str(out), "--json", *argv]) == 0
    return {row["measure"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}


def by_opacus(runs: int) -> float:
    accountant = PRVAccountant()
    accountant.history = [(STEP[0], STEP[1] - 1e-12, STEP[2] * runs)]
    return accountant.get_epsilon(1e-5, eps_error=0.01)


def told(history: tuple[tuple[float, float, int], ...] | None, seed: int, unit: str = "record") -> Run:
    return Run("DPSGD()", seed, Row(task="t", defenses="d", attack="", seeds=(seed,), measure="m"), history, unit)


def test_a_fixed_search_costs_all_of_its_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = asked(capsys, tmp_path, "--clip", "0.1", "1", "10")
    alone, total = (rows[f"epsilon {what}"]["value"] for what in ("of the chosen run alone", "with the selection"))
    assert alone == pytest.approx(by_opacus(1), abs=0.02)
    assert total == pytest.approx(by_opacus(3), abs=0.02)
    assert total > 1.5 * alone


def test_the_table_is_printed_kept_and_found_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = [*QUICK, "--clip", "0.1", "1", "--out", str(tmp_path)]
    assert main(argv) == 0
    text = capsys.readouterr().out
    for words in ("* DPSGD(", "accuracy on validation", "accuracy on test", "looked at once", "all 2 runs above"):
        assert words in text
    assert "validation examples that the choice looked at are not protected" in text
    assert text == (tmp_path / "table.md").read_text()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("models/*/*")}
    assert len(before) == 4
    assert main(argv) == 0
    assert capsys.readouterr().out == text
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("models/*/*")}


def test_earlier_calls_are_part_of_the_price(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked(capsys, tmp_path, "--clip", "0.1", "1")
    rows = asked(capsys, tmp_path, "--clip", "10")
    assert rows["epsilon with the selection"]["value"] == pytest.approx(by_opacus(3), abs=0.02)
    assert "and 2 of earlier calls" in rows["epsilon with the selection"]["note"]


def test_random_trials_show_the_best_run_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    law, both = Selection(mean=3.0), [(DPSGD(clip=0.1),), (DPSGD(clip=1.0),)]
    seed = next(s for s in range(100) if len(tune.drawn(law, both, s)) == 3)
    argv = ["--clip", "0.1", "1", "--trials", "geometric", "--mean", "3", "--seed", str(seed)]
    rows = asked(capsys, tmp_path, *argv)
    assert len(list(tmp_path.glob("models/*"))) == 3
    shown = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert sum('"accuracy on validation"' in line for line in shown) == 1
    price = law.epsilon([(STEP,), (STEP,)], 1e-5)
    assert rows["epsilon with the selection"]["value"] == pytest.approx(price, abs=1e-6)
    assert "must stay secret" in rows["epsilon with the selection"]["note"]
    assert main([*QUICK, "--clip", "0.1", "--out", str(tmp_path)]) == 2
    assert "must stay secret: choose another folder" in capsys.readouterr().err
    elsewhere = tmp_path / "shown"
    rows = asked(capsys, elsewhere, *argv, "--show")
    assert rows["epsilon with the selection"]["value"] == pytest.approx(by_opacus(3), abs=0.02)
    assert main([*QUICK, *argv, "--out", str(elsewhere)]) == 2
    assert "holds another search on this data" in capsys.readouterr().err


def test_trials_follow_their_law() -> None:
    """The number of runs and the settings are drawn, each anew for each seed, and the same for the same."""
    candidates = [(DPSGD(clip=0.1),), (DPSGD(clip=1.0),)]
    law = Selection(mean=5.0)
    some = [tune.drawn(law, candidates, seed) for seed in range(400)]
    assert some[3] == tune.drawn(law, candidates, 3)
    lengths = torch.tensor([float(len(trials)) for trials in some])
    assert lengths.mean().item() == pytest.approx(5, abs=1.0)
    assert lengths.min() == 1
    first = sum(trials.count(candidates[0]) for trials in some) / lengths.sum().item()
    assert first == pytest.approx(0.5, abs=0.06)


def test_no_run_at_all_is_an_answer(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    seed = next(s for s in range(50) if not tune.drawn(Selection(shape=math.inf, mean=0.5), [(DPSGD(),)], s))
    argv = ["--trials", "poisson", "--mean", "0.5", "--seed", str(seed), "--out", str(tmp_path)]
    assert main([*QUICK, *argv]) == 0
    assert "nothing is released" in capsys.readouterr().out


def test_every_run_learns_from_the_same_split_with_noise_of_its_own() -> None:
    task = tiny_task("digits_mlp")
    same = replace(task, data=SameSplit(task.data, 0))
    assert same.draw(5).fingerprint() == task.draw(0).fingerprint() != task.draw(5).fingerprint()
    stacks = [(DPSGD(clip=clip),) for clip in (0.1, 1.0)]
    assert len({training_seed(seed, s, k) for s in stacks for k in range(3) for seed in (0, 1)}) == 12


def test_what_is_planned_is_what_a_run_claims() -> None:
    task = tiny_task("digits_mlp")
    stack = (DPSGD(epsilon=2.0, batch_size=24, epochs=3),)
    (claim,) = sm.fit(task, stack, seed=0, device="cpu").claims
    ((noise, rate, steps),) = planned(task, stack, 0)
    assert (noise, rate, steps) == (claim.values["sigma"], claim.values["q"], claim.values["steps"])
    assert varied(stack, clip=0.3)[0].clip == 0.3


# -- broken pricing -------------------------------------------------------------------------------------------------


def total_of(capsys: pytest.CaptureFixture[str], out: Path) -> float:
    value: float = asked(capsys, out, "--clip", "0.1", "1", "10")["epsilon with the selection"]["value"]
    return value


def test_a_total_that_forgets_runs_is_caught(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check against Opacus's accountant fails for a price of the best run, and for one of all runs but one."""
    for forget in (lambda runs: runs[:1], lambda runs: runs[1:]):

        def broken(runs: Sequence[Run], delta: float, forget: Any = forget) -> tuple[float, str] | None:
            return composed_price(forget(runs), delta)

        monkeypatch.setattr(tune, "composed_price", broken)
        assert total_of(capsys, tmp_path) < by_opacus(3) - 0.5


def test_runs_that_share_their_noise_have_no_price(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "training_seed", lambda seed, stack, repeat: seed)
    assert main([*QUICK, "--clip", "0.1", "1", "--out", str(tmp_path)]) == 2
    assert "share the seed 0, and so their noise" in capsys.readouterr().err


@pytest.mark.parametrize("noise", ["0.0", "1.3"])
def test_a_run_that_claims_nothing_has_no_price(capsys: pytest.CaptureFixture[str], tmp_path: Path, noise: str) -> None:
    """No noise, or no finite clip: then neither the run nor a search that looked at it has an epsilon."""
    clips = ["--clip", "0.1", "1"] if noise == "0.0" else ["--clip", "0.1", "1e20"]
    setting = ["--setting", f"dp_sgd(noise={noise}, epochs=1)"]
    for law in ([], ["--trials", "geometric", "--seed", "1"]):
        rows = asked(capsys, tmp_path / str(len(law)), *setting, *clips, *law)
        assert rows["epsilon with the selection"]["value"] is None
        assert "no epsilon holds" in rows["epsilon with the selection"]["note"]


def test_a_run_that_did_something_else_than_planned_has_no_price() -> None:
    """Random trials are priced by what every candidate would have done; a claim that differs is not believed."""
    run = told((STEP,), 1)
    law = Selection(mean=3.0)
    sound = tune.secret_prices([run], run, {"DPSGD()": (STEP,)}, law, 1e-5)
    assert sound[1][1] == law.epsilon([(STEP,)], 1e-5)
    other = tune.secret_prices([run], run, {"DPSGD()": ((1.4, 1.0, 1),)}, law, 1e-5)
    assert [value for _, value, _ in other] == [None, None]


def test_units_are_not_added_up() -> None:
    assert composed_price([told((STEP,), 1), told((STEP,), 2)], 1e-5) is not None
    assert composed_price([told((STEP,), 1), told((STEP,), 2, "person")], 1e-5) is None
    assert composed_price([told((STEP,), 1), told(None, 2)], 1e-5) is None


def test_the_worst_score_is_no_choice() -> None:
    task = tiny_task("digits_mlp")
    lower = replace(task, score=sm.task("linear_regression", tiny=True).score)
    assert not lower.score.higher_is_better
    missing = told((STEP,), 1)
    some = replace(missing, row=replace(missing.row, value=0.3))
    assert missing.merit(task) < some.merit(task) == 0.3
    assert missing.merit(lower) < some.merit(lower) == -0.3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--setting", "none"], "none trains without DP-SGD"),
        (["--setting", "dp_sgd(clip=0)"], "clip above 0"),
        (["--setting", "dp_sgd(delta=1e-5)", "dp_sgd(delta=1e-6)"], "different deltas"),
        (["--clip", "-1"], "clip above 0; given -1"),
        (["--mean", "3"], "add --trials geometric"),
        (["--show"], "--show is of random trials"),
        (["--trials", "geometric", "--mean", "0.5"], "mean of at least 1; given 0.5"),
        (["--trials", "uniform"], "uniform"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--task", "digit_cnn"], "did you mean digits_cnn"),
        (["--task", "policy_cartpole(tiny=True)"], "drawn anew"),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: list[str], message: str) -> None:
    assert main([*QUICK, "--out", str(tmp_path), *argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.splitlines()[-1].startswith("secure-ml: ")


def test_a_corrupt_ledger_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "ledger.json").write_text("{")
    assert main([*QUICK, "--out", str(tmp_path)]) == 2
    assert "cannot be priced any more" in capsys.readouterr().err
    assert _search.Ledger(tmp_path / "new", tiny_task("digits_mlp")).runs == {}
