"""The one training loop. Victims, shadows and surrogates, bare or protected, all go through it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import reduce
from math import cos, pi
from typing import TypeAlias

import torch
from torch import Tensor, nn

from secure_ml.batch import Batch, Splits
from secure_ml.defense import Defense
from secure_ml.errors import UsageError, require
from secure_ml.randomness import generator, seeded
from secure_ml.task import Loss, Recipe, Task
from secure_ml.victim import Plain, Victim, build, resolve_device, serve

Transform: TypeAlias = Callable[[nn.Module, Batch], Batch]
Finish: TypeAlias = Callable[[Victim], Victim]


@dataclass(frozen=True, eq=False)
class Step:
    """What an observer sees: where training is, the batch, and its losses ``(B,)`` before the update."""

    plan: Plan
    epoch: int
    index: int
    batch: Batch
    losses: Tensor


Observer: TypeAlias = Callable[[Step], None]


@dataclass(frozen=True)
class Loader:
    """The training examples, in the batches that a sampler of indices asks for, anew in each epoch."""

    data: Batch
    sampler: Iterable[Tensor]
    steps: int
    """Batches in an epoch."""

    def __iter__(self) -> Iterator[Batch]:
        for index in self.sampler:
            yield self.data.take(index)


@dataclass(frozen=True)
class Shuffled:
    """Every example once in an epoch, in a new order, in batches of one size (the last may be smaller)."""

    n: int
    batch_size: int
    rng: torch.Generator

    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.randperm(self.n, generator=self.rng).split(self.batch_size)


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Everything that the training loop uses. A defense returns a plan whose parts act like the ones it was given."""

    task: Task
    module: nn.Module
    optimizer: torch.optim.Optimizer
    loader: Loader
    loss: Loss
    transform: Transform
    """Rewrites a batch before the loss sees it: augmentation, adversarial training."""
    epochs: int
    schedule: Callable[[float], float]
    """Share of training done, in [0, 1), to the factor on the learning rate."""
    patience: int | None
    splits: Splits
    """All of the data; ``splits.train`` is what the loader draws from, unless a defense changes it."""
    seed: int
    rng: torch.Generator
    """Of augmentation and crafting; on the CPU."""
    device: torch.device
    crafting: Callable[[nn.Module], AbstractContextManager[object]] = nullcontext
    """Inside it the module may be run and differentiated without a trace on per-sample hooks."""
    observers: tuple[Observer, ...] = ()
    finish: tuple[Finish, ...] = ()
    """Run on the victim after the last step, last added first: unwrap, add a claim."""


def fit(
    task: Task,
    defenses: Sequence[Defense] = (),
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    observers: Sequence[Observer] = (),
) -> Victim:
    """Train a task under a stack of defenses and serve the result; what was passed in stays as it was.

    Raises `NotApplicable` where a defense has no meaning for the task, and `UsageError` where data, module,
    loss or a setting are wrong or the loss stops being a number.
    """
    stack = tuple(defenses)
    for defense in stack:
        defense.check(task)
    start = time.perf_counter()
    with seeded(seed, "train"), warnings.catch_warnings(), _repeatable():
        plan = make_plan(task, stack, seed, resolve_device(device), tuple(observers))
        train(plan)
    victim = Victim(
        task=task,
        module=plan.module,
        served=Plain(plan.module),
        splits=plan.splits,
        defenses=stack,
        seed=seed,
    )
    victim = reduce(lambda done, finish: finish(done), reversed(plan.finish), victim)
    victim.module.eval()
    seconds = time.perf_counter() - start
    return serve(replace(victim, served=Plain(victim.module), seconds=seconds))


@contextmanager
def _repeatable() -> Iterator[None]:
    """On a GPU, only convolution algorithms that give equal results on equal inputs."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def make_plan(
    task: Task, defenses: Sequence[Defense], seed: int, device: torch.device, observers: tuple[Observer, ...] = ()
) -> Plan:
    """The plan of a task's own recipe, rewritten by each defense in turn."""
    recipe, splits = task.recipe, task.draw(seed).to(device)
    module = build(task, defenses, seed).to(device).train()
    require(any(p.requires_grad for p in module.parameters()), f"{task}: the module has no parameters to train")
    task.check(module, splits)
    n = len(splits.train)
    sampler = Shuffled(n, recipe.batch_size, generator(seed, "order"))
    rng = generator(seed, "transform")
    plan = Plan(
        task=task,
        module=module,
        optimizer=make_optimizer(module, recipe),
        loader=Loader(splits.train, sampler, -(-n // recipe.batch_size)),
        loss=task.loss,
        transform=lambda _, batch: task.augment(batch, rng),
        epochs=recipe.epochs,
        schedule=_SCHEDULES[recipe.schedule],
        patience=recipe.patience,
        splits=splits,
        seed=seed,
        rng=rng,
        device=device,
        observers=observers,
    )
    return reduce(lambda current, defense: defense.prepare(current), defenses, plan)


def make_optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameters that are to be trained."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    if recipe.optimizer == "SGD":
        return torch.optim.SGD(
            parameters, recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
    kind: type[torch.optim.Adam] = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[recipe.optimizer]
    return kind(parameters, recipe.learning_rate, weight_decay=recipe.weight_decay)


def train(plan: Plan) -> None:
    """Run a plan to its end; the module it names is trained in place."""
    rates = [group["lr"] for group in plan.optimizer.param_groups]
    best = _Best(plan)
    for epoch in range(plan.epochs):
        total = torch.zeros((), device=plan.device)
        for index, batch in enumerate(plan.loader):
            factor = plan.schedule((epoch + index / plan.loader.steps) / plan.epochs)
            for group, rate in zip(plan.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            total += _step(plan, epoch, index, batch)
        if not total.isfinite():
            raise UsageError(
                f"{plan.task}: the training loss is {total.item()} in epoch {epoch + 1}: "
                "lower the learning rate, or look for NaN in the data or the loss"
            )
        if best.done(epoch):
            break
    best.restore()
    plan.optimizer.zero_grad()
    if not all(value.isfinite().all() for value in plan.module.state_dict().values()):
        raise UsageError(f"{plan.task}: the weights are not finite after training: lower the learning rate")


def _step(plan: Plan, epoch: int, index: int, batch: Batch) -> Tensor:
    plan.module.train()
    with plan.crafting(plan.module):
        batch = plan.transform(plan.module, batch)
    plan.optimizer.zero_grad()
    losses = plan.loss(plan.module, batch)
    (losses.sum() / max(len(batch), 1)).backward()
    for observe in plan.observers:
        observe(Step(plan, epoch, index, batch, losses.detach()))
    plan.optimizer.step()
    return losses.detach().sum()


class _Best:
    """Early stopping: the weights of the best epoch on the validation split, where a plan has patience."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.epoch, self.score = plan, 0, float("-inf")
        self.weights: dict[str, Tensor] | None = None

    def done(self, epoch: int) -> bool:
        plan = self.plan
        if plan.patience is None:
            return False
        with plan.crafting(plan.module):
            score = plan.task.score.measure(Plain(plan.module), plan.splits.validation).value
        score = score if plan.task.score.higher_is_better else -score
        if score > self.score:
            self.epoch, self.score = epoch, score
            self.weights = deepcopy(plan.module.state_dict())
        return epoch - self.epoch >= plan.patience

    def restore(self) -> None:
        if self.weights is not None:
            self.plan.module.load_state_dict(self.weights)


def _cosine(done: float) -> float:
    return (1 + cos(pi * done)) / 2


_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "cosine": _cosine,
    "linear": lambda done: 1 - done,
}
