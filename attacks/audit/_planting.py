"""Canaries that are examples like others, but wrong; and what a loss tells of them."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from secure_ml.batch import Batch, join, leaves
from secure_ml.errors import require
from secure_ml.modes import evaluating
from secure_ml.stats import Floats
from secure_ml.task import Task
from secure_ml.victim import Victim, build

Canary: TypeAlias = Literal["dirac", "mislabelled"]
CANARIES: tuple[Canary, ...] = ("dirac", "mislabelled")


def check_canary(kind: str) -> None:
    """Raise `UsageError` for a canary that is not known."""
    require(kind in CANARIES, f"a canary is one of {', '.join(CANARIES)}; given {kind!r}")


def mislabelled(pool: Batch, count: int, rng: torch.Generator) -> Batch:
    """Examples of a pool, each with the target of another one, of another class where targets are classes."""
    chosen = torch.randperm(len(pool), generator=rng)[:count]
    labels = pool.target
    if isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point():
        place = torch.tensor([_another(labels.cpu(), int(i), rng) for i in chosen])
    else:
        place = chosen.roll(1)
    device = next(leaves(pool.inputs)).device
    return Batch(pool.take(chosen.to(device)).inputs, pool.take(place.to(device)).target)


def _another(labels: Tensor, i: int, rng: torch.Generator) -> int:
    """A random example of another class than the i-th; itself where there is but one class."""
    others = (labels != labels[i]).nonzero()[:, 0]
    return int(others[int(torch.randint(len(others), (1,), generator=rng))]) if len(others) else i


def together(first: Batch, second: Batch) -> Batch:
    """The examples of both."""
    return Batch(join([first.inputs, second.inputs]), join([first.target, second.target]))


def untrained(task: Task, victim: Victim) -> nn.Module:
    """The module that a victim's training of a task began with."""
    return build(task, victim.defenses, victim.seed).to(victim.device)


def losses(task: Task, module: nn.Module, batch: Batch) -> Tensor:
    """Losses ``(B,)`` in evaluation mode, in double precision on the CPU; an infinite one is very large."""
    with evaluating(module), torch.no_grad():
        found = [task.loss(module, piece) for piece in batch.chunks(task.chunk)]
    return torch.cat(found).double().cpu().nan_to_num(nan=1e30, posinf=1e30)


def floats(values: Tensor) -> Floats:
    """Scores as the formulas take them."""
    return values.double().cpu().numpy().astype("float64")
