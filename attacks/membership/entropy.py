"""Membership by how sure the model is of the right class, and of the wrong ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secure_ml.batch import Batch
from secure_ml.errors import NotApplicable
from secure_ml.families.evasion import is_classifier
from secure_ml.families.membership import Membership, Questioned
from secure_ml.outputs import Classes, Output, Reveal, check_reveal
from secure_ml.task import Task


@dataclass(frozen=True, kw_only=True)
class Entropy(Membership):
    """A low modified prediction entropy means a member (Song and Mittal 2021, https://arxiv.org/abs/2003.10595).

    The entropy of an answer about inputs ``(B, *shape)``, changed so that being sure of a wrong class counts as
    unsure: ``-(1 - p_y) log p_y - sum of p_i log(1 - p_i)`` over the other classes; one query an example. Raises
    `NotApplicable` for what is no classifier.

    Differs from the paper: one threshold for all classes, since a ROC is drawn, and hence no shadow models.
    """

    outputs: ClassVar[tuple[type[Output], ...]] = (Classes,)

    reveal: Reveal = "probabilities"
    """How much of each answer the adversary sees."""

    def __post_init__(self) -> None:
        check_reveal(self.reveal)

    def check_task(self, task: Task) -> None:
        """Raise `NotApplicable` where no class is the right one."""
        if not is_classifier(task):
            raise NotApplicable(f"Entropy needs one right class for each example, which {task.name} does not have")

    def score(self, access: Questioned, batch: Batch, aux: Batch, rng: torch.Generator) -> Tensor:
        """Minus the modified entropy of each answer, ``(B,)``."""
        assert isinstance(batch.target, Tensor)
        return -modified_entropy(access(batch.inputs), batch.target)


def modified_entropy(outputs: Tensor, target: Tensor) -> Tensor:
    """The modified prediction entropy ``(B,)`` in nats of logits or log-probabilities ``(B, K)``, or one logit."""
    outputs = outputs.double()
    if outputs.ndim == 1:
        outputs = torch.stack([torch.zeros_like(outputs), outputs], 1)
    target = target.long()
    log_p = outputs.log_softmax(1)
    p = log_p.exp()
    log_rest = torch.log1p(-p)  # exact but for the likeliest class, whose rest is what the others have
    first = p.argmax(1, keepdim=True)
    others = log_p.scatter(1, first, -torch.inf).logsumexp(1, keepdim=True)
    log_rest = log_rest.scatter(1, first, others)
    right = torch.zeros_like(p).scatter(1, target[:, None], 1.0).bool()
    terms = torch.where(right, log_rest.exp() * log_p, torch.where(p > 0, p * log_rest, 0.0))
    return -terms.sum(1)
