"""Features dropped one after the other, as the command line does it, and by the tasks themselves."""

import json
from pathlib import Path

import pytest
import torch

import secure_ml as sm
from experiments._main import main
from experiments.minimisation import _sizes, features_of, rank
from secure_ml.tasks._adult import columns
from secure_ml.tasks.adult_mlp import record

QUICK = ("--task", "table_mlp(tiny=True)", "--levels", "3", "--seeds", "1", "--workers", "1")


def rows_of(folder: Path) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    return [row for row in rows if row["pooled"]]


def test_accuracy_and_leakage_stand_at_every_level(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ["minimisation", *QUICK, "--out", str(tmp_path), "--sensitive", "0"]
    assert main(argv) == 0
    text = capsys.readouterr().out
    for words in ("accuracy", "membership AUC", "attribute gain", "most useful first", "sensitive: 0"):
        assert words in text
    assert [line.split()[1] for line in text.splitlines() if line.startswith("| ") and line.split()[1].isdigit()] == [
        "13",
        "7",
        "1",
    ]
    assert "the model does not see the attribute" in text
    assert (tmp_path / "minimisation.png").stat().st_size > 10_000
    assert "tiny=True" in (tmp_path / "report.html").read_text(encoding="utf-8")
    tasks = {row["task"] for row in rows_of(tmp_path)}
    assert len(tasks) == 3
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/rows.json")}
    assert 3 * 2 < len(before) < 3 * 3, "cards, membership, and the attribute where it is seen"
    assert main(argv) == 0
    assert capsys.readouterr().out == text
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/rows.json")}
    assert main([*argv, "--fail-if", "membership_auc < 2"]) == 1


def test_people_without_some_columns(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ["--task", "adult_mlp(tiny=True)", "--levels", "2", "--seeds", "1", "--workers", "1"]
    assert main(["minimisation", *argv, "--order", "permutation", "--out", str(tmp_path)]) == 0
    assert "sensitive: sex" in capsys.readouterr().out


def test_dropped_columns_are_gone_and_the_rest_is_the_same() -> None:
    whole, fewer = (sm.task("adult_mlp", tiny=True, drop=drop) for drop in ((), ("age", "sex", "workclass")))
    gone = {place for name in ("age", "sex", "workclass") for place in columns(name)}
    left = [place for place in range(91) if place not in gone]
    for name, part in whole.draw(0).parts().items():
        other = fewer.draw(0).parts()[name]
        assert torch.equal(part.inputs[:, left], other.inputs)
        assert torch.equal(part.target, other.target)
    table = record(("age", "sex", "workclass"))
    table.check(fewer.draw(0).train.inputs)
    assert len(table.groups) == 5
    assert [score.name for score in fewer.also] == ["accuracy", "accuracy, worse race"]
    assert "drop=('age', 'sex', 'workclass')" in repr(fewer)
    wine, less = sm.task("table_mlp").draw(0), sm.task("table_mlp", drop=(0, 12)).draw(0)
    assert torch.equal(wine.train.inputs[:, 1:12], less.train.inputs)


def test_what_is_useful_comes_first() -> None:
    """Of rows whose target is the sign of one column, that column."""
    task = sm.task("table_mlp", bundled="breast_cancer")
    features = features_of(task, 0)
    assert len(features) == 30
    for order in ("information", "permutation"):
        ranked = rank(task, features, order, 0)
        assert sorted(ranked, key=int) == list(features)
    assert rank(task, features, "information", 0)[0] in ("20", "22", "23", "27"), (
        "worst radius, perimeter, area, points"
    )
    assert _sizes(30, 8)[0] == 30
    assert _sizes(30, 8)[-1] == 1
    assert len(_sizes(30, 8)) == 8
    assert _sizes(3, 8) == [3, 2, 1]
    assert _sizes(5, 1) == [5, 1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--task", "digits_mlp(tiny=True)"], "dropped from a whole adult_mlp or table_mlp"),
        (["--task", "table_mlp(drop=(1,))"], "dropped from a whole adult_mlp or table_mlp"),
        (["--task", "adult_mlp(tiny=True, drop=('sex',))"], "drops features itself"),
        (["--sensitive", "wage"], "no feature 'wage'"),
        (["--attack", "pgd"], "infers no membership"),
        (["--levels", "0"], "at least 1"),
        (["--task", "table_mlp(drop=(40,))"], "columns to drop lie in 0 to 12"),
        (["--task", "adult_mlp(tiny=True, drop=('wage',))"], "no column of Adult is called 'wage'"),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: list[str], message: str) -> None:
    given = argv if "--task" in argv else ["--task", "table_mlp(tiny=True)", *argv]
    assert main(["minimisation", "--out", str(tmp_path), "--workers", "1", *given]) == 2
    assert message in capsys.readouterr().err
