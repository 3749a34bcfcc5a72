"""What the checks of a private victim share: fresh plans of its training, run for a few steps under observation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from attacks.audit._released import private_optimizer, reading, rows_per_unit, stand_still
from secure_ml.batch import Batch
from secure_ml.errors import UsageError
from secure_ml.families.audit import Laboratory, privacy_claim
from secure_ml.randomness import generator, seeded
from secure_ml.task import Loss, unchanged
from secure_ml.training import Loader, Observer, Plan, Step, train
from secure_ml.victim import Claim, Plain, Victim

if TYPE_CHECKING:
    from opacus.optimizers import DPOptimizer

Reshape: TypeAlias = Callable[[Loss, Any, Batch], Tensor]
"""A plan's loss, and what a loss is handed, to other losses ``(B,)``."""


@dataclass
class Short:
    """The first batches of another sampler, in each epoch; every other one is cut to few rows."""

    sampler: Any
    steps: int
    few: int
    begin: Callable[[], None] = lambda: None
    """Called when an epoch begins."""
    sizes: list[int] = field(default_factory=list)
    """Of all batches so far, in rows."""

    def __iter__(self) -> Iterator[Tensor]:
        self.begin()
        for _, index in zip(range(self.steps), self.sampler, strict=False):
            some = index[: self.few] if len(self.sizes) % 2 else index
            self.sizes.append(len(some))
            yield some


class Trial:
    """A victim that claims differential privacy, and its training at hand."""

    def __init__(self, victim: Victim, claim: Claim, seed: int) -> None:
        self.victim, self.claim, self.seed = victim, claim, seed
        self.values: Mapping[str, Any] = claim.values
        self.lab = Laboratory(victim, seed)
        self.taken = 0
        """Steps that moved the weights in the last run."""
        first = self.plan()
        self.private = private_optimizer(first) is not None
        self.rows = rows_per_unit(first)
        """Rows of a batch that belong to one protected unit."""
        owner = victim.splits.owner
        persons = self.rows > 1 or self.values.get("unit") == "person"
        self.owner = owner if persons else None
        self.units = len(victim.splits.train) if self.owner is None else len(self.owner.unique())

    def number(self, name: str) -> float:
        """A number of the claim; `UsageError` where it does not say it."""
        if name not in self.values:
            raise UsageError(f"the claim does not say its {name}, so that nobody can check it")
        return float(self.values[name])

    def plan(self, loss: Reshape | None = None, observers: tuple[Observer, ...] = ()) -> Plan:
        """A fresh plan that moves no weight, without augmentation or dropout, its loss replaced by one made from it."""
        task = replace(self.lab.task_on(self.victim.splits), augment=unchanged)
        plan = self.lab.plan(task, observers)
        stand_still(plan)
        for layer in plan.module.modules():
            if isinstance(layer, nn.modules.dropout._DropoutNd):
                layer.p = 0.0
            if isinstance(layer, nn.RNNBase):
                layer.dropout = 0.0
        return plan if loss is None else replace(plan, loss=partial(loss, plan.loss))

    def optimizer(self, plan: Plan) -> DPOptimizer:
        """The plan's private optimizer."""
        found = private_optimizer(plan)
        if found is None:
            raise UsageError("the plan that training would follow adds no noise, for all that is claimed")
        return found

    def run(self, plan: Plan, loader: Loader, epochs: int = 1) -> list[Tensor]:
        """Run a plan on other batches; what each step gives away, ``(P,)``: 0 where none is taken.

        A loss that is no number is no end.
        """
        seen: list[Tensor] = []
        trained = [p for p in plan.module.parameters() if p.requires_grad]
        self.taken = 0

        def begin(_: Step) -> None:
            seen.append(torch.zeros(sum(p.numel() for p in trained), dtype=torch.float64))

        def read() -> None:
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
            seen[-1] = torch.cat([grad.detach().flatten() for grad in grads]).double().cpu()
            self.taken += 1

        refused = ""
        observers = (*plan.observers, begin)
        with seeded(self.seed, "privacy checks"), reading(plan, read):
            try:
                train(replace(plan, loader=loader, epochs=epochs, patience=None, observers=observers))
            except UsageError as error:
                refused = str(error)
        if refused and len(seen) < epochs * loader.steps:
            raise UsageError(refused)
        return seen

    def short(self, plan: Plan, steps: int, begin: Callable[[], None] = lambda: None) -> tuple[Loader, Short]:
        """The plan's own loader for a few steps an epoch."""
        loader = cast("Loader", plan.loader)
        sampler = Short(loader.sampler, min(steps, loader.steps), 2 * self.rows, begin)
        return replace(loader, sampler=sampler, steps=sampler.steps), sampler

    def sums(self, plan: Plan, data: Batch, batches: Sequence[Sequence[int]]) -> list[Tensor]:
        """The noiseless sums ``(P,)`` that steps on these units of the data add up to."""
        optimizer = self.optimizer(plan)
        optimizer.noise_multiplier = 0.0
        index = [torch.tensor(units, dtype=torch.long).repeat_interleave(self.rows) for units in batches]
        loader = replace(cast("Loader", plan.loader), data=data, sampler=index, steps=len(index))
        return [grad * optimizer.expected_batch_size for grad in self.run(plan, loader)]

    def finish(self, plan: Plan) -> Claim | None:
        """What a plan would claim after the steps that it has taken."""
        module = plan.module
        done = Victim(
            task=plan.task,
            module=module,
            served=Plain(module, plan.task.chunk),
            splits=plan.splits,
            defenses=self.victim.defenses,
            seed=plan.seed,
        )
        with suppress(ValueError):  # a history without a step cannot be read
            return privacy_claim(reduce(lambda victim, finish: finish(victim), reversed(plan.finish), done))
        return None

    def batches(self, least: int) -> list[Tensor]:
        """The units in at least so many batches of the plan's own sampler, in whole epochs."""
        plan = self.plan()
        sampler, found = cast("Loader", plan.loader).sampler, list[Tensor]()
        while len(found) < least:
            before = len(found)
            found += [self._units(index.cpu()) for index in sampler]
            if len(found) == before:
                raise UsageError("the sampler gives no batches")
        return found

    def _units(self, index: Tensor) -> Tensor:
        return index if self.owner is None else self.owner[index[:: self.rows]]

    def rng(self, purpose: str) -> torch.Generator:
        """Randomness for one purpose."""
        return generator(self.seed, "privacy checks", purpose)
