"""Membership by whether an example lies in a dip of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.membership._signals import noisy
from secure_ml.batch import Batch
from secure_ml.errors import require
from secure_ml.families.membership import Membership, Questioned
from secure_ml.outputs import Reveal, check_reveal
from secure_ml.surfaces import Box, Surface


@dataclass(frozen=True, kw_only=True)
class Merlin(Membership):
    """A loss that rises with almost any small change means a member (Jayaraman et al. 2021, https://arxiv.org/abs/2005.10881).

    Scores each example of ``(B, *shape)`` inputs by the share of ``queries`` noisy copies of it that have a higher
    loss than itself. Raises `UsageError` for settings out of range and `NotApplicable` where inputs are no numbers.

    Differs from the paper: noise is a share of the box that inputs lie in, is cut off at its border, and keeps the
    rules of a table.
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Box,)

    reveal: Reveal = "probabilities"
    """How much of each answer the adversary sees."""
    noise: float = 0.01
    """Standard deviation of the noise, as a share of the box."""
    queries: int = 100
    """Noisy copies of each example."""

    def __post_init__(self) -> None:
        check_reveal(self.reveal)
        require(self.noise > 0, f"Merlin needs noise above 0; given {self.noise}")
        require(self.queries >= 1, f"Merlin needs at least 1 query; given {self.queries}")

    def score(self, access: Questioned, batch: Batch, aux: Batch, rng: torch.Generator) -> Tensor:
        """The share of noisy copies with a higher loss, ``(B,)``."""
        loss, risen = access.loss(batch), torch.zeros(len(batch))
        for _ in range(self.queries):
            risen += (access.loss(noisy(access.task, batch, self.noise, rng)) > loss).cpu()
        return risen / self.queries

    @classmethod
    def tiny(cls) -> Merlin:
        """Five queries."""
        return cls(queries=5)
