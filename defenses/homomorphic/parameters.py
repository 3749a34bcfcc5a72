"""Ring and moduli for a multiplicative depth at 128 bits of security."""

from __future__ import annotations

from dataclasses import dataclass

from secure_ml.errors import NotApplicable

GUIDELINE = {8192: 214, 16384: 430, 32768: 868}
"""Largest log2 Q of a ternary secret at 128 bits by https://eprint.iacr.org/2024/463, below the 2018 standard's."""


@dataclass(frozen=True)
class Parameters:
    """A CKKS parameter set: ``depth`` primes of the scale's size between two (first, special) of ``ends`` bits."""

    degree: int
    ends: int
    scale_bits: int
    depth: int

    @classmethod
    def for_depth(cls, depth: int) -> Parameters:
        """The smallest ring that carries this depth; `NotApplicable` where none does."""
        for degree, limit in GUIDELINE.items():
            ends, scale_bits = (50, 36) if degree == 8192 else (60, 40)
            chosen = cls(degree, ends, scale_bits, depth)
            if chosen.log_q <= limit:
                return chosen
        raise NotApplicable(f"a multiplicative depth of {depth} does not fit any parameter set at 128 bits")

    @property
    def bits(self) -> list[int]:
        """Sizes of the primes, as SEAL takes them."""
        return [self.ends, *[self.scale_bits] * self.depth, self.ends]

    @property
    def log_q(self) -> int:
        """Bits of the whole modulus, the special prime included."""
        return sum(self.bits)

    @property
    def slots(self) -> int:
        """Queries in one ciphertext."""
        return self.degree // 2

    @property
    def headroom(self) -> float:
        """The largest answer that does not wrap around the first prime."""
        return float(2 ** (self.ends - self.scale_bits - 1))
