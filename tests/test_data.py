"""Data sets that are not embedded, and the scores that their tasks reach."""

import os
from pathlib import Path

import pytest
import torch

import secure_ml as sm
from secure_ml import data
from secure_ml.batch import Batch


def test_hashed_tokens_are_fixed_beforehand() -> None:
    tokens = data.hashed_tokens(["A good film", "", "good " * 9], 100, 5)
    assert tokens.shape == (3, 5)
    assert tokens[0, 1] == tokens[2, 0] == 96
    assert tokens[1].eq(0).all()
    assert tokens.max() < 100
    assert tokens[0, :3].min() >= 1


def test_split_is_a_partition() -> None:
    whole = Batch(torch.arange(50.0)[:, None], torch.arange(50))
    parts = data.split(whole, torch.Generator().manual_seed(0), validation=5, test=10, aux=15)
    assert [len(part) for part in parts.parts().values()] == [20, 5, 10, 15]
    assert torch.cat([part.target for part in parts.parts().values()]).sort().values.tolist() == list(range(50))
    with pytest.raises(sm.UsageError, match="50 examples are too few to hold out 60"):
        data.split(whole, torch.Generator(), validation=20, test=20, aux=20)


def test_missing_numbers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "gap.csv").write_text("a,y\n1,0\n,1\n")
    with pytest.raises(sm.UsageError, match="cannot be read as a data set"):
        data.table(tmp_path / "gap.csv")
    (tmp_path / "ragged.csv").write_text("a,y\n1,0\n1\n")
    with pytest.raises(sm.UsageError, match="cannot be read as a data set"):
        data.table(tmp_path / "ragged.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(sm.UsageError, match="cannot be read as a data set"):
        data.table(tmp_path / "empty.csv")


def test_real_targets_make_a_regression(tmp_path: Path) -> None:
    lines = ["a,b,y", *(f"{i},{i % 7},{i * 0.5}" for i in range(60))]
    (tmp_path / "line.csv").write_text("\n".join(lines))
    task = sm.task("table_mlp", path=str(tmp_path / "line.csv"))
    assert task.score.name == "RMSE"
    assert sm.fit(task, device="cpu").score().value < 10


@pytest.mark.data
def test_mnist_splits() -> None:
    parts = sm.task("mnist_cnn").draw(0)
    assert [len(part) for part in parts.parts().values()] == [40000, 3000, 10000, 12000, 5000]
    assert parts.train.inputs.shape[1:] == (1, 28, 28)


def test_the_network_of_the_literature() -> None:
    assert sum(p.numel() for p in sm.task("mnist_cnn").build().parameters()) == 26_010


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"),
    [("mnist_cnn", 0.985), ("mnist_mlp", 0.97), ("fashion_mnist_cnn", 0.91), ("text_embedding", 0.77)],
)
def test_scores_on_real_data(name: str, least: float) -> None:
    assert (Path(os.environ[data.VARIABLE])).exists()
    assert sm.fit(sm.task(name), seed=0, device="cpu").score().value >= least
