"""Answers as probabilities, and back to the form of the module's own outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from secure_ml.batch import Tree, leaves, tree_map
from secure_ml.defense import Defense
from secure_ml.errors import NotApplicable
from secure_ml.outputs import Classes, NextToken, Ranking
from secure_ml.task import Task
from secure_ml.victim import Served, Victim, Wrapped

FLOOR = 1e-12
"""What a probability of 0 is written as, so that its logarithm, and every loss, stays finite."""
LIFT = 1e-3
"""By which share the decision is lifted above what would otherwise come first, or tie with it."""
Change: TypeAlias = Callable[[Tensor, Tree], Tensor]
"""Probabilities ``(N, K)`` in double precision and the inputs ``(B, *shape)`` they answer, to those that are served.

N is B, or B times the places at which a generator answers.
"""


def probabilities(outputs: Tensor) -> Tensor:
    """The probabilities ``(..., K)`` of logits, or ``(B, 2)`` of single logits ``(B,)``, in double precision."""
    exact = outputs.double()
    if exact.ndim == 1:
        exact = torch.stack([torch.zeros_like(exact), exact], 1)
    return exact.softmax(-1)


def written(shares: Tensor, outputs: Tensor) -> Tensor:
    """Probabilities ``(..., K)`` in the form of the outputs they replace: logarithms, or log-odds ``(B,)``."""
    logs = shares.clamp_min(FLOOR).log()
    if outputs.ndim == 1:
        logs = logs[:, 1] - logs[:, 0]
    return logs.reshape(outputs.shape).to(outputs.dtype)


def keeping(shares: Tensor, bare: Tensor) -> Tensor:
    """Probabilities ``(N, K)`` with the decision of the bare ones: lifted above all others where it was not first."""
    first = bare.argmax(-1, keepdim=True)
    own = shares.gather(-1, first)
    rivals = shares.scatter(-1, first, -1.0).amax(-1, keepdim=True)
    lifted = torch.where(own > rivals, own, rivals * (1 + LIFT) + FLOOR)
    return normalised(shares.scatter(-1, first, lifted))


def normalised(shares: Tensor) -> Tensor:
    """Shares of 1, equal where nothing is above 0."""
    total = shares.sum(-1, keepdim=True)
    return torch.where(total > 0, shares / total.clamp_min(torch.finfo(shares.dtype).tiny), 1 / shares.shape[-1])


def first_inputs(inputs: Tree, n: int) -> Tree:
    """The inputs that were answered, where a client was refused the others."""
    return inputs if len(next(leaves(inputs))) == n else tree_map(lambda tensor: tensor[:n], inputs)


class Altered(Wrapped):
    """The answers of another predictor with their probabilities changed."""

    def __init__(self, inner: Served, change: Change, keep: bool = True) -> None:
        super().__init__(inner)
        self.change, self.keep = change, keep

    def __call__(self, inputs: Tree) -> Tensor:
        """The changed answers, with the decision of the unchanged ones where that is to be kept."""
        outputs = self.inner(inputs)
        bare = probabilities(outputs)
        rows = bare.reshape(-1, bare.shape[-1])
        changed = self.change(rows, first_inputs(inputs, len(outputs)))
        return written((keeping(changed, rows) if self.keep else changed).reshape(bare.shape), outputs)


def require_classes(defense: Defense, task: Task, places: bool = True) -> None:
    """Raise `NotApplicable` unless answers are probabilities of classes; with ``places``, of symbols at places too."""
    kinds = (Classes, NextToken) if places else (Classes,)
    if not isinstance(task.output, kinds) or isinstance(task.output, Ranking):
        raise NotApplicable(
            f"{type(defense).__name__} needs probabilities of classes{' or next symbols' if places else ''}; "
            f"{task.name} answers {type(task.output).__name__}"
        )


def require_open(defense: Defense, victim: Victim) -> None:
    """Raise `NotApplicable` behind encryption, where the client decrypts what the module answers."""
    if victim.served.decrypted_by_client:
        raise NotApplicable(
            f"{type(defense).__name__} cannot stand behind encryption: the client decrypts the logits themselves"
        )
