"""Architectures that additions and products can compute."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from secure_ml.batch import Batch
from secure_ml.task import Loss
from secure_ml.tasks._resnet import Standardize

BENDS = (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
POOLS = (nn.MaxPool1d, nn.MaxPool2d)
MEANS = (nn.AvgPool1d, nn.AvgPool2d)
AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, *MEANS, *NORMS, Standardize, nn.Flatten, nn.Identity, nn.Dropout)
INSTEAD = {
    "GroupNorm": "its mean and spread are of each example; use BatchNorm, which folds into the layer before it",
    "LayerNorm": "its mean and spread are of each example; use BatchNorm, which folds into the layer before it",
    "Softmax": "answer logits, and let the client take the softmax",
    "LogSoftmax": "answer logits, and let the client take the softmax",
    "AdaptiveAvgPool2d": "use an average pooling of a fixed size",
    "Embedding": "let the client look the vectors up, and encrypt what is behind them",
    "EmbeddingBag": "let the client look the vectors up, and encrypt what is behind them",
}


class Quadratic(nn.Module):
    """The least-squares quadratic to ReLU on ``[-span, span]``, ``c2 x^2 + c1 x + c0``; learned from there if asked."""

    def __init__(self, span: float, learned: bool = False) -> None:
        super().__init__()
        self.span = span
        start = (15 / (32 * span), 0.5, 3 * span / 32)
        c2, c1, c0 = (nn.Parameter(torch.tensor(c)) if learned else c for c in start)
        self.c2, self.c1, self.c0 = c2, c1, c0

    def coefficients(self) -> tuple[float, float, float]:
        """As numbers: of the square, of the value, and the constant."""
        c2, c1, c0 = (float(torch.as_tensor(c).detach()) for c in (self.c2, self.c1, self.c0))
        return c2, c1, c0

    def forward(self, x: Tensor) -> Tensor:
        """The polynomial of each element."""
        return (self.c2 * x + self.c1) * x + self.c0


def make_polynomial(module: nn.Module, span: float, learned: bool = False) -> nn.Module:
    """A copy of the module with every activation a `Quadratic` and every max pooling an average pooling."""
    module = deepcopy(module)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, BENDS):
                setattr(parent, name, Quadratic(span, learned))
            elif isinstance(child, POOLS):
                kind = nn.AvgPool1d if isinstance(child, nn.MaxPool1d) else nn.AvgPool2d
                setattr(parent, name, kind(child.kernel_size, child.stride, child.padding))  # type: ignore[arg-type]
    return module


def within(loss: Loss, penalty: float) -> Loss:
    """The loss ``(B,)`` with, for each example, how far inputs of quadratics leave their span, squared and averaged."""

    def penalised(predictor: Any, batch: Batch) -> Tensor:
        outside: list[Tensor] = []

        def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(layer, Quadratic)
            outside.append((inputs[0].abs() - layer.span).relu().square().flatten(1).mean(1))

        layers = [layer for layer in predictor.modules() if isinstance(layer, Quadratic)]
        hooks = [layer.register_forward_pre_hook(look) for layer in layers]
        try:
            losses = loss(predictor, batch)
        finally:
            for hook in hooks:
                hook.remove()
        return losses + penalty * sum(outside, torch.zeros_like(losses)) if len(losses) else losses

    return penalised


def is_chain(module: nn.Module) -> bool:
    """Whether a module is layers one behind the other, none of which has parts: no branch can be in it."""
    return not any(list(layer.children()) for layer in flatten(module))


def unsupported(module: nn.Module) -> list[nn.Module]:
    """Layers, one of each kind, that cannot be compiled."""
    known = (*AFFINE, *BENDS, *POOLS, Quadratic)
    layers = [layer for layer in module.modules() if not list(layer.children())]
    found = {type(layer).__name__: layer for layer in layers if not isinstance(layer, (*known, nn.Sequential))}
    return [found[name] for name in sorted(found)]


def instead(layer: nn.Module) -> str:
    """What to use in place of a layer that cannot be compiled."""
    usual = (
        "use a Sequential, or sums of branches, of Linear, Conv, BatchNorm, pooling, Flatten, Dropout and activations "
        "like ReLU"
    )
    return INSTEAD.get(type(layer).__name__, usual)


def flatten(module: nn.Module) -> list[nn.Module]:
    """The layers of nested Sequentials, in order."""
    if isinstance(module, nn.Sequential):
        return [layer for child in module for layer in flatten(child)]
    return [module]
