"""A small convolutional network on photographs."""

from __future__ import annotations

from functools import partial

from torch import nn

from secure_ml.augmentation import Chain, Crop, Flip
from secure_ml.errors import require
from secure_ml.task import Recipe, Task
from secure_ml.tasks._cifar10 import MEAN, PUBLIC, SPREAD, cifar10, coloured_digits
from secure_ml.tasks._resnet import Standardize
from secure_ml.threats import Linf


def cifar10_cnn(*, epochs: int = 12, tiny: bool = False) -> Task:
    """CIFAR-10 (50,000 and 10,000 images), the three convolutions and two dense layers of TensorFlow's tutorial.

    Args:
        epochs: passes over the training images.
        tiny: 160 images of scikit-learn's digits, enlarged to 22x22 and coloured, 8 channels, 3 epochs.
    """
    require(epochs >= 1, f"cifar10_cnn needs at least 1 epoch; given {epochs}")
    return Task(
        name="cifar10_cnn",
        build=partial(network, 8, 8, 22) if tiny else partial(network, 32, 64, 32),
        data=partial(coloured_digits, 22) if tiny else cifar10,
        threat=Linf(8 / 255),
        recipe=Recipe(
            epochs=3 if tiny else epochs,
            batch_size=20 if tiny else 128,
            optimizer="Adam",
            learning_rate=5e-3 if tiny else 2e-3,
            schedule="cosine",
        ),
        augment=Crop(1) if tiny else Chain((Flip(), Crop(2))),
        assumes=(PUBLIC,),
        options="tiny=True" if tiny else f"epochs={epochs}" if epochs != 12 else "",
    )


def network(first: int, later: int, side: int) -> nn.Module:
    """Images ``(B, 3, side, side)`` to logits ``(B, 10)``; 122,570 parameters for (32, 64, 32)."""
    left = ((side - 2) // 2 - 2) // 2 - 2
    return nn.Sequential(
        Standardize(MEAN, SPREAD),
        nn.Conv2d(3, first, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, later, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(later, later, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(later * left**2, later),
        nn.ReLU(),
        nn.Linear(later, 10),
    )
