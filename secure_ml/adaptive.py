"""Attacks made for one defense: differentiate past what has no gradient, and over what is random."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secure_ml.batch import Tree, tree_map
from secure_ml.errors import require
from secure_ml.randomness import seeded

Transform = Callable[[Tensor], Tensor]


def identity(values: Tensor) -> Tensor:
    """The values themselves: the stand-in for a transform that changes little."""
    return values


class BPDA(nn.Module):
    """Backward pass differentiable approximation (Athalye et al. 2018, https://arxiv.org/abs/1802.00420).

    ``transform`` and then ``module``, exactly; gradients go through ``stand_in`` in the transform's place. Both take
    and return tensors of one shape ``(B, *shape)``; they are applied to every tensor of real numbers among the inputs.
    An adaptive attack is any attack on ``dataclasses.replace(victim, module=BPDA(...))``: it differentiates the
    stand-in and is scored on what is served. Raises `UsageError` where the shapes of the two differ.
    """

    def __init__(self, transform: Transform, module: nn.Module, stand_in: Transform = identity) -> None:
        super().__init__()
        self.transform, self.inner, self.stand_in = transform, module, stand_in

    def forward(self, inputs: Tree) -> Tensor:
        """The module's outputs for transformed inputs."""
        outputs: Tensor = self.inner(tree_map(self._straight, inputs))
        return outputs

    def _straight(self, values: Tensor) -> Tensor:
        if not values.is_floating_point():
            return values
        with torch.no_grad():
            exact = self.transform(values)
        smooth = self.stand_in(values)
        require(
            exact.shape == smooth.shape,
            f"BPDA's stand-in returns shape {tuple(smooth.shape)} where its transform returns {tuple(exact.shape)}: "
            "both must return one shape",
        )
        result: Tensor = _Straight.apply(exact, smooth)
        return result


class _Straight(torch.autograd.Function):
    """The first tensor forward, the second backward."""

    @staticmethod
    def forward(ctx: object, exact: Tensor, smooth: Tensor) -> Tensor:  # noqa: ARG004
        return exact.clone()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[None, Tensor]:  # noqa: ARG004
        return None, gradients[0]


class EOT(nn.Module):
    """Expectation over transformation (Athalye et al. 2018, https://arxiv.org/abs/1707.07397).

    The log of the mean probabilities of ``samples`` forward passes of a classifier that draws from torch's global
    stream: ``(B, K)``, or the log-odds ``(B,)`` of one logit. Each pass has its own seed, the same in every call, so
    that equal inputs get equal answers and an attack climbs one function; the global stream stays as it was. A module
    that is random only while it trains (dropout) is not random here. Raises `UsageError` for less than 1 sample.
    """

    def __init__(self, module: nn.Module, samples: int = 20, seed: int = 0) -> None:
        super().__init__()
        require(samples >= 1, f"EOT needs at least 1 sample; given {samples}")
        self.inner, self.samples, self.seed = module, samples, seed

    def forward(self, inputs: Tree) -> Tensor:
        """The averaged answer."""
        passes = []
        for i in range(self.samples):
            with seeded(self.seed, "eot", i):
                passes.append(self.inner(inputs))
        return average(torch.stack([log_probabilities(outputs) for outputs in passes]), passes[0].ndim == 1)


def log_probabilities(outputs: Tensor) -> Tensor:
    """Log-probabilities ``(B, K)`` of logits ``(B, K)``, or ``(B, 2)`` of one logit ``(B,)``."""
    if outputs.ndim == 1:
        return torch.stack([F.logsigmoid(-outputs), F.logsigmoid(outputs)], 1)
    return outputs.log_softmax(-1)


def average(logs: Tensor, one_logit: bool) -> Tensor:
    """The log of the mean ``(B, K)`` of probabilities, from their logs ``(S, B, K)``; of two, the log-odds ``(B,)``."""
    mean = logs.logsumexp(0) - math.log(len(logs))
    return mean[:, 1] - mean[:, 0] if one_logit else mean
