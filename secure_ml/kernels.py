"""The same convolutions, faster: how an attack's many passes through a module on a CPU are computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from secure_ml.batch import Tree
from secure_ml.modes import evaluating

FEW = 4
"""Channels of an image, or fewer: the strided convolutions whose input gradient the usual kernels are slow at."""


@contextmanager
def fast_convolutions(module: nn.Module, inputs: Tree) -> Iterator[None]:
    """Inside the block, convolutions on a CPU are computed faster where that changes nothing but rounding.

    The module is in evaluation mode, whose flags need not be set and restored at every query of the block.
    Weights lie channels last, the layout of the fast kernels, and strided convolutions of images take their input
    gradient phase by phase. ``inputs`` are a few examples to compare the answers on; all is then as before.
    """
    layers = [part for part in module.modules() if type(part) is nn.Conv2d and not part.weight.is_cuda]
    kept = [(weight, weight.data) for weight in module.parameters() if weight.ndim == 4 and not weight.is_cuda]
    with evaluating(module):
        try:
            if kept:
                _hasten(module, inputs, layers, kept)
            yield
        finally:
            _restore(layers, kept)


@contextmanager
def channels_last(module: nn.Module, inputs: Tree) -> Iterator[None]:
    """Inside the block, weights of convolutions on a CPU lie channels last: pooling is then ten times as fast.

    Only where that changes nothing but rounding: ``inputs`` are a few examples to compare the answers on.
    """
    weights = [weight for weight in module.parameters() if weight.ndim == 4 and not weight.is_cuda]
    if weights:
        with evaluating(module), torch.no_grad():
            before = module(inputs)
            _lay(weights)
            if not _alike(before, module, inputs):
                _lay_back(weights)
    try:
        yield
    finally:
        _lay_back(weights)


def _lay(weights: list[nn.Parameter]) -> None:
    for weight in weights:
        weight.data = weight.data.clone(memory_format=torch.channels_last)


def _lay_back(weights: list[nn.Parameter]) -> None:
    for weight in weights:
        weight.data = weight.data.clone(memory_format=torch.contiguous_format)


@torch.no_grad()
def _hasten(module: nn.Module, inputs: Tree, layers: list[nn.Conv2d], kept: list[tuple[nn.Parameter, Tensor]]) -> None:
    before = module(inputs)
    for weight, data in kept:
        # `contiguous` would leave weights of one channel as they are, and the layer with them
        weight.data = data.clone(memory_format=torch.channels_last)
    for layer in filter(_is_slow, layers):
        layer.__dict__["_conv_forward"] = _Strided(layer)
    if not _alike(before, module, inputs):
        _restore(layers, kept)


def _alike(before: Tensor, module: nn.Module, inputs: Tree) -> bool:
    try:
        return torch.allclose(before, module(inputs), rtol=1e-4, atol=1e-4)
    except RuntimeError:  # a view of the layout that it had
        return False


def _restore(layers: list[nn.Conv2d], kept: list[tuple[nn.Parameter, Tensor]]) -> None:
    for layer in layers:
        layer.__dict__.pop("_conv_forward", None)
    for weight, data in kept:
        weight.data = data


def _is_slow(layer: nn.Conv2d) -> bool:
    plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    strided = layer.stride[0] == layer.stride[1] > 1 and not isinstance(layer.padding, str)
    return plain and strided and layer.in_channels <= FEW


class _Strided:
    """What a strided convolution computes, its input gradient by `_ByPhases`."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self.stride, self.padding = layer.stride[0], cast("tuple[int, int]", layer.padding)

    def __call__(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if inputs.ndim != 4 or not inputs.requires_grad or not torch.is_grad_enabled():
            return F.conv2d(inputs, weight, bias, self.stride, self.padding)
        constant = None if bias is None else bias.detach()
        out = cast("Tensor", _ByPhases.apply(inputs, weight.detach(), constant, self.stride, self.padding))
        if not weight.requires_grad:
            return out
        return out + cast(
            "Tensor", _OfWeights.apply(weight, bias, inputs.detach(), out.shape, self.stride, self.padding)
        )


class _ByPhases(torch.autograd.Function):
    """A strided convolution whose input gradient is a plain convolution for each phase of the stride, interleaved.

    Pixel ``i + padding = stride * (o + m) + phase`` meets the weights ``stride * m + phase`` of the output ``o``.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.stride, ctx.padding, ctx.size = stride, padding, inputs.shape[2:]
        return F.conv2d(inputs, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        stride, (top, left), (high, wide) = ctx.stride, ctx.padding, ctx.size
        short = [-size % stride for size in weight.shape[2:]]
        phases = F.pixel_unshuffle(F.pad(weight, (0, short[1], 0, short[0])), stride)
        turned = phases.transpose(0, 1).flip(2, 3).contiguous(memory_format=torch.channels_last)
        rows, columns = phases.shape[2] - 1, phases.shape[3] - 1
        whole = F.pixel_shuffle(F.conv2d(gradient, turned, padding=(rows, columns)), stride)
        missing = (max(left + wide - whole.shape[3], 0), max(top + high - whole.shape[2], 0))
        if any(missing):
            whole = F.pad(whole, (0, missing[0], 0, missing[1]))
        return whole[:, :, top : top + high, left : left + wide], None, None, None, None


class _OfWeights(torch.autograd.Function):
    """Zeros that carry the convolution's gradient to its weights, for the caller who asks for it and nobody else."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        bias: Tensor | None,
        inputs: Tensor,
        shape: torch.Size,
        stride: int,
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(weight, inputs)
        ctx.biased, ctx.stride, ctx.padding = bias is not None, stride, padding
        return weight.new_zeros(1).expand(shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        weight, inputs = ctx.saved_tensors
        slope = conv2d_weight(inputs, weight.shape, gradient, ctx.stride, ctx.padding)
        return slope, gradient.sum((0, 2, 3)) if ctx.biased else None, None, None, None, None
