"""Convolutions with strides and no pooling, as nets are built whose robustness is to be proved."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from secure_ml.batch import Splits
from secure_ml.data import hold_out, images
from secure_ml.errors import require
from secure_ml.task import Recipe, Task
from secure_ml.tasks.mnist_cnn import enlarged_digits
from secure_ml.threats import Linf


def mnist_strided(*, width: int = 16, hidden: int = 100, epochs: int = 40, tiny: bool = False) -> Task:
    """MNIST (60,000 and 10,000 images), two convolutions and two dense layers (https://arxiv.org/abs/1711.00851).

    Strides instead of pooling keep interval bounds tight and cheap. Of the official training set all but 5,000 train.

    Args:
        width: channels of the first convolution; the second has twice as many.
        hidden: units of the first dense layer.
        epochs: passes over the training data.
        tiny: 160 images of scikit-learn's digits, enlarged to 28x28, 1 epoch, 2 channels, 8 hidden units.
    """
    require(width >= 1, f"mnist_strided needs a width of at least 1; given {width}")
    require(hidden >= 1, f"mnist_strided needs at least 1 hidden unit; given {hidden}")
    settings = {"width": (width, 16), "hidden": (hidden, 100), "epochs": (epochs, 40)}
    options = ", ".join(f"{name}={value!r}" for name, (value, default) in settings.items() if value != default)
    return Task(
        name="mnist_strided",
        build=partial(strided_network, 2, 8) if tiny else partial(strided_network, width, hidden),
        data=enlarged_digits if tiny else most_of_mnist,
        threat=Linf(0.3),
        recipe=Recipe(
            epochs=1 if tiny else epochs,
            batch_size=20 if tiny else 256,
            optimizer="Adam",
            learning_rate=0.02 if tiny else 0.001,
            schedule="cosine",
        ),
        options="tiny=True" if tiny else options,
    )


def strided_network(width: int, hidden: int) -> nn.Module:
    """Images ``(B, 1, 28, 28)`` to logits ``(B, 10)`` through two convolutions of 4x4 with stride 2."""
    return nn.Sequential(
        nn.Conv2d(1, width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * 49, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 10),
    )


def most_of_mnist(rng: torch.Generator) -> Splits:
    """55,000 to train, 3,000 to validate, 1,000 for the adversary, 1,000 non-members, the official test set."""
    return hold_out(*images("MNIST"), rng, validation=3000, aux=1000, others=1000)
