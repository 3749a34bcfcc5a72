"""Which inputs to ask about: the farthest from what is known, the nearest to a boundary, and groups of alike ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attacks.evasion.deepfool import DeepFool
from secure_ml.access import WhiteBox
from secure_ml.batch import Batch
from secure_ml.task import Task
from secure_ml.threats import L2


def farthest(rows: Tensor, known: Tensor, n: int) -> Tensor:
    """The places ``(n,)`` of rows ``(N, D)``, each the farthest from those known ``(M, D)`` and those chosen before.

    Greedy k-center: at most twice as far from the farthest row as the best choice (Gonzalez 1985). On the CPU.
    """
    nearest = torch.cdist(rows, known).amin(1) if len(known) else rows.new_full((len(rows),), torch.inf)
    chosen = []
    for _ in range(min(n, len(rows))):
        place = nearest.argmax()
        chosen.append(place)
        nearest = torch.minimum(nearest, (rows - rows[place]).norm(dim=1))
        nearest[place] = -1.0
    return torch.stack(chosen).cpu() if chosen else torch.zeros(0, dtype=torch.long)


def flips(task: Task, copy: nn.Module, pool: Batch, answers: Tensor, rng: torch.Generator) -> Tensor:
    """How far in L2 each input ``(B,)`` is from where the copy, which gives these answers, names another class."""
    decisions = task.output.decide(answers)  # type: ignore[attr-defined]
    found = [
        DeepFool().distances(WhiteBox(task, copy), part, L2(1.0), rng)[1]
        for part in Batch(pool.inputs, decisions).chunks(task.chunk)
    ]
    return torch.cat(found)


def grouped(rows: Tensor, groups: int, rng: torch.Generator, steps: int = 20) -> Tensor:
    """The group ``(N,)`` of each row ``(N, D)`` by k-means from far-apart rows; at most N groups. On the CPU."""
    centres = rows[_apart(rows, min(groups, len(rows)), rng)]
    for _ in range(steps):
        group = torch.cdist(rows, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, group, rows)
        counts = torch.zeros(len(centres)).to(rows).index_add_(0, group, torch.ones_like(rows[:, 0]))
        moved = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return torch.cdist(rows, centres).argmin(1).cpu()


def _apart(rows: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """Places of rows, drawn by their squared distance from those drawn before: k-means++."""
    chosen = [int(torch.randint(len(rows), (), generator=rng))]
    nearest = (rows - rows[chosen[0]]).square().sum(1)
    for _ in range(n - 1):
        odds = nearest.double().cpu() + 1e-12
        chosen.append(int(torch.multinomial(odds, 1, generator=rng)))
        nearest = torch.minimum(nearest, (rows - rows[chosen[-1]]).square().sum(1))
    return torch.tensor(chosen)
