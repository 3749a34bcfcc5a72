"""Training and evaluation mode, left as they were found."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from secure_ml.batch import Tree


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every submodule's own training flag returns afterwards.

    Recurrent layers of torch are in training mode without their dropout, which gives the same answers: cuDNN
    refuses to differentiate them in evaluation mode.
    """
    flags = [(part, part.training) for part in module.modules()]
    recurrent = [(part, part.dropout) for part in module.modules() if isinstance(part, nn.RNNBase)]
    module.eval()
    for layer, _ in recurrent:
        layer.training, layer.dropout = True, 0.0
    try:
        yield
    finally:
        for layer, dropout in recurrent:
            layer.dropout = dropout
        for part, flag in flags:
            part.training = flag


@contextmanager
def channels_last(module: nn.Module, inputs: Tree) -> Iterator[None]:
    """Convolutions laid out channels last inside the block, where that changes nothing but rounding; then as before.

    On a CPU this is the layout of the fast kernels. ``inputs`` are a few examples to compare the answers on.
    """
    kept = [(weight, weight.data) for weight in module.parameters() if weight.ndim == 4 and not weight.is_cuda]
    try:
        if kept:
            with evaluating(module), torch.no_grad():
                before = module(inputs)
                for weight, data in kept:
                    # `contiguous` would leave weights of one channel as they are, and the layer with them
                    weight.data = data.clone(memory_format=torch.channels_last)
                if not _alike(before, module, inputs):
                    _restore(kept)
        yield
    finally:
        _restore(kept)


def _alike(before: torch.Tensor, module: nn.Module, inputs: Tree) -> bool:
    try:
        return torch.allclose(before, module(inputs), rtol=1e-4, atol=1e-4)
    except RuntimeError:  # a view of the layout that it had
        return False


def _restore(kept: list[tuple[nn.Parameter, torch.Tensor]]) -> None:
    for weight, data in kept:
        weight.data = data
