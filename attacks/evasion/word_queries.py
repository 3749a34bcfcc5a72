"""Words replaced by somebody who can only ask."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from attacks.evasion._asking import check_askable
from attacks.evasion._search import Trials, search
from attacks.evasion._substitution import Offers, importance
from secure_ml.access import BlackBox
from secure_ml.batch import Batch, Tree
from secure_ml.errors import require
from secure_ml.families.evasion import Evasion
from secure_ml.outputs import Reveal
from secure_ml.surfaces import Surface, Tokens
from secure_ml.task import Task
from secure_ml.threats import Change, Edits


@dataclass(frozen=True, kw_only=True)
class WordQueries(Evasion):
    """The words that matter most replaced, found by asking (DeepWordBug, Gao et al. 2018, https://arxiv.org/abs/1801.04354).

    Asks about tokens ``(B, L)`` without weights or gradients: in each round, words are ranked by the loss when each is
    left out, random words are tried in the places of the first ``positions``, and the text of the highest loss is
    kept. There is a round for each of the threat's edits and ``again`` more, in which edited places may be edited
    anew; the ``queries`` about a text are shared out among them, at most half of a round's for the ranking. Raises
    `UsageError` for settings out of range, `NotApplicable` where no single answer tells how bad it is.

    Differs from the paper: other words instead of misspelled ones, since a model that is only asked gives nothing to
    tell a neighbour or a spelling by; the ranking leaves one word out (the paper's also reads the text from both of its
    ends), is made anew after each edit, and of a long text looks at some words alone, drawn at random.
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Tokens,)
    threats: ClassVar[tuple[type[Change], ...]] = (Edits,)
    sees: ClassVar[Reveal] = "probabilities"

    queries: int = 1000
    """Queries for each text."""
    positions: int = 4
    """Places of each text in which words are tried in a round."""
    again: int = 2
    """Rounds beyond the number of edits."""

    def __post_init__(self) -> None:
        require(self.queries >= 1, f"WordQueries needs at least 1 query; given {self.queries}")
        require(self.positions >= 1, f"WordQueries needs at least 1 position; given {self.positions}")
        require(self.again >= 0, f"WordQueries needs at least 0 rounds again; given {self.again}")

    def budget(self, examples: int) -> int:
        """The queries about every text."""
        return self.queries * examples

    def perturb(self, access: BlackBox, batch: Batch, threat: Edits, rng: torch.Generator) -> Tree:
        """Edited tokens ``(B, L)`` in the place of the batch's."""
        surface = access.task.surface(threat)
        assert isinstance(surface, Tokens)
        share = (self.queries - 1) // max(threat.radius + self.again, 1)  # one query is the clean text's
        words = torch.arange(surface.vocabulary)
        words = words[surface.editable(words)]
        if not share or not len(words):
            return batch.inputs
        propose = partial(self._propose, access, surface, words, share, rng)
        size = max(1, min(access.task.chunk, TRIALS // share))
        pieces = [
            search(access, piece, surface, threat.radius, propose, again=self.again) for piece in batch.chunks(size)
        ]
        return surface.put(batch.inputs, torch.cat(pieces or [surface.get(batch.inputs)]))

    def check_task(self, task: Task) -> None:
        """Raise `NotApplicable` where there is nothing to climb."""
        check_askable(task, "task")

    @classmethod
    def tiny(cls) -> WordQueries:
        """Forty queries."""
        return cls(queries=40)

    def _propose(
        self,
        access: BlackBox,
        surface: Tokens,
        words: Tensor,
        share: int,
        rng: torch.Generator,
        batch: Batch,
        free: Tensor,
    ) -> Trials:
        """Random words in the first places of each text by importance, within its share of queries."""
        tokens = surface.get(batch.inputs)
        length = tokens.shape[1]
        drawn = torch.rand(tokens.shape, generator=rng).to(tokens.device).masked_fill(~free, -1.0)
        ranked = torch.zeros_like(free).scatter(1, drawn.topk(min(share // 2, length), 1).indices, True) & free
        gap = words[torch.randint(len(words), (1,), generator=rng)].to(tokens.device)
        known = tokens.unique()
        losses = importance(access, surface, Offers(known, gap.expand(len(known), 1)), batch, ranked)
        order = torch.where(ranked, losses, drawn - UNSEEN).masked_fill(~free, -torch.inf)
        places = order.topk(min(self.positions, length), 1).indices
        return _words(tokens, places, free, share - ranked.sum(1), words.to(tokens.device), rng)


def _words(tokens: Tensor, places: Tensor, free: Tensor, left: Tensor, words: Tensor, rng: torch.Generator) -> Trials:
    """Trials ``left`` ``(N,)`` for each text: in each of its places ``(N, P)`` that is free, the same number."""
    n, few = places.shape
    usable = free.gather(1, places)
    each = left // usable.sum(1).clamp(min=1)
    most = min(int(each.max()) if n else 0, len(words))
    start = torch.randint(len(words), (n, few, 1), generator=rng)
    mixed = words[torch.randperm(len(words), generator=rng).to(words.device)]
    column = torch.arange(most)
    offered = mixed[((start + column) % len(words)).to(words.device)]
    now = tokens.gather(1, places)[..., None]
    tried = usable[..., None] & (column.to(words.device) < each[:, None, None]) & (offered != now)
    row, place, which = torch.nonzero(tried, as_tuple=True)
    return Trials(row, places[row, place], offered[row, place, which])


TRIALS = 2**20
"""Texts tried in one round; bounds memory."""
UNSEEN = 1e4
"""What puts places that were not looked at behind all others, in their random order."""
