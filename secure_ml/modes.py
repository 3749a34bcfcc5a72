"""Training and evaluation mode, and threads, left as they were found."""

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every submodule's own training flag returns afterwards.

    Recurrent layers of torch are in training mode without their dropout, which gives the same answers: cuDNN
    refuses to differentiate them in evaluation mode. Inside another block for the same module, this one does nothing,
    unless somebody has set training mode since.
    """
    if module in _INSIDE and not module.training:
        yield
        return
    flags = [(part, part.training) for part in module.modules()]
    recurrent = [(part, part.dropout) for part in module.modules() if isinstance(part, nn.RNNBase)]
    outermost = module not in _INSIDE
    module.eval()
    for layer, _ in recurrent:
        layer.training, layer.dropout = True, 0.0
    _INSIDE.add(module)
    try:
        yield
    finally:
        if outermost:
            _INSIDE.discard(module)
        for layer, dropout in recurrent:
            layer.dropout = dropout
        for part, flag in flags:
            part.training = flag


_INSIDE: WeakSet[nn.Module] = WeakSet()


@contextmanager
def threaded(number: int | None) -> Iterator[None]:
    """Torch on so many threads, or on as many as before where none are given."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
