"""Curves over the radius, and examples as files, as the command line makes them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from experiments._main import main

QUICK = [
    *("--task", "digits_mlp(tiny=True)", "--defense", "none", "IBP(radius=0.1)"),
    *("--attack", "fgsm", "pgd(steps=5)", "--factors", "0.5", "1", "--examples", "20", "--workers", "1"),
]


def test_curves_are_kept_drawn_and_found_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["robustness", *QUICK, "--out", str(tmp_path), "--no-checks"]) == 0
    text = capsys.readouterr().out
    for words in ("worst case", "certified", "clean", "Linf(0.05)", "FGSM()", "PGD(steps=5)"):
        assert words in text
    assert (tmp_path / "robustness.png").stat().st_size > 10_000
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    values = {(r["defenses"], r["attack"], r["measure"]): r["value"] for r in rows}
    assert all(value is None or 0 <= value <= 1 for value in values.values())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/rows.json")}
    assert main(["robustness", *QUICK, "--out", str(tmp_path), "--no-checks"]) == 0
    assert capsys.readouterr().out == text
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/rows.json")}


def test_the_certified_curve_stays_below_the_worst_case(tmp_path: Path) -> None:
    assert main(["robustness", *QUICK, "--out", str(tmp_path), "--no-checks", "--json"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    mine = [row for row in rows if row["defenses"].startswith("IBP")]
    proved = {r["measure"].rpartition(" under ")[2]: r["value"] for r in mine if r["measure"].startswith("certified")}
    found = [r for r in mine if r["measure"].startswith("accuracy under")]
    assert proved
    assert found
    assert all(proved[r["measure"].rpartition(" under ")[2]] <= r["value"] for r in found)


def test_checks_stand_under_the_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    quick = [*QUICK[:4], *QUICK[6:]]
    assert main(["robustness", *quick, "--defense", "none", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "Checks of none:" in text
    assert "PASS  determinism" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--attack", "knockoff"], "changes no inputs"),
        (["--factors", "0"], "must be above 0"),
        (["--examples", "0"], "at least 1"),
        (["--task", "digit_cnn"], "did you mean digits_cnn"),
        (["--threat", "Linf(2)"], "beyond the whole box"),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: list[str], message: str) -> None:
    given = argv if "--task" in argv else ["--task", "digits_mlp(tiny=True)", *argv]
    assert main(["robustness", "--out", str(tmp_path), "--workers", "1", *given]) == 2
    assert message in capsys.readouterr().err


def test_examples_are_written_as_they_are_scored(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    task, model = "digits_cnn(tiny=True)", str(tmp_path / "model")
    assert main(["fit", task, "--out", model]) == 0
    craft = ["craft", task, "--model", model, "--attack", "pgd", "--examples", "20", "--out", str(tmp_path / "out")]
    assert main(craft) == 0
    kept = load_file(tmp_path / "out" / "examples.safetensors")
    assert set(kept) == {"clean", "changed", "target", "answers.clean", "answers.changed"}
    assert kept["clean"].shape == kept["changed"].shape == (20, 1, 8, 8)
    assert (kept["changed"] - kept["clean"]).abs().max() <= 0.1 + 1e-6
    assert (tmp_path / "out" / "sheet.png").exists()
    wrong = (kept["answers.changed"].argmax(1) != kept["target"]) | (kept["answers.clean"].argmax(1) != kept["target"])
    from attacks.evasion.pgd import PGD
    from secure_ml import task as make
    from secure_ml.victim import Victim

    victim = Victim.load(model, make("digits_cnn", tiny=True), device="cpu")
    (row,) = PGD().evaluate(victim, threat=None, seed=0, examples=20).rows
    assert row.value == pytest.approx(1 - wrong.double().mean().item())
    assert torch.equal(kept["target"], victim.splits.test.target[:20])
    capsys.readouterr()
    assert main(["craft", task, "--model", model, "--attack", "knockoff"]) == 2
    assert "changes no inputs" in capsys.readouterr().err
