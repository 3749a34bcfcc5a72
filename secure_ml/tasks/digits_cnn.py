"""A small convolutional network on scikit-learn's handwritten digits."""

from __future__ import annotations

import torch
from torch import nn

from secure_ml.batch import Splits
from secure_ml.data import split
from secure_ml.errors import require
from secure_ml.task import Recipe, Task
from secure_ml.tasks._digits import digit_images
from secure_ml.threats import Linf


def digits_cnn(*, width: int = 16, tiny: bool = False) -> Task:
    """Handwritten digits 8x8 (1,797 images, embedded in scikit-learn), one convolution and one dense layer.

    Args:
        width: channels of the convolution.
        tiny: 160 of the images, 3 epochs, 2 channels.
    """
    require(width >= 1, f"digits_cnn needs a width of at least 1; given {width}")
    width = 2 if tiny else width

    def build() -> nn.Module:
        convolution = nn.Conv2d(1, width, 4, stride=2, padding=1)
        return nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(width * 16, 10))

    return Task(
        name="digits_cnn",
        build=build,
        data=tiny_digits if tiny else digits,
        threat=Linf(0.1),
        recipe=Recipe(epochs=3 if tiny else 40, batch_size=32, learning_rate=0.1, schedule="cosine"),
        options="tiny=True" if tiny else f"width={width}" if width != 16 else "",
    )


def digits(rng: torch.Generator) -> Splits:
    """Images ``(B, 1, 8, 8)`` in [0, 1]: 597 to train, 100 to validate, 600 to test, 500 for the adversary."""
    return split(digit_images(), rng, validation=100, test=600, aux=500)


def tiny_digits(rng: torch.Generator) -> Splits:
    """The first 160 images."""
    return split(digit_images().take(slice(0, 160)), rng, validation=16, test=40, aux=24)
