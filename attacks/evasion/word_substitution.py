"""Words replaced by words that the model takes for similar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.evasion._substitution import Offers, substitute
from secure_ml.access import WhiteBox
from secure_ml.batch import Batch, Tree
from secure_ml.errors import require
from secure_ml.families.evasion import Evasion
from secure_ml.surfaces import SpelledTokens, Surface, Tokens
from secure_ml.threats import Change, Edits


@dataclass(frozen=True, kw_only=True)
class WordSubstitution(Evasion):
    """Important words replaced by neighbours in the embedding, TextFooler (Jin 2020, https://arxiv.org/abs/1907.11932).

    In each edit of tokens ``(B, L)``, words are ranked by the loss when each is left out, the nearest ``neighbours``
    of the first ``positions`` words are tried, and the one of the highest loss is kept. The search asks for answers
    only, one query a text that is tried; who is whose neighbour is read off the weights. Raises `UsageError` for
    settings out of range.

    Differs from the paper: neighbours (by cosine) in the model's own embedding instead of one made for synonyms, and
    no check of part of speech or of the sentence's meaning; several positions compete for each edit instead of one
    after the other, ranked anew after each. Tokens that nothing is written as are not offered. The threat is a number
    of edits, and is reported as such: what else holds the adversary back is this attack's, not the threat's.
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Tokens,)
    threats: ClassVar[tuple[type[Change], ...]] = (Edits,)

    neighbours: int = 50
    """Nearest words that are tried for each word."""
    similarity: float = 0.7
    """The cosine below which a word is no neighbour; -1 allows all."""
    positions: int = 8
    """Words of each text whose neighbours are tried in an edit, the most important ones."""
    early: bool = True
    """An example leaves when the module answers it as badly as the score can tell; otherwise its loss is raised on."""

    def __post_init__(self) -> None:
        require(self.neighbours >= 1, f"WordSubstitution needs at least 1 neighbour; given {self.neighbours}")
        require(self.positions >= 1, f"WordSubstitution needs at least 1 position; given {self.positions}")
        require(
            -1 <= self.similarity <= 1,
            f"WordSubstitution needs a similarity between -1 and 1, a cosine; given {self.similarity}",
        )

    def perturb(self, access: WhiteBox, batch: Batch, threat: Edits, rng: torch.Generator) -> Tree:
        """Edited tokens ``(B, L)`` in the place of the batch's."""
        surface = access.task.surface(threat)
        assert isinstance(surface, Tokens)
        tokens = surface.get(batch.inputs)
        offers = self._neighbours(surface, surface.vectors(access.module), tokens)
        changed = substitute(access, batch, surface, threat.radius, offers, positions=self.positions, early=self.early)
        return surface.put(batch.inputs, changed)

    @classmethod
    def tiny(cls) -> WordSubstitution:
        """Eight neighbours of any similarity, the loss alone."""
        return cls(neighbours=8, similarity=-1.0, positions=4, early=False)

    def _neighbours(self, surface: Tokens, vectors: Tensor, tokens: Tensor) -> Offers:
        """The nearest words of each token that occurs, nearest first."""
        width = min(self.neighbours, surface.vocabulary)
        unit = torch.nn.functional.normalize(vectors, dim=1)
        closed = ~surface.editable(torch.arange(surface.vocabulary, device=tokens.device))
        if isinstance(surface, SpelledTokens):
            closed |= torch.tensor([not written for written in surface.read()], device=tokens.device)
        occurring, tables = tokens.unique(), []
        for some in occurring.split(_ROWS):
            near = unit[some] @ unit.T
            near[:, closed] = -torch.inf
            near.scatter_(1, some[:, None], -torch.inf)
            values, words = near.topk(width, dim=1)
            far = (values < self.similarity) | values.isinf()
            tables.append(words.masked_fill(far, -1))
        return Offers(occurring, torch.cat(tables))


_ROWS = 512
"""Words whose neighbours are looked up at a time; bounds memory."""
