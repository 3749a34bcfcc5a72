"""A residual network on photographs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from secure_ml.augmentation import Chain, Crop, Flip
from secure_ml.batch import Splits
from secure_ml.errors import require
from secure_ml.task import Recipe, Task
from secure_ml.tasks._cifar10 import MEAN, PUBLIC, SPREAD, cifar10, coloured_digits
from secure_ml.tasks._resnet import ResNet, Standardize
from secure_ml.threats import Linf


def cifar10_resnet18(*, width: int = 64, epochs: int = 60, examples: int = 40000, tiny: bool = False) -> Task:
    """CIFAR-10 (50,000 and 10,000 images), ResNet-18 with group normalisation and a first layer for small images.

    The recipe is one for a GPU; ``width=16, epochs=4, examples=10000`` takes two minutes without.

    Args:
        width: channels of the first stage; each of the three others doubles them.
        epochs: passes over the training images.
        examples: training images, at most 40,000.
        tiny: 160 images of scikit-learn's digits, enlarged to 16x16 and coloured, 4 blocks, width 8, 3 epochs.
    """
    require(width >= 1, f"cifar10_resnet18 needs a width of at least 1; given {width}")
    require(epochs >= 1, f"cifar10_resnet18 needs at least 1 epoch; given {epochs}")
    require(1 <= examples <= 40000, f"cifar10_resnet18 has 1 to 40000 training examples; given {examples}")
    settings = {"width": (width, 64), "epochs": (epochs, 60), "examples": (examples, 40000)}
    options = ", ".join(f"{name}={value!r}" for name, (value, default) in settings.items() if value != default)
    return Task(
        name="cifar10_resnet18",
        build=partial(network, 8, 1) if tiny else partial(network, width, 2),
        data=partial(coloured_digits, 16) if tiny else partial(first, examples),
        threat=Linf(8 / 255),
        recipe=Recipe(
            epochs=3 if tiny else epochs,
            batch_size=20 if tiny else 128,
            learning_rate=0.05,
            weight_decay=5e-4,
            schedule="cosine",
            patience=None if tiny else 15,
        ),
        augment=Crop(1) if tiny else Chain((Flip(), Crop(4))),
        chunk=200,
        assumes=(PUBLIC,),
        options="tiny=True" if tiny else options,
    )


def network(width: int, blocks: int) -> nn.Module:
    """Images ``(B, 3, H, W)`` to logits ``(B, 10)``."""
    return nn.Sequential(Standardize(MEAN, SPREAD), ResNet(10, width=width, stem="cifar", blocks=blocks))


def first(examples: int, rng: torch.Generator) -> Splits:
    """The splits of CIFAR-10 with so many of the training images only."""
    parts = cifar10(rng)
    return replace(parts, train=parts.train.take(slice(0, examples)))
