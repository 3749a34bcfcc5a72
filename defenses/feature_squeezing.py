"""Inputs with fewer levels, and neighbours alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defenses._probe import box_of
from defenses._wrappers import Preprocessed
from secure_ml.defense import Defense
from secure_ml.errors import require, unknown
from secure_ml.task import Task

Smoothing = Literal["median", "mean"]


@dataclass(frozen=True, kw_only=True)
class FeatureSqueezing(Defense):
    """A weak baseline: squeezed inputs (Xu et al. 2018, https://arxiv.org/abs/1704.01155), kept to be broken.

    Inputs ``(B, *shape)`` are rounded to ``bits`` bits per unit, and images ``(B, C, H, W)`` then smoothed over a
    window, in training as in use. Rounding has no gradient: an attack that follows the module's stays where it started
    and reports robustness that is not there. ``BPDA(module.transform, module.inner)`` takes it away (Athalye et al.
    2018, https://arxiv.org/abs/1802.00420; docs/adaptive-attacks.md). Covers: changes smaller than half a level that
    are not chosen with the grid in view. Does not cover: anybody who knows of it; other risks.

    Differs from the paper: answers are those to squeezed inputs; nothing is detected by comparing them with others.
    Raises `NotApplicable` for inputs without real numbers, `UsageError` for settings out of range.
    """

    bits: int | None = 5
    """Rounded to a grid of ``2**bits`` levels from 0 to 1 (the paper's for colour images; 1 for MNIST); None: not."""
    window: int = 2
    """Side, in pixels, of the square that an image is smoothed over, 1 to 3; 1 does not smooth."""
    smoothing: Smoothing = "median"
    """What is taken of a square: its median (the upper of two) or its mean."""

    def __post_init__(self) -> None:
        require(
            self.bits is None or 1 <= self.bits <= 16,
            f"feature squeezing needs 1 to 16 bits, or None; given {self.bits}",
        )
        require(1 <= self.window <= 3, f"feature squeezing needs a window of 1 to 3 pixels; given {self.window}")
        if self.smoothing not in get_args(Smoothing):
            raise unknown("smoothing", self.smoothing, get_args(Smoothing))

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` unless there are real numbers to squeeze, right before the module."""
        box_of(task, "FeatureSqueezing")

    def adapt(self, module: nn.Module) -> nn.Module:
        """The module behind the squeezers."""
        return Preprocessed(Squeeze(self.bits, self.window, self.smoothing), module)

    @classmethod
    def tiny(cls) -> FeatureSqueezing:
        """Three bits."""
        return cls(bits=3)

    @classmethod
    def neutral(cls) -> FeatureSqueezing:
        """All levels, and no window."""
        return cls(bits=None, window=1)


@dataclass(frozen=True)
class Squeeze:
    """Rounding, then smoothing of images."""

    bits: int | None
    window: int
    smoothing: Smoothing

    def __call__(self, values: Tensor) -> Tensor:
        """Squeezed values of the same shape."""
        if self.bits is not None:
            steps = 2**self.bits - 1
            values = (values * steps).round() / steps
        return self._smooth(values) if self.window > 1 and values.ndim == 4 else values

    def _smooth(self, images: Tensor) -> Tensor:
        """Each pixel from the window around it (of two pixels: itself and the one before); edges are repeated."""
        before, after = self.window // 2, (self.window - 1) // 2
        padded = F.pad(images, (before, after, before, after), mode="replicate")
        squares = padded.unfold(2, self.window, 1).unfold(3, self.window, 1).flatten(4)
        if self.smoothing == "mean":
            return squares.mean(4)
        return torch.sort(squares, dim=4).values[..., self.window**2 // 2]
