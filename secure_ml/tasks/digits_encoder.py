"""An encoder: images to vectors in which those of one kind lie together, and no class is ever named."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secure_ml.batch import Batch, Tree
from secure_ml.errors import require
from secure_ml.outputs import Values
from secure_ml.scores import Accuracy
from secure_ml.task import Predictor, Recipe, Task
from secure_ml.tasks.digits_cnn import digits, tiny_digits
from secure_ml.threats import Linf

CLASSES = 10
SHARPNESS = 16.0
"""By how much cosines are multiplied before they are compared: the inverse of a temperature."""


def digits_encoder(*, width: int = 32, tiny: bool = False) -> Task:
    """Embeddings of handwritten digits 8x8 (1,797 images): unit vectors, trained towards a fixed one for each digit.

    What is served is the vector, as by a feature service; the fixed directions are orthogonal and public
    (Hoffer et al. 2018, https://arxiv.org/abs/1801.04540). The score is the share of digits nearest to their own.

    Args:
        width: length of a vector, 10 at least.
        tiny: 160 of the images, 8 epochs in batches of 16, 4 channels, vectors of length 10.
    """
    require(width >= CLASSES, f"digits_encoder needs a width of at least {CLASSES}; given {width}")
    length, channels = (CLASSES, 4) if tiny else (width, 16)
    return Task(
        name="digits_encoder",
        build=partial(Encoder, channels, length),
        data=tiny_digits if tiny else digits,
        loss=towards_its_own,
        output=Values(),
        score=NearestDirection(),
        threat=Linf(0.1),
        recipe=Recipe(
            epochs=8 if tiny else 30,
            batch_size=16 if tiny else 32,
            optimizer="Adam",
            learning_rate=1e-2 if tiny else 3e-3,
            schedule="cosine",
        ),
        options="tiny=True" if tiny else f"width={width}" if width != 32 else "",
    )


class Encoder(nn.Module):
    """One convolution and one dense layer: images ``(B, 1, 8, 8)`` to unit vectors ``(B, D)``."""

    def __init__(self, channels: int, length: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, channels, 4, stride=2, padding=1)
        self.output = nn.Linear(16 * channels, length)

    def forward(self, images: Tensor) -> Tensor:
        """Vectors of length 1."""
        return F.normalize(self.output(self.convolution(images).relu().flatten(1)), dim=1)


def towards_its_own(predictor: Predictor, batch: Batch) -> Tensor:
    """Cross-entropy ``(B,)`` in nats of the cosines of vectors ``(B, D)`` with the direction of each class."""
    vectors = predictor(batch.inputs)
    assert isinstance(batch.target, Tensor)
    return F.cross_entropy(
        SHARPNESS * vectors @ directions(vectors.shape[1]).to(vectors).T, batch.target, reduction="none"
    )


@cache
def directions(width: int) -> Tensor:
    """Orthogonal unit vectors ``(10, width)``, always the same."""
    noise = torch.randn(width, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found: Tensor = torch.linalg.qr(noise).Q.T.contiguous()
    return found


@dataclass(frozen=True)
class NearestDirection(Accuracy):
    """Share of vectors ``(B, D)`` that lie nearest to the direction of their own class ``(B,)``."""

    def per_example(self, outputs: Tensor, target: Tree) -> Tensor:
        """1 where the nearest direction is that of the class, 0 elsewhere."""
        return super().per_example(outputs @ directions(outputs.shape[1]).to(outputs).T, target)
