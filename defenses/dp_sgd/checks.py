"""What DP-SGD must refuse: layers and losses under which an example's gradient is not its own."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from defenses.dp_sgd.engine import Engine
from secure_ml.batch import Batch
from secure_ml.errors import UsageError
from secure_ml.randomness import seeded
from secure_ml.training import Plan


def refuse_layers(plan: Plan) -> None:
    """Raise `UsageError` for layers that no clipping can train with a guarantee."""
    mixing = {type(layer).__name__ for layer in plan.module.modules() if _mixes(layer)}
    if mixing:
        raise UsageError(
            f"{plan.task}: DP-SGD cannot train {', '.join(sorted(mixing))}, under which an example's answer depends on "
            "the others of its batch: use GroupNorm, or no normalisation"
        )


def refuse_mixing(plan: Plan) -> None:
    """Raise `UsageError` unless the engine's gradient of each of a few examples is that example's own.

    It is not where a loss or a module compares examples, where one example takes several rows of a layer's batch,
    or where a weight is used behind the engine's back; each would break the bound on what one example contributes.
    """
    few = plan.loader.data.take(slice(0, 3))
    alone, together = (_without_dropout(deepcopy(plan.module)) for _ in range(2))
    names = [name for name, p in alone.named_parameters() if p.requires_grad]
    loop = [_own_gradients(plan, alone, few, i) for i in range(len(few))]
    engine = Engine(together, 1.0)
    with seeded(plan.seed, "check"):
        losses = plan.loss(together, few)
    engine.expect(len(few))
    torch.autograd.backward(losses.sum())
    try:
        found, _ = engine.read()
    except UsageError as error:
        raise UsageError(f"{plan.task}: {error}") from None
    for i, own in enumerate(loop):
        chosen = torch.zeros_like(losses)
        chosen[i] = 1.0
        sums = engine.sums(found, chosen.detach())
        for name, parameter, expected in zip(names, engine.parameters, own, strict=True):
            if expected is None or parameter not in sums:
                raise UsageError(
                    f"{plan.task}: {name} takes no part in the loss; freeze it (requires_grad=False) for DP-SGD"
                )
            if not torch.allclose(sums[parameter], expected, rtol=1e-2, atol=1e-5):
                raise UsageError(
                    f"{plan.task}: the gradient of an example in {name} is not its own: the loss or the module mixes "
                    "examples, or spreads one over several rows; DP-SGD could not bound what it contributes"
                )


def _own_gradients(plan: Plan, module: nn.Module, few: Batch, i: int) -> tuple[Tensor | None, ...]:
    """The gradients of one example's loss, seen alone."""
    weights = [p for p in module.parameters() if p.requires_grad]
    with seeded(plan.seed, "check"):
        loss = plan.loss(module, few.take(slice(i, i + 1))).sum()
    return torch.autograd.grad(loss, weights, allow_unused=True)


def _without_dropout(module: nn.Module) -> nn.Module:
    """The module in training mode with dropout switched off, whose masks a loop draws differently."""
    for layer in module.train().modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.eval()
    return module


def _mixes(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.batchnorm._BatchNorm)
