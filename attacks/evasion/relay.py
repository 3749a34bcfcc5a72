"""Several surfaces changed in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from attacks.evasion.pgd import PGD
from attacks.evasion.token_swap import TokenSwap
from secure_ml.access import WhiteBox
from secure_ml.batch import Batch, Tree
from secure_ml.families.evasion import Evasion
from secure_ml.surfaces import Box, Surface, Tokens
from secure_ml.threats import Change


@dataclass(frozen=True, kw_only=True)
class Relay(Evasion):
    """Image and text changed together: each surface by the attack that suits it, given what was changed before it.

    For models of several inputs (Yu et al. 2021, https://arxiv.org/abs/2011.12902, evaluate attacks on one or more
    modalities of a fusion model). Takes inputs that are trees with tensors ``(B, *shape)`` and ``(B, L)``, in the
    order of the threat's parts. Raises `NotApplicable` where the threat is to one surface only.

    Differs from the paper: the surfaces are attacked one after the other, not by one joint step.
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Box, Tokens)
    at_least: ClassVar[int] = 2

    numbers: PGD = PGD()
    """The attack on boxes and tables."""
    tokens: TokenSwap = TokenSwap()
    """The attack on tokens."""

    def perturb(self, access: WhiteBox, batch: Batch, threat: Change, rng: torch.Generator) -> Tree:
        """The inputs with the surface of this one threat changed."""
        attack: Evasion = self.tokens if issubclass(threat.surface, Tokens) else self.numbers
        return attack.perturb(access, batch, threat, rng)

    def check_threat(self, threat: Change) -> None:
        """Raise `UsageError` where the settings of the attack on this surface do not fit."""
        attack: Evasion = self.tokens if issubclass(threat.surface, Tokens) else self.numbers
        attack.check_threat(threat)

    @classmethod
    def tiny(cls) -> Relay:
        """Both attacks at their tiny settings."""
        return cls(numbers=PGD.tiny(), tokens=TokenSwap.tiny())
