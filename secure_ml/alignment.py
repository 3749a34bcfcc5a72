"""Networks of one function may differ in the order and scale of their units: what is left when these are matched."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secure_ml.errors import UsageError


def worst_weight(copy: nn.Module, model: nn.Module, shift: bool = False) -> float:
    """The largest difference of any weight or bias, of one linear layer or of two with ReLU between.

    Units of a hidden layer are put into the order and to the length 1 that change no answer: each to the one whose
    weights, bias and outputs lie nearest, by the best assignment. With ``shift``, what is the same for all classes
    is left out, as probabilities do not show it. Raises `UsageError` for any other kind of network, or of other sizes.
    """
    ours, true = _layers(copy), _layers(model)
    if len(ours) != len(true) or len(ours) not in (1, 2) or [w.shape for w, _ in ours] != [w.shape for w, _ in true]:
        raise UsageError(f"{len(ours)} linear layers meet {len(true)}; alignment compares one or two of equal sizes")
    last = [_last(layers[-1], shift) for layers in (ours, true)]
    if len(ours) == 1:
        return float((last[0] - last[1]).abs().max())
    first, second = (_units(layers[0], end) for layers, end in zip((ours, true), last, strict=True))
    constant = float((last[0][:, -1] - last[1][:, -1]).abs().max())
    return max(float((first[_matched(first, second)] - second).abs().max()), constant)


def _layers(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    found = [part for part in module.modules() if isinstance(part, nn.Linear)]
    return [
        (layer.weight.detach().cpu().double(), layer.weight.new_zeros(len(layer.weight)).cpu().double())
        if layer.bias is None
        else (layer.weight.detach().cpu().double(), layer.bias.detach().cpu().double())
        for layer in found
    ]


def _last(layer: tuple[Tensor, Tensor], shift: bool) -> Tensor:
    """Weights and, in the last column, biases ``(K, d + 1)``."""
    table = torch.cat([layer[0], layer[1][:, None]], 1)
    return table - table.mean(0) if shift and len(table) > 1 else table


def _units(layer: tuple[Tensor, Tensor], last: Tensor) -> Tensor:
    """A row for each hidden unit: its weights, of length 1, its bias, and what it adds to each answer."""
    weight, bias = layer
    size = weight.norm(dim=1, keepdim=True).clamp(min=1e-300)
    return torch.cat([weight / size, bias[:, None] / size, last[:, :-1].T * size], 1)


def _matched(first: Tensor, second: Tensor) -> Tensor:
    """The order of the first rows in which they lie nearest to the second."""
    from scipy.optimize import linear_sum_assignment

    _, order = linear_sum_assignment(torch.cdist(second, first).numpy())
    return torch.from_numpy(order)
