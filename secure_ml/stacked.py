"""Layers of as many models side by side: a batch holds equally many examples of each model, the first one's first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import lru_cache
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size: TypeAlias = tuple[int, ...]
Rule: TypeAlias = "Callable[[Any, Stacked, Tensor], Tensor]"
"""The first model's layer, whose settings are those of all, the weights of all, and inputs, to outputs."""


class Unstackable(Exception):  # noqa: N818 - no error: such models are run in turn
    """Models that cannot be run as one, with the reason."""


class Stacked(nn.Module):
    """The layers of ``M`` models at one place: ``(M * B, *shape)`` to what each model's own answers to its ``B``."""

    def __init__(self, layers: Sequence[nn.Module], rule: Rule) -> None:
        super().__init__()
        self.count, self.rule = len(layers), rule
        self.windows = 0
        """Numbers that a convolution last read and wrote for each model, window by window."""
        self.__dict__["first"] = layers[0]  # no submodule: its parameters are not those that are trained
        own = [dict(layer.named_parameters(recurse=False)) for layer in layers]
        for name, one in own[0].items():
            values = torch.stack([parameters[name].detach() for parameters in own])
            self.register_parameter(name, nn.Parameter(values, requires_grad=one.requires_grad))

    def forward(self, inputs: Tensor) -> Tensor:
        """What each model's own layer answers to its examples."""
        out: Tensor = self.rule(self.__dict__["first"], self, inputs)
        return out

    def own(self, name: str, *shape: int) -> Tensor | None:
        """A parameter of every model, ``(M, *shape)``, where the layer has it."""
        value = self._parameters.get(name)
        return None if value is None else value.view(self.count, *(shape or value.shape[1:]))

    def product(self, rows: Tensor) -> Tensor:
        """Rows ``(M * B, *places, D)`` times the weights ``(M, O, D)``, plus the bias: ``(M * B, *places, O)``."""
        weight, bias = self.weights.flatten(2), self._parameters.get("bias")
        flat = rows.reshape(self.count, -1, rows.shape[-1])
        if bias is None:
            out = flat @ weight.transpose(1, 2)
        else:
            out = torch.baddbmm(bias[:, None], flat, weight.transpose(1, 2))
        return out.view(*rows.shape[:-1], weight.shape[1])

    @property
    def weights(self) -> Tensor:
        """The weights of every model, ``(M, *shape)``."""
        weight = self._parameters["weight"]
        assert weight is not None
        return weight

    def scaled(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Values ``(M * B, *anything)`` times the weights plus the bias, both of a shape that broadcasts."""
        apart = values.unflatten(0, (self.count, -1))
        for name, combine in (("weight", torch.mul), ("bias", torch.add)):
            own = self.own(name, *(1,) * (apart.ndim - 1 - len(shape)), *shape)
            apart = apart if own is None else combine(apart, own)
        return cast("Tensor", apart.flatten(0, 1))


def linear(layer: nn.Linear, stack: Stacked, inputs: Tensor) -> Tensor:
    """Dense layers, as one batched product."""
    return stack.product(inputs)


def convolution(layer: nn.Conv1d | nn.Conv2d, stack: Stacked, inputs: Tensor) -> Tensor:
    """Convolutions, as one batched product of windows: grouped convolutions are slower."""
    if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise Unstackable(f"{layer} is no plain convolution")
    window = layer.kernel_size, layer.dilation, layer.stride, layer.padding
    if inputs.ndim == 4:
        return _windowed(stack, inputs, *window)
    kernel, dilation, stride, padding = ((one, *size) for one, size in zip((1, 1, 1, 0), window, strict=True))
    return _windowed(stack, inputs[:, :, None], kernel, dilation, stride, padding).squeeze(2)


def _windowed(stack: Stacked, images: Tensor, kernel: Size, dilation: Size, stride: Size, padding: Size) -> Tensor:
    if images.is_cuda:
        windows = F.unfold(images, kernel, dilation, padding, stride).transpose(1, 2)
    else:
        images = F.pad(images, [side for size in reversed(padding) for side in (size, size)])
        index = _places(images.shape[1:], kernel, dilation, stride)
        windows = images.flatten(1).index_select(1, index.flatten()).view(-1, *index.shape)
        padding = (0, 0)
    sizes = zip(images.shape[2:], kernel, dilation, stride, padding, strict=True)
    shape = [(size + 2 * pad - wide * (long - 1) - 1) // step + 1 for size, long, wide, step, pad in sizes]
    out = stack.product(windows)
    stack.windows = (windows.numel() + out.numel()) // stack.count
    return cast("Tensor", out.transpose(1, 2).contiguous().unflatten(2, shape))


@lru_cache(maxsize=64)
def _places(shape: torch.Size, kernel: Size, dilation: Size, stride: Size) -> Tensor:
    """Where the numbers of each window lie in an image ``(C, H, W)``, ``(places, numbers)``: faster than unfolding."""
    numbers = torch.arange(math.prod(shape), dtype=torch.float64).view(1, *shape)
    return F.unfold(numbers, kernel, dilation, 0, stride)[0].t().long().contiguous()


def embedding(layer: nn.Embedding, stack: Stacked, inputs: Tensor) -> Tensor:
    """Tables, looked up in one that holds all of them."""
    if layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse:
        raise Unstackable(f"{layer} changes with what is looked up")
    first = torch.arange(stack.count, device=inputs.device) * layer.num_embeddings
    places = inputs.view(stack.count, -1) + first[:, None]
    found = F.embedding(places, stack.weights.flatten(0, 1)).view(*inputs.shape, layer.embedding_dim)
    if layer.padding_idx is None:
        return found
    return torch.where((inputs == layer.padding_idx)[..., None], found.detach(), found)


def layer_norm(layer: nn.LayerNorm, stack: Stacked, inputs: Tensor) -> Tensor:
    """Layer normalisation."""
    return stack.scaled(F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps), layer.normalized_shape)


def group_norm(layer: nn.GroupNorm, stack: Stacked, inputs: Tensor) -> Tensor:
    """Group normalisation."""
    shape = (layer.num_channels, *(1,) * (inputs.ndim - 2))
    return stack.scaled(F.group_norm(inputs, layer.num_groups, eps=layer.eps), shape)


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Embedding: embedding,
    nn.LayerNorm: layer_norm,
    nn.GroupNorm: group_norm,
}


def stack_modules(modules: Sequence[nn.Module]) -> nn.Module:
    """Modules of one architecture as one, which answers ``(M * B, *shape)`` inputs, the examples of the first first.

    The weights are copies; everything else is that of a copy of the first. Raises `Unstackable` for weights that are
    shared, or held by another module than the layers above. That the modules act alike is for the caller to see.
    """
    names = [name for name, _ in modules[0].named_parameters(remove_duplicate=False)]
    if len(names) != len(list(modules[0].parameters())):
        raise Unstackable("layers share weights")
    stack = deepcopy(modules[0])
    for name, layer in list(modules[0].named_modules()):
        if not layer._parameters:
            continue
        rule = RULES.get(type(layer))
        if rule is None or layer._forward_hooks or layer._forward_pre_hooks:
            raise Unstackable(f"{name or 'the module'} is a {type(layer).__name__}")
        made = Stacked([module.get_submodule(name) for module in modules], rule)
        if not name:
            return made
        parent, _, last = name.rpartition(".")
        setattr(stack.get_submodule(parent), last, made)
    return stack


def unstack_weights(stack: nn.Module, modules: Sequence[nn.Module]) -> None:
    """Give each module its own weights of the stack."""
    with torch.no_grad():
        for module, *values in zip(modules, *(value.unbind() for value in stack.parameters()), strict=True):
            for parameter, value in zip(module.parameters(), values, strict=True):
                parameter.copy_(value)
