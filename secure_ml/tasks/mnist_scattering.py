"""Fixed features under one dense layer: what differential privacy leaves of MNIST is then almost all."""

from __future__ import annotations

from functools import cache, partial
from typing import Literal

import torch
from torch import Tensor, nn

from secure_ml.batch import Batch, Splits
from secure_ml.data import hold_out, images
from secure_ml.scattering import CHANNELS, scatter
from secure_ml.surfaces import Box
from secure_ml.task import Recipe, Task
from secure_ml.tasks.mnist_cnn import enlarged_digits
from secure_ml.threats import Linf

Data = Literal["MNIST", "FashionMNIST"]
SCALE = 10.0
"""Brings the features of order 2, about 0.01, well above what keeps a normalisation from dividing by 0."""
CHUNK = 50
"""Images whose wavelets fit into a processor's cache."""


def mnist_scattering(*, data: Data = "MNIST", groups: int = 27, whole: bool = False, tiny: bool = False) -> Task:
    """MNIST or Fashion-MNIST as scattering coefficients (https://arxiv.org/abs/2011.11660), one dense layer on top.

    The examples are the features, 81 channels of 7x7, computed once: a change is one of the features, not of an image.

    Args:
        data: MNIST or FashionMNIST.
        groups: of channels, each brought to mean 0 and spread 1 in every example; must divide 81.
        whole: train on 56,000 images; the adversary and the non-members keep 500 each.
        tiny: 160 images of scikit-learn's digits, enlarged to 28x28, 1 epoch.
    """
    settings = {"data": (data, "MNIST"), "groups": (groups, 27), "whole": (whole, False), "tiny": (tiny, False)}
    return Task(
        name="mnist_scattering",
        build=partial(head, groups),
        data=_tiny if tiny else partial(features, data, held=500 if whole else None),
        surfaces=(Box(-1.0, 20.0),),
        threat=Linf(0.05),
        recipe=Recipe(epochs=1 if tiny else 10, batch_size=20 if tiny else 128, learning_rate=0.05, schedule="cosine"),
        options=", ".join(f"{key}={value!r}" for key, (value, default) in settings.items() if value != default),
    )


def head(groups: int) -> nn.Module:
    """Normalised features and one dense layer: ``(B, 81, 7, 7)`` to logits ``(B, 10)``; 39,700 parameters."""
    return nn.Sequential(nn.GroupNorm(groups, CHANNELS, affine=False), nn.Flatten(), nn.Linear(49 * CHANNELS, 10))


def features(data: str, rng: torch.Generator, held: int | None = None) -> Splits:
    """The splits of `images_28`, as features."""
    aux, others = (12000, 5000) if held is None else (held, held)
    return hold_out(*_scattered(data), rng, validation=3000, aux=aux, others=others)


@cache
def _scattered(data: str) -> tuple[Batch, Batch]:
    train, test = images(data)
    return train.map(_features), test.map(_features)


def _features(values: Tensor) -> Tensor:
    return torch.cat([SCALE * scatter(piece) for piece in values.split(CHUNK)]) if values.ndim == 4 else values


def _tiny(rng: torch.Generator) -> Splits:
    return Splits(*(part.map(_features) for part in enlarged_digits(rng).parts().values()))
