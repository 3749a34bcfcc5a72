"""A network that learned to see elsewhere, and a new last layer on few labels."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secure_ml.augmentation import Chain, Crop, Flip, Rotation, Zoom
from secure_ml.batch import Splits
from secure_ml.data import hold_out, images
from secure_ml.errors import UsageError, require
from secure_ml.identity import identify
from secure_ml.surfaces import Box
from secure_ml.task import Recipe, Task, unchanged
from secure_ml.tasks._cifar10 import MEAN, SPREAD, cifar10, coloured_digits
from secure_ml.tasks._resnet import ResNet, Standardize
from secure_ml.tasks.digits_cnn import tiny_digits
from secure_ml.threats import Linf
from secure_ml.training import fit
from secure_ml.victim import Victim, writable

Body = Literal["frozen", "thawed"]
CACHE = "SECURE_ML_CACHE"
SEED = 0
"""Of the one body that all victims share, whatever their own seed."""


def transfer_resnet18(
    *,
    body: Body = "frozen",
    weights: str = "cifar10",
    width: int = 16,
    side: int = 64,
    examples: int = 1000,
    tiny: bool = False,
) -> Task:
    """Fashion-MNIST from few labels: a ResNet-18 body trained on CIFAR-10, and one new dense layer.

    The body is trained once, on the CPU in about two minutes, and kept under ``SECURE_ML_CACHE``.

    Args:
        body: whether the body stays as it is or is trained on.
        weights: cifar10, random for a body that has learned nothing, or torchvision's name of published ones
            (IMAGENET1K_V1; width 64, with the statistics of their batch normalisation as they are).
        width: channels of the body's first stage; each of the three others doubles them.
        side: pixels along an edge, to which images are enlarged before the body sees them.
        examples: labelled training images, at most 20,000.
        tiny: 160 images of scikit-learn's digits and a body of 4 blocks trained on coloured ones, width 8, 3 epochs.
    """
    require(width >= 1, f"transfer_resnet18 needs a width of at least 1; given {width}")
    require(side >= 8, f"transfer_resnet18 needs a side of at least 8 pixels; given {side}")
    require(1 <= examples <= 20000, f"transfer_resnet18 has 1 to 20000 training examples; given {examples}")
    published = weights not in ("cifar10", "random")
    require(not published or width == 64, f"published weights have width 64; given {width}")
    settings = {
        "body": (body, "frozen"),
        "weights": (weights, "cifar10"),
        "width": (width, 16),
        "side": (side, 64),
        "examples": (examples, 1000),
        "tiny": (tiny, False),
    }
    pool = {"cifar10": ("the body's training data, CIFAR-10, are public",), "random": ()}
    return Task(
        name="transfer_resnet18",
        build=partial(network, body, weights, 8 if tiny and not published else width, 16 if tiny else side, tiny),
        data=tiny_digits if tiny else partial(few_clothes, examples),
        threat=Linf(0.1),
        recipe=_recipe(body, tiny),
        augment=Chain((Flip(), Rotation(10), Zoom(0.1))) if body == "thawed" and not tiny else unchanged,
        chunk=200,
        assumes=pool.get(weights, (f"the body's training data, those of {weights}, are public",)),
        options=", ".join(f"{key}={value!r}" for key, (value, default) in settings.items() if value != default),
    )


def _recipe(body: Body, tiny: bool) -> Recipe:
    rate = 1e-2 if body == "frozen" else 1e-3
    return Recipe(
        epochs=3 if tiny else 30 if body == "frozen" else 20,
        batch_size=20 if tiny else 32,
        optimizer="Adam",
        learning_rate=rate,
        schedule="cosine",
        patience=None if tiny else 10,
    )


class Transfer(nn.Module):
    """A body and a head: grey images ``(B, 1, H, W)`` to logits ``(B, 10)``."""

    def __init__(self, body: nn.Module, features: int, side: int) -> None:
        super().__init__()
        self.body, self.side = body, side
        self.norm = nn.LayerNorm(features, elementwise_affine=False)
        self.head = nn.Linear(features, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the enlarged images, the same in all three colours."""
        size = (self.side, self.side)
        large = F.interpolate(images, size, mode="bilinear")
        return cast("Tensor", self.head(self.norm(self.body(large.expand(-1, 3, *size)))))


