"""A small convolutional network on pictures of clothes."""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import nn

from secure_ml.augmentation import Flip
from secure_ml.task import Recipe, Task, unchanged
from secure_ml.tasks._resnet import Standardize
from secure_ml.tasks.mnist_cnn import (
    ACTIVATIONS,
    Activation,
    enlarged_digits,
    images_28,
    shallow_network,
    small_network,
    standardized_network,
)
from secure_ml.threats import Linf

Network = Literal["wide", "literature", "standardized", "shallow"]
PIXELS = (0.286, 0.353)
"""Mean and spread."""


def fashion_mnist_cnn(
    *, network: Network = "wide", activation: Activation = "relu", whole: bool = False, tiny: bool = False
) -> Task:
    """Fashion-MNIST (60,000 and 10,000 images), two convolutions and two dense layers.

    Args:
        network: wide has 225,034 parameters, and half of its training images are mirrored; literature is the
            26,010-parameter network of https://arxiv.org/abs/2007.14191, trained as in mnist_cnn; standardized is that
            one on pixels of mean 0 and spread 1; shallow is that one without its hidden dense layer, 14,394 weights,
            for DP-SGD.
        activation: tanh trains better under DP-SGD.
        whole: train on 56,000 images; the adversary and the non-members keep 500 each.
        tiny: 160 images of scikit-learn's digits, enlarged to 28x28, 1 epoch, 8 channels where the network is wide.
    """
    wide = network == "wide"
    settings = {
        "network": (network, "wide"),
        "activation": (activation, "relu"),
        "whole": (whole, False),
        "tiny": (tiny, False),
    }
    return Task(
        name="fashion_mnist_cnn",
        build={
            "wide": partial(wide_network, activation, 8 if tiny else 32),
            "literature": partial(small_network, activation),
            "standardized": partial(standardized_network, activation, *PIXELS),
            "shallow": partial(shallow_network, activation, *PIXELS),
        }[network],
        data=enlarged_digits if tiny else partial(images_28, "FashionMNIST", held=500 if whole else None),
        threat=Linf(0.1),
        recipe=Recipe(
            epochs=1 if tiny else 16 if wide else 10,
            batch_size=20 if tiny else 128,
            optimizer="Adam" if wide else "SGD",
            learning_rate=2e-3 if wide else 0.05,
            schedule="cosine",
        ),
        augment=Flip() if wide and not tiny else unchanged,
        assumes=("mean and spread of the pixels of Fashion-MNIST are public",) if network != "literature" else (),
        options=", ".join(f"{key}={value!r}" for key, (value, default) in settings.items() if value != default),
    )


def wide_network(activation: Activation, width: int) -> nn.Module:
    """Two 3x3 convolutions and two dense layers: images ``(B, 1, 28, 28)`` to logits ``(B, 10)``."""
    bend = ACTIVATIONS[activation]
    return nn.Sequential(
        Standardize(PIXELS[:1], PIXELS[1:]),
        nn.Conv2d(1, width, 3),
        bend(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3),
        bend(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(50 * width, 4 * width),
        bend(),
        nn.Linear(4 * width, 10),
    )
