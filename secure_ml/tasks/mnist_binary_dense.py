"""One dense layer that looks for a rare class."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from secure_ml.batch import Batch, Splits
from secure_ml.data import hold_out, images, split
from secure_ml.errors import require
from secure_ml.scores import AUC, F1
from secure_ml.task import Predictor, Recipe, Task, cross_entropy
from secure_ml.tasks._digits import digit_images
from secure_ml.threats import Linf

Data = Literal["fashion", "mnist"]
SETS: dict[Data, tuple[str, int, int]] = {"fashion": ("FashionMNIST", 0, 6), "mnist": ("MNIST", 4, 9)}
"""torchvision's name, the common class and the rare one: T-shirts and shirts, fours and nines."""


def mnist_binary_dense(*, data: Data = "fashion", rare_weight: float = 1.0, tiny: bool = False) -> Task:
    """One class in ten of another (about 6,600 and 1,100 images 28x28), one hidden layer, one sigmoid unit.

    Args:
        data: shirts among T-shirts of Fashion-MNIST, or nines among fours of MNIST.
        rare_weight: how much the loss of an example of the rare class counts.
        tiny: 160 images of scikit-learn's digits, nines among fours, 8 hidden units, 3 epochs.
    """
    require(0 < rare_weight < float("inf"), f"mnist_binary_dense needs a finite weight above 0; given {rare_weight}")
    settings = {"data": (data, "fashion"), "rare_weight": (rare_weight, 1.0)}
    options = ", ".join(f"{name}={value!r}" for name, (value, default) in settings.items() if value != default)
    return Task(
        name="mnist_binary_dense",
        build=partial(network, 64, 8) if tiny else partial(network, 784, 128),
        data=tiny_pair if tiny else partial(pair, data),
        loss=partial(weighted, rare_weight),
        score=AUC(),
        also=(F1(),),
        threat=Linf(0.1),
        recipe=Recipe(
            epochs=3 if tiny else 30,
            batch_size=20 if tiny else 64,
            learning_rate=0.1 if tiny else 0.05,
            schedule="cosine",
        ),
        options="tiny=True" if tiny else options,
    )


def network(inputs: int, hidden: int) -> nn.Module:
    """Images ``(B, 1, H, W)`` of so many pixels to one logit ``(B,)``."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(hidden, 1),
        nn.Flatten(0),
    )


def weighted(rare_weight: float, predictor: Predictor, batch: Batch) -> Tensor:
    """Binary cross-entropy ``(B,)``, of the rare class so many times."""
    losses = cross_entropy(predictor, batch)
    assert isinstance(batch.target, Tensor)
    return torch.where(batch.target == 1, losses * rare_weight, losses)


def pair(data: Data, rng: torch.Generator) -> Splits:
    """4,500 to train, 600 to validate, 900 for the adversary, 600 non-members, the two classes of the test set.

    In each official set the first of the rare class are kept, one for ten of the common one.
    """
    name, common, rare = SETS[data]
    train, test = (thin(part, common, rare, 10) for part in images(name))
    return hold_out(train, test, rng, validation=600, aux=900, others=600)


def tiny_pair(rng: torch.Generator) -> Splits:
    """160 fours and nines, one nine for three fours."""
    return split(thin(digit_images(), 4, 9, 3).take(slice(0, 160)), rng, validation=16, test=40, aux=24)


def thin(data: Batch, common: int, rare: int, times: int) -> Batch:
    """The examples of two classes, 0 and 1 from now on, the common one that many times as frequent."""
    assert isinstance(data.target, Tensor)
    is_common, is_rare = data.target == common, data.target == rare
    kept = is_common | (is_rare & (is_rare.cumsum(0) <= int(is_common.sum()) // times))
    return Batch(data.take(kept).inputs, is_rare[kept].long())
