"""Architectures that additions and products can compute."""

from __future__ import annotations

from copy import deepcopy

from torch import Tensor, nn

BENDS = (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU)
AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.AvgPool1d, nn.AvgPool2d, nn.Flatten, nn.Identity, nn.Dropout)
POOLS = (nn.MaxPool1d, nn.MaxPool2d)


class Quadratic(nn.Module):
    """The least-squares quadratic to ReLU on ``[-span, span]``: ``c2 x^2 + c1 x + c0``."""

    def __init__(self, span: float) -> None:
        super().__init__()
        self.c2, self.c1, self.c0 = 15 / (32 * span), 0.5, 3 * span / 32

    def forward(self, x: Tensor) -> Tensor:
        """The polynomial of each element."""
        return (self.c2 * x + self.c1) * x + self.c0


def make_polynomial(module: nn.Module, span: float) -> nn.Module:
    """A copy of the module with every activation a `Quadratic` and every max pooling an average pooling."""
    module = deepcopy(module)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, BENDS):
                setattr(parent, name, Quadratic(span))
            elif isinstance(child, POOLS):
                kind = nn.AvgPool1d if isinstance(child, nn.MaxPool1d) else nn.AvgPool2d
                setattr(parent, name, kind(child.kernel_size, child.stride, child.padding))  # type: ignore[arg-type]
    return module


def unsupported(module: nn.Module) -> list[str]:
    """Kinds of layers that cannot be compiled, or that stand outside a Sequential."""
    if not isinstance(module, nn.Sequential):
        return [type(module).__name__]
    known = (*AFFINE, *BENDS, *POOLS, Quadratic, nn.Sequential)
    return sorted({type(layer).__name__ for layer in flatten(module) if not isinstance(layer, known)})


def flatten(module: nn.Module) -> list[nn.Module]:
    """The layers of nested Sequentials, in order."""
    if isinstance(module, nn.Sequential):
        return [layer for child in module for layer in flatten(child)]
    return [module]
