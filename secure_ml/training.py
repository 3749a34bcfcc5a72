"""The one training loop. Victims, shadows and surrogates, bare or protected, all go through it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import reduce
from math import cos, pi
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from secure_ml.batch import Batch, Splits, leaves
from secure_ml.checkpoint import Checkpoint, Randomness, Stateful
from secure_ml.defense import Defense, stack_name
from secure_ml.errors import UsageError, require
from secure_ml.kernels import channels_last
from secure_ml.modes import evaluating
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


class Renewed:
    """Examples that each epoch makes anew out of those of the last, shuffled: a loader for models that act."""

    def __init__(self, data: Batch, batch_size: int, renew: Callable[[Batch], Batch], rng: torch.Generator) -> None:
        self.data, self.batch_size, self.renew, self.rng = data, batch_size, renew, rng
        self.begun = False

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.data) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if self.begun:
            self.data = self.renew(self.data)
        self.begun = True
        for index in Shuffled(len(self.data), self.batch_size, self.rng):
            yield self.data.take(index)

    def state_dict(self) -> dict[str, Any]:
        """The examples of the epoch that is done."""
        return {"inputs": self.data.inputs, "target": self.data.target, "begun": self.begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from those examples."""
        device = next(leaves(self.data.inputs)).device
        self.data = Batch(state["inputs"], state["target"]).to(device)
        self.begun = state["begun"]


@dataclass(frozen=True)
class Shuffled:
    """Every example once in an epoch, in a new order, in batches of one size (the last may be smaller)."""

    n: int
    batch_size: int
    rng: torch.Generator

    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.randperm(self.n, generator=self.rng).split(self.batch_size)


def mean_loss(losses: Tensor, size: int) -> Tensor:
    """The share of losses ``(b,)`` in the mean over a batch of ``size`` examples."""
    return losses.sum() / max(size, 1)


def nothing() -> None:
    """What a plain plan does between the pieces of a batch."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Everything that the training loop uses. A defense returns a plan whose parts act like the ones it was given."""

    task: Task
    module: nn.Module
    optimizer: torch.optim.Optimizer
    loader: Loader | Renewed
    loss: Loss
    transform: Transform
    """Rewrites a batch before the loss sees it: augmentation, adversarial training."""
    objective: Callable[[Tensor, int], Tensor] = mean_loss
    """Losses ``(b,)`` of a piece of a batch, and the size of the whole batch, to the number that is differentiated."""
    gather: Callable[[], None] = nothing
    """Called when the gradients of a piece are there."""
    piece: int | None = None
    """Examples that are differentiated at a time, which bounds memory; the whole batch unless given."""
    epochs: int
    schedule: Callable[[float], float]
    """Share of training done, in [0, 1), to the factor on the learning rate."""
    patience: int | None
    splits: Splits
    """All of the data; ``splits.train`` is what the loader draws from, unless a defense changes it."""
    seed: int
    rng: torch.Generator
    """Of crafting; on the CPU."""
    device: torch.device
    crafting: Callable[[nn.Module], AbstractContextManager[object]] = nullcontext
    """Inside it the module may be run and differentiated without a trace on per-sample hooks."""
    observers: tuple[Observer, ...] = ()
    finish: tuple[Finish, ...] = ()
    """Run on the victim after the last step, last added first: unwrap, add a claim."""
    state: Mapping[str, Stateful] = field(default_factory=dict)
    """What changes while the plan is run, by name, beside module and optimizer: a checkpoint keeps all of it."""


def fit(
    task: Task,
    defenses: Sequence[Defense] = (),
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    observers: Sequence[Observer] = (),
    checkpoint: Path | None = None,
) -> Victim:
    """Train a task under a stack of defenses and serve the result; what was passed in stays as it was.

    With a ``checkpoint``, a folder, the state is kept there after an epoch, at most every 20 seconds; a call with the
    same settings goes on from it to the same weights, and removes it in the end. Raises `NotApplicable` where a
    defense has no meaning for the task, and `UsageError` where data, module, loss or a setting are wrong or the loss
    stops being a number.
    """
    stack = tuple(defenses)
    for defense in stack:
        defense.check(task)
    start = time.perf_counter()
    with undisturbed(seed):
        plan = make_plan(task, stack, seed, resolve_device(device), tuple(observers))
        kept = Checkpoint(checkpoint, _about(plan, stack)) if checkpoint else None
        with channels_last(plan.module, plan.splits.train.take(slice(0, 8)).inputs):
            train(plan, kept)
    return finished(plan, stack, time.perf_counter() - start + (kept.seconds if kept else 0.0))


