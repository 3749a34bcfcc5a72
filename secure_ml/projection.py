"""The last layer of a model, as somebody has found it from the answers alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secure_ml.errors import NotApplicable
from secure_ml.outputs import Reveal
from secure_ml.stats import Estimate
from secure_ml.victim import Victim

WIDTH, EXACT, MISSED = "hidden width found", "hidden width exact", "projection missed"
"""The width that was found; 1 where it is the model's; and the root mean square of what no map of the matrix explains
of the last layer's weights, as a share of theirs. A random matrix of the right shape misses sqrt(1 - width / K)."""


@dataclass(frozen=True, eq=False)
class Projection:
    """What was stolen where it is no predictor: the hidden width, and a matrix ``(K, width)`` for K classes.

    The matrix is the last layer's weights times an unknown invertible matrix.
    """

    width: int
    matrix: Tensor

    def judge(self, victim: Victim, reveal: Reveal) -> list[tuple[str, Estimate, str]]:
        """Name, estimate and unit of each measurement, against the victim's own last linear layer.

        Probabilities say nothing of what all classes have in common: then that is taken out of both matrices.
        Raises `NotApplicable` where the model has no such layer.
        """
        true = head(victim.module, victim.task.name).weight.detach().cpu().double()
        ours = self.matrix.detach().cpu().double()
        if reveal != "logits":
            true, ours = true - true.mean(0), ours - ours.mean(0)
        left = true - ours @ torch.linalg.lstsq(ours, true, driver="gelsd").solution
        return [
            (WIDTH, _exactly(self.width), "count"),
            (EXACT, _exactly(self.width == true.shape[1]), "share"),
            (MISSED, _exactly(float(left.norm() / true.norm())), ""),
        ]


def head(module: nn.Module, name: str) -> nn.Linear:
    """The linear layer that gives the answers; `NotApplicable` where the last layer with weights is none."""
    layers = weighted(module)
    if not layers or not isinstance(layers[-1], nn.Linear):
        raise NotApplicable(f"{name} does not end in a linear layer, so there is no projection to compare with")
    return layers[-1]


def weighted(module: nn.Module) -> list[nn.Module]:
    """The layers that hold weights of their own, in their order."""
    return [part for part in module.modules() if next(part.parameters(recurse=False), None) is not None]


def _exactly(value: float) -> Estimate:
    return Estimate(float(value), float("nan"), float("nan"), 1, "computed")
