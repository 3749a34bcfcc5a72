"""Membership by the loss, compared with how hard an example is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.membership._signals import mean_where
from secure_ml.batch import Batch
from secure_ml.families.membership import Membership, Questioned
from secure_ml.outputs import Reveal, check_reveal


@dataclass(frozen=True, kw_only=True)
class CalibratedLoss(Membership):
    """A loss below what other models have means a member (Watson et al. 2022, https://arxiv.org/abs/2111.08440).

    Scores each example of ``(B, *shape)`` inputs by the mean loss of shadows that did not see it minus the victim's;
    one query an example. Raises `UsageError` for a number of shadows that is not even, or without auxiliary data, and
    `NotApplicable` for an answer that it cannot read.
    """

    reveal: Reveal = "probabilities"
    """How much of each answer the adversary sees."""
    shadows: int = 16
    """Shadow models."""
    online: bool = False
    """Whether each of them saw half of the examples, so that they can be shared with LiRA; else they saw none."""

    def __post_init__(self) -> None:
        check_reveal(self.reveal)

    def score(self, access: Questioned, batch: Batch, aux: Batch, rng: torch.Generator) -> Tensor:
        """The loss that was to be expected minus the loss of each example, ``(B,)``."""
        shadows = access.shadows(self.shadows, online=self.online)
        losses = torch.stack([access.like(shadow).loss(batch).double().cpu() for shadow in shadows.victims])
        return mean_where(losses, ~shadows.saw) - access.loss(batch).double().cpu()

    @classmethod
    def tiny(cls) -> CalibratedLoss:
        """Two shadows."""
        return cls(shadows=2)
