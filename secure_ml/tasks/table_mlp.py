"""A multilayer perceptron on a table of the user's own."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from secure_ml.batch import Batch, Splits
from secure_ml.data import scale, split, table
from secure_ml.errors import require
from secure_ml.outputs import Classes, Values
from secure_ml.scores import RMSE, Accuracy
from secure_ml.task import Recipe, Task, cross_entropy, squared_error
from secure_ml.threats import Linf


def table_mlp(
    *,
    path: str = "",
    target: str = "y",
    bundled: Literal["wine", "breast_cancer"] = "wine",
    drop: tuple[int, ...] = (),
    hidden: int = 32,
    tiny: bool = False,
) -> Task:
    """A CSV or NPZ file of your own (scikit-learn's wine unless given), one hidden layer: classes or real values.

    Args:
        path: a .npz with the arrays x and the target, or a .csv of numbers with a header.
        target: array or column of the target; whole numbers are classes, others are values.
        bundled: the table of scikit-learn's that there is without a path: wine, or breast_cancer.
        drop: columns, counted from 0, that the model never sees.
        hidden: units in the hidden layer.
        tiny: 120 rows, 3 epochs, 4 hidden units.
    """
    require(hidden >= 1, f"table_mlp needs at least 1 hidden unit; given {hidden}")
    hidden = 4 if tiny else hidden
    data = _without(drop, scale(table(path, target) if path else _bundled(bundled)))
    assert isinstance(data.inputs, Tensor)
    assert isinstance(data.target, Tensor)
    classes = int(data.target.max()) + 1 if not data.target.is_floating_point() else 0
    settings = {
        "path": (path, ""),
        "target": (target, "y"),
        "bundled": (bundled, "wine"),
        "drop": (drop, ()),
        "hidden": (hidden, 4 if tiny else 32),
        "tiny": (tiny, False),
    }
    options = ", ".join(f"{name}={value!r}" for name, (value, default) in settings.items() if value != default)
    return Task(
        name="table_mlp",
        build=partial(_build, data.inputs[0].numel(), hidden, classes),
        data=partial(_split, data.take(slice(0, 120)) if tiny else data),
        loss=cross_entropy if classes else squared_error,
        output=Classes() if classes else Values(),
        score=Accuracy() if classes else RMSE(),
        threat=Linf(0.05),
        recipe=Recipe(epochs=3 if tiny else 60, batch_size=16, learning_rate=0.05, schedule="cosine"),
        unit="row",
        assumes=("the smallest and largest value of each feature are public",),
        options=options,
    )


def _build(features: int, hidden: int, classes: int) -> nn.Module:
    """Features ``(B, *shape)`` to logits ``(B, K)`` or values ``(B,)``."""
    last = [nn.Linear(hidden, classes)] if classes else [nn.Linear(hidden, 1), nn.Flatten(0)]
    return nn.Sequential(nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), *last)


def _split(data: Batch, rng: torch.Generator) -> Splits:
    """A tenth to validate, a quarter to test, a quarter for the adversary, the rest to train."""
    n = len(data)
    return split(data, rng, validation=n // 10, test=n // 4, aux=n // 4)


def _without(drop: tuple[int, ...], data: Batch) -> Batch:
    """The rows without some columns; `UsageError` for one that is not there, or where none is left."""
    if not drop:
        return data
    assert isinstance(data.inputs, Tensor)
    width = data.inputs.shape[1]
    require(data.inputs.ndim == 2, f"only rows have columns to drop; an input has shape {tuple(data.inputs.shape[1:])}")
    require(all(0 <= column < width for column in drop), f"columns to drop lie in 0 to {width - 1}; given {drop}")
    left = [column for column in range(width) if column not in drop]
    require(len(left) > 0, f"a row needs at least one column; all {width} were dropped")
    return Batch(data.inputs[:, left], data.target)


def _bundled(name: str) -> Batch:
    """A table that comes with scikit-learn, in an order of its own."""
    from sklearn.datasets import load_breast_cancer, load_wine

    load = {"wine": load_wine, "breast_cancer": load_breast_cancer}
    require(name in load, f"the tables at hand are wine and breast_cancer; given {name!r}")
    features, classes = load[name](return_X_y=True)
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    return Batch(torch.tensor(features, dtype=torch.float32)[order], torch.tensor(classes)[order])
