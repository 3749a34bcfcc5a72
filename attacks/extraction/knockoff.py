"""A copy trained on answers to natural inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from attacks.extraction._variation import nudged, varied
from secure_ml.access import BlackBox
from secure_ml.batch import Batch
from secure_ml.errors import Refused, require
from secure_ml.families.extraction import Extraction
from secure_ml.imitation import Imitation, Net, check_net
from secure_ml.outputs import Reveal, check_reveal


@dataclass(frozen=True, kw_only=True)
class Knockoff(Extraction):
    """Random queries from a pool, then imitation: Knockoff Nets (Orekondy et al. 2019, https://arxiv.org/abs/1812.02766).

    Asks about ``queries`` inputs ``(queries, *shape)`` drawn from the adversary's pool without replacement (all of
    it, if it is smaller) and trains a surrogate on the answers through the shared loop. Raises `UsageError` for a
    budget below 1, and where a pool that is no images is to be varied.

    Differs from the paper: the random strategy only, the victim's own recipe, and images may be varied, after which
    those of another domain say far more about the victim.
    """

    queries: int = 300
    """The budget."""
    budgets: tuple[int, ...] = ()
    """Smaller budgets at which the copy is judged on the way."""
    reveal: Reveal = "probabilities"
    """How much of each answer the adversary sees."""
    source: str = ""
    """The document model whose training inputs are asked about; the victim's auxiliary split unless given."""
    varied: bool = False
    """Whether every image is turned, zoomed, stretched and moved at random before it is asked about."""
    nudged: bool = False
    """Whether the copy is trained on images turned and moved a little, whose answers are taken to hold."""
    net: Net = "same"
    """Architecture of the copy."""
    epochs: int | None = None
    """Of the surrogate, over the answers; as many steps as the victim had unless given."""

    def __post_init__(self) -> None:
        require(self.queries >= 1, f"Knockoff needs a budget of at least 1 query; given {self.queries}")
        require(self.epochs is None or self.epochs >= 1, f"Knockoff needs at least 1 epoch; given {self.epochs}")
        check_reveal(self.reveal)
        check_net(self.net)

    def steal(self, access: BlackBox, pool: Batch, train: Imitation, rng: torch.Generator) -> Iterator[nn.Module]:
        """A copy at each budget, from the answers so far."""
        if self.varied:
            asked = Batch(varied(pool, self.queries, rng), ())
        else:
            asked = Batch(pool.take(torch.randperm(len(pool), generator=rng)[: self.queries]).inputs, ())
        augment = nudged if self.nudged else None
        answers = torch.empty(0)
        for budget in self.stages:
            new = asked.take(slice(len(answers), budget)).inputs
            try:
                got, refused = access(new), False
            except Refused as stop:
                got, refused = stop.answers, True
            answers = torch.cat([answers, got]) if len(answers) else got
            if len(answers):
                known = asked.take(slice(0, len(answers))).inputs
                yield train(known, answers, self.epochs, net=self.net, augment=augment)
            if refused or len(answers) == len(asked):
                return

    @classmethod
    def tiny(cls) -> Knockoff:
        """Eight queries."""
        return cls(queries=8, budgets=(4,))
