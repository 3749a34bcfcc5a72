"""Gradient-guided replacement of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from attacks.evasion._search import Trials, search
from secure_ml.access import WhiteBox
from secure_ml.batch import Batch, Tree
from secure_ml.errors import require
from secure_ml.families.evasion import Evasion
from secure_ml.surfaces import Surface, Tokens
from secure_ml.threats import Change, Edits


@dataclass(frozen=True, kw_only=True)
class TokenSwap(Evasion):
    """Token replacement by first-order gain with beam search, HotFlip (Ebrahimi 2018, https://arxiv.org/abs/1712.06751).

    In each round, the gradient in the one-hot code of the tokens ``(B, L)`` ranks every replacement at every
    position; the ``candidates`` best of each text, those of different positions first, are tried on the module and the
    ``beam`` texts of the highest loss go on, those of before included. There is a round for each of the threat's
    edits, and ``again`` more, in which positions that were edited may be edited anew. Raises `UsageError` for settings
    out of range.

    Differs from the paper: words instead of characters; candidates are verified on the module instead of trusted, and
    looked for again from where they led, since far from the clean text its gradient says little; replacements need not
    keep the meaning of the text, so this bounds what a real adversary can do.
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Tokens,)
    threats: ClassVar[tuple[type[Change], ...]] = (Edits,)

    candidates: int = 64
    """Replacements of each text that are tried on the module in a round."""
    beam: int = 4
    """Texts of each example that are edited further."""
    again: int = 4
    """Rounds beyond the number of edits; without any, a position is edited once."""
    early: bool = True
    """An example leaves when the module answers it as badly as the score can tell; otherwise its loss is raised on."""

    def __post_init__(self) -> None:
        require(self.candidates >= 1, f"TokenSwap needs at least 1 candidate; given {self.candidates}")
        require(self.beam >= 1, f"TokenSwap needs a beam of at least 1 text; given {self.beam}")
        require(self.again >= 0, f"TokenSwap needs at least 0 rounds again; given {self.again}")

    def perturb(self, access: WhiteBox, batch: Batch, threat: Edits, rng: torch.Generator) -> Tree:
        """Edited tokens ``(B, L)`` in the place of the batch's."""
        surface = access.task.surface(threat)
        assert isinstance(surface, Tokens)
        propose = partial(self._propose, access, surface)
        rounds = {"beam": self.beam, "again": self.again}
        pieces = [
            search(access, piece, surface, threat.radius, propose, early=self.early, **rounds)
            for piece in batch.chunks(access.task.chunk)
        ]
        return surface.put(batch.inputs, torch.cat(pieces))

    @classmethod
    def tiny(cls) -> TokenSwap:
        """Two candidates, two texts, one round more, the loss alone."""
        return cls(candidates=2, beam=2, again=1, early=False)

    def _propose(self, access: WhiteBox, surface: Tokens, batch: Batch, free: Tensor) -> Trials:
        """The best replacements of each text by first-order gain, a bounded number of gradients at a time."""
        size = max(1, _SCORES // max(free.shape[1] * surface.vocabulary, 1))
        found = []
        for start, piece in zip(range(0, len(free), size), batch.chunks(size), strict=True):
            gradient = access.ascend(piece, surface).gradient
            some = self._candidates(gradient, surface, surface.get(piece.inputs), free[start : start + size])
            found.append(Trials(some.row + start, some.position, some.token))
        return Trials(*(torch.cat([getattr(some, name) for some in found]) for name in ("row", "position", "token")))

    def _candidates(self, gradient: Tensor, surface: Tokens, tokens: Tensor, free: Tensor) -> Trials:
        """The replacements of the highest first-order gain: the best of each free position, then the second best ...

        The scale of gains differs between positions. The gradient ``(N, L, V)`` is large and overwritten.
        """
        now = gradient.gather(2, tokens[..., None])
        gradient[..., list(surface.frozen)] = -torch.inf
        gradient.scatter_(2, tokens[..., None], -torch.inf)
        values, choices = gradient.topk(min(self.candidates, surface.vocabulary), dim=2)
        gains = (values - now).masked_fill(~free[..., None], -torch.inf).flatten(1)
        turn = torch.arange(values.shape[2], device=gains.device).expand(values.shape).flatten(1)
        turn = turn.masked_fill(gains == -torch.inf, values.shape[2])
        order = gains.argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, turn.gather(1, order).argsort(dim=1, stable=True))[:, : self.candidates]
        row, column = torch.nonzero(gains.gather(1, order) > -torch.inf, as_tuple=True)
        chosen = order[row, column]
        return Trials(row, chosen // values.shape[2], choices.flatten(1)[row, chosen])


_SCORES = 2**24
"""Replacement scores held at a time; bounds memory."""
