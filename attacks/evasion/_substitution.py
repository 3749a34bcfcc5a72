"""Replacing words by what an attack's table offers for them, the most important words first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from attacks.evasion._search import Asked, Trials, search
from secure_ml.batch import Batch
from secure_ml.surfaces import Tokens


@dataclass(frozen=True)
class Offers:
    """What may stand in a token's place: ``table`` ``(U, C)``, -1 for none; nothing for tokens that are not listed."""

    tokens: Tensor
    """``(U,)``, sorted, each once."""
    table: Tensor

    def of(self, tokens: Tensor) -> Tensor:
        """The offers ``(*shape, C)`` for tokens ``(*shape)``."""
        row = torch.searchsorted(self.tokens, tokens).clamp(max=len(self.tokens) - 1)
        return self.table[row].masked_fill((self.tokens[row] != tokens)[..., None], -1)


def substitute(
    access: Asked,
    batch: Batch,
    surface: Tokens,
    edits: int,
    offers: Offers,
    *,
    positions: int,
    early: bool,
) -> Tensor:
    """Tokens ``(B, L)`` after a number of edits, each the one of the highest loss among the offers.

    In each edit, the offers for the ``positions`` most important tokens of each text are tried.
    """
    propose = partial(_propose, access, surface, offers, positions)
    length = surface.get(batch.inputs).shape[1]
    size = max(1, _TRIALS // max(1, min(positions, length) * offers.table.shape[1]))
    pieces = [
        search(access, piece, surface, edits, propose, early=early)
        for piece in batch.chunks(min(size, access.task.chunk))
    ]
    return torch.cat(pieces)


_TRIALS = 2**21
"""Replacements tried in one edit; bounds memory."""


def _propose(access: Asked, surface: Tokens, offers: Offers, positions: int, batch: Batch, free: Tensor) -> Trials:
    """All offers for the most important free tokens of each text."""
    tokens = surface.get(batch.inputs)
    open_to = free & (offers.of(tokens)[..., 0] >= 0)
    if positions < tokens.shape[1]:
        chosen = importance(access, surface, offers, batch, open_to).topk(positions, dim=1).indices
        open_to = open_to & torch.zeros_like(open_to).scatter(1, chosen, True)
    row, position = torch.nonzero(open_to, as_tuple=True)
    offered = offers.of(tokens[row, position])
    which, column = torch.nonzero(offered >= 0, as_tuple=True)
    return Trials(row[which], position[which], offered[which, column])


def importance(access: Asked, surface: Tokens, offers: Offers, batch: Batch, where: Tensor) -> Tensor:
    """The loss ``(N, L)`` when a token is left out (its first offer stands there, where no token means a gap).

    Minus infinity outside of the mask ``where``.
    """
    tokens = surface.get(batch.inputs)
    row, position = torch.nonzero(where, as_tuple=True)
    gap = torch.full_like(row, surface.frozen[0]) if surface.frozen else offers.of(tokens[row, position])[:, 0]
    trials, size = Trials(row, position, gap), access.task.chunk
    found = torch.full(tokens.shape, -torch.inf, device=tokens.device)
    for start in range(0, len(row), size):
        some = trials.take(slice(start, start + size))
        piece = batch.take(some.row)
        losses, _ = access.observe(Batch(surface.put(piece.inputs, some.of(tokens)), piece.target))
        found[some.row, some.position] = losses.nan_to_num(nan=-torch.inf).to(found.dtype)
    return found
