"""Everything in a catalogue, tried in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from attacks.evasion._losses import margin, two_columns
from secure_ml.access import BlackBox
from secure_ml.batch import Batch, Tree
from secure_ml.families.evasion import Evasion
from secure_ml.outputs import Reveal
from secure_ml.surfaces import Box, Surface
from secure_ml.threats import Change, Transformations


@dataclass(frozen=True, kw_only=True)
class WorstTransformation(Evasion):
    """The worst of all rotations and shifts (Engstrom et al. 2019, https://arxiv.org/abs/1712.02779), or corruptions.

    Asks about images ``(B, C, H, W)`` under every change that the threat lists (`Spatial`, `Corruptions`), and keeps
    the one by which another class leads most. An exhaustive search: no attack within the threat finds more. Raises
    `NotApplicable` for other threats, and for inputs that are no images.
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Box,)
    threats: ClassVar[tuple[type[Change], ...]] = (Transformations,)
    sees: ClassVar[Reveal] = "logits"
    classifies: ClassVar[bool] = True

    def perturb(self, access: BlackBox, batch: Batch, threat: Transformations, rng: torch.Generator) -> Tree:
        """The worst images found, of the shape of the batch's."""
        surface = access.task.surface(threat)
        clean = surface.get(batch.inputs)
        assert isinstance(batch.target, torch.Tensor)
        sign = 1 if access.task.score.higher_is_better else -1
        worst = clean
        lead = sign * margin(two_columns(access(batch.inputs)), batch.target, None)
        for member in threat.members():
            changed = threat.apply(surface, clean, member)
            further = sign * margin(two_columns(access(surface.put(batch.inputs, changed))), batch.target, None)
            worst = torch.where((further > lead).reshape(-1, *[1] * (clean.ndim - 1)), changed, worst)
            lead = torch.maximum(lead, further)
        return surface.put(batch.inputs, worst)
