"""Training and evaluation mode, left as they were found."""

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every submodule's own training flag returns afterwards.

    Recurrent layers of torch are in training mode without their dropout, which gives the same answers: cuDNN
    refuses to differentiate them in evaluation mode. Inside another block for the same module, this one does nothing.
    """
    if module in _INSIDE:
        yield
        return
    flags = [(part, part.training) for part in module.modules()]
    recurrent = [(part, part.dropout) for part in module.modules() if isinstance(part, nn.RNNBase)]
    module.eval()
    for layer, _ in recurrent:
        layer.training, layer.dropout = True, 0.0
    _INSIDE.add(module)
    try:
        yield
    finally:
        _INSIDE.discard(module)
        for layer, dropout in recurrent:
            layer.dropout = dropout
        for part, flag in flags:
            part.training = flag


_INSIDE: WeakSet[nn.Module] = WeakSet()
