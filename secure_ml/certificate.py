"""What can be proved about single answers of a victim: attacks bound robustness from above, certificates from below."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from secure_ml.batch import Batch, Tree
from secure_ml.threats import Ball


class Certificate(ABC):
    """A proof for each example that the answer names its class everywhere in a ball around it."""

    norm: type[Ball]
    """The norm in which radii are measured."""
    alpha: float
    """The chance with which the statement about one example may be wrong; 0 for a deterministic proof."""

    @abstractmethod
    def radii(self, batch: Batch, rng: torch.Generator) -> Tensor:
        """The certified radius of each example, ``(B,)``; below 0 where the answer is wrong or withheld."""

    def predict(self, inputs: Tree, rng: torch.Generator) -> Tensor | None:
        """The class ``(B,)`` that the proof is about, -1 where it cannot be told; None where it is the served one."""
        return None
