"""Many small models of one kind, trained as one: their layers side by side, on their batches side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from secure_ml.batch import Batch, join, leaves
from secure_ml.defense import Defense
from secure_ml.errors import UsageError
from secure_ml.stacked import Stacked, Unstackable, stack_modules, unstack_weights
from secure_ml.task import Task, unchanged
from secure_ml.training import (
    Loader,
    Plan,
    Transform,
    finished,
    make_optimizer,
    make_plan,
    mean_loss,
    train,
    undisturbed,
)
from secure_ml.victim import Victim

ROOM = 2**28
"""Numbers that the models of one stack and their training data may be together: 1 GiB."""
SMALL = 2**17
"""Numbers that the convolutions of one model may read and write in a step: on a CPU, larger ones are faster alone."""
Item = TypeVar("Item")


def fit_stacks(
    tasks: Sequence[Task], defenses: tuple[Defense, ...], seeds: Sequence[int], device: torch.device
) -> dict[int, Victim]:
    """By their place, the victims of those tasks that can be trained side by side; the others are left out."""
    done: dict[int, Victim] = {}
    if any(type(defense).prepare is not Defense.prepare for defense in defenses):
        return done
    for group in alike(range(len(tasks)), lambda i: _kind(tasks[i])):
        if len(group) < 2 or not _is_plain(tasks[group[0]]):
            continue
        start = time.perf_counter()
        plans = {i: _plan(tasks[i], defenses, seeds[i], device) for i in group}
        drawn = (time.perf_counter() - start) / len(group)
        for same in alike(group, _shapes(plans)):
            for some in _portions(same, plans[same[0]]):
                trained = fit_stack([plans[i] for i in some], defenses, drawn)
                done |= dict(zip(some, trained, strict=False))
    return done


def fit_stack(plans: Sequence[Plan], defenses: tuple[Defense, ...], drawn: float = 0.0) -> list[Victim]:
    """The victims of plans that are trained as one; none of them where that cannot be.

    Each is charged with its share of the time, and with the seconds that drawing its plan took.
    """
    start = time.perf_counter()
    with undisturbed(plans[0].seed):
        try:
            stack = stacked(plans)
            _refuse_large(stack)
            train(stack)
        except (Unstackable, UsageError):  # a plan that fails alone says best how
            return []
    unstack_weights(stack.module, [plan.module for plan in plans])
    seconds = drawn + (time.perf_counter() - start) / len(plans)
    return [finished(plan, defenses, seconds) for plan in plans]


def stacked(plans: Sequence[Plan]) -> Plan:
    """One plan whose module, batches and losses are those of plans of one shape side by side, the first one's first.

    Raises `Unstackable` where it would not compute the losses and gradients of each, which is compared on a batch.
    """
    first, count = plans[0], len(plans)
    if count < 2:
        raise Unstackable("one plan is no stack")
    module = stack_modules([plan.module for plan in plans])
    stack = replace(
        first,
        module=module,
        optimizer=make_optimizer(module, first.task.recipe),
        loader=_side_by_side(plans),
        transform=_each(plans),
        objective=lambda losses, size: mean_loss(losses, size // count),
        state={},
    )
    compare(stack, plans)
    return stack


def compare(stack: Plan, plans: Sequence[Plan]) -> None:
    """Raise `Unstackable` unless the stack's losses and gradients on a batch are those of the plans one by one."""
    size = -(-len(plans[0].loader.data) // plans[0].loader.steps)
    batches = [plan.loader.data.take(slice(0, size)) for plan in plans]
    buffers, randomness = [b.clone() for b in stack.module.buffers()], _global_state()
    try:
        together = _slopes(stack, join_batches(batches))
    except Exception as error:  # a module may fail in any way where a batch holds the examples of many
        raise Unstackable(f"the module does not take the batches of several: {error}") from None
    if not all(map(torch.equal, buffers, stack.module.buffers())) or not _same_state(randomness):
        raise Unstackable("the module changes, or draws, while it runs")
    for i, (plan, batch) in enumerate(zip(plans, batches, strict=True)):
        for mine, ours in zip(_slopes(plan, batch), together, strict=True):
            theirs = ours.reshape(len(plans), -1)[i]
            if not (mine.flatten() - theirs).abs().max() <= 1e-3 * mine.abs().max() + 1e-12:
                raise Unstackable("the models do not act alike")


def _refuse_large(stack: Plan) -> None:
    windows = sum(part.windows for part in stack.module.modules() if isinstance(part, Stacked))
    if stack.device.type == "cpu" and windows > SMALL:
        raise Unstackable("the convolutions are so large that each model is faster alone")


def _slopes(plan: Plan, batch: Batch) -> list[Tensor]:
    """Losses and the gradients of their sum."""
    plan.module.train()
    parameters = [p for p in plan.module.parameters() if p.requires_grad]
    losses = plan.loss(plan.module, batch)
    slopes = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
    found = [torch.zeros_like(p) if s is None else s for p, s in zip(parameters, slopes, strict=True)]
    return [losses.detach(), *found]


def join_batches(batches: Sequence[Batch]) -> Batch:
    """One batch after the other, as one."""
    return Batch(join([batch.inputs for batch in batches]), join([batch.target for batch in batches]))


class _Samplers:
    """The batches of several samplers over data of one size, joined: those of the first first."""

    def __init__(self, loaders: Sequence[Loader]) -> None:
        self.loaders = loaders

    def __iter__(self) -> Iterator[Tensor]:
        size = len(self.loaders[0].data)
        for together in zip(*(loader.sampler for loader in self.loaders), strict=True):
            if len({len(index) for index in together}) > 1:
                raise Unstackable("the batches are not equally large")
            yield torch.cat([index + i * size for i, index in enumerate(together)])


class _Rows(Loader):
    """The same batches, copied row by row, which is faster than to index."""

    def __iter__(self) -> Iterator[Batch]:
        device = next(leaves(self.data.inputs)).device
        for index in self.sampler:
            place = index.to(device)
            yield self.data.map(partial(torch.index_select, dim=0, index=place))


def _side_by_side(plans: Sequence[Plan]) -> Loader:
    loaders = [plan.loader for plan in plans if isinstance(plan.loader, Loader)]
    if len(loaders) < len(plans):
        raise Unstackable("the examples are made anew in each epoch")
    return _Rows(join_batches([loader.data for loader in loaders]), _Samplers(loaders), loaders[0].steps)


def _each(plans: Sequence[Plan]) -> Transform:
    """Each plan's own transform of its own part of a batch."""
    if all(plan.task.augment is unchanged for plan in plans):
        return lambda _, batch: batch

    def transform(_: object, batch: Batch) -> Batch:
        before = _global_state()
        parts = batch.chunks(len(batch) // len(plans))
        made = [plan.transform(plan.module, part) for plan, part in zip(plans, parts, strict=True)]
        if not _same_state(before) or len({len(part) for part in made}) > 1:
            raise Unstackable("the batches are augmented from the global random stream, or to several sizes")
        return join_batches(made)

    return transform


def alike(items: Sequence[Item], key: Callable[[Item], object]) -> list[list[Item]]:
    """Items in groups of one key, in the order in which the keys come."""
    groups: dict[object, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def _kind(task: Task) -> object:
    return task.recipe, id(task.loss), task.renew is None


def _is_plain(task: Task) -> bool:
    return task.renew is None and task.recipe.patience is None


def _shapes(plans: dict[int, Plan]) -> Callable[[int], object]:
    return lambda i: _shape(plans[i])


def _shape(plan: Plan) -> object:
    """What plans of one stack have in common."""
    data = plan.loader.data
    tensors = (*plan.module.parameters(), *leaves(data.inputs), *leaves(data.target))
    return repr(plan.module), plan.loader.steps, *((t.shape, t.dtype, t.requires_grad) for t in tensors)


def _portions(items: list[Item], plan: Plan) -> list[list[Item]]:
    """As few groups as there is room for, of nearly equal size."""
    data = plan.loader.data
    tensors = (*plan.module.parameters(), *leaves(data.inputs), *leaves(data.target))
    most = max(1, ROOM // sum(t.numel() for t in tensors))
    groups = -(-len(items) // most)
    return [items[i::groups] for i in range(groups)]


def _plan(task: Task, defenses: tuple[Defense, ...], seed: int, device: torch.device) -> Plan:
    for defense in defenses:
        defense.check(task)
    with undisturbed(seed):
        return make_plan(task, defenses, seed, device)


def _global_state() -> list[Tensor]:
    gpu = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *gpu]


def _same_state(before: list[Tensor]) -> bool:
    return all(map(torch.equal, before, _global_state()))
