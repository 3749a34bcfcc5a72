"""How far a language model gives away secrets that it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secure_ml.errors import require
from secure_ml.families.reconstruction import Reconstruction
from secure_ml.outputs import NextToken, Output, Reveal, check_reveal
from secure_ml.secrets.canaries import Canaries, Completions


@dataclass(frozen=True, kw_only=True)
class CanaryExposure(Reconstruction[Completions]):
    """Planted secrets, ranked by likelihood among random ones (Carlini et al. 2019, https://arxiv.org/abs/1802.08232).

    Retrains the victim, with its own defenses, on its text and canaries: windows of auxiliary text whose last symbols
    are random, planted once or several times. Scores each of ``(B, m, length)`` fillings by its log-probability after
    the text before it. Exposure, in bits, is the logarithm of the number of fillings over the rank of the planted one;
    canaries that were never planted are the control, at 1.4 bits on average. Raises `UsageError` for settings out of
    range, `NotApplicable` for a task that does not continue text.

    Differs from the paper: each canary has a context of its own; ranks are exact where there are at most ``references``
    fillings, and among a sample of that size otherwise, with the paper's extrapolation by a skew normal distribution
    beside, fitted by its moments. Of a defense that protects single windows, a canary that is planted k times tests the
    privacy of a group of k.
    """

    outputs: ClassVar[tuple[type[Output], ...]] = (NextToken,)

    repeats: tuple[int, ...] = (1, 4, 16)
    """How often canaries are planted."""
    each: int = 4
    """Canaries for each of these, and as many that are never planted."""
    length: int = 6
    """Random symbols in a canary."""
    alphabet: int = 10
    """Different symbols that these are drawn from."""
    references: int = 500
    """Fillings that are ranked, at most."""
    reveal: Reveal = "probabilities"
    """How much of each answer the adversary sees."""

    def __post_init__(self) -> None:
        check_reveal(self.reveal)
        require(
            len(self.repeats) > 0 and min(self.repeats) >= 1 and len(set(self.repeats)) == len(self.repeats),
            f"CanaryExposure needs different repeats of at least 1; given {self.repeats}",
        )
        for name, least in (("each", 1), ("length", 1), ("alphabet", 2), ("references", 2)):
            given = getattr(self, name)
            require(given >= least, f"CanaryExposure needs {name} of at least {least}; given {given}")

    @property
    def secret(self) -> Canaries:
        """The canaries."""
        return Canaries(
            repeats=self.repeats,
            each=self.each,
            length=self.length,
            alphabet=self.alphabet,
            references=self.references,
            reveal=self.reveal,
        )

    def recover(self, access: Completions, rng: torch.Generator) -> Tensor:
        """The log-probability of each filling, ``(C, m)``."""
        scores = []
        for before, fillings in zip(access.before, access.fillings, strict=True):
            sequences = torch.cat([before.expand(len(fillings), -1), fillings], 1)
            scores.append(access.log_chances(sequences, fillings.shape[1]))
        return torch.stack(scores)

    @classmethod
    def tiny(cls) -> CanaryExposure:
        """Few canaries of two symbols, ranked exactly."""
        return cls(repeats=(1, 8), each=2, length=2, alphabet=4, references=20)
