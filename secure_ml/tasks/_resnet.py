"""ResNet-18 as torchvision names and wires it, of any width, and with nothing that is changed in place.

Opacus' hooks see a layer's output, which torchvision's own blocks overwrite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

Stem = Literal["cifar", "imagenet"]


class Standardize(nn.Module):
    """Images ``(B, C, H, W)`` less a mean and over a spread for each of their colours."""

    mean: Tensor
    spread: Tensor

    def __init__(self, mean: Sequence[float], spread: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("spread", torch.tensor(spread)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images around 0."""
        return (images - self.mean) / self.spread


def group_norm(channels: int) -> nn.Module:
    """Normalisation within an example, in groups of at least 8 channels, at most 32 of them."""
    return nn.GroupNorm(max(1, min(32, channels // 8)), channels)


class Block(nn.Module):
    """Two convolutions and a way around them: ``(B, inputs, H, W)`` to ``(B, outputs, H / stride, W / stride)``."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = norm(outputs)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = norm(outputs)
        around = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))
        self.downsample = around if stride > 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """What the convolutions add to their input."""
        around = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return cast("Tensor", self.relu(self.bn2(self.conv2(out)) + around))


class ResNet(nn.Module):
    """Images ``(B, 3, H, W)`` to logits ``(B, classes)``, or to features ``(B, 8 * width)`` with 0 classes.

    The stem is torchvision's (7x7 with stride 2, then pooling), or for images of 32x32 pixels one 3x3 convolution.
    """

    def __init__(
        self,
        classes: int,
        *,
        width: int = 64,
        stem: Stem = "imagenet",
        norm: Callable[[int], nn.Module] = group_norm,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        large = stem == "imagenet"
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False) if large else nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = norm(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        self.layer1 = _stage(width, width, 1, norm, blocks)
        self.layer2 = _stage(width, 2 * width, 2, norm, blocks)
        self.layer3 = _stage(2 * width, 4 * width, 2, norm, blocks)
        self.layer4 = _stage(4 * width, 8 * width, 2, norm, blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, classes) if classes else nn.Identity()
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits, or features."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return cast("Tensor", self.fc(self.avgpool(x).flatten(1)))


def _stage(inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module], blocks: int) -> nn.Sequential:
    first = Block(inputs, outputs, stride, norm)
    return nn.Sequential(first, *(Block(outputs, outputs, 1, norm) for _ in range(blocks - 1)))
