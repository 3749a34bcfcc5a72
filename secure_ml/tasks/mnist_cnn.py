"""The small convolutional network of the differential-privacy literature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from secure_ml.batch import Splits
from secure_ml.data import hold_out, images
from secure_ml.errors import require
from secure_ml.task import Recipe, Task
from secure_ml.tasks._resnet import Standardize
from secure_ml.tasks._upright import Upright
from secure_ml.tasks.digits_cnn import tiny_digits
from secure_ml.threats import Linf

Activation = Literal["relu", "tanh"]
Net = Literal["small", "standardized", "threshold", "lenet", "upright"]
RECIPES: dict[Net, Recipe] = {
    "small": Recipe(epochs=10, batch_size=128, learning_rate=0.05, schedule="cosine"),
    "standardized": Recipe(epochs=10, batch_size=128, learning_rate=0.05, schedule="cosine"),
    "upright": Recipe(epochs=10, batch_size=128, learning_rate=0.05, schedule="cosine"),
    "lenet": Recipe(epochs=10, batch_size=128, learning_rate=0.05, schedule="cosine"),
    "threshold": Recipe(epochs=25, batch_size=128, optimizer="Adam", learning_rate=2e-3, schedule="cosine"),
}
MOST = 28_000
"""Examples of a subset with as many non-members: the adversary keeps a thousand at least."""
ACTIVATIONS: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


def mnist_cnn(
    *,
    activation: Activation = "relu",
    net: Net = "small",
    whole: bool = False,
    examples: int | None = None,
    aux: int | None = None,
    tiny: bool = False,
) -> Task:
    """MNIST (60,000 and 10,000 images), the 26,010-parameter network of https://arxiv.org/abs/2007.14191.

    Args:
        activation: tanh trains better under DP-SGD.
        net: small; standardized, the same on pixels of mean 0 and spread 1; threshold, 419,546 weights behind a soft
            threshold on each pixel, for adversarial training; lenet, the 61,706 weights of LeNet-5; or upright, 14,394
            weights on digits that are centred and made upright first, for DP-SGD.
        whole: train on 56,000 images; the adversary and the non-members keep 500 each.
        examples: train on so many images; as many are non-members, and the adversary has the rest but for 3,000.
        aux: give the adversary so many images; 1,000 are non-members, and the rest but for 3,000 is for training.
        tiny: 160 images of scikit-learn's digits, enlarged to 28x28, 1 epoch.
    """
    require(examples is None or not whole, "mnist_cnn trains on the whole set or on a number of examples, not both")
    require(
        examples is None or 1 <= examples <= MOST,
        f"mnist_cnn can train on 1 to {MOST:,} examples with as many non-members; given {examples}",
    )
    require(
        aux is None or (not whole and examples is None and 1 <= aux <= 2 * MOST - 1000),
        f"mnist_cnn gives the adversary 1 to {2 * MOST - 1000:,} images, unless whole or examples says so; given {aux}",
    )
    settings = {
        "activation": (activation, "relu"),
        "net": (net, "small"),
        "whole": (whole, False),
        "examples": (examples, None),
        "aux": (aux, None),
        "tiny": (tiny, False),
    }
    return Task(
        name="mnist_cnn",
        build=partial(NETWORKS[net], activation),
        data=enlarged_digits
        if tiny
        else partial(images_28, "MNIST", held=500 if whole else None, examples=examples, given=aux),
        threat=Linf(0.3),
        recipe=replace(RECIPES[net], epochs=1, batch_size=20) if tiny else RECIPES[net],
        assumes=("mean and spread of the pixels of MNIST are public",) if net in ("standardized", "upright") else (),
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


def standardized_network(activation: Activation, mean: float = 0.1307, spread: float = 0.3081) -> nn.Module:
    """The same network on pixels less their mean over their spread."""
    return nn.Sequential(Standardize((mean,), (spread,)), *small_network(activation).children())


def upright_network(activation: Activation) -> nn.Module:
    """The shallow network on upright digits."""
    return nn.Sequential(Upright(), *shallow_network(activation).children())


def shallow_network(activation: Activation, mean: float = 0.1307, spread: float = 0.3081) -> nn.Module:
    """Standardized pixels, two convolutions and one dense layer: fewer weights carry less noise."""
    convolutions = list(small_network(activation).children())[:6]
    return nn.Sequential(Standardize((mean,), (spread,)), *convolutions, nn.Flatten(), nn.Linear(512, 10))


class SoftThreshold(nn.Module):
    """Inputs in [0, 1], pushed towards the nearer end: a sigmoid of this slope, in the middle between both."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, inputs: Tensor) -> Tensor:
        """The same shape, in (0, 1)."""
        return torch.sigmoid(self.slope * (inputs - 0.5))

    def extra_repr(self) -> str:
        """The slope."""
        return str(self.slope)


def threshold_network(activation: Activation) -> nn.Module:
    """A soft threshold, two strided convolutions, two dense layers: images ``(B, 1, 28, 28)`` to logits ``(B, 10)``.

    Pixels are nearly black or nearly white, and a change of 0.3 takes few of them across the middle. Nets that survive
    such changes end with filters that do this; here none of the training is spent on finding them.
    """
    bend = ACTIVATIONS[activation]
    return nn.Sequential(
        SoftThreshold(30.0),
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        bend(),
        nn.Conv2d(16, 64, 4, stride=2, padding=1),
        bend(),
        nn.Flatten(),
        nn.Linear(3136, 128),
        bend(),
        nn.Linear(128, 10),
    )


def lenet(activation: Activation) -> nn.Module:
    """LeNet-5 (LeCun et al. 1998, https://doi.org/10.1109/5.726791): ``(B, 1, 28, 28)`` to logits ``(B, 10)``."""
    bend = ACTIVATIONS[activation]
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        bend(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        bend(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        bend(),
        nn.Linear(120, 84),
        bend(),
        nn.Linear(84, 10),
    )


NETWORKS: dict[Net, Callable[[Activation], nn.Module]] = {
    "small": small_network,
    "standardized": standardized_network,
    "threshold": threshold_network,
    "lenet": lenet,
    "upright": upright_network,
}


def images_28(
    data: str,
    rng: torch.Generator,
    held: int | None = None,
    examples: int | None = None,
    given: int | None = None,
) -> Splits:
    """40,000 to train, 3,000 to validate, 12,000 for the adversary, 5,000 non-members, the official test set.

    Where a number is given, only so many are held back for the adversary, and so many as non-members. Where a number of
    ``examples`` is given, so many are for training, so many are non-members, and what is left is for the adversary;
    where a number for the adversary is ``given``, 1,000 are non-members, and what is left is for training.
    """
    if given is not None:
        return hold_out(*images(data), rng, validation=3000, aux=given, others=1000)
    if examples is not None:
        train, test = images(data)
        return hold_out(train, test, rng, validation=3000, aux=len(train) - 3000 - 2 * examples, others=examples)
    aux, others = (12000, 5000) if held is None else (held, held)
    return hold_out(*images(data), rng, validation=3000, aux=aux, others=others)


def enlarged_digits(rng: torch.Generator) -> Splits:
    """The tiny digits at 28x28."""
    parts = (
        part.map(lambda t: torch.nn.functional.interpolate(t, (28, 28)) if t.ndim == 4 else t)
        for part in tiny_digits(rng).parts().values()
    )
    return Splits(*parts)
