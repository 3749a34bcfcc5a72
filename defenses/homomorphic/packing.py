"""Where values stand in a ciphertext's slots, and a matrix product with few rotations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from defenses.homomorphic.circuit import Affine, Circuit, Skip
from secure_ml.errors import NotApplicable

Index = NDArray[np.int64]
Values = NDArray[np.float64]
WIDTH = 12
"""Plans that are kept from one map to the next."""
MULTIPLY = 0.45
"""Cost of a product with a plaintext, against a key switch's at one prime."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Which value stands in each slot of a period; -1 where nothing that is meant does. The period repeats."""

    index: Index

    @property
    def period(self) -> int:
        """Slots after which the values come again, a power of two."""
        return len(self.index)

    def spread(self, row: Values) -> Values:
        """Values ``(n,)`` in the slots of a period."""
        found: Values = np.where(self.index >= 0, row[np.maximum(self.index, 0)], 0.0)
        return found


@dataclass(frozen=True, eq=False)
class Packed:
    """One affine map on packed values, by diagonals in baby and giant steps with folds behind.

    With ``group`` diagonals, each block of ``period`` slots computes ``group`` of the rows; the rows of a block are
    folded together. ``matrix (rows, period)`` and ``bias (rows,)`` are in the coordinates of slots, padded to powers
    of two (the hybrid diagonals of https://eprint.iacr.org/2018/073, in blocks).
    """

    matrix: Values
    bias: Values
    rows: Index
    """The output that each row is, or -1."""
    group: int
    baby: int
    """Steps between giant steps, a power of two."""
    offsets: Index
    """Column less row, modulo the period, of everything in the matrix that is not zero."""
    skips: tuple[tuple[int, Packed], ...] = ()
    """Products without a bias that are added to this one, each of what an earlier map is applied to."""

    @cached_property
    def diagonals(self) -> list[int]:
        """The diagonals that are not zero."""
        found = np.unique(self.offsets % min(self.group, self.period))
        return [int(k) for k in found] or [0]

    @property
    def period(self) -> int:
        """Of the inputs."""
        return int(self.matrix.shape[1])

    @property
    def blocks(self) -> int:
        """Blocks that compute different rows."""
        return int(self.matrix.shape[0]) // self.group

    @property
    def babies(self) -> list[int]:
        """Rotations of the input, 0 among them."""
        return sorted({k % self.baby for k in self.diagonals} | {0})

    @property
    def giants(self) -> list[int]:
        """Rotations of sums, 0 among them."""
        return sorted({k - k % self.baby for k in self.diagonals} | {0})

    @property
    def folds(self) -> list[int]:
        """Rotations that are added to what they rotate, in the end."""
        found, step = [], self.group
        while step < self.period:
            found.append(step)
            step *= 2
        return found

    @property
    def output(self) -> Layout:
        """Where the outputs stand."""
        if self.blocks == 1:
            return Layout(self.rows)
        index = np.full(self.blocks * self.period, -1, dtype=np.int64)
        for block in range(self.blocks):
            start = block * self.period
            index[start : start + self.group] = self.rows[block * self.group : (block + 1) * self.group]
        return Layout(index)

    def _row(self, slots: int) -> Index:
        """The row that each slot computes."""
        s = np.arange(slots)
        return self.group * ((s // self.period) % self.blocks) + s % self.group

    def weights(self, diagonal: int, slots: int) -> Values:
        """What the input, rotated by ``diagonal``, is multiplied by in each slot."""
        s = np.arange(slots)
        found: Values = self.matrix[self._row(slots), (s + diagonal) % self.period]
        return found

    def biases(self, slots: int) -> Values:
        """What is added in each slot."""
        found: Values = self.bias[self._row(slots)]
        return found

    def run(self, values: Values) -> Values:
        """The product in the clear on all slots ``(..., slots)``, garbage included, as the ciphertexts compute it."""
        slots = values.shape[-1]
        total = np.zeros_like(values)
        for k in self.diagonals:
            total += np.roll(values, -k, -1) * self.weights(k, slots)
        for step in self.folds:
            total += np.roll(total, -step, -1)
        return total + self.biases(slots)

    def spread(self, noise: Mapping[int, Values], slots: int) -> Values:
        """The variances ``(..., slots)`` of the sums of products, before folds, given those of each baby step."""
        total = np.zeros_like(noise[0])
        for k in self.diagonals:
            baby = k % self.baby
            total += np.roll(noise[baby], baby - k, -1) * self.weights(k, slots) ** 2
        return total

    def cost(self, primes: int) -> float:
        """Time, in units of a key switch at one prime, with so many primes left before it."""
        switches = (len(self.babies) + len(self.giants) - 2) * primes * (primes + 1) / 2
        folds = len(self.folds) * (primes - 1) * primes / 2
        skips = sum(skip.cost(primes) for _, skip in self.skips)
        return switches + folds + len(self.diagonals) * MULTIPLY * primes + skips


def widest(circuit: Circuit) -> int:
    """The most values that any layer has."""
    return max(max(step.matrix.shape) for step in circuit.maps)


def check_fits(circuit: Circuit, slots: int) -> None:
    """Raise `NotApplicable` where a layer has more values than there are slots."""
    if widest(circuit) > slots:
        raise NotApplicable(
            f"a layer of {widest(circuit):,} values does not fit the {slots:,} slots of a ciphertext: choose a larger "
            "ring, or the throughput engine"
        )


@lru_cache(maxsize=4)
def pack(circuit: Circuit, slots: int) -> tuple[Layout, tuple[Packed, ...]]:
    """The layout of the inputs and the packed maps that take the least time.

    Raises `NotApplicable` where a layer has more values than there are slots.
    """
    check_fits(circuit, slots)
    starts = [_plain_start(circuit)]
    if circuit.windows is not None and (start := _window_start(circuit, circuit.windows, slots)) is not None:
        starts.append(start)
    found = [_search(circuit, *start, slots) for start in starts]
    _, layout, steps = min(found, key=lambda plan: plan[0])
    return layout, steps


Start = tuple[Layout, Values, Index]


def _plain_start(circuit: Circuit) -> Start:
    step = circuit.maps[0]
    layout = Layout(_padded(np.arange(step.matrix.shape[1])))
    rows = _padded(np.arange(step.matrix.shape[0]))
    return layout, _spread(step, rows, layout.index), rows


def _window_start(circuit: Circuit, windows: NDArray[np.int64] | object, slots: int) -> Start | None:
    """The inputs as the windows of the convolution: its matrix is then nearly diagonal."""
    index = np.asarray(windows)
    weights, places = index.shape
    wide, tall = _power(places), _power(weights)
    channels = circuit.maps[0].matrix.shape[0] // places
    if wide * tall > slots or _power(channels) * wide > slots:
        return None
    columns = np.full((tall, wide), -1, dtype=np.int64)
    columns[:weights, :places] = index
    rows = np.full((_power(channels), wide), -1, dtype=np.int64)
    rows[:channels, :places] = np.arange(channels * places).reshape(channels, places)
    matrix = _spread(circuit.maps[0], rows.ravel(), columns.ravel())
    same = np.arange(rows.size)[:, None] % wide == np.arange(columns.size)[None] % wide
    return Layout(columns.ravel()), matrix * same, rows.ravel()


def _search(
    circuit: Circuit, layout: Layout, matrix: Values, rows: Index, slots: int
) -> tuple[float, Layout, tuple[Packed, ...]]:
    """The cheapest choice of groups for all maps, first to last; each layout changes what is behind it."""
    primes = circuit.depth + 1
    frontier: list[tuple[float, tuple[Packed, ...]]] = [
        (packed.cost(primes), (packed,)) for packed in _choices(matrix, circuit.maps[0], rows, slots)
    ]
    for level, step in enumerate(circuit.maps[1:], 1):
        rows, left, grown = _padded(np.arange(step.matrix.shape[0])), primes - 2 * level, []
        choices: dict[bytes, list[Packed]] = {}
        into = circuit.into(level)
        for cost, chosen in frontier:
            index = chosen[-1].output.index
            if (key := index.tobytes()) not in choices:
                choices[key] = _choices(_spread(step, rows, index), step, rows, slots, whole=bool(into))
            skips = tuple((skip.source, _skip(skip, rows, layout, chosen, slots)) for skip in into)
            options = [replace(one, skips=skips) for one in choices[key]] if into else choices[key]
            grown += [(cost + one.cost(left), (*chosen, one)) for one in options]
        frontier = sorted(grown, key=lambda plan: plan[0])[:WIDTH]
    cost, steps = min(frontier, key=lambda plan: plan[0])
    return cost, layout, steps


def _skip(skip: Skip, rows: Index, layout: Layout, chosen: tuple[Packed, ...], slots: int) -> Packed:
    """The product of a skip, whose rows stand as those of the map that it is added to."""
    index = chosen[skip.source - 1].output.index if skip.source else _once(layout.index)
    step = Affine(skip.matrix, torch.zeros(len(skip.matrix), dtype=skip.matrix.dtype))
    (found,) = _choices(_spread(step, rows, index), step, rows, slots, whole=True)
    return found


def _once(index: Index) -> Index:
    """A layout's index with each value where it stands first."""
    first = np.full_like(index, -1)
    values, places = np.unique(index, return_index=True)
    first[places] = values
    return first


def _choices(matrix: Values, step: Affine, rows: Index, slots: int, *, whole: bool = False) -> list[Packed]:
    """Every number of diagonals, or all of them alone, each with its best split in steps."""
    tall, period = matrix.shape
    bias = np.where(rows >= 0, step.bias.numpy()[rows], 0.0)
    found, (row, column) = [], np.nonzero(matrix)
    offsets = np.unique((column - row) % period)
    group = tall
    while group >= 1:
        if group == tall or (group < period and period * (tall // group) <= slots):
            options = [Packed(matrix, bias, rows, group, 2**b, offsets) for b in range(_power(group).bit_length())]
            found.append(min(options, key=lambda p: (len(p.babies) + len(p.giants), p.baby)))
        group = 0 if whole else group // 2
    return found


def _spread(step: Affine, rows: Index, columns: Index) -> Values:
    """The map's matrix in the coordinates of slots."""
    matrix = step.matrix.numpy()
    picked = matrix[np.maximum(rows, 0)][:, np.maximum(columns, 0)]
    found: Values = picked * (rows >= 0)[:, None] * (columns >= 0)[None]
    return found


def _padded(index: Index) -> Index:
    return np.concatenate([index, np.full(_power(len(index)) - len(index), -1, dtype=np.int64)])


def _power(n: int) -> int:
    """The least power of two that is at least ``n``."""
    return 1 << max(n - 1, 0).bit_length()
