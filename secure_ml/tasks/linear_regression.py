"""A linear model of a real-valued target."""

from __future__ import annotations

import torch
from torch import nn

from secure_ml.batch import Batch, Splits
from secure_ml.data import split
from secure_ml.outputs import Values
from secure_ml.scores import R2, RMSE
from secure_ml.task import Recipe, Task, squared_error
from secure_ml.threats import Linf


def linear_regression(*, tiny: bool = False) -> Task:
    """Progression of diabetes from 10 features (442 patients, embedded in scikit-learn), in hundreds of points.

    Args:
        tiny: 100 of the patients, 3 epochs.
    """
    return Task(
        name="linear_regression",
        build=lambda: nn.Sequential(nn.Linear(10, 1), nn.Flatten(0)),
        data=_tiny if tiny else _patients,
        loss=squared_error,
        output=Values(),
        score=RMSE(),
        also=(R2(),),
        threat=Linf(0.05),
        recipe=Recipe(epochs=3 if tiny else 200, batch_size=32, learning_rate=0.05),
        unit="patient",
        assumes=("scikit-learn's mean and length of each feature over all patients are public",),
        options="tiny=True" if tiny else "",
    )


def _patients(rng: torch.Generator) -> Splits:
    """Features ``(B, 10)`` in [0, 1], targets ``(B,)`` around 0: 192, 30, 120 and 100 patients."""
    return split(_all(), rng, validation=30, test=120, aux=100)


def _tiny(rng: torch.Generator) -> Splits:
    """The first 100 patients."""
    return split(_all().take(slice(0, 100)), rng, validation=10, test=30, aux=20)


def _all() -> Batch:
    """The whole set, scaled by constants: scikit-learn's features lie within 0.2 of 0, the scores within 25 to 346."""
    from sklearn.datasets import load_diabetes

    features, scores = load_diabetes(return_X_y=True)
    inputs = torch.tensor(features, dtype=torch.float32) * 2.5 + 0.5
    return Batch(inputs, (torch.tensor(scores, dtype=torch.float32) - 150) / 100)
