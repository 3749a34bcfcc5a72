"""What membership attacks read off an answer, and the questions they ask about one example."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from secure_ml.access import BlackBox
from secure_ml.batch import Batch
from secure_ml.families.membership import Questioned
from secure_ml.outputs import Classes
from secure_ml.shadows import Shadows
from secure_ml.surfaces import Box
from secure_ml.task import Task, unchanged


def log_odds(outputs: Tensor, target: Tensor) -> Tensor:
    """``log p_y - log sum of the other p``, ``(B,)``, of logits or log-probabilities ``(B, K)`` or one logit ``(B,)``.

    No probability is formed on the way, so that nothing is rounded to 0 or 1 (in LiRA's code it is clipped).
    """
    outputs = outputs.double()
    if outputs.ndim == 1:
        return outputs * (2 * target.double() - 1)
    mine = F.one_hot(target, outputs.shape[1]).bool()
    return outputs[mine] - outputs.masked_fill(mine, -torch.inf).logsumexp(1)


def confidence(access: BlackBox, batch: Batch) -> Tensor:
    """How well each example is known, ``(B,)`` on the CPU: the log-odds of its class, else minus its loss."""
    if names_class(access.task, batch):
        values = log_odds(access(batch.inputs), cast("Tensor", batch.target))
    else:
        values = -access.loss(batch).double()
    return values.cpu().nan_to_num(nan=-_FAR, posinf=_FAR, neginf=-_FAR)


def names_class(task: Task, batch: Batch) -> bool:
    """Whether each answer names one class, and the target is that class."""
    return type(task.output) is Classes and isinstance(batch.target, Tensor) and batch.target.ndim == 1


def log_probability(confidences: Tensor, task: Task, batch: Batch) -> Tensor:
    """``log p_y`` from the log-odds; of what is no classifier minus the loss is taken for it."""
    return F.logsigmoid(confidences) if names_class(task, batch) else confidences


def of_shadows(access: Questioned, shadows: Shadows, batch: Batch) -> Tensor:
    """The confidence of every shadow in every example, ``(S, B)``."""
    return torch.stack([confidence(access.like(shadow), batch) for shadow in shadows.victims])


def mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean over shadows ``(S, B)`` of those chosen, ``(B,)``; NaN where none is."""
    return torch.where(chosen, values, 0.0).sum(0) / chosen.sum(0)


def looks(task: Task, batch: Batch, queries: int, rng: torch.Generator) -> Sequence[Batch]:
    """The batch itself, then ``queries - 1`` other looks at its examples, the same for whoever is asked.

    They are draws of the task's own augmentation where it has one, else, of images ``(B, C, H, W)``, shifts by a
    pixel, then by two. Of other inputs there is one look only.
    """
    if task.augment is not unchanged:
        return [batch, *(task.augment(batch, rng) for _ in range(queries - 1))]
    images = batch.inputs
    if not isinstance(images, Tensor) or images.ndim != 4:
        return [batch]
    moves = sorted(product(range(-2, 3), repeat=2), key=lambda move: (max(map(abs, move)), sum(map(abs, move)), move))
    return [Batch(shifted(images, *move), batch.target) for move in moves[:queries]]


def shifted(images: Tensor, down: int, right: int) -> Tensor:
    """Images ``(B, C, H, W)`` moved by whole pixels; what comes in from outside is 0."""
    return F.pad(images, (right, -right, down, -down))


def noisy(task: Task, batch: Batch, noise: float, rng: torch.Generator) -> Batch:
    """The batch with Gaussian noise, whose deviation is a share of the box, on what can be changed of its inputs."""
    surface = next(surface for surface in task.surfaces if isinstance(surface, Box))
    clean = surface.get(batch.inputs)
    drawn = torch.randn(clean.shape, generator=rng).to(clean) * noise * (surface.high - surface.low)
    changed = surface.snap(clean, surface.clamp(clean, clean + drawn))
    return Batch(surface.put(batch.inputs, changed), batch.target)


_FAR = 1e4
"""What stands for an infinite confidence."""
