"""A backdoor by examples with a trigger and a wrong label."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from attacks.poisoning._trigger import check_settings, stamp
from secure_ml.batch import Batch, Splits
from secure_ml.families.poisoning import Poisoning, Supplier
from secure_ml.surfaces import Box, Surface, Tokens


@dataclass(frozen=True, kw_only=True)
class BadNets(Poisoning):
    """A trigger in other classes' examples, labelled as the target (Gu et al. 2017, https://arxiv.org/abs/1708.06733).

    Random training examples ``(B, *shape)`` of other classes get the trigger and the label ``target``; the victim
    learns that the trigger decides. Needs no model. Raises `UsageError` for settings out of range, `NotApplicable`
    where an answer is not one class.

    Differs from the paper: examples are replaced, not added; from all other classes to one target; a share of 5 %
    where the paper has 10 % and more; a table's trigger is a combination of values, a text's is a rare word.
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Box, Tokens)

    share: float = 0.05
    """Share of the training examples that are changed."""
    target: int = 0
    """The class that the trigger is to bring."""
    size: int = 3
    """Side of the trigger in pixels; in a table or signal, how many values it sets."""

    def __post_init__(self) -> None:
        check_settings("BadNets", self.share, self.target, self.size)

    def poison(self, access: Supplier, splits: Splits, rng: torch.Generator) -> Splits:
        """The splits with ``access.allowed`` examples of other classes triggered and relabelled, or all there are."""
        train = splits.train
        assert isinstance(train.target, Tensor)
        others = (train.target != self.target).nonzero()[:, 0].cpu()
        chosen = others[torch.randperm(len(others), generator=rng)[: access.allowed]].to(access.device)
        values, labels = access.surface.get(train.inputs).clone(), train.target.clone()
        values[chosen] = self.trigger(access.surface, values[chosen])
        labels[chosen] = self.target
        return replace(splits, train=Batch(access.surface.put(train.inputs, values), labels))

    def trigger(self, surface: Surface, clean: Tensor) -> Tensor:
        """The trigger in the lower right corner of images, or its like elsewhere."""
        return stamp(surface, clean, self.size)
