"""Ring and moduli for a multiplicative depth at 128 bits of security."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, log2

from secure_ml.errors import NotApplicable

STANDARD = {4096: 109, 8192: 218, 16384: 438, 32768: 881}
"""Largest log2 Q of a ternary secret at 128 bits by the 2018 standard, which SEAL enforces."""
GUIDELINE = {4096: 106, 8192: 214, 16384: 430, 32768: 868}
"""The same by the guidelines of https://eprint.iacr.org/2024/463, below the standard's; sets stay within these."""
SCALES = range(18, 43)
"""Bits of the scale: below, noise drowns the values; above, none of it is left to see in float32 answers."""
EXTRA = (0, 2, 4, 6, 8)
"""Bits that the special prime may have more than the first one."""
LARGEST = 60
"""Bits of the largest prime that SEAL makes."""
MARGIN = 4.0
"""How much larger than any answer in calibration an answer may be before it wraps."""


@dataclass(frozen=True)
class Parameters:
    """A CKKS parameter set: ``depth`` primes of the scale's size, a first one below them and a special one for keys."""

    degree: int
    first: int
    scale_bits: int
    depth: int
    special: int

    @property
    def bits(self) -> list[int]:
        """Sizes of the primes, as SEAL takes them."""
        return [self.first, *[self.scale_bits] * self.depth, self.special]

    @property
    def log_q(self) -> int:
        """Bits of the whole modulus, the special prime included."""
        return sum(self.bits)

    @property
    def slots(self) -> int:
        """Numbers in one ciphertext."""
        return self.degree // 2

    @property
    def scale(self) -> float:
        """What a number is multiplied by before it is rounded to an integer."""
        return float(2**self.scale_bits)

    @property
    def headroom(self) -> float:
        """The largest answer that does not wrap around the first prime."""
        return float(2 ** (self.first - self.scale_bits - 1))

    @property
    def secure(self) -> bool:
        """Whether both tables grant it 128 bits."""
        return self.log_q <= min(GUIDELINE.get(self.degree, 0), STANDARD.get(self.degree, 0))

    def __str__(self) -> str:
        """The set in one line."""
        sizes = f"[{self.first}, {self.scale_bits} x {self.depth}, {self.special}]"
        return f"N={self.degree}, log2 Q={self.log_q} {sizes}, scale 2^{self.scale_bits}, 128 bits"


def candidates(
    depth: int, largest: Callable[[int], float], degree: int | None = None, slots: int = 1
) -> Iterator[list[Parameters]]:
    """For each ring, smallest first, sets that carry this depth and the largest number of an answer in so many slots.

    A larger special prime takes the noise out of key switches, and bits from the scale: there is one set for each
    balance of both. Rings with fewer than so many ``slots`` are left out. Raises `NotApplicable` where no ring carries
    the depth.
    """
    found = False
    for ring, limit in GUIDELINE.items():
        if degree not in (None, ring) or ring // 2 < slots:
            continue
        spare = 1 + ceil(log2(max(largest(ring // 2) * MARGIN, 1.0)))
        sets = [chosen for more in EXTRA if (chosen := _largest(ring, limit, depth, spare, more)) is not None]
        if sets:
            found = True
            yield sets
    if not found:
        rings = "any ring" if degree is None else f"a ring of degree {degree}"
        raise NotApplicable(
            f"a multiplicative depth of {depth} with answers this large does not fit {rings} at 128 bits: use fewer "
            "activations, smaller weights, or a ring of a larger degree"
        )


def _largest(ring: int, limit: int, depth: int, spare: int, more: int) -> Parameters | None:
    """The set of the largest scale whose special prime has so many bits more than the others."""
    for bits in reversed(SCALES):
        first = bits + spare
        chosen = Parameters(ring, first, bits, depth, first + more)
        if first + more <= LARGEST and chosen.log_q <= limit:
            return chosen
    return None
