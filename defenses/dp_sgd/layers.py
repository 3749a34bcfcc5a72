"""How each kind of layer turns what it saw into the gradients of single examples: the cheaper of two ways."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn import functional as F

Call: TypeAlias = "tuple[tuple[Tensor, ...], Tensor]"
"""The inputs of one call of a layer and the gradient of the losses in its output; examples are the first dimension."""
Rows: TypeAlias = dict[str, Tensor]
"""Gradients ``(b, *shape)`` of single examples, by the parameter's name in its layer."""


ROOM = 2**18
"""Numbers of the windows of a convolution that are copied at once."""


class Record:
    """What a layer keeps of a piece of a batch: squared norms of single gradients, and their sums under any weights."""

    def squares(self) -> Tensor:
        """Squared norms ``(b,)`` of the gradients of all parameters of the layer together."""
        raise NotImplementedError

    def sums(self, weights: Tensor) -> Rows:
        """Gradients summed over the examples with these weights ``(b,)``."""
        raise NotImplementedError

    def rows(self) -> Rows:
        """Every example's own gradient, in full."""
        raise NotImplementedError


class Kept(Record):
    """Every example's own gradient, where that takes less room than what it is made of.

    Weights may be there in another order, as ``turned`` says: those ``(b, O, *windows, C)`` of convolutions.
    """

    def __init__(self, rows: Rows, turned: bool = False) -> None:
        self._rows, self.turned = rows, turned

    def squares(self) -> Tensor:
        """As in `Record`."""
        norms = [torch.linalg.vector_norm(rows.flatten(1), dim=1) for rows in self._rows.values()]
        return torch.stack(norms).square().sum(0)

    def sums(self, weights: Tensor) -> Rows:
        """As in `Record`."""
        sums = {name: (weights @ rows.flatten(1)).view(rows.shape[1:]) for name, rows in self._rows.items()}
        return _channels_first(sums, 1) if self.turned else sums

    def rows(self) -> Rows:
        """As in `Record`."""
        return _channels_first(self._rows, 2) if self.turned else self._rows


class Ghost(Record):
    """A matrix product's inputs ``(b, T, D)`` and output gradients ``(b, T, O)``, from which no gradient is made.

    An example's squared norm is the sum over its places of products of inner products (Li et al. 2022,
    https://arxiv.org/abs/2110.05679).
    """

    def __init__(self, seen: Tensor, slope: Tensor, shape: Sequence[int], bias: bool, turned: bool = False) -> None:
        self.seen, self.slope, self.shape, self.bias, self.turned = seen, slope, shape, bias, turned

    def squares(self) -> Tensor:
        """As in `Record`."""
        if self.seen.shape[1] == 1:
            slope = self.slope[:, 0].square().sum(1)
            return self.seen[:, 0].square().sum(1) * slope + (slope if self.bias else 0)
        products = (self.seen @ self.seen.transpose(1, 2)) * (self.slope @ self.slope.transpose(1, 2))
        squares = products.sum((1, 2)).clamp(min=0)
        return squares + self.slope.sum(1).square().sum(1) if self.bias else squares

    def sums(self, weights: Tensor) -> Rows:
        """As in `Record`."""
        slope = self.slope * weights[:, None, None]
        flat = slope.flatten(0, 1)
        found = {"weight": (flat.t() @ self.seen.flatten(0, 1)).view(*self.shape)}
        found = _channels_first(found, 1) if self.turned else found
        return found | ({"bias": flat.sum(0)} if self.bias else {})

    def rows(self) -> Rows:
        """As in `Record`."""
        found = product(self.seen, self.slope, self.shape, self.bias)
        return _channels_first(found, 2) if self.turned else found


class Lookup(Record):
    """Rows of a table that were looked up, ``(b, T)``, and the gradients ``(b, T, D)`` of what was found there."""

    def __init__(self, index: Tensor, slope: Tensor, shape: torch.Size, padding: int | None) -> None:
        self.index, self.shape = index, shape
        self.slope = slope if padding is None else slope * (index != padding)[..., None]

    def squares(self) -> Tensor:
        """As in `Record`; what one example looked up twice is added up first."""
        if self.index.shape[1] == 1:
            return self.slope[:, 0].square().sum(1)
        examples = torch.arange(len(self.index), device=self.index.device)
        keys = examples[:, None] * self.shape[0] + self.index
        found, place = torch.unique(keys, return_inverse=True)
        sums = self.slope.new_zeros(len(found), self.shape[1]).index_add_(0, place.flatten(), self.slope.flatten(0, 1))
        whose = found.div(self.shape[0], rounding_mode="floor")
        return self.slope.new_zeros(len(self.index)).index_add_(0, whose, sums.square().sum(1))

    def sums(self, weights: Tensor) -> Rows:
        """As in `Record`."""
        slope = (self.slope * weights[:, None, None]).flatten(0, 1)
        return {"weight": slope.new_zeros(self.shape).index_add_(0, self.index.flatten(), slope)}

    def rows(self) -> Rows:
        """As in `Record`."""
        whole = self.slope.new_zeros(len(self.index), *self.shape)
        place = self.index[..., None].expand(-1, -1, self.shape[1])
        return {"weight": whole.scatter_add_(1, place, self.slope)}


