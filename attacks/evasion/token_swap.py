"""Gradient-guided replacement of tokens."""

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
class TokenSwap(Evasion):
    """Greedy token replacement by first-order gain, HotFlip (Ebrahimi et al. 2018, https://arxiv.org/abs/1712.06751).

    In each of the threat's edits, the gradient in the one-hot code of the tokens ``(B, L)`` ranks every
    replacement at every position; the ``candidates`` best are tried on the module and the one with the highest
    loss is kept, if it beats the loss so far. A position is edited once. Raises `UsageError` for settings out
    of range.

    Differs from the paper: words instead of characters, and a greedy search with verified candidates instead of
    a beam; replacements need not keep the meaning of the text, so this bounds what a real adversary can do.
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Tokens,)

    candidates: int = 16
    """Replacements tried on the module in each edit."""

    def __post_init__(self) -> None:
        require(self.candidates >= 1, f"TokenSwap needs at least 1 candidate; given {self.candidates}")

    def perturb(self, access: WhiteBox, batch: Batch, threat: Change, rng: torch.Generator) -> Tree:
        """Edited tokens ``(B, L)`` in the place of the batch's."""
        surface = access.task.surface(threat)
        assert isinstance(threat, Edits)
        assert isinstance(surface, Tokens)
        clean = surface.get(batch.inputs)
        pieces = []
        for piece in batch.chunks(max(1, _SCORES // max(clean.shape[1] * surface.vocabulary, 1))):
            tokens = surface.get(piece.inputs)
            fixed = ~surface.editable(tokens)
            for _ in range(threat.radius):
                tokens, fixed = self._edit(access, piece, surface, tokens, fixed)
            pieces.append(tokens)
        return surface.put(batch.inputs, torch.cat(pieces))

    @classmethod
    def tiny(cls) -> TokenSwap:
        """Two candidates."""
        return cls(candidates=2)

    def _edit(
        self, access: WhiteBox, batch: Batch, surface: Tokens, tokens: Tensor, fixed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens after one more edit, and the mask ``(B, L)`` of positions that may no longer change."""
        seen = access.ascend(Batch(surface.put(batch.inputs, tokens), batch.target), surface)
        values, positions, choices = self._candidates(seen.gradient, surface, tokens, fixed)
        best, loss = tokens, seen.losses
        for value, position, token in zip(values.T, positions.T, choices.T, strict=True):
            trial = tokens.scatter(1, position[:, None], token[:, None])
            losses = self._losses(access, Batch(surface.put(batch.inputs, trial), batch.target))
            better = (losses > loss) & value.isfinite()
            best = torch.where(better[:, None], trial, best)
            loss = torch.where(better, losses, loss)
        return best, fixed | (best != tokens)

    def _candidates(
        self, gradient: Tensor, surface: Tokens, tokens: Tensor, fixed: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """First-order gain, position and token ``(B, candidates)`` of the best replacements, best first.

        The gradient ``(B, L, V)`` is large and overwritten: the best of each position are found first.
        """
        now = gradient.gather(2, tokens[..., None])
        gradient[..., list(surface.frozen)] = -torch.inf
        gradient.scatter_(2, tokens[..., None], -torch.inf)
        values, choices = gradient.topk(min(self.candidates, surface.vocabulary), dim=2)
        gains = (values - now).masked_fill(fixed[..., None], -torch.inf).flatten(1)
        best, flat = gains.topk(min(self.candidates, gains.shape[1]))
        return best, flat // values.shape[2], choices.flatten(1).gather(1, flat)

    def _losses(self, access: WhiteBox, batch: Batch) -> Tensor:
        with torch.no_grad():
            return access.task.loss(access, batch)


_SCORES = 2**24
"""Replacement scores held at a time; bounds memory."""
