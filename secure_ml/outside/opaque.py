"""A model that only answers: a file, a pipeline, somebody's service."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from secure_ml.batch import Batch, Tree, join, leaves, tree_map
from secure_ml.errors import UsageError


class Opaque(nn.Module, ABC):
    """Answers to ``(B, *shape)`` inputs, and nothing to look into or differentiate.

    Whoever needs weights or gradients of a victim whose module has such a part is told so by `NotApplicable`.
    """

    what: str
    """What it is, for the sentence that says why an attack does not apply: an ONNX file, say."""
    batch: int | None = None
    """How many examples it takes at a time, where that is fixed: shorter batches are filled up."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)

    @abstractmethod
    def answer(self, inputs: Tree) -> Tensor:
        """What it says about ``(B, *shape)`` inputs on the CPU, at least one; a number or a row for each."""

    def spare(self) -> float:
        """How many more inputs it may be asked about."""
        return float("inf")

    def used(self) -> Mapping[str, int]:
        """What asking it has cost so far, by name."""
        return {}

    @torch.no_grad()
    def forward(self, inputs: Tree) -> Tensor:
        """Answers ``(B, ...)``; raises `UsageError` where their number is not that of the inputs."""
        n = len(next(leaves(inputs)))
        here = tree_map(lambda leaf: leaf.detach().cpu(), inputs)
        if self.batch is None or not n:
            said = self.answer(here)
        else:
            said = torch.cat([self._filled(piece.inputs) for piece in Batch(here, ()).chunks(self.batch)])
        if said.ndim == 0 or len(said) != n:
            raise UsageError(f"{self.what} answered {n} inputs with shape {tuple(said.shape)}; expected one for each")
        return said.to(self.place.device)

    def _filled(self, inputs: Tree) -> Tensor:
        n, size = len(next(leaves(inputs))), self.batch or 0
        last = tree_map(lambda leaf: leaf[-1:].expand(size - n, *leaf.shape[1:]), inputs)
        return self.answer(join([inputs, last]))[:n]


def opaque(module: nn.Module) -> Opaque | None:
    """The part of a module that only answers, if it has one."""
    return next((part for part in module.modules() if isinstance(part, Opaque)), None)
