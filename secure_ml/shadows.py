"""Shadow models: trained like the victim, through the same loop and defenses, on examples that the adversary chose."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from secure_ml.batch import Batch, Splits, join
from secure_ml.defense import stack_name
from secure_ml.errors import require
from secure_ml.randomness import derive, generator
from secure_ml.task import Task
from secure_ml.training import fit_many
from secure_ml.victim import Victim


@dataclass(frozen=True)
class Shadows:
    """Models trained like the victim, and what each was trained on; they keep no data of their own."""

    victims: tuple[Victim, ...]
    saw: Tensor
    """Which of the examples in question: a mask ``(S, B)`` on the CPU."""
    saw_aux: Tensor
    """Which of the auxiliary examples: a mask ``(S, A)`` on the CPU."""


def shadows_of(victim: Victim, batch: Batch, count: int, *, online: bool = True) -> Shadows:
    """The shadows of a victim; those that an earlier call trained are handed out again: several attacks share them.

    The i-th shadow is the same however many are asked for, and offline whatever the examples in question are.
    Raises `UsageError` as `train_shadows` does.
    """
    _check(victim, count, online)
    data = victim.splits.fingerprint(), _fingerprint(batch) if online else ""
    key = (id(victim.task), stack_name(victim.defenses), victim.seed, str(victim.device), online, *data)
    _, kept = _LAST.pop(key, (victim.task, ()))
    kept += train_shadows(victim, batch, count, online=online, first=len(kept)).victims
    _LAST[key] = victim.task, kept
    while len(_LAST) > KEPT:
        _LAST.popitem(last=False)
    return Shadows(kept[:count], *_masks(victim, len(batch), range(count), online))


def train_shadows(victim: Victim, batch: Batch, count: int, *, online: bool = True, first: int = 0) -> Shadows:
    """The shadows ``first`` to ``count`` of a victim; online, each example of ``batch`` is seen by exactly half.

    Shadows come in pairs that saw complementary halves of the batch, and fill up with auxiliary examples to as many as
    the victim was trained on, but no more than four fifths of what there is, a different part each: of five in a row,
    every auxiliary example is left out by one at least. Offline, they saw none of the batch. What is held out for
    validation is the victim's own part, as public as its recipe. Where the victim knows whose each example is, a
    shadow takes each for another person's. Raises `UsageError` for a count that is not even and at least 2, or no
    auxiliary data offline.
    """
    _check(victim, count, online)
    chosen = range(first, count)
    saw, saw_aux = _masks(victim, len(batch), chosen, online)
    tasks = [_task(victim, batch, mine, more) for mine, more in zip(saw, saw_aux, strict=True)]
    seeds = [derive(victim.seed, "shadow", i) % 2**31 for i in chosen]
    trained = fit_many(tasks, victim.defenses, seeds=seeds, device=victim.device) if tasks else []
    none = victim.splits.test.take(slice(0, 0))
    bare = Splits(none, none, none, none)
    return Shadows(tuple(replace(shadow, splits=bare) for shadow in trained), saw, saw_aux)


def _check(victim: Victim, count: int, online: bool) -> None:
    require(count >= 2 and count % 2 == 0, f"shadows come in pairs: ask for an even number of at least 2, not {count}")
    require(
        online or len(victim.splits.aux) > 0,
        f"shadows that saw none of the examples need auxiliary data to be trained on, of which {victim.task} has none",
    )


def _masks(victim: Victim, n: int, chosen: range, online: bool) -> tuple[Tensor, Tensor]:
    """What these shadows are trained on: masks ``(S, n)`` of the batch and ``(S, A)`` of the auxiliary data."""
    size, held = len(victim.splits.train), len(victim.splits.aux)
    saw = torch.zeros(len(chosen), n, dtype=torch.bool)
    saw_aux = torch.zeros(len(chosen), held, dtype=torch.bool)
    for row, i in enumerate(chosen):
        if online:
            half = torch.randperm(n, generator=generator(victim.seed, "shadow halves", i // 2)) < n / 2
            saw[row] = half if i % 2 == 0 else ~half
        most = max(held * (PARTS - 1) // PARTS, min(held, 1))
        taken = min(max(size - int(saw[row].sum()), 0), most)
        order = torch.randperm(held, generator=generator(victim.seed, "shadow aux", i // PARTS))
        saw_aux[row, order.roll(i % PARTS * held // PARTS)[:taken]] = True
    return saw, saw_aux


def _task(victim: Victim, batch: Batch, mine: Tensor, more: Tensor) -> Task:
    """The victim's task on other examples, which are put together when they are drawn."""
    data = partial(_draw, victim, batch, mine, more)
    return replace(victim.task, name=f"{victim.task.name}_shadow", data=data)


def _draw(victim: Victim, batch: Batch, mine: Tensor, more: Tensor, rng: torch.Generator) -> Splits:
    parts = [batch.take(mine.to(victim.device)), victim.splits.aux.take(more.to(victim.device))]
    train = Batch(join([part.inputs for part in parts]), join([part.target for part in parts]))
    none = victim.splits.test.take(slice(0, 0))
    owner = None if victim.splits.owner is None else torch.arange(len(train))
    return Splits(train, victim.splits.validation, none, none, owner=owner)


def _fingerprint(batch: Batch) -> str:
    none = batch.take(slice(0, 0))
    return Splits(batch, none, none, none).fingerprint()


PARTS = 5
"""Of which a shadow that is short of auxiliary examples is trained on all but one."""
KEPT = 4
"""Sets of shadows that are kept in this process."""
_LAST: OrderedDict[tuple[object, ...], tuple[Task, tuple[Victim, ...]]] = OrderedDict()
"""The shadows that were trained last; with the task, so that its id stays its own."""
