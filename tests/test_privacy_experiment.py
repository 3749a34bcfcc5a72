"""``secure-ml privacy``: what it prints, draws and keeps; what it refuses."""

import json
from pathlib import Path

import pytest

from experiments import privacy
from experiments._main import main
from secure_ml.families.audit import MEASURE
from secure_ml.rows import row_from

SMALL = ["--task", "digits_mlp(tiny=True)", "--seeds", "1", "--workers", "1", "--examples", "50"]
FEW = ["--attack", "loss_threshold", "lira(shadows=2)", "--audit", "one_run(canaries=20)"]


def test_claims_stand_beside_bounds_and_leaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stacks = ["--defense", "none", "dp_sgd(epsilon=2.0,delta=0.001)"]
    assert main(["privacy", *SMALL, *FEW, *stacks, "--no-checks", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "(2.00, 0.001)-DP" in printed
    assert "PASS  audit below claim, OneRun" in printed
    rows = [row_from(json.loads(line)) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    bounds = [row for row in rows if row.measure.startswith(MEASURE)]
    assert {row.defenses for row in bounds} == {row.defenses for row in rows}
    for row in bounds:
        claimed = [claim.values["epsilon"] for claim in row.claims]
        assert row.value is not None
        assert all(row.value <= float(epsilon) for epsilon in claimed)
    assert {row.attack for row in rows if row.measure == "membership AUC"} == {"LossThreshold()", "LiRA(shadows=2)"}
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("privacy.png", "roc.png"))
    points = privacy.points(rows)
    assert [point.epsilon is None for point in points] == [True, False]
    again = main(["privacy", *SMALL, *FEW, *stacks, "--no-checks", "--out", str(tmp_path), "--json"])
    assert again == 0
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--attack", "pgd"], "'pgd' is no membership attack"),
        (["--audit", "lira"], "'lira' is no audit attack"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--defense", "dp_sgd(delta=0.5)"], "is not below 1/n"),
        (["--defense", "dp_sgd(epsilon=0.0)"], "a finite epsilon above 0"),
    ],
)
def test_refusals(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["privacy", *SMALL, *options, "--no-checks", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
