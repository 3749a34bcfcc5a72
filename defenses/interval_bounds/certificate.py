"""The largest radius that bounds can prove, for each example."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from defenses.interval_bounds.chain import chain_of
from defenses.interval_bounds.layers import Layer
from defenses.interval_bounds.propagate import Bounds, ball, boxes, margins
from secure_ml.batch import Batch
from secure_ml.certificate import Certificate
from secure_ml.errors import UsageError
from secure_ml.modes import evaluating
from secure_ml.outputs import Classes
from secure_ml.surfaces import Box
from secure_ml.threats import Ball, Linf

PAD = 2.0**-20
"""By how much inputs may lie outside the ball by rounding, of the radius and of the box's width."""


@dataclass(frozen=True, eq=False)
class IntervalCertificate(Certificate):
    """Linf radii from interval and CROWN bounds: proofs about the module in floating-point arithmetic.

    Bounds are computed in double precision and widened by what sums in the module's own precision may lose, in
    whatever order they are added. (Convolutions by other algorithms than sums of products are not covered.)
    """

    module: nn.Module
    surface: Box
    first: float
    """The radius that is tried first, in the unit of the box: it is met exactly, those around it by bisection."""
    bounds: Bounds = "crown"
    steps: int = 12
    """Halvings; the last radius proved is kept, so that fewer steps never prove too much."""
    norm: type[Ball] = Linf
    alpha: float = 0.0

    def radii(self, batch: Batch, rng: torch.Generator) -> Tensor:
        """The certified radius of each example, ``(B,)``; -1 where the answer is wrong. Draws nothing."""
        assert isinstance(batch.inputs, Tensor)
        assert isinstance(batch.target, Tensor)
        inputs = batch.inputs
        with torch.no_grad():
            chain, unit = chain_of(deepcopy(self.module).double()), rounding_unit(self.module, inputs)
            right = self._right(chain, unit, batch)
            clean, target, width = inputs.double(), batch.target, self.surface.high - self.surface.low
            low = torch.zeros(len(inputs), dtype=torch.double, device=inputs.device)
            high = torch.full_like(low, width)
            middle = torch.full_like(low, min(self.first, width))
            for _ in range(self.steps + 1):
                proved = self._proved(chain, unit, clean, target, middle)
                low, high = torch.where(proved, middle, low), torch.where(proved, high, middle)
                middle = (low + high) / 2
        return torch.where(right, low, -1.0).to(inputs.dtype)

    def _proved(self, chain: list[Layer], unit: float, clean: Tensor, target: Tensor, radius: Tensor) -> Tensor:
        """Whether every other class stays behind, ``(B,)``: by intervals, and where they fail by CROWN."""
        padded = radius * (1 + PAD) + PAD * (self.surface.high - self.surface.low)
        reached = boxes(chain, ball(self.surface, clean, padded), unit)
        proved = (margins(chain, reached, target, "ibp", unit) > 0).all(1)
        rest = (~proved).nonzero()[:, 0]
        if self.bounds == "crown" and len(rest):
            some = [type(box)(box.lower[rest], box.upper[rest]) for box in reached]
            proved[rest] = (margins(chain, some, target[rest], "crown", unit) > 0).all(1)
        return proved

    def _right(self, chain: list[Layer], unit: float, batch: Batch) -> Tensor:
        """Whether the module names the right class, ``(B,)``; `UsageError` if its answers are not where bounds say."""
        assert isinstance(batch.inputs, Tensor)
        with evaluating(self.module):
            answers = self.module(batch.inputs)
        end = boxes(chain, ball(self.surface, batch.inputs.double(), 0.0), unit)[-1]
        if not bool(((end.lower <= answers) & (answers <= end.upper)).all()):
            raise UsageError(
                "the module's answers lie outside their own bounds, so nothing is proved about it: "
                "its arithmetic is less precise than its weights, or its layers do not do what their names say"
            )
        assert isinstance(batch.target, Tensor)
        return Classes().decide(answers) == batch.target


def rounding_unit(module: nn.Module, inputs: Tensor) -> float:
    """The rounding unit of the module's arithmetic; on a GPU, of TF32 where convolutions or products may use it."""
    unit = torch.finfo(next(module.parameters()).dtype).eps / 2
    fast = inputs.is_cuda and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
    return max(unit, 2.0**-11 if fast else 2.0**-45)
