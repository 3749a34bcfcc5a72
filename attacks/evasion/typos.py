"""Words misspelled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from string import ascii_lowercase
from typing import ClassVar

import torch
from torch import Tensor

from attacks.evasion._substitution import Offers, substitute
from secure_ml.access import WhiteBox
from secure_ml.batch import Batch, Tree
from secure_ml.errors import require
from secure_ml.families.evasion import Evasion
from secure_ml.surfaces import SpelledTokens, Surface
from secure_ml.threats import Change, Edits


@dataclass(frozen=True, kw_only=True)
class Typos(Evasion):
    """Misspelled words: letters swapped, dropped, added or mistyped (Pruthi et al. 2019, https://arxiv.org/abs/1905.11268).

    In each edit of tokens ``(B, L)``, one typo is made inside of one word, its first and last letter left alone; the
    typos of the ``positions`` most important words (by the loss when a word is left out) are all tried, and the one of
    the highest loss is kept. Where tokens are characters, one of them is mistyped. The search asks for answers only,
    one query a text that is tried. Raises `UsageError` for settings out of range, and `NotApplicable` for tasks whose
    tokens are written in no known way.

    Differs from the paper: a task carries token numbers, not texts, so a number is read as the most frequent of the
    words that share it; a typo is what the victim's own tokeniser makes of it. The threat is a number of edited
    tokens, and is reported as such: that they be typos is this attack's limit, not the threat's.
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (SpelledTokens,)
    threats: ClassVar[tuple[type[Change], ...]] = (Edits,)

    shortest: int = 4
    """Letters that a word must have to be misspelled."""
    positions: int = 40
    """Words of each text whose typos are tried in an edit, the most important ones."""
    early: bool = True
    """An example leaves when the module answers it as badly as the score can tell; otherwise its loss is raised on."""

    def __post_init__(self) -> None:
        require(self.shortest >= 3, f"Typos needs a shortest word of at least 3 letters; given {self.shortest}")
        require(self.positions >= 1, f"Typos needs at least 1 position; given {self.positions}")

    def perturb(self, access: WhiteBox, batch: Batch, threat: Edits, rng: torch.Generator) -> Tree:
        """Edited tokens ``(B, L)`` in the place of the batch's."""
        surface = access.task.surface(threat)
        assert isinstance(surface, SpelledTokens)
        offers = self._offers(surface, surface.get(batch.inputs))
        changed = substitute(access, batch, surface, threat.radius, offers, positions=self.positions, early=self.early)
        return surface.put(batch.inputs, changed)

    @classmethod
    def tiny(cls) -> Typos:
        """Words of three letters too, the loss alone."""
        return cls(shortest=3, early=False)

    def _offers(self, surface: SpelledTokens, tokens: Tensor) -> Offers:
        """The tokens that the typos of each token that occurs become."""
        written, occurring = surface.read(), tokens.unique()
        single = max(map(len, written)) == 1
        found = []
        for token in occurring.tolist():
            typos = mistyped(written[token]) if single else misspelled(written[token], self.shortest)
            found.append(sorted({surface.write(typo) for typo in typos} - {token, -1, *surface.frozen}))
        width = max(map(len, found)) or 1
        table = torch.tensor([numbers + [-1] * (width - len(numbers)) for numbers in found])
        return Offers(occurring, table.to(tokens.device))


@cache
def misspelled(word: str, shortest: int) -> tuple[str, ...]:
    """The words that one typo inside of a word of English letters makes of it; none of a word that is too short."""
    if len(word) < shortest or not (word.isascii() and word.isalpha()):
        return ()
    inside = range(1, len(word) - 1)
    swapped = {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in inside[:-1]}
    dropped = {word[:i] + word[i + 1 :] for i in inside}
    missed = {word[:i] + key + word[i + 1 :] for i in inside for key in mistyped(word[i]) if key.isalpha()}
    added = {word[:i] + letter + word[i:] for i in range(1, len(word)) for letter in ascii_lowercase}
    return tuple(sorted((swapped | dropped | missed | added) - {word}))


def mistyped(character: str) -> str:
    """The characters on the keys around the one of a character, in the same case."""
    near = NEIGHBOURS.get(character.lower(), "")
    return near.upper() if character.isupper() else near


def _neighbours() -> dict[str, str]:
    """The keys that touch each key; each row is half a key to the right of the one above."""
    rows = ("qwertyuiop", "asdfghjkl;", "zxcvbnm,.")
    places = {key: (row, column + row / 2) for row, keys in enumerate(rows) for column, key in enumerate(keys)}
    return {
        key: "".join(
            other
            for other, (r, c) in places.items()
            if other != key and abs(r - row) <= 1 and abs(c - column) <= (1 if r == row else 0.5)
        )
        for key, (row, column) in places.items()
    }


NEIGHBOURS = _neighbours()
"""The keys around each key of an American keyboard."""
