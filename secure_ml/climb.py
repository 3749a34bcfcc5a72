"""What is shared by those who train against an adversary and those who judge one: a climb, and what is compared."""

from __future__ import annotations

import torch
from torch import Tensor

from secure_ml.access import WhiteBox
from secure_ml.adaptive import log_probabilities
from secure_ml.batch import Batch, Tree
from secure_ml.outputs import Values
from secure_ml.scores import squared_difference
from secure_ml.task import Loss, Task
from secure_ml.threats import Threat, Walk


def climb(
    access: WhiteBox,
    batch: Batch,
    threat: Threat,
    loss: Loss | None,
    rng: torch.Generator,
    *,
    steps: int,
    step_size: float | None = None,
    radii: float | None = None,
) -> Tree:
    """The inputs after ``steps`` projected gradient steps up a loss, from a random start: the last, not the worst.

    The loss sees the whole batch in its order. The length of a step is given, at most the radius, or given in ``radii``
    (longer ones are allowed), or else 2.5 times the radius over the number of steps, at most the radius.
    """
    for part in threat.parts() if len(batch) else ():
        assert isinstance(part, Walk)
        surface = access.task.surface(part)
        clean = surface.get(batch.inputs)
        length = min(part.radius, 2.5 * part.radius / steps if step_size is None else step_size)
        length = length if radii is None else radii * part.radius
        point = part.start(surface, clean, rng)
        for _ in range(steps):
            inputs = surface.put(batch.inputs, part.realise(surface, clean, point))
            gradient = access.ascend(Batch(inputs, batch.target), surface, loss).gradient
            point = part.advance(surface, clean, point, gradient, length)
        batch = Batch(surface.put(batch.inputs, part.realise(surface, clean, point).detach()), batch.target)
    return batch.inputs


def divergence(task: Task, answers: Tensor, outputs: Tensor) -> Tensor:
    """How far outputs are from the answers, ``(B,)``: Kullback-Leibler, of values the squared difference."""
    if isinstance(task.output, Values):
        return squared_difference(outputs, answers)
    there, here = log_probabilities(answers), log_probabilities(outputs)
    places = (there.exp() * (there - here)).sum(-1)
    return places.flatten(1).mean(1) if places.ndim > 1 else places
