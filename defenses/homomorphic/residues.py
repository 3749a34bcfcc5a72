"""Products of integer matrices modulo a prime, exact, as products of floating-point matrices."""

from __future__ import annotations

from collections import defaultdict
from itertools import product

import torch
from torch import Tensor

EXACT = 53
"""Bits of an integer that float64 holds."""
LEAST = 64
"""Terms that are summed before reduction, at least: fewer would be slower than more limbs."""
COLUMNS = 2048
"""Columns that are split at a time, so that they stay in a processor's cache."""


def modular_product(weights: Tensor, residues: Tensor, prime: int) -> Tensor:
    """``weights @ residues`` modulo a prime: ``(m, n)`` and ``(n, c)`` of int64 to ``(m, c)`` in ``[0, prime)``.

    Weights are signed and below 2^62, residues in ``[0, prime)``, the prime below 2^60. Both are cut into limbs
    around 0 that are so short that every float64 sum is exact; the limbs' products are reduced and shifted together.
    On any device that multiplies float64 matrices.
    """
    largest = int(weights.abs().max()) if weights.numel() else 0
    widths = _widths(prime.bit_length() - 1, largest.bit_length(), weights.shape[1])
    pieces = limbs(weights, widths[1], _count(largest.bit_length(), widths[1]))
    found = [
        _columns(pieces, _centred(part.to(weights.device), prime), widths, prime)
        for part in residues.split(COLUMNS, dim=1)
    ]
    return torch.cat(found, 1)


def _columns(pieces: list[Tensor], residues: Tensor, widths: tuple[int, int, int], prime: int) -> Tensor:
    wide, short, chunk = widths
    parts = limbs(residues, wide, _count(prime.bit_length() - 1, wide))
    sums: dict[int, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.int64, device=residues.device))
    for (i, part), (j, piece) in product(enumerate(parts), enumerate(pieces)):
        for terms in range(0, residues.shape[0], chunk):
            exact = piece[:, terms : terms + chunk] @ part[terms : terms + chunk]
            shift = i * wide + j * short
            sums[shift] = sums[shift] + exact.long().remainder(prime)
    total = torch.zeros((), dtype=torch.int64, device=residues.device)
    last = 0
    for shift in sorted(sums, reverse=True):
        total = (_shifted(total, last - shift, prime) if last else total) + sums[shift].remainder(prime)
        last = shift
    return _shifted(total.remainder(prime), last, prime)


def limbs(values: Tensor, width: int, count: int) -> list[Tensor]:
    """Signed integers as ``sum(limb[i] * 2^(width * i))`` with limbs within ``2^(width - 1)``, in float64."""
    found = []
    for _ in range(count - 1):
        high = (values + (1 << (width - 1))) >> width
        found.append((values - (high << width)).double())
        values = high
    return [*found, values.double()]


def _centred(residues: Tensor, prime: int) -> Tensor:
    return torch.where(residues > prime // 2, residues - prime, residues)


def _count(bits: int, width: int) -> int:
    """Limbs of this width that hold a signed number of so many bits; the last may be a bit larger."""
    return max(1, -(-bits // width))


def _widths(bits: int, other: int, terms: int) -> tuple[int, int, int]:
    """Widths of the limbs of residues and weights, and how many terms may be summed: the fewest products that do."""
    best: tuple[int, int, int, int] | None = None
    for one, two in product(range(1, 8), repeat=2):
        wide, short = -(-(bits + 1) // one), -(-(other + 1) // two)
        chunk = 1 << max(0, EXACT - wide - short)
        if chunk >= min(LEAST, max(terms, 1)) and (best is None or one * two < best[0]):
            best = (one * two, wide, short, chunk)
    assert best is not None
    return best[1:]


def _shifted(values: Tensor, bits: int, prime: int) -> Tensor:
    """``values * 2^bits`` modulo the prime, without overflow; values in ``[0, 2 * prime)``."""
    room = 61 - prime.bit_length()
    while bits > 0:
        step = min(bits, max(room, 1))
        values = (values.remainder(prime) << step).remainder(prime)
        bits -= step
    return values.remainder(prime)
