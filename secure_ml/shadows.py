"""Shadow models: trained like the victim, through the same loop and defenses, on examples that the adversary chose."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    """Models trained like the victim, and which of the examples in question each was trained on."""

    victims: tuple[Victim, ...]
    saw: Tensor
    """Mask ``(S, B)``; on the CPU."""


def shadows_of(victim: Victim, batch: Batch, count: int, *, online: bool = True) -> Shadows:
    """The shadows of a victim, the last ones again where the same are asked for: several attacks share them."""
    data = victim.splits.fingerprint(), Splits(batch, batch, batch, batch).fingerprint()
    key = (repr(victim.task), stack_name(victim.defenses), victim.seed, str(victim.device), count, online, data)
    if key not in _LAST:
        _LAST.clear()
        _LAST[key] = train_shadows(victim, batch, victim.splits.aux, count, online=online)
    return _LAST[key]


def train_shadows(victim: Victim, batch: Batch, aux: Batch, count: int, *, online: bool = True) -> Shadows:
    """``count`` shadows of a victim; online, each example of ``batch`` was seen by exactly half of them.

    Shadows come in pairs that saw complementary halves of the batch, and fill up with examples of ``aux`` to as many as
    the victim was trained on, where there are so many. Offline, they saw none of the batch. What is held out for
    validation is the victim's own part, as public as its recipe. Raises `UsageError` for a count that is not even and
    at least 2, or an empty ``aux`` offline.
    """
    require(count >= 2 and count % 2 == 0, f"shadows come in pairs: ask for an even number of at least 2, not {count}")
    require(online or len(aux) > 0, "shadows that saw none of the examples need auxiliary data to be trained on")
    rng = generator(victim.seed, "shadows", count, online)
    saw = torch.zeros(count, len(batch), dtype=torch.bool)
    for first in range(0, count if online else 0, 2):
        half = torch.randperm(len(batch), generator=rng) < len(batch) / 2
        saw[first], saw[first + 1] = half, ~half
    size = len(victim.splits.train)
    tasks = [_task(victim, _members(batch, aux, mask, size, rng)) for mask in saw]
    seeds = [derive(victim.seed, "shadow", i) % 2**31 for i in range(count)]
    return Shadows(tuple(fit_many(tasks, victim.defenses, seeds=seeds, device=victim.device)), saw)


def _members(batch: Batch, aux: Batch, mask: Tensor, size: int, rng: torch.Generator) -> Batch:
    """What one shadow is trained on: its share of the batch, filled up from the auxiliary data."""
    missing = min(max(size - int(mask.sum()), 0), len(aux))
    mine, more = batch.take(mask), aux.take(torch.randperm(len(aux), generator=rng)[:missing])
    return Batch(join([mine.inputs, more.inputs]), join([mine.target, more.target]))


def _task(victim: Victim, train: Batch) -> Task:
    """The victim's task on other examples."""
    splits = victim.splits
    none = splits.test.take(slice(0, 0))
    parts = Splits(train=train, validation=splits.validation, test=none, aux=none)
    return replace(victim.task, name=f"{victim.task.name}_shadow", data=lambda _: parts)


_LAST: dict[tuple[object, ...], Shadows] = {}
"""The shadows that were trained last in this process."""
