"""What DP-SGD must refuse: layers and losses under which an example's gradient is not its own."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from secure_ml.errors import UsageError
from secure_ml.randomness import seeded
from secure_ml.training import Plan


def refuse_layers(plan: Plan) -> None:
    """Raise `UsageError` for layers that Opacus cannot train with a guarantee."""
    from opacus.validators import ModuleValidator

    errors: list[Any] = ModuleValidator.validate(plan.module, strict=False)
    if errors:
        layers = ", ".join(sorted({type(layer).__name__ for layer in plan.module.modules() if _mixes(layer)}))
        raise UsageError(
            f"{plan.task}: DP-SGD cannot train {layers or 'this module'}: {str(errors[0]).split('.')[0]}; "
            "use GroupNorm, or no normalisation"
        )


def refuse_mixing(plan: Plan) -> None:
    """Raise `UsageError` unless Opacus's gradient of each of a few examples is that example's own.

    It is not where a loss or a module compares examples, where one example takes several rows of a layer's batch,
    or where a weight is used behind Opacus's back; each would break the bound on what one example contributes.
    """
    from opacus import GradSampleModule

    few = plan.loader.data.take(slice(0, 3))
    alone, together = (_without_dropout(deepcopy(plan.module)) for _ in range(2))
    loop = []
    for i in range(len(few)):
        with seeded(plan.seed, "check"):
            loss = plan.loss(alone, few.take(slice(i, i + 1))).sum()
        weights = [p for p in alone.parameters() if p.requires_grad]
        loop.append(torch.autograd.grad(loss, weights, allow_unused=True))
    wrapped = GradSampleModule(together, loss_reduction="sum")
    with seeded(plan.seed, "check"):
        losses = plan.loss(wrapped, few)
    trained = [(name, p) for name, p in together.named_parameters() if p.requires_grad]
    torch.autograd.grad(losses.sum(), [p for _, p in trained], allow_unused=True)  # the hooks write grad_sample
    for (name, parameter), own in zip(trained, zip(*loop, strict=True), strict=True):
        rows = getattr(parameter, "grad_sample", None)
        if own[0] is None or rows is None:
            raise UsageError(
                f"{plan.task}: {name} takes no part in the loss; freeze it (requires_grad=False) for DP-SGD"
            )
        expected = torch.stack([grad for grad in own if grad is not None])
        if rows.shape != expected.shape or not torch.allclose(rows, expected, rtol=1e-2, atol=1e-5):
            raise UsageError(
                f"{plan.task}: the gradient of an example in {name} is not its own: the loss or the module mixes "
                "examples, or spreads one over several rows; DP-SGD could not bound what it contributes"
            )


def _without_dropout(module: nn.Module) -> nn.Module:
    """The module in training mode with dropout switched off, whose masks a loop draws differently."""
    for layer in module.train().modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.eval()
    return module


def _mixes(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.batchnorm._BatchNorm)
