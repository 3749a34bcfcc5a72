"""The smallest network that a single layer cannot replace."""

from __future__ import annotations

import torch
from torch import nn

from secure_ml.batch import Batch, Splits
from secure_ml.errors import require
from secure_ml.scores import AUC
from secure_ml.task import Recipe, Task
from secure_ml.threats import Linf


def xor_perceptron(*, hidden: int = 4, noise: float = 0.2, tiny: bool = False) -> Task:
    """Noisy XOR of two numbers in [0, 1], a perceptron with one hidden layer of sigmoid units, one logit.

    Args:
        hidden: units in the hidden layer.
        noise: scale of the half-normal noise that pulls points inwards from the corners.
        tiny: 64 points, 3 epochs.
    """
    require(hidden >= 1, f"xor_perceptron needs at least 1 hidden unit; given {hidden}")
    require(noise >= 0, f"xor_perceptron needs a noise of at least 0; given {noise}")

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(2, hidden), nn.Sigmoid(), nn.Linear(hidden, 1), nn.Flatten(0))

    def data(rng: torch.Generator) -> Splits:
        sizes = (64, 16, 32, 32) if tiny else (400, 100, 1000, 500)
        return Splits(*(_corners(n, noise, rng) for n in sizes))

    settings = {"hidden": (hidden, 4), "noise": (noise, 0.2), "tiny": (tiny, False)}
    return Task(
        name="xor_perceptron",
        build=build,
        data=data,
        also=(AUC(),),
        threat=Linf(0.1),
        recipe=Recipe(epochs=3 if tiny else 100, batch_size=20, learning_rate=2.0, momentum=0.0),
        options=", ".join(f"{name}={value!r}" for name, (value, default) in settings.items() if value != default),
    )


def _corners(n: int, noise: float, rng: torch.Generator) -> Batch:
    """Points ``(n, 2)`` of the unit square, each inwards of a corner by half-normal noise, and the corner's XOR."""
    corner = torch.randint(2, (n, 2), generator=rng)
    inwards = (1 - 2 * corner) * noise * torch.randn(n, 2, generator=rng).abs()
    return Batch((corner + inwards).clamp(0, 1), corner[:, 0] ^ corner[:, 1])
