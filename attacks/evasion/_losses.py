"""What attacks on classifiers climb: functions of logits ``(B, K)`` and classes ``(B,)``, higher where it is worse."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from secure_ml.access import WhiteBox
from secure_ml.batch import Batch
from secure_ml.errors import NotApplicable, unknown
from secure_ml.families.evasion import is_classifier
from secure_ml.task import Loss, Task

ClassLoss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def two_columns(outputs: Tensor) -> Tensor:
    """Logits ``(B, K)``; one logit ``(B,)`` becomes two whose difference it is."""
    return torch.stack([torch.zeros_like(outputs), outputs], 1) if outputs.ndim == 1 else outputs


def cross_entropy(logits: Tensor, label: Tensor, other: Tensor | None) -> Tensor:
    """Cross-entropy of the label; of the class to be reached, its negative."""
    if other is not None:
        return -F.cross_entropy(logits, other, reduction="none")
    return F.cross_entropy(logits, label, reduction="none")


def margin(logits: Tensor, label: Tensor, other: Tensor | None) -> Tensor:
    """How far another class (the given one, or the strongest) leads the label: above 0, the answer is wrong."""
    mine = logits.gather(1, label[:, None])[:, 0]
    if other is not None:
        return logits.gather(1, other[:, None])[:, 0] - mine
    return logits.scatter(1, label[:, None], -torch.inf).amax(1) - mine


def dlr(logits: Tensor, label: Tensor, other: Tensor | None) -> Tensor:
    """Difference of logits ratio: the margin over a spread of the largest logits (Croce and Hein 2020).

    The spread is that of the first and third logit; against a given class, of the first and the mean of third and
    fourth. With fewer classes it takes the last that there is; with two there is no spread but the margin itself,
    which is then returned as it is.
    """
    lead = margin(logits, label, other)
    if logits.shape[1] == 2:
        return lead
    largest = logits.topk(min(4 if other is not None else 3, logits.shape[1]), dim=1).values
    spread = largest[:, 0] - largest[:, 2:].mean(1)
    return lead / (spread + 1e-12)


CLASS_LOSSES: dict[str, ClassLoss] = {"ce": cross_entropy, "dlr": dlr, "margin": margin}


def objective(task: Task, loss: str | Loss, other: Tensor | None = None) -> Loss | None:
    """The loss that an attack climbs: a named one, the caller's own, or None for the task's own.

    ``other`` names the class ``(B,)`` that each example is to reach. Where the task asks for a class to be reached
    (a score that is the adversary's own), named losses change their sign.
    """
    if loss == "task":
        return None
    if callable(loss):
        return loss
    sign = 1 if task.score.higher_is_better else -1
    known = CLASS_LOSSES[loss]

    def climb(predictor: Callable[..., Tensor], batch: object) -> Tensor:
        logits = two_columns(predictor(batch.inputs))  # type: ignore[attr-defined]
        return sign * known(logits, batch.target, other)  # type: ignore[attr-defined]

    return climb


def check_loss(loss: str | Loss) -> None:
    """Raise `UsageError` for the name of a loss that does not exist."""
    if isinstance(loss, str) and loss not in ("task", *CLASS_LOSSES):
        raise unknown("loss", loss, ("task", *CLASS_LOSSES))


def check_meaning(loss: str | Loss, task: Task) -> None:
    """Raise `NotApplicable` where a loss of classes is asked of a task that answers with something else."""
    if loss in CLASS_LOSSES and not is_classifier(task):
        raise NotApplicable(f"the loss {loss!r} is one of classes; {task.name} answers {type(task.output).__name__}")


def rivals(access: WhiteBox, batch: Batch, n: int) -> Tensor:
    """The other classes ``(B, n)`` of each example by their logits, the closest first; all, where n are too many."""
    logits = two_columns(access(batch.inputs))
    assert isinstance(batch.target, Tensor)
    others = logits.scatter(1, batch.target[:, None], -torch.inf)
    return others.argsort(1, descending=True)[:, : min(n, logits.shape[1] - 1)]