def finished(plan: Plan, defenses: tuple[Defense, ...], seconds: float) -> Victim:
    """The victim of a plan that was run to its end in so many seconds, as its defenses serve it."""
    chunk = plan.task.chunk
    victim = Victim(
        task=plan.task,
        module=plan.module,
        served=Plain(plan.module, chunk),
        splits=plan.splits,
        defenses=defenses,
        seed=plan.seed,
    )
    victim = reduce(lambda done, finish: finish(done), reversed(plan.finish), victim)
    victim.module.eval()
    return serve(replace(victim, served=Plain(victim.module, chunk), seconds=seconds))


def fit_many(
    tasks: Sequence[Task],
    defenses: Sequence[Defense] = (),
    *,
    seeds: Sequence[int],
    device: str | torch.device = "auto",
) -> list[Victim]:
    """The victims that `fit` makes of each task and seed under one stack of defenses, to rounding.

    Models of one kind are trained as one vectorised program where that can be, each charged with its share of the
    time; the others in turn. Raises what `fit` raises, and `UsageError` unless there is one seed for each task.
    """
    from secure_ml.vectorised import fit_stacks  # which trains by this loop

    require(
        len(tasks) == len(seeds), f"each task needs a seed of its own; given {len(tasks)} tasks, {len(seeds)} seeds"
    )
    done = fit_stacks(tasks, tuple(defenses), seeds, resolve_device(device))
    return [
        done[i] if i in done else fit(task, defenses, seed=seed, device=device)
        for i, (task, seed) in enumerate(zip(tasks, seeds, strict=True))
    ]


@contextmanager
def undisturbed(seed: int) -> Iterator[None]:
    """Where a plan is made and run: the global streams are its own, and return as they were.

    On a GPU, only convolution algorithms that give equal results on equal inputs.
    """
    deterministic = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with seeded(seed, "train"), warnings.catch_warnings(), deterministic:
        yield


def make_plan(
    task: Task, defenses: Sequence[Defense], seed: int, device: torch.device, observers: tuple[Observer, ...] = ()
) -> Plan:
    """The plan of a task's own recipe, rewritten by each defense in turn."""
    recipe, splits = task.recipe, task.draw(seed).to(device)
    streams = [generator(seed, use) for use in ("order", "transform", "augment", "renew")]
    order, rng, augment, acts = streams
    module = build(task, defenses, seed).to(device).train()
    require(any(p.requires_grad for p in module.parameters()), f"{task}: the module has no parameters to train")
    task.check(module, splits)
    plan = Plan(
        task=task,
        module=module,
        optimizer=make_optimizer(module, recipe),
        loader=_loader(task, module, splits.train, order, acts),
        loss=task.loss,
        transform=lambda _, batch: task.augment(batch, augment),
        epochs=recipe.epochs,
        schedule=_SCHEDULES[recipe.schedule],
        patience=recipe.patience,
        splits=splits,
        seed=seed,
        rng=rng,
        device=device,
        observers=observers,
        state={
            "global": Randomness(),
            **{f"rng {i}": Randomness(r) for i, r in enumerate((order, rng, augment, acts))},
        },
    )
    if isinstance(plan.loader, Renewed):
        plan = replace(plan, state={**plan.state, "loader": plan.loader})
    return reduce(lambda current, defense: defense.prepare(current), defenses, plan)


