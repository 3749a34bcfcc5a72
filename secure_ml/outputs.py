"""Kinds of answers: what a module's output means, and what is left of it when less is revealed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from secure_ml.batch import Tree
from secure_ml.errors import NotApplicable, UsageError, unknown
from secure_ml.scores import TOP, squared_difference
from secure_ml.stats import Estimate, bootstrap, clopper_pearson

Reveal = Literal["logits", "probabilities", "label"]
SURE = math.log(1e6)
"""The log-odds at which a revealed label is written down: certain, yet with a finite loss."""


def check_reveal(how: str) -> None:
    """Raise `UsageError` for a way of answering that does not exist."""
    if how not in get_args(Reveal):
        raise unknown("way of answering", how, get_args(Reveal))


class Output(ABC):
    """One kind of answer. Whatever is revealed stays in the form of the module's own output."""

    labels: ClassVar[bool] = True
    """Whether there is a decision that can be served without the confidence behind it."""

    @abstractmethod
    def check(self, outputs: Tensor, n: int) -> None:
        """Raise `UsageError` unless this is a well-formed answer for ``n`` examples."""

    def check_target(self, outputs: Tensor, target: Tree) -> None:  # noqa: B027 - most kinds have nothing to check
        """Raise `UsageError` where a target is none that such outputs can name."""

    @abstractmethod
    def reveal(self, outputs: Tensor, how: Reveal) -> Tensor:
        """The answer with everything else than ``how`` taken out of it; `NotApplicable` if it has no such form."""

    @abstractmethod
    def imitate(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """How badly outputs reproduce somebody's answers, ``(B,)``: what a surrogate is trained on."""

    @abstractmethod
    def fidelity(self, outputs: Tensor, answers: Tensor) -> Estimate:
        """How faithfully outputs reproduce somebody's answers; 1 is a perfect copy."""


@dataclass(frozen=True)
class Classes(Output):
    """Logits ``(B, K)``, or ``(B,)`` where one logit decides between two classes."""

    def check(self, outputs: Tensor, n: int) -> None:
        """Raise `UsageError` unless the shape is ``(n, K)`` with K > 1, or ``(n,)``, and all is finite."""
        if outputs.shape != (n,) and not (outputs.ndim == 2 and len(outputs) == n and outputs.shape[1] > 1):
            raise UsageError(
                f"the module answered {n} examples with shape {tuple(outputs.shape)}; "
                "Classes expects logits (B, K) with K of at least 2, or (B,) for one logit"
            )
        _finite(outputs)

    def check_target(self, outputs: Tensor, target: Tree) -> None:
        """Raise `UsageError` for a class that the logits have no place for."""
        classes = 2 if outputs.ndim == 1 else outputs.shape[1]
        if isinstance(target, Tensor) and target.ndim == 1 and len(target) and not target.is_floating_point():
            low, high = int(target.min()), int(target.max())
            if low < 0 or high >= classes:
                raise UsageError(
                    f"targets lie in [{low}, {high}], but the module tells {classes} classes, 0 to {classes - 1}"
                )

    def decide(self, outputs: Tensor) -> Tensor:
        """The class that each answer names, ``(B,)``."""
        return (outputs > 0).long() if outputs.ndim == 1 else outputs.argmax(-1)

    def reveal(self, outputs: Tensor, how: Reveal) -> Tensor:
        """Logits, log-probabilities, or the label alone written as (nearly certain) log-probabilities."""
        if how == "logits":
            return outputs
        if how == "probabilities":
            return outputs if outputs.ndim == 1 else outputs.log_softmax(-1)
        check_reveal(how)
        decision = self.decide(outputs)
        if outputs.ndim == 1:
            return (decision * 2 - 1) * SURE * torch.ones_like(outputs)
        return (F.one_hot(decision, outputs.shape[-1]) * SURE).to(outputs.dtype).log_softmax(-1)

    def imitate(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """Cross-entropy to the revealed distribution, ``(B,)``."""
        if outputs.ndim == 1:
            return F.binary_cross_entropy_with_logits(outputs, answers.sigmoid(), reduction="none")
        return -(answers.softmax(-1) * outputs.log_softmax(-1)).sum(-1)

    def fidelity(self, outputs: Tensor, answers: Tensor) -> Estimate:
        """Share of examples on which both name the same class."""
        agree = self.decide(outputs) == self.decide(answers)
        return clopper_pearson(int(agree.sum()), len(agree))


@dataclass(frozen=True)
class NextToken(Output):
    """Logits ``(B, T, V)``: at each of T places, the symbol that comes next."""

    def check(self, outputs: Tensor, n: int) -> None:
        """Raise `UsageError` unless the shape is ``(n, T, V)`` with V > 1 and all is finite."""
        if outputs.ndim != 3 or len(outputs) != n or outputs.shape[2] < 2:
            raise UsageError(
                f"the module answered {n} examples with shape {tuple(outputs.shape)}; NextToken expects (B, T, V)"
            )
        _finite(outputs)

    def check_target(self, outputs: Tensor, target: Tree) -> None:
        """Raise `UsageError` unless the target holds a symbol ``(B, T)`` for each place."""
        assert isinstance(target, Tensor)
        if target.is_floating_point():  # somebody's answers, to be imitated
            return
        if target.shape[1:] != outputs.shape[1:2]:
            raise UsageError(f"targets of shape {tuple(target.shape)} meet logits of shape {tuple(outputs.shape)}")
        if len(target) and not (int(target.min()) >= 0 and int(target.max()) < outputs.shape[2]):
            raise UsageError(
                f"targets lie in [{int(target.min())}, {int(target.max())}], but the module tells "
                f"{outputs.shape[2]} symbols, 0 to {outputs.shape[2] - 1}"
            )

    def reveal(self, outputs: Tensor, how: Reveal) -> Tensor:
        """Logits, log-probabilities, or each likeliest symbol alone, written as (nearly certain) log-probabilities."""
        if how == "logits":
            return outputs
        if how == "probabilities":
            return outputs.log_softmax(-1)
        check_reveal(how)
        return (F.one_hot(outputs.argmax(-1), outputs.shape[-1]) * SURE).to(outputs.dtype).log_softmax(-1)

    def imitate(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """Cross-entropy to the revealed distributions, averaged over places, ``(B,)``."""
        return -(answers.softmax(-1) * outputs.log_softmax(-1)).sum(-1).mean(1)

    def fidelity(self, outputs: Tensor, answers: Tensor) -> Estimate:
        """Share of places at which both put the same symbol first; places of one example count as one observation."""
        agree = (outputs.argmax(-1) == answers.argmax(-1)).double().mean(1)
        return bootstrap(lambda a: float(a.mean()), agree.cpu().numpy())


@dataclass(frozen=True)
class Ranking(Classes):
    """Scores ``(B, V)`` of all items; the decision is the list of the ten first."""

    def reveal(self, outputs: Tensor, how: Reveal) -> Tensor:
        """Scores, log-probabilities, or the list alone: its items in their order, all others equal and far below."""
        if how != "label":
            return super().reveal(outputs, how)
        top = outputs.topk(min(TOP, outputs.shape[1]), dim=1).indices
        steps = torch.linspace(1, 0.5, top.shape[1], dtype=outputs.dtype, device=outputs.device) * SURE
        listed = torch.zeros_like(outputs).scatter(1, top, steps.expand(len(outputs), -1))
        return listed.log_softmax(-1)

    def fidelity(self, outputs: Tensor, answers: Tensor) -> Estimate:
        """Share of the items in one list of ten that are in the other; a list counts as one observation."""
        n = min(TOP, outputs.shape[1])
        mine, theirs = (scores.topk(n, dim=1).indices for scores in (outputs, answers))
        shared = (mine[:, :, None] == theirs[:, None, :]).any(2).double().mean(1)
        return bootstrap(lambda s: float(s.mean()), shared.cpu().numpy())


@dataclass(frozen=True)
class Values(Output):
    """Real numbers ``(B,)`` or ``(B, D)``: a regression."""

    labels: ClassVar[bool] = False

    def check(self, outputs: Tensor, n: int) -> None:
        """Raise `UsageError` unless the shape is ``(n,)`` or ``(n, D)`` and all is finite."""
        if outputs.ndim not in (1, 2) or len(outputs) != n:
            raise UsageError(
                f"the module answered {n} examples with shape {tuple(outputs.shape)}; Values expects (B,) or (B, D)"
            )
        _finite(outputs)

    def reveal(self, outputs: Tensor, how: Reveal) -> Tensor:
        """The values; they hold no probabilities, and no label to reduce them to."""
        check_reveal(how)
        if how == "label":
            raise NotApplicable("a regression answers with values, which have no label to reduce them to")
        return outputs

    def imitate(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """Squared error, ``(B,)``."""
        return squared_difference(outputs, answers)

    def fidelity(self, outputs: Tensor, answers: Tensor) -> Estimate:
        """R2 of the outputs as predictions of the answers (of constant answers: 1 if equal, else 0)."""
        spread = (answers - answers.mean(0)).square().mean().item()
        errors = self.imitate(outputs, answers).double().cpu().numpy()
        return bootstrap(lambda e: 1 - float(e.mean()) / spread if spread else float(not e.any()), errors)


def _finite(outputs: Tensor) -> None:
    if not outputs.isfinite().all():
        raise UsageError("the module answers with NaN or infinite values: check its weights and its inputs")
