"""A copy trained on labels of images of another domain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from attacks.extraction._learned import Asked, Learned, images, shuffled
from secure_ml.access import BlackBox
from secure_ml.batch import Batch
from secure_ml.imitation import Imitation, Net
from secure_ml.outputs import Reveal


@dataclass(frozen=True, kw_only=True)
class Copycat(Learned):
    """Labels of natural images, varied in training: Copycat CNN (Correia-Silva et al. 2018).

    https://arxiv.org/abs/1806.05476. Asks for the labels of ``queries`` inputs ``(queries, *shape)`` of a pool, best
    one of another domain (``source``), and trains a copy on them; images are moved, turned and zoomed a little in each
    epoch and keep their label. Raises `UsageError` for a budget below 1, `NotApplicable` where answers have no labels.

    Differs from the paper: no weights learnt elsewhere, the victim's recipe, and inputs that are no images are varied
    as the victim's own training varies them, or not at all.
    """

    queries: int = 300
    """The budget."""
    budgets: tuple[int, ...] = ()
    """Smaller budgets at which the copy is judged on the way."""
    reveal: Reveal = "label"
    """How much of each answer the adversary sees."""
    source: str = ""
    """The document model whose training inputs are asked about; the victim's auxiliary split unless given."""
    varied: bool = False
    """Whether every image is turned, zoomed, stretched and moved at random before it is asked about."""
    augment: bool = True
    """Whether images are varied in training."""
    net: Net = "same"
    """Architecture of the copy."""
    epochs: int | None = None
    """Of the copy, over the answers; as many steps as the victim had unless given."""

    def steal(self, access: BlackBox, pool: Batch, train: Imitation, rng: torch.Generator) -> Iterator[nn.Module]:
        """A copy at each budget, from the labels so far."""
        pool, asked = self.wide(pool, self.queries, rng), Asked(access)
        order = shuffled(len(pool), self.queries, rng)
        for budget in self.stages:
            asked.ask(pool.take(order[len(asked) : budget]).inputs)
            yield self.learn(train, asked.data, images(train.task, pool.inputs) if self.augment else None)
            if asked.refused or len(asked) == len(order):
                return

    @classmethod
    def tiny(cls) -> Copycat:
        """Eight queries."""
        return cls(queries=8, budgets=(4,), epochs=2)
