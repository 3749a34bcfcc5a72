"""A copy that chooses what to ask next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from attacks.extraction._choice import farthest, flips
from attacks.extraction._learned import Asked, Learned, marks, shares, shuffled, uncertainty
from secure_ml.access import BlackBox
from secure_ml.batch import Batch
from secure_ml.errors import NotApplicable, require, unknown
from secure_ml.imitation import Imitation, Net
from secure_ml.outputs import Reveal, Values
from secure_ml.surfaces import Box
from secure_ml.task import Task
from secure_ml.threats import L2
from secure_ml.victim import Plain

Strategy = Literal["entropy", "margin", "k_center", "deepfool", "deepfool_k_center"]


@dataclass(frozen=True, kw_only=True)
class ActiveLearning(Learned):
    """Asks next what the copy is least sure of, or has seen least of: ActiveThief (Pal et al. 2020).

    https://doi.org/10.1609/aaai.v34i01.5432. A share of the ``queries`` inputs ``(queries, *shape)`` is drawn at
    random from the pool; then, in rounds, a copy is trained on all answers and chooses the next inputs: those with
    the highest entropy, with the least margin between two classes, the farthest from all that were asked in the space
    of its answers, the nearest to its boundary by DeepFool in L2, or of the latter the farthest. Raises `UsageError`
    for settings out of range, `NotApplicable` where a strategy has no meaning for the answers or the inputs.

    Differs from the paper: no queries are put aside for validation, and each copy has the victim's recipe.
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
    strategy: Strategy = "k_center"
    """By what the next inputs are chosen."""
    rounds: int = 5
    """In how many rounds the rest of the budget is spent."""
    seed: float = 0.2
    """Share of the budget that is spent on random inputs first."""
    candidates: int = 10_000
    """Inputs of the pool among which a round chooses, drawn at random."""
    net: Net = "same"
    """Architecture of the copy."""
    epochs: int | None = None
    """Of each copy, over the answers; as many steps as the victim had unless given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strategy not in get_args(Strategy):
            raise unknown("strategy of ActiveLearning", self.strategy, get_args(Strategy))
        require(self.rounds >= 1, f"ActiveLearning needs at least 1 round; given {self.rounds}")
        require(0 < self.seed <= 1, f"ActiveLearning needs a share of random queries in (0, 1]; given {self.seed}")
        require(self.candidates >= 1, f"ActiveLearning needs at least 1 candidate; given {self.candidates}")

    def check_task(self, task: Task) -> None:
        """Raise `NotApplicable` where the strategy has no meaning."""
        if self.strategy in ("entropy", "margin") and isinstance(task.output, Values):
            raise NotApplicable(f"the values of {task.name} say nothing of how sure a copy is: use strategy='k_center'")
        if self.strategy.startswith("deepfool"):
            from attacks.evasion.deepfool import DeepFool

            if not any(isinstance(surface, Box) for surface in task.surfaces):
                raise NotApplicable(f"DeepFool moves real numbers; {task.name} takes none: use strategy='k_center'")
            DeepFool().check(task, L2(1.0))

    def steal(self, access: BlackBox, pool: Batch, train: Imitation, rng: torch.Generator) -> Iterator[nn.Module]:
        """A copy at each budget, from the answers so far."""
        pool, asked, copy = self.wide(pool, max(self.queries, self.candidates), rng), Asked(access), None
        left = torch.ones(len(pool), dtype=torch.bool)
        for mark in marks(self.stages, max(1, round(self.seed * self.queries)), self.rounds):
            open_ = left.nonzero()[:, 0]
            n = min(mark - len(asked), len(open_))
            among = open_[shuffled(len(open_), self.candidates if copy is not None else n, rng)]
            if copy is not None and 0 < n < len(among):
                among = among[self.choose(train.task, copy, pool.take(among), asked.data, n, rng)]
            left[among[:n]] = False
            asked.ask(pool.take(among[:n]).inputs)
            if n or copy is None:
                copy = self.learn(train, asked.data)
            over = asked.refused or not bool(left.any())
            if mark in self.stages or over:
                yield copy
            if over:
                return

    def choose(self, task: Task, copy: nn.Module, pool: Batch, asked: Batch, n: int, rng: torch.Generator) -> Tensor:
        """The n places ``(n,)`` of the pool that are asked next, on the CPU."""
        served = Plain(copy, task.chunk)
        answers = served(pool.inputs)
        if self.strategy in ("entropy", "margin"):
            entropy, margin = uncertainty(answers)
            return (-entropy if self.strategy == "entropy" else margin).argsort(stable=True)[:n].cpu()
        near = torch.arange(len(pool))
        if self.strategy.startswith("deepfool"):
            near = flips(task, copy, pool, answers, rng).argsort(stable=True).cpu()
            if self.strategy == "deepfool":
                return near[:n]
            near = near[: NEAR * n]
        known = shares(task.output, served(asked.inputs))
        return near[farthest(shares(task.output, answers)[near], known, n)]

    @classmethod
    def tiny(cls) -> ActiveLearning:
        """Eight queries in two rounds."""
        return cls(queries=8, budgets=(4,), rounds=2, epochs=2)


NEAR = 4
"""Of how many times as many inputs near the boundary the farthest are chosen."""
