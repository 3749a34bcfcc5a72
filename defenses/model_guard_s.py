"""Answers out of a small book that grows as it is read."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from defenses._answers import probabilities, require_classes, require_open, written
from secure_ml.batch import Tree
from secure_ml.defense import Defense
from secure_ml.errors import require
from secure_ml.task import Task
from secure_ml.victim import Served, Victim, Wrapped


@dataclass(frozen=True, kw_only=True)
class ModelGuardS(Defense):
    """ModelGuard-S of Tang et al. 2024 (USENIX Security; https://github.com/Yoruko-Tang/ModelGuard).

    The answer to each of ``(B, *shape)`` inputs is replaced by the first in a book of answers with the same decision
    and an L1 distance, as in Orekondy et al. 2020 (https://arxiv.org/abs/1906.10908), of at most ``budget``; where
    there is none, it is served as it is and, in a client's own copy of the book, entered. The book begins with the
    answers to the validation split. Many inputs share an answer, and no statistics recover what is not in it.

    Covers: surrogates trained on probabilities, and adversaries who learn to undo a perturbation. Does not cover:
    labels; the first answers that are entered, which are true. Raises `NotApplicable` unless answers are probabilities
    of classes, and behind encryption; `UsageError` for a budget outside (0, 2].

    Differs from the paper: each client reads a copy of its own, so that one cannot change what another is answered;
    new entries are the answers themselves, which the authors' code can also move apart.
    """

    budget: float = 1.0
    """L1 distance between what is served and the true probabilities, at most."""

    def __post_init__(self) -> None:
        require(0 < self.budget <= 2, f"an L1 budget between probabilities lies in (0, 2]; given {self.budget}")

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` unless answers are probabilities of classes."""
        require_classes(self, task, places=False)

    def serve(self, victim: Victim) -> Victim:
        """The victim answering out of the book; `NotApplicable` behind encryption."""
        require_open(self, victim)
        first = probabilities(victim.served(victim.splits.validation.inputs))
        book = first[:0]
        _, book = read(book, first, self.budget)
        return replace(victim, served=Quoted(victim.served, book, self.budget))


def read(book: Tensor, shares: Tensor, budget: float) -> tuple[Tensor, Tensor]:
    """Each of ``shares (N, K)`` as the first entry of the book ``(M, K)`` that fits it, and the book with new entries.

    An answer that no entry fits, and none entered since, is entered itself. The order counts.
    """
    place, fits = _first_fit(book, shares, budget)
    quoted = torch.where(fits[:, None], book[place], shares) if len(book) else shares.clone()
    new = shares[:0]
    for i in (~fits).nonzero()[:, 0].tolist():
        place, fits = _first_fit(new, shares[i : i + 1], budget)
        if fits:
            quoted[i] = new[place[0]]
        else:
            new = torch.cat([new, shares[i : i + 1]])
    return quoted, torch.cat([book, new])


def _first_fit(book: Tensor, shares: Tensor, budget: float) -> tuple[Tensor, Tensor]:
    """For each of ``shares (N, K)`` the place of its first fitting entry, and whether there is one."""
    if not len(book):
        return torch.zeros(len(shares), dtype=torch.long), torch.zeros(
            len(shares), dtype=torch.bool, device=book.device
        )
    same = book.argmax(1)[None] == shares.argmax(1)[:, None]
    fit = same & (torch.cdist(shares, book, p=1) <= budget * (1 - 1e-6))
    return fit.long().argmax(1), fit.any(1)


class Quoted(Wrapped):
    """Another predictor's answers, out of a book; a client's copy of it grows."""

    def __init__(self, inner: Served, book: Tensor, budget: float) -> None:
        super().__init__(inner)
        self.book, self.budget, self.grows = book, budget, False

    def session(self) -> Served:
        """A client who has the book as it was."""
        view = super().session()
        assert isinstance(view, Quoted)
        view.grows = True
        return view

    def __call__(self, inputs: Tree) -> Tensor:
        """The quoted answers."""
        outputs = self.inner(inputs)
        shares = probabilities(outputs)
        if self.grows:
            quoted, self.book = read(self.book, shares, self.budget)
        else:
            place, fits = _first_fit(self.book, shares, self.budget)
            quoted = torch.where(fits[:, None], self.book[place], shares) if len(self.book) else shares
        return written(quoted, outputs)
