"""Opacus's private optimizer on sums that the engine made, and the batches that its accountant assumes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from defenses.dp_sgd.engine import Engine

if TYPE_CHECKING:
    from opacus.optimizers import DPOptimizer


def private_optimizer(engine: Engine, optimizer: torch.optim.Optimizer, **settings: Any) -> DPOptimizer:
    """Opacus's optimizer around another: its noise, its scale, its hook for the accountant; the engine's sums."""
    private: DPOptimizer = _engine_optimizer()(optimizer, **settings)
    private.engine = engine
    return private


@cache
def _engine_optimizer() -> type[DPOptimizer]:
    from opacus.optimizers import DPOptimizer

    class EngineOptimizer(DPOptimizer):  # type: ignore[misc]
        engine: Engine
        accumulated_iterations = 1

        def pre_step(self, closure: Any = None) -> bool:
            """Noise on the sum over all pieces of the batch, an empty batch included, and a word to the accountant."""
            for parameter, total in zip(self.engine.parameters, self.engine.take(), strict=True):
                vars(parameter)["summed_grad"] = total
            self.add_noise()
            self.scale_grad()
            if self.step_hook:
                self.step_hook(self)
            return True

        def zero_grad(self, set_to_none: bool = True) -> None:
            for parameter in self.engine.parameters:
                parameter.grad = vars(parameter)["summed_grad"] = None

    return EngineOptimizer


class Poisson:
    """Batches into which every example goes independently at one rate; some are empty. Opacus draws them."""

    def __init__(self, n: int, rate: float, steps: int, rng: torch.Generator) -> None:
        from opacus.utils.uniform_sampler import UniformWithReplacementSampler

        self.draw = UniformWithReplacementSampler(num_samples=n, sample_rate=rate, generator=rng, steps=steps)

    def __iter__(self) -> Iterator[Tensor]:
        for chosen in self.draw:
            yield torch.tensor(chosen, dtype=torch.long)


class PoissonPersons:
    """Batches into which every person goes independently at one rate, each with as many records, drawn anew.

    ``owner`` ``(n,)`` says whose each record is. A person who has fewer than ``records`` brings some of them again.
    """

    def __init__(self, owner: Tensor, records: int, rate: float, steps: int, rng: torch.Generator) -> None:
        order = owner.cpu().argsort(stable=True)
        _, counts = owner.cpu()[order].unique_consecutive(return_counts=True)
        self.theirs, self.records, self.rng = order.split(counts.tolist()), records, rng
        self.persons = Poisson(len(self.theirs), rate, steps, rng)

    def __iter__(self) -> Iterator[Tensor]:
        for chosen in self.persons:
            yield torch.cat([self._some(person) for person in chosen.tolist()] or [torch.empty(0, dtype=torch.long)])

    def _some(self, person: int) -> Tensor:
        mine = self.theirs[person]
        shuffled = mine[torch.randperm(len(mine), generator=self.rng)]
        some: Tensor = shuffled[torch.arange(self.records) % len(mine)]
        return some
