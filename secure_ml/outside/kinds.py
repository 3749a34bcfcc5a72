"""What a module's answers mean: found by asking it about a few examples."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secure_ml.batch import Batch
from secure_ml.errors import UsageError, require
from secure_ml.families.evasion import are_probabilities
from secure_ml.families.scrutiny import Finding
from secure_ml.outputs import Classes, NextToken, Output, Values
from secure_ml.outside.adapted import Reads
from secure_ml.scores import RMSE, Accuracy, NatsPerToken, Score
from secure_ml.task import Loss, Predictor, cross_entropy, next_token_loss, squared_error

ANSWERS = "answers"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What answers are, how they are judged, and how they must be read for that."""

    output: Output
    score: Score
    loss: Loss
    reads: Reads = "as they are"
    flat: bool = False


def kind_of(answers: Tensor, target: Tensor, found: list[Finding], blind: bool = False) -> Kind:
    """The kind of a few raw answers, and what was taken for granted; `UsageError` for a kind that is not known.

    Nothing else can be asked of a model that is ``blind``, and only answers.
    """
    mine: list[Finding] = []
    kind = _kind(answers, target, mine)
    found += [Finding(line.check, "PASS", line.evidence) for line in mine] if blind else mine
    return kind


def _kind(answers: Tensor, target: Tensor, found: list[Finding]) -> Kind:
    if not answers.isfinite().all():
        raise UsageError("the module answers with NaN or infinite values: check its weights and its inputs")
    shape, whole = tuple(answers.shape[1:]), not target.is_floating_point()
    flat = shape == (1,)
    if len(shape) == 2 and whole and target.shape[1:] == shape[:1]:
        found.append(Finding(ANSWERS, "PASS", f"logits of the next of {shape[1]} symbols at each of {shape[0]} places"))
        return Kind(output=NextToken(), score=NatsPerToken(), loss=next_token_loss)
    if flat or not shape:
        return _one_number(answers.flatten(), target, flat, found)
    require(
        len(shape) == 1,
        f"the module answers {len(answers)} examples with shape {tuple(answers.shape)}; expected logits (B, K), one "
        "logit or value (B,), or (B, T, V) for symbols (B, T)",
    )
    if whole and target.ndim == 1:
        return _several(answers, shape[0], found)
    if target.ndim == 2 and bool(((target == 0) | (target == 1)).all()):
        raise UsageError("each target has several classes at once, which is not supported: assess one class at a time")
    require(target.shape[1:] == shape, f"answers (B, {shape[0]}) meet targets of shape {tuple(target.shape)}")
    found.append(Finding(ANSWERS, "PASS", f"{shape[0]} real values, as the targets are"))
    return Kind(output=Values(), score=RMSE(), loss=squared_error)


def _several(answers: Tensor, classes: int, found: list[Finding]) -> Kind:
    """One of several classes, told by logits, by a distribution, or by its name alone."""
    reads: Reads = "as they are"
    if are_probabilities(answers):
        reads = "labels" if bool(((answers == 0) | (answers == 1)).all()) else "probabilities"
    said: dict[Reads, Finding] = {
        "as they are": Finding(ANSWERS, "PASS", f"logits of {classes} classes"),
        "probabilities": Finding(
            ANSWERS,
            "WARN",
            f"probabilities of {classes} classes: their logarithms are taken for logits",
            "give a module without its softmax, whose gradients do not vanish where it is sure",
        ),
        "labels": Finding(ANSWERS, "PASS", f"the label alone, of {classes} classes"),
    }
    found.append(said[reads])
    return Kind(output=Classes(), score=Accuracy(), loss=cross_entropy, reads=reads)


def _one_number(answers: Tensor, target: Tensor, flat: bool, found: list[Finding]) -> Kind:
    """A regression, or one logit or chance that decides between classes 0 and 1."""
    binary = bool(((target == 0) | (target == 1)).all())
    if target.is_floating_point() and not (binary and target.unique().numel() == 2):
        found.append(Finding(ANSWERS, "PASS", "one real value, as the targets are"))
        return Kind(output=Values(), score=RMSE(), loss=squared_error, flat=flat)
    require(binary, f"one number cannot tell the classes {target.unique().tolist()[:5]} apart; expected 0 and 1")
    chance = bool(((answers >= 0) & (answers <= 1)).all())
    if chance:
        said = "one number in [0, 1] is taken for the chance of class 1, and its log-odds for a logit"
        remedy = "give a module without its sigmoid, whose gradients do not vanish where it is sure"
        found.append(Finding(ANSWERS, "WARN", said, remedy))
    else:
        found.append(Finding(ANSWERS, "PASS", "one number is taken for the logit of class 1"))
    reads: Reads = "chance" if chance else "as they are"
    return Kind(output=Classes(), score=Accuracy(), loss=cross_entropy, reads=reads, flat=flat)


def per_example(loss: object) -> Loss:
    """A loss of ``(predictor, batch)``, from one, or from a criterion of torch such as ``nn.CrossEntropyLoss()``."""
    if not isinstance(loss, torch.nn.Module):
        require(callable(loss), f"a loss is a function of (predictor, batch) or a criterion of torch; given {loss!r}")
        return loss  # type: ignore[return-value]
    criterion: Any = deepcopy(loss)
    require("reduction" in vars(criterion), f"{loss!r} has no reduction to switch off: give a function, (B,) for each")
    criterion.reduction = "none"

    def each(predictor: Predictor, batch: Batch) -> Tensor:
        losses: Tensor = criterion(predictor(batch.inputs), batch.target)
        return losses if losses.ndim == 1 else losses.flatten(1).mean(1)

    return each
