"""The client's key from its decisions on ciphertexts that encrypt nothing it asked about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from secure_ml.errors import NotApplicable, require
from secure_ml.families.deceit import Deceit, Dupe, Secret, thresholded
from secure_ml.ring import GENERATOR, Ring

FAR = 6.0
"""Standard deviations beyond which no value of a random key is looked for."""


@dataclass(frozen=True, kw_only=True)
class FalseCiphertexts(Deceit):
    """A decryption of ``c1 * key + c0`` tells of the key what ``c1`` asks (https://eprint.iacr.org/2020/1533).

    The paper recovers a key from decryptions of honest ciphertexts in full; here the server makes its own, and sees
    decisions on logits ``(B, K)`` alone. With constant polynomials for ``c1``, slot j decrypts to lines over the key's
    value at the j-th root, its real part and then, with ``X^(N/2)`` besides, its imaginary one. Which line is the
    largest, the class that the client acts on for its j-th query, tells in which of K intervals that value lies, in all
    N/2 slots at once; the inverse transform averages what remains unknown, and rounding gives the key. A full batch of
    decisions on each part suffices for most of it, ``rounds`` of each for all.

    The ciphertexts have the level, scale, size and marks of honest ones and decrypt to numbers of the usual size. A
    client that asks the same twice in a batch, and compares, notices. Raises `NotApplicable` where no ciphertexts
    travel, or each is of one query, or there is one logit alone.
    """

    after: ClassVar[Secret] = "key"
    rounds: int = 2
    """Answers spent on each part: intervals get K times shorter with each."""
    answers: int = 8
    """In all."""

    def __post_init__(self) -> None:
        require(self.rounds >= 1, f"FalseCiphertexts needs at least 1 round; given {self.rounds}")
        require(self.answers >= 0, f"FalseCiphertexts needs at least 0 answers; given {self.answers}")

    def deceive(self, dupe: Dupe, rng: torch.Generator) -> Tensor:
        """The key ``(N,)``; zeros where answers do not suffice for both parts."""
        n = dupe.line.degree
        if dupe.line.outputs < 2:
            raise NotApplicable("a decision between two classes by one logit is not read here; two logits or more are")
        if self.answers < 2:
            return torch.zeros(n, dtype=torch.long)
        rounds = min(self.rounds, self.answers // 2)
        roots = np.exp(1j * np.pi * np.array([pow(GENERATOR, j, 2 * n) for j in range(n // 2)]) / n)
        plain, turned = (self._parts(dupe, power, rounds).numpy() for power in (0, n // 2))
        turn = roots ** (n // 2)  # i or -i
        values = plain + 1j * (turned - plain * turn.real) / -turn.imag
        found = _inverse(values, n)
        return torch.tensor(np.clip(np.rint(found), -1, 1).astype(np.int64))

    def _parts(self, dupe: Dupe, power: int, rounds: int) -> Tensor:
        """The real part ``(N/2,)`` of ``X^power * key`` at each root, to within an interval."""
        n = dupe.line.degree
        spread = (n / 3) ** 0.5
        low, high = (torch.full((n // 2,), sign * FAR * spread, dtype=torch.float64) for sign in (-1, 1))
        for turn in range(rounds):
            edges = _edges(low, high, dupe.line.outputs, spread if turn == 0 else 0.0)
            low, high = self._narrowed(dupe, power, edges)
        return _expected(low, high, spread)

    def _narrowed(self, dupe: Dupe, power: int, edges: Tensor) -> tuple[Tensor, Tensor]:
        line = dupe.line
        slopes, offsets = thresholded(edges, line.room / 4)
        c1 = np.zeros((line.outputs, line.degree), dtype=object)
        c1[:, power] = [round(slope * line.scale) for slope in slopes.tolist()]
        ring = Ring(line.degree, line.modulus)
        c0 = np.stack([ring.encoded(row.numpy(), line.scale) for row in offsets])
        chosen = dupe.forged(c0, c1)[None]
        return edges.gather(0, chosen)[0], edges.gather(0, chosen + 1)[0]

    @classmethod
    def tiny(cls) -> FalseCiphertexts:
        """One round for each part."""
        return cls(rounds=1, answers=2)


def _edges(low: Tensor, high: Tensor, parts: int, spread: float) -> Tensor:
    """Edges ``(parts + 1, B)`` of intervals: equally likely for a normal value of this spread, or else equally long."""
    shares = torch.linspace(0, 1, parts + 1, dtype=torch.float64)
    if not spread:
        return low + shares[:, None] * (high - low)
    edges = torch.special.ndtri(shares[1:-1]) * spread
    return torch.cat([low[None], edges[:, None].expand(-1, len(low)), high[None]])


def _expected(low: Tensor, high: Tensor, spread: float) -> Tensor:
    """The mean of a normal value that lies in each interval."""
    a, b = low / spread, high / spread
    density = torch.exp(-a.square() / 2) - torch.exp(-b.square() / 2)
    chance = (torch.special.ndtr(b) - torch.special.ndtr(a)).clamp(min=1e-300)
    mean = spread * density / (2 * torch.pi) ** 0.5 / chance
    return torch.where((mean >= low) & (mean <= high), mean, (low + high) / 2)


def _inverse(values: np.ndarray, degree: int) -> np.ndarray:
    """Coefficients ``(N,)`` of the real polynomial with these complex values ``(N/2,)`` in its slots."""
    spread = np.zeros(2 * degree, dtype=complex)
    places = np.array([pow(GENERATOR, j, 2 * degree) for j in range(degree // 2)])
    spread[places], spread[2 * degree - places] = values, values.conj()
    found: np.ndarray = np.fft.fft(spread).real[:degree] / degree
    return found
