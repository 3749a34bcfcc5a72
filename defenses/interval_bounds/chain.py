"""A module as a chain of layers that bounds can be carried through."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from defenses.dp_sgd.engine import is_private
from defenses.interval_bounds.layers import (
    Averaged,
    Bend,
    Largest,
    Layer,
    Reshaped,
    Scaled,
    Weighted,
    relu_lines,
    s_lines,
)
from secure_ml.errors import NotApplicable
from secure_ml.tasks._resnet import Standardize
from secure_ml.tasks.mnist_cnn import SoftThreshold


def chain_of(module: nn.Module) -> list[Layer]:
    """The layers of a module, in evaluation mode, in the order in which they are passed.

    The layers hold the module's own weights: bounds can be differentiated in them. Raises `NotApplicable` for a module
    that is not a chain of layers whose bounds are known, for one with hooks, which could change any answer, and for one
    that is trained by DP-SGD: bounds use weights outside of the layers that own them.
    """
    if is_private(module):
        raise NotApplicable(
            "bounds cannot be trained by DP-SGD, which clips what a layer's own call adds to its weights"
        )
    return list(_layers(module))


def _layers(module: nn.Module) -> Iterator[Layer]:
    if module._forward_hooks or module._forward_pre_hooks:
        raise NotApplicable(f"bounds cannot see what the hooks on {type(module).__name__} do: remove them")
    if type(module) is nn.Sequential:
        for part in module:
            yield from _layers(part)
    elif type(module) in SILENT:
        return
    elif type(module) in KNOWN:
        yield KNOWN[type(module)](module)
    else:
        names = sorted(kind.__name__ for kind in (*KNOWN, *SILENT, nn.Sequential))
        raise NotApplicable(f"no bounds are known for {type(module).__name__}, only for {', '.join(names)}")


def _linear(module: nn.Linear) -> Layer:
    def transpose(c: Tensor, weight: Tensor, _: torch.Size) -> Tensor:
        return c @ weight

    return Weighted(F.linear, transpose, module.weight, _bias(module, module.weight), module.in_features)


def _convolution(module: nn.Conv2d) -> Layer:
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        raise NotApplicable("bounds know convolutions whose padding is a number of zeros only")
    options: dict[str, Any] = {
        "stride": module.stride,
        "padding": module.padding,
        "dilation": module.dilation,
        "groups": module.groups,
    }

    def forward(values: Tensor, weight: Tensor) -> Tensor:
        weight = weight.contiguous(memory_format=torch.channels_last)  # twice as fast on a CPU, backwards above all
        return F.conv2d(values, weight, None, **options)

    def transpose(c: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        turned: Tensor = conv2d_input([len(c), *shape[1:]], weight, c, **options)
        return turned

    bias = _bias(module, module.weight)[:, None, None]
    return Weighted(forward, transpose, module.weight, bias, module.weight[0].numel())


def _average(module: nn.AvgPool2d) -> Layer:
    if module.ceil_mode or module.divisor_override or _any(module.padding):
        raise NotApplicable("bounds know average pooling without padding, ceil_mode and divisor_override only")
    return Averaged(module)


def _largest(module: nn.MaxPool2d) -> Layer:
    if module.ceil_mode or module.return_indices or module.dilation not in (1, (1, 1)):
        raise NotApplicable("bounds know max pooling without dilation, ceil_mode and return_indices only")
    return Largest(module)


def _batch_norm(module: nn.BatchNorm1d | nn.BatchNorm2d) -> Layer:
    if module.running_mean is None or module.running_var is None:
        raise NotApplicable("bounds know BatchNorm with running statistics only: without them it mixes examples")
    factor = (module.running_var + module.eps).rsqrt()
    factor = factor if module.weight is None else factor * module.weight
    shift = -module.running_mean * factor
    shift = shift if module.bias is None else shift + module.bias
    places = (slice(None), *[None] * (2 if isinstance(module, nn.BatchNorm2d) else 0))
    return Scaled(factor[places], shift[places])


def _standardize(module: Standardize) -> Layer:
    return Scaled(1 / module.spread, -module.mean / module.spread)


def _bias(module: nn.Linear | nn.Conv2d, like: Tensor) -> Tensor:
    return like.new_zeros(len(like)) if module.bias is None else module.bias


def _any(value: int | tuple[int, ...]) -> bool:
    return any(value) if isinstance(value, tuple) else bool(value)


def _sigmoid_slope(x: Tensor) -> Tensor:
    return x.sigmoid() * (-x).sigmoid()


def _tanh_slope(x: Tensor) -> Tensor:
    return 1 - x.tanh().square()


def _threshold(module: SoftThreshold) -> Layer:
    def slope(x: Tensor) -> Tensor:
        s: Tensor = module(x)
        return module.slope * s * (1 - s)

    return Bend(module, s_lines(module, slope), ulps=8 + 2 * math.ceil(module.slope))


def _leaky(module: nn.LeakyReLU) -> Layer:
    if not 0 <= module.negative_slope <= 1:
        raise NotApplicable(f"bounds know LeakyReLU with slopes between 0 and 1 only; given {module.negative_slope}")
    leak = module.negative_slope
    return Bend(partial(F.leaky_relu, negative_slope=leak), partial(relu_lines, leak=leak), relative=2)


KNOWN: dict[type[nn.Module], Callable[[Any], Layer]] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.AvgPool2d: _average,
    nn.MaxPool2d: _largest,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    Standardize: _standardize,
    nn.Flatten: Reshaped,
    SoftThreshold: _threshold,
    nn.ReLU: lambda _: Bend(torch.relu, relu_lines),
    nn.LeakyReLU: _leaky,
    nn.Sigmoid: lambda _: Bend(torch.sigmoid, s_lines(torch.sigmoid, _sigmoid_slope), ulps=8),
    nn.Tanh: lambda _: Bend(torch.tanh, s_lines(torch.tanh, _tanh_slope), ulps=8),
}
"""How each kind of layer becomes one that bounds can pass."""
SILENT: tuple[type[nn.Module], ...] = (nn.Identity, nn.Dropout, nn.Dropout2d)
"""What does nothing in evaluation mode."""
