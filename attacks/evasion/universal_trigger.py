"""The same few words in every text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secure_ml.access import WhiteBox
from secure_ml.batch import Batch, Tree
from secure_ml.errors import require
from secure_ml.families.evasion import Evasion
from secure_ml.surfaces import Surface, Tokens
from secure_ml.threats import Change, Edits


@dataclass(frozen=True, kw_only=True)
class UniversalTrigger(Evasion):
    """The same words at the beginning of every text, whatever it says (Wallace 2019, https://arxiv.org/abs/1908.07125).

    The first tokens of each text ``(B, L)`` that may be changed, as many as the threat's edits, are overwritten by one
    trigger. Its words are found in turn: the gradient of the mean loss in a word's one-hot code ranks all tokens, the
    ``candidates`` best are tried on all texts, and the best stays; after the last word the first one is looked for
    again. Raises `UsageError` for settings out of range.

    Differs from the paper: the trigger takes the place of words instead of standing before them, since edits add
    none; it is fitted to the very texts that it is judged on, as many as a task's chunk, so that it bounds what a
    trigger found on other texts would do; no beam.
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Tokens,)
    threats: ClassVar[tuple[type[Change], ...]] = (Edits,)

    candidates: int = 20
    """Tokens that are tried in each place of the trigger."""
    sweeps: int = 3
    """Times that each word of the trigger is looked for."""

    def __post_init__(self) -> None:
        require(self.candidates >= 1, f"UniversalTrigger needs at least 1 candidate; given {self.candidates}")
        require(self.sweeps >= 1, f"UniversalTrigger needs at least 1 sweep; given {self.sweeps}")

    def perturb(self, access: WhiteBox, batch: Batch, threat: Edits, rng: torch.Generator) -> Tree:
        """Texts ``(B, L)`` with the trigger in the place of their first tokens."""
        surface = access.task.surface(threat)
        assert isinstance(surface, Tokens)
        texts = surface.get(batch.inputs)
        free = surface.editable(texts)
        place = free.long().cumsum(1) * free - 1
        best = self._loss(access, batch, surface, texts)
        for _ in range(self.sweeps):
            for word in range(threat.radius):
                texts, best = self._improve(access, batch, surface, texts, place == word, best)
        return surface.put(batch.inputs, texts)

    @classmethod
    def tiny(cls) -> UniversalTrigger:
        """Four candidates, two sweeps."""
        return cls(candidates=4, sweeps=2)

    def _improve(
        self, access: WhiteBox, batch: Batch, surface: Tokens, texts: Tensor, where: Tensor, best: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The texts with the token that raises the mean loss most at ``where`` ``(B, L)``, and that loss."""
        kept = texts
        for token in self._promising(access, Batch(surface.put(batch.inputs, texts), batch.target), surface, where):
            trial = torch.where(where, token, texts)
            loss = self._loss(access, batch, surface, trial)
            kept = torch.where(loss > best, trial, kept)
            best = torch.maximum(best, loss)
        return kept, best

    def _promising(self, access: WhiteBox, batch: Batch, surface: Tokens, where: Tensor) -> Tensor:
        """The tokens ``(candidates,)`` of the highest first-order gain when all texts have them at ``where``."""
        total = torch.zeros(surface.vocabulary, device=where.device)
        size = max(1, _SCORES // max(where.shape[1] * surface.vocabulary, 1))
        for start, piece in zip(range(0, len(batch), size), batch.chunks(size), strict=True):
            total += access.ascend(piece, surface).gradient[where[start : start + size]].sum(0)
        total[list(surface.frozen)] = -torch.inf
        return total.topk(min(self.candidates, surface.vocabulary - len(surface.frozen))).indices

    def _loss(self, access: WhiteBox, batch: Batch, surface: Tokens, texts: Tensor) -> Tensor:
        """The mean loss of the texts; minus infinity where it is no number, so that it wins nothing."""
        losses = [
            access.observe(Batch(surface.put(piece.inputs, some), piece.target))[0]
            for piece, some in zip(batch.chunks(access.task.chunk), texts.split(access.task.chunk), strict=True)
        ]
        return torch.cat(losses).mean().nan_to_num(nan=-torch.inf)


_SCORES = 2**24
"""Gains held at a time; bounds memory."""
