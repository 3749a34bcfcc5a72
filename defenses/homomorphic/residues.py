"""Products of integer matrices modulo a prime, exact, as products of floating-point matrices."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

EXACT = 53
"""Bits of an integer that float64 holds."""
LEAST = 64
"""Terms that are summed before reduction, at least: fewer would be slower than more limbs."""
GATHER = 4
"""Rows whose products take as long as gathering the terms of a block."""
COLUMNS = 2048
"""Columns that are split at a time, so that they stay in a processor's cache."""


Block = tuple[Tensor, Tensor]
"""Rows of a matrix, and the columns in which they are not 0."""


def modular_product(weights: Tensor, residues: Tensor, prime: int) -> Tensor:
    """``weights @ residues`` modulo a prime: ``(m, n)`` and ``(n, c)`` of int64 to ``(m, c)`` in ``[0, prime)``.

    Weights are signed and below 2^62, residues in ``[0, prime)``, the prime below 2^60. Both are cut into limbs
    around 0 that are so short that every float64 sum is exact; the limbs' products are reduced and shifted together.
    Rows that are 0 in the same places, as those of a convolution at one place are, are multiplied by the others only.
    On any device that multiplies float64 matrices.
    """
    largest = int(weights.abs().max()) if weights.numel() else 0
    groups = blocks(weights)
    widths = _widths(prime.bit_length() - 1, largest.bit_length(), max(len(columns) for _, columns in groups))
    pieces = limbs(weights, widths[1], _count(largest.bit_length(), widths[1]))
    found = [
        _columns(pieces, groups, _centred(part.to(weights.device), prime), widths, prime)
        for part in residues.split(COLUMNS, dim=1)
    ]
    return torch.cat(found, 1)


def blocks(weights: Tensor) -> list[Block]:
    """The rows of each pattern of zeros with the columns that are left; one block where that would not save much."""
    patterns, inverse = torch.unique(weights != 0, dim=0, return_inverse=True)
    found = [(torch.nonzero(inverse == i).flatten(), torch.nonzero(p).flatten()) for i, p in enumerate(patterns)]
    work = sum((len(rows) + GATHER) * len(columns) for rows, columns in found)
    if 2 * work > (len(weights) + GATHER) * weights.shape[1]:
        everything = torch.arange(max(weights.shape), device=weights.device)
        return [(everything[: len(weights)], everything[: weights.shape[1]])]
    return found


def _columns(
    pieces: list[Tensor], groups: list[Block], residues: Tensor, widths: tuple[int, int, int], prime: int
) -> Tensor:
    wide, short, chunk = widths
    parts = limbs(residues, wide, _count(prime.bit_length() - 1, wide))
    sums: dict[int, Tensor] = {}
    for (i, part), (j, piece) in product(enumerate(parts), enumerate(pieces)):
        for terms in range(0, max(len(columns) for _, columns in groups), chunk):
            exact = _blockwise(piece, part, groups, slice(terms, terms + chunk)).remainder(prime)
            shift = i * wide + j * short
            sums[shift] = sums[shift] + exact if shift in sums else exact
    total = torch.zeros((), dtype=torch.int64, device=residues.device)
    last = 0
    for shift in sorted(sums, reverse=True):
        total = (_shifted(total, last - shift, prime) if last else total) + sums[shift].remainder(prime)
        last = shift
    return _shifted(total.remainder(prime), last, prime)


def _blockwise(piece: Tensor, part: Tensor, groups: list[Block], terms: slice) -> Tensor:
    """The exact products of some of the terms of each block, as integers."""
    if len(groups) == 1 and len(groups[0][1]) == piece.shape[1]:
        return (piece[:, terms] @ part[terms]).long()
    out = torch.zeros(len(piece), part.shape[1], dtype=torch.int64, device=part.device)
    for rows, columns in groups:
        some = columns[terms]
        if len(some):
            out[rows] = (piece[rows][:, some] @ part[some]).long()
    return out


def limbs(values: Tensor, width: int, count: int) -> list[Tensor]:
    """Signed integers as ``sum(limb[i] * 2^(width * i))`` with limbs within ``2^(width - 1)``, in float64."""
    found = []
    for _ in range(count - 1):
        high = (values + (1 << (width - 1))) >> width
        found.append((values - (high << width)).double())
        values = high
    return [*found, values.double()]


def _centred(residues: Tensor, prime: int) -> Tensor:
    return residues - (residues > prime // 2) * prime


def _count(bits: int, width: int) -> int:
    """Limbs of this width that hold a signed number of so many bits; the last may be a bit larger."""
    return max(1, -(-bits // width))


def _widths(bits: int, other: int, terms: int) -> tuple[int, int, int]:
    """Widths of the limbs of residues and weights, and how many terms may be summed: the fewest products that do."""
    best: tuple[int, int, int, int] | None = None
    for one, two in product(range(1, 8), repeat=2):
        wide, short = -(-(bits + 1) // one), -(-(other + 1) // two)
        chunk = int(2.0 ** (EXACT - wide - short))
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
