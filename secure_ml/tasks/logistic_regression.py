"""One sigmoid unit."""

from __future__ import annotations

import torch
from torch import nn

from secure_ml.batch import Batch, Splits
from secure_ml.data import scale, split
from secure_ml.scores import AUC
from secure_ml.task import Recipe, Task
from secure_ml.threats import Linf


def logistic_regression(*, tiny: bool = False) -> Task:
    """Breast cancer from 30 features of cell nuclei (569 patients, embedded in scikit-learn), one sigmoid unit.

    Args:
        tiny: 120 of the patients, 3 epochs.
    """
    return Task(
        name="logistic_regression",
        build=lambda: nn.Sequential(nn.Linear(30, 1), nn.Flatten(0)),
        data=_tiny if tiny else _patients,
        also=(AUC(),),
        threat=Linf(0.02),
        recipe=Recipe(epochs=3 if tiny else 100, batch_size=32, learning_rate=1.0, momentum=0.0, schedule="cosine"),
        unit="patient",
        assumes=("the smallest and largest value of each feature are public",),
        options="tiny=True" if tiny else "",
    )


def _patients(rng: torch.Generator) -> Splits:
    """Features ``(B, 30)`` in [0, 1], 1 for benign: 229, 40, 180 and 120 patients."""
    return split(_all(), rng, validation=40, test=180, aux=120)


def _tiny(rng: torch.Generator) -> Splits:
    """The first 120 patients."""
    return split(_all().take(slice(0, 120)), rng, validation=12, test=40, aux=20)


def _all() -> Batch:
    from sklearn.datasets import load_breast_cancer

    features, classes = load_breast_cancer(return_X_y=True)
    return scale(Batch(torch.tensor(features, dtype=torch.float32), torch.tensor(classes)))
