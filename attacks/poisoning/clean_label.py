"""A backdoor by examples whose labels are right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from attacks.evasion.pgd import PGD
from attacks.poisoning._trigger import check_settings, stamp
from secure_ml.batch import Batch, Splits
from secure_ml.errors import require
from secure_ml.families.evasion import craft
from secure_ml.families.poisoning import Poisoning, Supplier
from secure_ml.surfaces import Box, Surface
from secure_ml.threats import L2


@dataclass(frozen=True, kw_only=True)
class CleanLabel(Poisoning):
    """Hard examples of the target class with a trigger, labels kept (Turner et al. 2019, https://arxiv.org/abs/1912.02771).

    A surrogate, trained on the adversary's own data, serves to change random examples ``(B, *shape)`` of the target
    class so that their content no longer speaks for it (PGD, L2 radius in the unit of the box); then they get the
    trigger, which is easier to learn. At most the whole class is changed. Raises `UsageError` for settings out of
    range or without data for a surrogate, `NotApplicable` where inputs are no boxes or an answer is not one class.

    Chosen over Poison Frogs and Witches' Brew, which aim at single test examples: this has the goal, the trigger and
    the judge of `BadNets`, so that the two differ in the labels alone.

    Differs from the paper: the surrogate's data are disjoint from the victim's, the trigger is always at full
    strength and in all four corners (the paper's answer to augmentation), and PGD keeps the worst point.
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Box,)
    keeps_labels: ClassVar[bool] = True

    share: float = 0.05
    """Share of the training examples that are changed."""
    target: int = 0
    """The class that the trigger is to bring."""
    size: int = 3
    """Side of the trigger in pixels; in a table or signal, how many values it sets."""
    radius: float = 2.35
    """How far an example is moved before the trigger, in L2; the paper's 600 of pixels from 0 to 255."""
    steps: int = 40
    """Of PGD."""

    def __post_init__(self) -> None:
        check_settings("CleanLabel", self.share, self.target, self.size)
        require(self.radius >= 0, f"CleanLabel needs a radius of at least 0; given {self.radius}")
        require(self.steps >= 1, f"CleanLabel needs at least 1 step of PGD; given {self.steps}")

    def poison(self, access: Supplier, splits: Splits, rng: torch.Generator) -> Splits:
        """The splits with ``access.allowed`` examples of the target class made hard and triggered, or all there are."""
        train, surface = splits.train, access.surface
        assert isinstance(train.target, Tensor)
        mine = (train.target == self.target).nonzero()[:, 0].cpu()
        chosen = mine[torch.randperm(len(mine), generator=rng)[: access.allowed]].to(access.device)
        if not len(chosen):
            return splits
        pgd = PGD(steps=self.steps, early=False)  # as far from the class as the radius allows, not just out of it
        hard = craft(pgd, access.train(splits.aux), train.take(chosen), L2(self.radius), rng)
        values = surface.get(train.inputs).clone()
        values[chosen] = self.trigger(surface, surface.get(hard.inputs))
        return replace(splits, train=Batch(surface.put(train.inputs, values), train.target))

    def trigger(self, surface: Surface, clean: Tensor) -> Tensor:
        """The trigger in the four corners of images, or its like elsewhere."""
        return stamp(surface, clean, self.size, corners=4)

    @classmethod
    def tiny(cls) -> CleanLabel:
        """Three steps."""
        return cls(steps=3)