def network(body: Body, weights: str, width: int, side: int, tiny: bool) -> nn.Module:
    """The body with a new head; what is frozen has no gradients."""
    if weights == "random":
        trunk = _fresh(width, tiny, 0)
    elif weights == "cifar10":
        trunk = _fresh(width, tiny, 0)
        trunk.load_state_dict(_trained(width, tiny))
    else:
        trunk = _published(weights)
    trunk.requires_grad_(body == "thawed")
    return Transfer(trunk, 8 * width, side)


def few_clothes(examples: int, rng: torch.Generator) -> Splits:
    """So many to train, 1,000 to validate, the official test set, 1,000 for the adversary, 2,000 non-members."""
    parts = hold_out(*images("FashionMNIST"), rng, validation=1000, aux=1000, others=2000)
    return replace(parts, train=parts.train.take(slice(0, examples)))


def _fresh(width: int, tiny: bool, classes: int) -> nn.Module:
    """An untrained body: images ``(B, 3, H, W)`` to ``(B, classes)``, or to features with 0 classes."""
    return nn.Sequential(Standardize(MEAN, SPREAD), ResNet(classes, width=width, blocks=1 if tiny else 2))


def source(width: int, tiny: bool) -> Task:
    """What the body is trained on: 40,000 images of CIFAR-10."""
    return Task(
        name="transfer_resnet18_body",
        build=partial(_fresh, width, tiny, 10),
        data=partial(coloured_digits, 16) if tiny else cifar10,
        surfaces=(Box(),),
        recipe=Recipe(
            epochs=1 if tiny else 8,
            batch_size=20 if tiny else 128,
            optimizer="Adam",
            learning_rate=2e-3,
            schedule="cosine",
        ),
        augment=Crop(1) if tiny else Chain((Flip(), Crop(2))),
        options=f"width={width}, tiny={tiny}",
    )


@lru_cache(maxsize=4)
def _trained(width: int, tiny: bool) -> dict[str, Tensor]:
    """The weights of the trained body without its last layer, on the CPU."""
    task = source(width, tiny)
    victim = fit(task, seed=SEED, device="cpu") if tiny else _kept(task)
    return {name: value for name, value in victim.module.state_dict().items() if ".fc." not in name}


def _kept(task: Task) -> Victim:
    """The body as it was saved, or else trained now and saved for the next time."""
    root = Path(os.environ.get(CACHE) or Path.home() / ".cache" / "secure_ml" / "bodies")
    folder = writable(root) / identify(task)
    with suppress(UsageError):  # never saved, or by a run that was cut off, or from other data
        return Victim.load(folder, task, device="cpu")
    victim = fit(task, seed=SEED, device="cpu")
    victim.save(folder)
    return victim


def _published(weights: str) -> nn.Module:
    """The published ResNet-18 with weights of this name, downloaded where they are not yet there."""
    import torchvision
    from torchvision.ops import FrozenBatchNorm2d

    try:
        chosen = torchvision.models.ResNet18_Weights[weights]
        state = chosen.get_state_dict(progress=False, check_hash=True)
    except KeyError:
        names = ", ".join(torchvision.models.ResNet18_Weights.__members__)
        raise UsageError(f"torchvision has no ResNet-18 weights called {weights!r}; there are: {names}") from None
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f"the weights {weights} are neither in torch's cache nor to be downloaded ({error}): use weights=cifar10"
        ) from None
    net = ResNet(0, norm=FrozenBatchNorm2d)
    net.load_state_dict({name: value for name, value in state.items() if not name.startswith("fc.")})
    return nn.Sequential(Standardize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), net)