def _loader(
    task: Task, module: nn.Module, data: Batch, order: torch.Generator, rng: torch.Generator
) -> Loader | Renewed:
    size, renew = task.recipe.batch_size, task.renew
    if renew is None:
        return Loader(data, Shuffled(len(data), size, order), -(-len(data) // size))

    def act(last: Batch) -> Batch:
        with evaluating(module), torch.no_grad():
            return renew(module, last, rng).to(next(module.parameters()).device)

    return Renewed(data, size, act, order)


def _about(plan: Plan, stack: tuple[Defense, ...]) -> dict[str, str]:
    """Which training a checkpoint belongs to."""
    return {
        "task": repr(plan.task),
        "recipe": repr(plan.task.recipe),
        "module": repr(plan.module),
        "defenses": stack_name(stack),
        "seed": str(plan.seed),
        "data": plan.splits.fingerprint(),
        "device": plan.device.type,
        "torch": torch.__version__,
    }


def make_optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameters that are to be trained."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    if recipe.optimizer == "SGD":
        return torch.optim.SGD(
            parameters, recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
    kind: type[torch.optim.Adam] = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[recipe.optimizer]
    return kind(parameters, recipe.learning_rate, weight_decay=recipe.weight_decay)


def train(plan: Plan, checkpoint: Checkpoint | None = None) -> None:
    """Run a plan to its end, from its checkpoint if there is one; the module it names is trained in place."""
    rates = [group["lr"] for group in plan.optimizer.param_groups]
    best = _Best(plan)
    parts: dict[str, Stateful] = {"module": plan.module, "optimizer": plan.optimizer, "best": best, **plan.state}
    done = checkpoint.restore(parts) if checkpoint else 0
    for epoch in range(done, 0 if best.over else plan.epochs):
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
        best.look(epoch)
        if checkpoint:
            checkpoint.save(parts, epoch)
        if best.over:
            break
    best.restore()
    if checkpoint:
        checkpoint.remove()
    plan.optimizer.zero_grad()
    if not all(value.isfinite().all() for value in plan.module.state_dict().values()):
        raise UsageError(f"{plan.task}: the weights are not finite after training: lower the learning rate")


def _step(plan: Plan, epoch: int, index: int, batch: Batch) -> Tensor:
    plan.module.train()
    with plan.crafting(plan.module):
        batch = plan.transform(plan.module, batch)
    plan.optimizer.zero_grad()
    pieces = []
    for part in batch.chunks(plan.piece or max(len(batch), 1)):
        losses = plan.loss(plan.module, part)
        plan.objective(losses, len(batch)).backward()
        plan.gather()
        pieces.append(losses.detach())
    losses = torch.cat(pieces)
    for observe in plan.observers:
        observe(Step(plan, epoch, index, batch, losses))
    plan.optimizer.step()
    return losses.sum()


class _Best:
    """Early stopping: the weights of the best epoch on the validation split, where a plan has patience."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.epoch, self.score = plan, 0, float("-inf")
        self.over = False
        self.weights: dict[str, Tensor] | None = None

    def look(self, epoch: int) -> None:
        """Keep the weights if they are the best so far; training is over when none were for too long."""
        plan = self.plan
        if plan.patience is None:
            return
        with plan.crafting(plan.module):
            score = plan.task.score.measure(Plain(plan.module, plan.task.chunk), plan.splits.validation).value
        score = score if plan.task.score.higher_is_better else -score
        if score > self.score:
            self.epoch, self.score = epoch, score
            self.weights = deepcopy(plan.module.state_dict())
        self.over = epoch - self.epoch >= plan.patience

    def state_dict(self) -> dict[str, Any]:
        """The best weights and where they were found."""
        return {"epoch": self.epoch, "score": self.score, "over": self.over, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.epoch, self.score, self.over = state["epoch"], state["score"], state["over"]
        self.weights = state["weights"]

    def restore(self) -> None:
        if self.weights is not None:
            self.plan.module.load_state_dict(self.weights)


def _cosine(done: float) -> float:
    return (1 + cos(pi * done)) / 2


def named_schedule(name: str) -> Callable[[float], float]:
    """Share of training done, in [0, 1), to the factor on the learning rate, for one of `SCHEDULES`."""
    return _SCHEDULES[name]


_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "cosine": _cosine,
    "linear": lambda done: 1 - done,
}
