"""Membership by the loss alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secure_ml.access import BlackBox
from secure_ml.batch import Batch
from secure_ml.families.membership import Membership
from secure_ml.outputs import Reveal, check_reveal


@dataclass(frozen=True, kw_only=True)
class LossThreshold(Membership):
    """A low loss means a member (Yeom et al. 2018, https://arxiv.org/abs/1709.01604).

    Scores each example of ``(B, *shape)`` inputs by minus its loss, computed from what is revealed; one query an
    example. Where only labels are revealed this is the gap attack: right answers are members. Uses no shadow
    models, so it bounds leakage from below, and loosely. Raises `NotApplicable` for an answer that it cannot read.
    """

    reveal: Reveal = "probabilities"
    """How much of each answer the adversary sees."""

    def __post_init__(self) -> None:
        check_reveal(self.reveal)

    def score(self, access: BlackBox, batch: Batch, aux: Batch, rng: torch.Generator) -> Tensor:
        """Minus the loss of each example, ``(B,)``."""
        return -access.loss(batch)