def _channels_first(found: Rows, place: int) -> Rows:
    """The last dimension of the weights brought to ``place``."""
    return found | {"weight": found["weight"].movedim(-1, place)}


def product(seen: Tensor, slope: Tensor, shape: Sequence[int], bias: bool) -> Rows:
    """Single gradients of a matrix product, from inputs ``(b, T, D)`` and output gradients ``(b, T, O)``."""
    single = seen.shape[1] == 1
    weight = slope[:, 0, :, None] * seen[:, 0, None, :] if single else slope.transpose(1, 2) @ seen
    found = {"weight": weight.view(len(seen), *shape)}
    return found | ({"bias": slope.sum(1)} if bias else {})


def of_linear(layer: nn.Linear, calls: Sequence[Call], count: int) -> Record:
    """A dense layer; the first dimension is the example, all between it and the last are places."""
    inputs = [seen.reshape(count, -1, layer.in_features) for (seen,), _ in calls]
    slopes = [slope.reshape(count, -1, layer.out_features) for _, slope in calls]
    return _product(_joined(inputs), _joined(slopes), layer.weight.shape, layer.bias is not None)


def of_convolution(layer: nn.Conv1d | nn.Conv2d, calls: Sequence[Call], count: int) -> Record:
    """A convolution: a matrix product of windows; its places are those of the output."""
    shape, bias = layer.weight.shape, layer.bias is not None
    slope = _joined([_places(slope).reshape(count, -1, layer.out_channels) for _, slope in calls])
    if layer.groups == 1:
        turned = all(_lies_channels_last(layer, inputs[0]) for inputs, _ in calls)
        order = (shape[0], *shape[2:], shape[1]) if turned else shape
        if _is_cheap(slope.shape[1], *_window(layer)[1:], shape[0]):
            return Ghost(_seen(layer, calls, count).flatten(2), slope, order, bias, turned)
        return Kept(_by_pieces(layer, calls, slope, order) | ({"bias": slope.sum(1)} if bias else {}), turned)
    parts = slope.view(*slope.shape[:2], layer.groups, -1)
    weight = torch.einsum("btgo,btgd->bgod", parts, _seen(layer, calls, count)).reshape(count, *shape)
    return Kept({"weight": weight} | ({"bias": slope.sum(1)} if bias else {}))


