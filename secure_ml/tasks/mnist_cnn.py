"""The small convolutional network of the differential-privacy literature."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import nn

from secure_ml.batch import Splits
from secure_ml.data import hold_out, images
from secure_ml.task import Recipe, Task
from secure_ml.tasks.digits_cnn import tiny_digits
from secure_ml.threats import Linf

Activation = Literal["relu", "tanh"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


def mnist_cnn(*, activation: Activation = "relu", tiny: bool = False) -> Task:
    """MNIST (60,000 and 10,000 images), the 26,010-parameter network of https://arxiv.org/abs/2007.14191.

    Args:
        activation: tanh trains better under DP-SGD.
        tiny: 160 images of scikit-learn's digits, enlarged to 28x28, 1 epoch.
    """
    settings = {"activation": (activation, "relu"), "tiny": (tiny, False)}
    return Task(
        name="mnist_cnn",
        build=partial(small_network, activation),
        data=enlarged_digits if tiny else partial(images_28, "MNIST"),
        threat=Linf(0.3),
        recipe=Recipe(
            epochs=1 if tiny else 10,
            batch_size=20 if tiny else 128,
            learning_rate=0.05,
            schedule="cosine",
        ),
        options=", ".join(f"{key}={value!r}" for key, (value, default) in settings.items() if value != default),
    )


def small_network(activation: Activation) -> nn.Module:
    """Two convolutions and two dense layers, 26,010 parameters: images ``(B, 1, 28, 28)`` to logits ``(B, 10)``."""
    bend = ACTIVATIONS[activation]
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, stride=2, padding=3),
        bend(),
        nn.MaxPool2d(2, stride=1),
        nn.Conv2d(16, 32, 4, stride=2),
        bend(),
        nn.MaxPool2d(2, stride=1),
        nn.Flatten(),
        nn.Linear(512, 32),
        bend(),
        nn.Linear(32, 10),
    )


def images_28(data: str, rng: torch.Generator) -> Splits:
    """40,000 to train, 3,000 to validate, 12,000 for the adversary, 5,000 non-members, the official test set."""
    return hold_out(*images(data), rng, validation=3000, aux=12000, others=5000)


def enlarged_digits(rng: torch.Generator) -> Splits:
    """The tiny digits at 28x28."""
    parts = (
        part.map(lambda t: torch.nn.functional.interpolate(t, (28, 28)) if t.ndim == 4 else t)
        for part in tiny_digits(rng).parts().values()
    )
    return Splits(*parts)
