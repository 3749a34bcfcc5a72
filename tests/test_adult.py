"""The census table: its columns, what an adversary may change of them, and the score on the real one."""

import gzip
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import secure_ml as sm
from secure_ml.data import VARIABLE
from secure_ml.tasks import _adult
from secure_ml.tasks.adult_mlp import FIXED, TablePerceptron, record
from tests import laws

HEADER = (
    "age,workclass,fnlwgt,education,education_num,marital_status,occupation,relationship,race,sex,"
    "capital_gain,capital_loss,hours_per_week,native_country,income"
)
LINE = (
    "90,?,77516,Bachelors,13,Never-married,Adm-clerical,Not-in-family,White,Female,99999,4356,50,Outlying-US(Guam-"
    "USVI-etc),>50K"
)


def rows() -> Tensor:
    inputs = laws.tiny_task("adult_mlp").draw(0).train.inputs
    assert isinstance(inputs, Tensor)
    return inputs


def written(folder: Path, *lines: str) -> None:
    (folder / "tabular").mkdir()
    with gzip.open(folder / "tabular" / "adult_train.csv.gz", "wt") as file:
        file.write("\n".join([HEADER, *lines]) + "\n")


def test_columns_partition_the_features() -> None:
    places = [place for name in (*_adult.NUMBERS, *_adult.CODES) for place in _adult.columns(name)]
    assert places == list(range(_adult.FEATURES))
    assert _adult.FEATURES == 91


def test_a_row_is_read_by_the_codebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, LINE, LINE.replace("99999,4356,50", "0,0,40").replace(">50K", "<=50K"))
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    batch = _adult._read("tabular/adult_train.csv.gz")
    assert isinstance(batch.inputs, Tensor)
    assert torch.allclose(batch.inputs[0, :5], torch.tensor([1, 12 / 15, 49 / 98, 1, 1]))
    assert batch.inputs[1, 3:5].tolist() == [0, 0]
    assert batch.inputs[0, _adult.columns("workclass")[-1]] == 1
    assert batch.inputs[0, _adult.columns("sex")[0]] == 1
    assert batch.inputs[0, 5:].sum() == len(_adult.CODES)
    assert batch.target == pytest.approx([1, 0])
    record().check(batch.inputs)


@pytest.mark.parametrize("line", ["1,2", LINE.replace("White", "Green"), LINE.replace("90,", "old,")])
def test_a_row_that_is_not_whole_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    written(tmp_path, line)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(sm.UsageError, match="is not whole"):
        _adult._read("tabular/adult_train.csv.gz")


def test_changes_keep_who_somebody_is_and_rows_valid() -> None:
    clean, table, threat = rows(), record(), sm.Features(0.1, flips=1)
    rng = torch.Generator().manual_seed(0)
    changed = threat.project(table, clean, clean + torch.randn(clean.shape, generator=rng))
    table.check(changed)
    fixed = [place for name in FIXED for place in _adult.columns(name)]
    assert torch.equal(changed[:, fixed], clean[:, fixed])
    flipped = (changed - clean)[:, len(_adult.NUMBERS) :].abs().sum(1)
    assert flipped.max() == 2
    hours = _adult.columns("hours_per_week")[0]
    steps = (changed - clean)[:, hours] * 98
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert 0 < steps.abs().max() < 10


def test_a_number_s_code_says_how_much_of_each_bin_lies_below_it() -> None:
    module = TablePerceptron(1, 1, 4, 2)
    seen: list[Tensor] = []
    module.layers.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    module(torch.tensor([[0.0], [0.3], [1.0]]))
    expected = torch.tensor([[0.0, 0, 0, 0, 0], [0.3, 1, 0.2, 0, 0], [1, 1, 1, 1, 1]])
    assert torch.allclose(seen[0], expected, atol=1e-6)


def test_accuracy_by_group_is_on_the_card() -> None:
    victim = laws.tiny_victim("adult_mlp")
    card = {row.measure: row.value for row in sm.evaluate(victim, [])}
    assert {"AUC", "accuracy", "accuracy, worse sex", "accuracy, worse race"} <= card.keys()
    worse, overall = card["accuracy, worse sex"], card["accuracy"]
    assert worse is not None
    assert overall is not None
    assert worse <= overall
    assert not math.isnan(worse)


@pytest.mark.data
def test_splits_of_the_real_table() -> None:
    task = sm.task("adult_mlp")
    parts = task.draw(0).parts()
    assert [len(part) for part in parts.values()] == [19492, 2000, 16281, 4000, 3000]
    for part in parts.values():
        record().check(part.inputs)


@pytest.mark.data
@pytest.mark.slow
def test_score_on_the_real_table() -> None:
    assert sm.fit(sm.task("adult_mlp"), seed=0, device="cpu").score().value >= 0.915
