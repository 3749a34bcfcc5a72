"""Edits of texts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from secure_ml.errors import require
from secure_ml.surfaces import Surface, Tokens
from secure_ml.threats.base import Change


@dataclass(frozen=True)
class Edits(Change):
    """At most ``radius`` tokens of each example are replaced by other tokens; none is added or removed."""

    radius: int
    surface: ClassVar[type[Surface]] = Tokens

    def __post_init__(self) -> None:
        require(
            isinstance(self.radius, int) and self.radius >= 0,
            f"Edits needs a whole number of edits of at least 0; given {self.radius}",
        )

    def within(self, radius: float) -> Self:
        """Another number of edits; parts of one count as one."""
        return replace(self, radius=math.ceil(radius))

    def size(self, clean: Tensor, changed: Tensor) -> Tensor:
        """Number of positions changed in each example, ``(B,)``."""
        return (clean != changed).flatten(1).sum(1)

    def project(self, surface: Surface, clean: Tensor, proposal: Tensor) -> Tensor:
        """Undo edits that are not allowed, then those beyond the first ``radius`` positions."""
        assert isinstance(surface, Tokens)
        known = (proposal >= 0) & (proposal < surface.vocabulary)
        allowed = known & surface.editable(clean) & surface.editable(proposal) & (proposal != clean)
        kept = allowed & (allowed.long().cumsum(1) <= self.radius)
        return torch.where(kept, proposal, clean)
