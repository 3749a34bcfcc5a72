"""Which training examples a model remembers for another reason than the rest of their class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secure_ml.batch import Batch, Tree
from secure_ml.errors import NotApplicable
from secure_ml.modes import evaluating


def representations(module: nn.Module, inputs: Tree, chunk: int = 1000) -> Tensor:
    """What the last linear layer of a module is handed for inputs ``(B, *shape)``: ``(B, D)``, averaged over places.

    Raises `NotApplicable` for a module without a linear layer that is called once for each example.
    """
    device = next(module.parameters()).device
    handed: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        handed.append(arguments[0].detach())

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_pre_hook(keep) for layer in layers]
    found = []
    try:
        with evaluating(module), torch.no_grad():
            for piece in Batch(inputs, ()).to(device).chunks(chunk):
                handed.clear()
                module(piece.inputs)
                if not handed or len(handed[-1]) != len(piece):
                    raise NotApplicable(f"{type(module).__name__} has no linear layer that sees each example once")
                found.append(handed[-1])
    finally:
        for handle in handles:
            handle.remove()
    together = torch.cat(found)
    return together if together.ndim == 2 else together.flatten(1, -2).mean(1)


def spectral_scores(features: Tensor, labels: Tensor) -> Tensor:
    """How far each example ``(B, D)`` lies along its class's main direction, squared, ``(B,)``, in float64.

    The outlier score of Tran et al. 2018, https://arxiv.org/abs/1811.00636: examples that came into a class by a
    trigger share a direction that the others of the class do not.
    """
    scores = torch.zeros(len(features), dtype=torch.float64, device=features.device)
    for label in labels.unique():
        mine = labels == label
        centred = features[mine].double()
        centred = centred - centred.mean(0)
        scores[mine] = (centred @ _main_direction(centred)).square()
    return scores


def suspicion(module: nn.Module, data: Batch, chunk: int = 1000) -> Tensor:
    """Share of its own class above which each example's spectral score lies, ties counting half, ``(B,)`` in [0, 1]."""
    labels = data.target
    assert isinstance(labels, Tensor)
    scores = spectral_scores(representations(module, data.inputs, chunk), labels)
    for label in labels.unique():
        mine = labels == label
        ranked, own = scores[mine].sort().values, scores[mine].contiguous()
        below, up_to = (torch.searchsorted(ranked, own, side=side) for side in ("left", "right"))
        scores[mine] = (below + up_to).double() / (2 * len(own))
    return scores


def _main_direction(centred: Tensor) -> Tensor:
    """The first right singular vector ``(D,)`` of rows ``(n, D)``, from the smaller of the two Gram matrices."""
    n, width = centred.shape
    gram = centred.T @ centred if width <= n else centred @ centred.T
    first: Tensor = torch.linalg.eigh(gram).eigenvectors[:, -1]
    direction: Tensor = first if width <= n else centred.T @ first
    direction /= direction.norm().clamp(min=1e-30)
    return direction
