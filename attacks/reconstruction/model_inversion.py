"""Inputs that a classifier is surest of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secure_ml.batch import Batch
from secure_ml.errors import require
from secure_ml.families.reconstruction import Reconstruction
from secure_ml.images import variation
from secure_ml.secrets.prototypes import Prototypes, Weights


@dataclass(frozen=True, kw_only=True)
class ModelInversion(Reconstruction[Weights]):
    """For each class the inputs of highest confidence, MI-FACE (Fredrikson et al. 2015).

    https://doi.org/10.1145/2810103.2813677. Descends the loss of ``(B, *shape)`` inputs in their box by normalised
    steps, with a prior: smoothness between neighbours, and nearness to the mean of the auxiliary data. That an inverted
    input looks like its class is no leakage about anybody: the class's mean looks like it too. So it is judged by
    whether its nearest neighbour is a member rather than one of as many non-members (one half by chance), by the ratio
    of both distances, and by whether an independent model, trained on other data, recognises the class. Raises
    `UsageError` for settings out of range, `NotApplicable` for inputs that are not one box of numbers, or answers that
    are not one class.

    Differs from the paper: steps of a fixed length that falls to 0, in the place of a plain gradient; the prior stands
    in the place of denoising.
    """

    each: int = 4
    """Inputs for each class, from different starts."""
    steps: int = 100
    """Steps of descent."""
    rate: float = 0.05
    """Root mean square of a first step, over the width of the box; it falls to 0 linearly."""
    smooth: float = 0.1
    """Weight of total variation."""
    near: float = 0.1
    """Weight of the mean square distance to the mean of auxiliary data, over the squared width of the box."""

    def __post_init__(self) -> None:
        for name in ("each", "steps"):
            require(getattr(self, name) >= 1, f"ModelInversion needs {name} of at least 1; given {getattr(self, name)}")
        require(self.rate > 0, f"ModelInversion needs a rate above 0; given {self.rate}")
        for name in ("smooth", "near"):
            require(getattr(self, name) >= 0, f"ModelInversion needs {name} of at least 0; given {getattr(self, name)}")

    @property
    def secret(self) -> Prototypes:
        """Some inputs of each class."""
        return Prototypes(each=self.each)

    def recover(self, access: Weights, rng: torch.Generator) -> Tensor:
        """Inverted inputs, ``(classes, each, *shape)``."""
        assert isinstance(access.aux.inputs, Tensor)
        box, mean = access.box, access.aux.inputs.mean(0)
        width, count = box.high - box.low, access.classes * access.each
        labels = torch.arange(access.classes).repeat_interleave(access.each).to(mean.device)
        noise = torch.rand(count, *mean.shape, generator=rng).to(mean)
        inputs = (mean + 0.25 * width * (noise - 0.5)).clamp(box.low, box.high)
        for step in range(self.steps):
            slope = access.ascend(Batch(inputs, labels), box).gradient + self._prior(inputs, mean, width)
            size = slope.flatten(1).square().mean(1).sqrt().clamp(min=1e-12)
            pace = self.rate * width * (1 - step / self.steps)
            inputs = (inputs - pace * slope / size.reshape(-1, *[1] * (slope.ndim - 1))).clamp(box.low, box.high)
        return inputs.reshape(access.classes, access.each, *mean.shape)

    def _prior(self, inputs: Tensor, mean: Tensor, width: float) -> Tensor:
        """The prior's gradient."""
        leaf = inputs.detach().requires_grad_()
        with torch.enable_grad():
            apart = ((leaf - mean) / width).square().flatten(1).mean(1)
            cost = self.near * apart + self.smooth * variation(leaf) / width
            return torch.autograd.grad(cost.sum(), leaf)[0]

    @classmethod
    def tiny(cls) -> ModelInversion:
        """One input a class, three steps."""
        return cls(each=1, steps=3)
