"""One query at a time: matrix products by diagonals, with few rotations and fewer keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from defenses.homomorphic.levels import Levels
from defenses.homomorphic.packing import Packed, Values
from defenses.homomorphic.program import Program, composed
from defenses.homomorphic.wire import unframe
from secure_ml.errors import UsageError

ZERO = 0.5
"""Diagonals all of whose encoded weights are below this are left out: SEAL refuses a product with 0."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """A packed map with its plaintexts at the level where they are used."""

    step: Packed
    diagonals: dict[int, Any]
    bias: Any = None
    skips: tuple[tuple[int, Encoded], ...] = ()
    """Products that are added, each of what an earlier map is applied to, at this map's level."""


class Latency:
    """An affine map costs one level and about two square roots of its diagonals in rotations.

    Baby steps rotate the ciphertext before them once more; sums of giant steps are rotated and added as in Horner's
    rule: both need one key. Rescaling comes once a map, before the folds, which are then cheaper, or behind them, where
    the precision asks for it.
    """

    def __init__(self, program: Program, blobs: Sequence[bytes]) -> None:
        if len(blobs) != 1 + bool(program.contract.steps):
            raise UsageError("keys for another engine were given: make them from this program's contract")
        self.program, self.contract = program, program.contract
        self.levels = Levels(self.contract.parameters, blobs[0])
        self.galois = None
        if self.contract.steps:
            self.galois = self.levels.files.into(self.levels.seal.GaloisKeys(), blobs[1], self.levels.context)
        self.maps = self._encode()

    @property
    def inside(self) -> Any:
        """SEAL's context."""
        return self.levels.context

    def exhaust(self, answer: bytes) -> None:
        """Go on with an answer beyond the last level, which must raise an error."""
        self.levels.exhaust(unframe("answer", answer)[1][0])

    def run(self, blobs: Sequence[bytes]) -> list[bytes]:
        """One ciphertext for each query, one for each answer."""
        return [self.levels.files.to_bytes(self.compute(self.levels.read(blob))) for blob in blobs]

    def compute(self, ciphertext: Any) -> Any:
        """The answer to one query."""
        entering = [ciphertext]
        for index, encoded in enumerate(self.maps):
            total = self._product(encoded, entering[index])
            for source, skip in encoded.skips:
                lowered = self.levels.lowered(entering[source], 2 * index)
                self.levels.evaluator.add_inplace(total, self._product(skip, lowered))
            self.levels.evaluator.add_plain_inplace(total, encoded.bias)
            if index < len(self.maps) - 1:
                entering.append(self.levels.square(total))
        return total

    def _encode(self) -> list[Encoded]:
        levels, slots, found = self.levels, self.contract.parameters.slots, []
        for index, step in enumerate(self.program.packed[1]):
            level = 2 * index
            bias = levels.encoded(step.biases(slots).tolist(), level + 1, levels.parameters.scale)
            skips = tuple((j, Encoded(skip, self._diagonals(skip, level, j))) for j, skip in step.skips)
            found.append(Encoded(step, self._diagonals(step, level, index), bias, skips))
        return found

    def _diagonals(self, step: Packed, level: int, source: int) -> dict[int, Any]:
        """Plaintexts at a level, for what map ``source`` is applied to."""
        factor, found = self.levels.factor(level, self.levels.entering(source)), {}
        for k in step.diagonals:
            weights = step.weights(k, self.contract.parameters.slots)
            if abs(weights).max() * factor >= ZERO or k == step.diagonals[0]:
                turned = np.roll(_kept(weights, factor), k - k % step.baby)
                found[k] = self.levels.encoded(turned.tolist(), level, factor)
        return found

    def _product(self, encoded: Encoded, ciphertext: Any) -> Any:
        step, evaluator = encoded.step, self.levels.evaluator
        turned = self._babies(step, ciphertext)
        total = None
        for high, low in pairwise([*reversed(step.giants), None]):
            inner = self._inner(encoded, turned, high or 0)
            if total is None:
                total = inner
            elif inner is not None:
                evaluator.add_inplace(total, inner)
            if total is not None and low is not None:
                self._rotate(total, (high or 0) - low)
        if not self.program.early:
            self.levels.rescale(total)
        other = self.levels.seal.Ciphertext()
        for fold in step.folds:
            self._rotate_into(total, fold, other)
            evaluator.add_inplace(total, other)
        if self.program.early:
            self.levels.rescale(total)
        return total

    def _babies(self, step: Packed, ciphertext: Any) -> dict[int, Any]:
        """The rotations of the input, each made from the one before it."""
        turned = {0: ciphertext}
        for last, this in pairwise(step.babies):
            turned[this] = self.levels.seal.Ciphertext()
            self._rotate_into(turned[last], this - last, turned[this])
        return turned

    def _inner(self, encoded: Encoded, turned: dict[int, Any], giant: int) -> Any:
        """The sum of one giant step's products; None where all are 0."""
        total = None
        for baby, ciphertext in turned.items():
            if (plain := encoded.diagonals.get(giant + baby)) is None:
                continue
            product = self.levels.seal.Ciphertext()
            self.levels.evaluator.multiply_plain(ciphertext, plain, product)
            if total is None:
                total = product
            else:
                self.levels.evaluator.add_inplace(total, product)
        return total

    def _rotate(self, ciphertext: Any, step: int) -> None:
        for part in composed(step, self.contract.steps):
            self.levels.evaluator.rotate_vector_inplace(ciphertext, part, self.galois)

    def _rotate_into(self, ciphertext: Any, step: int, result: Any) -> None:
        first, *others = composed(step, self.contract.steps)
        self.levels.evaluator.rotate_vector(ciphertext, first, self.galois, result)
        for part in others:
            self.levels.evaluator.rotate_vector_inplace(result, part, self.galois)


def _kept(weights: Values, factor: float) -> Values:
    """Weights that do not all vanish in encoding."""
    return weights if abs(weights).max() * factor >= ZERO else np.full_like(weights, 1 / factor)