def _by_pieces(layer: nn.Conv1d | nn.Conv2d, calls: Sequence[Call], slope: Tensor, order: Sequence[int]) -> Rows:
    """Single gradients of a convolution, of a few examples at a time: their windows stay in the processor's cache."""
    count, places, wide = len(slope), slope.shape[1], _window(layer)[1]
    weight = slope.new_empty(count, order[0], wide)
    step = max(1, ROOM // (places * wide)) if slope.device.type == "cpu" else count
    for start in range(0, count, step):
        few = slope[start : start + step]
        rows = [slice(start * (len(one) // count), (start + len(few)) * (len(one) // count)) for (one, *_), _ in calls]
        some = [((inputs[0][row],), grads) for (inputs, grads), row in zip(calls, rows, strict=True)]
        torch.bmm(few.transpose(1, 2), _seen(layer, some, len(few)).flatten(2), out=weight[start : start + step])
    return {"weight": weight.view(count, *order)}


def _seen(layer: nn.Conv1d | nn.Conv2d, calls: Sequence[Call], count: int) -> Tensor:
    """The windows ``(count, places, groups, C * kernel / groups)`` of all calls."""
    return _joined([_windows(layer, inputs[0]).reshape(count, -1, *_window(layer)) for inputs, _ in calls])


def of_embedding(layer: nn.Embedding, calls: Sequence[Call], count: int) -> Record:
    """A table of vectors; what lies at ``padding_idx`` is never trained."""
    index = _joined([seen.reshape(count, -1) for (seen,), _ in calls])
    slope = _joined([slope.reshape(count, -1, layer.embedding_dim) for _, slope in calls])
    return Lookup(index, slope, layer.weight.shape, layer.padding_idx)


def of_layer_norm(layer: nn.LayerNorm, calls: Sequence[Call], count: int) -> Record:
    """Layer normalisation."""
    places = len(layer.normalized_shape)

    def one(seen: Tensor, slope: Tensor) -> Rows:
        normed = F.layer_norm(seen, layer.normalized_shape, eps=layer.eps)
        found = {"weight": slope * normed} | ({"bias": slope} if layer.bias is not None else {})
        return {name: rows.reshape(count, -1, *rows.shape[-places:]).sum(1) for name, rows in found.items()}

    return _added([one(seen, slope) for (seen,), slope in calls])


def of_group_norm(layer: nn.GroupNorm, calls: Sequence[Call], count: int) -> Record:
    """Group normalisation."""

    def one(seen: Tensor, slope: Tensor) -> Rows:
        normed = F.group_norm(seen, layer.num_groups, eps=layer.eps)
        found = {"weight": slope * normed, "bias": slope}
        channels = {name: rows.flatten(2).sum(2) if rows.ndim > 2 else rows for name, rows in found.items()}
        return {name: rows.reshape(count, -1, layer.num_channels).sum(1) for name, rows in channels.items()}

    return _added([one(seen, slope) for (seen,), slope in calls])


def of_any(layer: nn.Module, calls: Sequence[Call], count: int) -> Record:
    """Any other layer, one example at a time in one vectorised program: right, and slower."""
    own = {name: p for name, p in layer.named_parameters(recurse=False) if p.requires_grad}

    def one(inputs: tuple[Tensor, ...], slope: Tensor) -> Rows:
        def run(parameters: Rows) -> Tensor:
            out: Tensor = functional_call(layer, parameters, tuple(part[None] for part in inputs))
            return out

        pull = vjp(run, {name: p.detach() for name, p in own.items()})[1]
        return cast("Rows", pull(slope[None])[0])

    found = [vmap(one, randomness="same")(inputs, slope) for inputs, slope in calls]
    return _added([{n: rows.reshape(count, -1, *own[n].shape).sum(1) for n, rows in f.items()} for f in found])


RULES: dict[type[nn.Module], Callable[..., Record]] = {
    nn.Linear: of_linear,
    nn.Conv1d: of_convolution,
    nn.Conv2d: of_convolution,
    nn.Embedding: of_embedding,
    nn.LayerNorm: of_layer_norm,
    nn.GroupNorm: of_group_norm,
}


def record(layer: nn.Module, calls: Sequence[Call], count: int) -> Record:
    """What a layer that was called so keeps of ``count`` examples, each of which may be several rows in turn."""
    whole = all(p.requires_grad for p in layer.parameters(recurse=False))
    rule = RULES.get(type(layer), of_any)
    made: Record = rule(layer, calls, count)
    if whole or rule is of_any:
        return made
    return Kept({name: rows for name, rows in made.rows().items() if getattr(layer, name).requires_grad})


def _is_cheap(places: int, wide: int, high: int) -> bool:
    """Whether inputs and output gradients take less room than the gradients that they make."""
    return places == 1 or 2 * places * (wide + high) <= wide * high


def _product(seen: Tensor, slope: Tensor, shape: Sequence[int], bias: bool, turned: bool = False) -> Record:
    """The cheaper record of a matrix product (Bu et al. 2022): of one place always, of many where the matrix is large.

    Inner products cost about as much as gradients do where both take the same room, and are slower in small pieces.
    """
    if _is_cheap(seen.shape[1], seen.shape[2], slope.shape[2]):
        return Ghost(seen, slope, shape, bias, turned)
    return Kept(product(seen, slope, shape, bias), turned)


def _joined(parts: list[Tensor]) -> Tensor:
    """The calls of a layer one after the other, as further places."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _added(found: list[Rows]) -> Kept:
    first, *others = found
    for more in others:
        first = {name: rows + more[name] for name, rows in first.items()}
    return Kept(first)


def _places(values: Tensor) -> Tensor:
    """``(n, C, *places)`` as ``(n, places, C)``."""
    return values.flatten(2).transpose(1, 2)


def _window(layer: nn.Conv1d | nn.Conv2d) -> tuple[int, int]:
    """Groups, and numbers in a window of one of them."""
    return layer.groups, layer.weight[0].numel()


def _windows(layer: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> Tensor:
    """The windows ``(n, places, C * kernel)`` that a convolution multiplies."""
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        inputs, padding = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode), (0,) * (inputs.ndim - 2)
    else:
        padding = layer.padding
    if inputs.ndim == 3:
        inputs, flat = inputs[:, :, None], (1,)
        kernel, stride, dilation = flat + layer.kernel_size, flat + layer.stride, flat + layer.dilation
        padding = (0, *padding)
    else:
        kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    inputs = F.pad(inputs, [side for one in reversed(padding) for side in (one, one)])
    channels, last = inputs.shape[1], _lies_channels_last(layer, inputs)
    shape = inputs.shape[-2:] if last else inputs.shape[1:]
    index = _window_index(shape, tuple(kernel), tuple(dilation), tuple(stride)).to(inputs.device)
    places = inputs.permute(0, 2, 3, 1).flatten(1, 2) if last else inputs.flatten(1)
    return places.index_select(1, index).view(len(inputs), -1, channels * math.prod(kernel))


def _lies_channels_last(layer: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> bool:
    """Whether the channels of a place lie side by side, so that windows are copied in that order."""
    many = layer.in_channels > 1 and layer.groups == 1 and inputs.ndim == 4
    return many and inputs.is_contiguous(memory_format=torch.channels_last) and not inputs.is_contiguous()


@cache
def _window_index(
    shape: torch.Size, kernel: tuple[int, ...], dilation: tuple[int, ...], stride: tuple[int, ...]
) -> Tensor:
    """Where the numbers of each window lie in an image ``(C, H, W)`` or ``(H, W)``: faster than `F.unfold`."""
    places = torch.arange(math.prod(shape), dtype=torch.float64).view(1, -1, *shape[-2:])
    index: Tensor = F.unfold(places, kernel, dilation, 0, stride)[0].t().flatten().long()
    return index
