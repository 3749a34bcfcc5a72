"""The sweep over encrypted programs, its table, plot and audit."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import secure_ml as sm
from experiments._deeper import deeper
from experiments._encryption_cost import EncryptionCost
from experiments._main import main
from secure_ml.errors import NotApplicable

QUICK = [
    *("encryption", "--task", "digits_mlp(tiny=True)", "--activations", "1", "2", "--activation", "fixed"),
    *("--degrees", "4096", "--examples", "20", "--spot", "4", "--workers", "1"),
]


def test_costs_are_kept_drawn_and_found_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([*QUICK, "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    for words in ("in the clear", "16 of 20", "PASS  no secret key", "does not fit a ring of degree 4096"):
        assert words in text.replace("4 of 20 encrypted, the others", "16 of 20")
    assert (tmp_path / "encryption.png").stat().st_size > 10_000
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    measured = [row for row in rows if row["attack"] and row["value"] is not None]
    assert {row["measure"] for row in measured} >= {"latency", "bytes up", "bytes down", "largest logit error"}
    simulated = {row["attack"] for row in rows if "simulated" in row["note"]}
    assert all("latency" in attack for attack in simulated)
    assert simulated
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/rows.json")}
    assert main([*QUICK, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == text
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/rows.json")}


def test_networks_get_as_many_activations_as_are_asked_for() -> None:
    task = sm.task("digits_mlp", tiny=True)
    for n in (1, 2, 3):
        made = deeper(task, n)
        module = made.build()
        assert sum(isinstance(layer, (nn.ReLU, nn.Sigmoid)) for layer in module.modules()) == n
        assert module(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
        assert repr(made) == f"digits_mlp(tiny=True, activations={n})"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--activations", "0"], "at least 1 activations"),
        (["--degrees", "1000"], "needs a degree of 4096"),
        (["--spot", "0"], "--spot must be at least 1"),
        (["--products", "0"], "--products must be at least 1"),
        (["--task", "text_rnn(tiny=True)"], "expected a Sequential"),
    ],
)
def test_bad_requests(argv: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["encryption", "--out", str(tmp_path), *argv]) == 2
    assert message in capsys.readouterr().err


def test_larger_programs_than_allowed_are_not_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    few = ["--activations", "1", "--engine", "throughput", "--products", "100", "--out", str(tmp_path)]
    assert main([*QUICK, *few]) == 0
    said = capsys.readouterr().out
    assert "more than the 100 allowed" in said
    assert "in the clear" in said


def test_a_model_that_is_not_trained_for_it_has_no_cost() -> None:
    victim = sm.fit(sm.task("digits_mlp", tiny=True), device="cpu")
    with pytest.raises(NotApplicable, match="not trained for encryption"):
        EncryptionCost().evaluate(victim, threat=None, seed=0, examples=4)
