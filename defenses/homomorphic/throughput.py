"""Thousands of queries at a time: a query in each slot, a ciphertext for each number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from defenses.homomorphic import stream
from defenses.homomorphic.circuit import Affine
from defenses.homomorphic.levels import Levels
from defenses.homomorphic.program import Program
from defenses.homomorphic.residues import modular_product
from defenses.homomorphic.wire import unframe
from secure_ml.errors import UsageError

FEW = 24
"""Outputs for which sums in SEAL are faster than reading its ciphertexts' residues."""


class Throughput:
    """A map over ciphertexts is one product of matrices of residues for each prime, rescaled once.

    Multiplying a ciphertext by a number multiplies all of its residues by the number's integer: the algebra is SEAL's,
    bit by bit. The first map reads the client's bytes without SEAL; behind the squares, maps with few outputs sum
    products in SEAL. Needs no rotation.
    """

    def __init__(self, program: Program, blobs: Sequence[bytes], device: str = "cpu") -> None:
        if len(blobs) != 1:
            raise UsageError("keys for another engine were given: make them from this program's contract")
        self.program, self.device = program, torch.device(device)
        self.levels = Levels(program.contract.parameters, blobs[0])

    @property
    def inside(self) -> Any:
        """SEAL's context."""
        return self.levels.context

    def exhaust(self, answer: bytes) -> None:
        """Go on with an answer beyond the last level, which must raise an error."""
        self.levels.exhaust(unframe("answer", answer)[1][0])

    def run(self, blobs: Sequence[bytes]) -> list[bytes]:
        """The inputs' ciphertexts to the outputs'."""
        values, scale, level = self._residues(blobs, 0), self.levels.parameters.scale, 0
        ciphertexts: list[Any] = []
        for index, step in enumerate(self.program.circuit.maps):
            if index:
                ciphertexts = [self.levels.square(ciphertext) for ciphertext in ciphertexts]
                level, scale = level + 1, ciphertexts[0].scale
            if index == 0:
                ciphertexts = self._by_residues(step, *values, level, scale)
            elif len(step.bias) <= FEW:
                ciphertexts = self._by_sums(step, ciphertexts, level, scale)
            else:
                saved = [self.levels.files.to_bytes(ciphertext) for ciphertext in ciphertexts]
                values = self._residues(saved, level)
                ciphertexts = self._by_residues(step, *values, level, scale)
            ciphertexts = [self._finished(c, float(b), level) for c, b in zip(ciphertexts, step.bias, strict=True)]
            level += 1
        return [self.levels.files.to_bytes(ciphertext) for ciphertext in ciphertexts]

    def _residues(self, blobs: Sequence[bytes], level: int) -> tuple[stream.Stream, np.ndarray]:
        """The residues of ciphertexts, ``(primes, n, 2, degree)``, and a stream to write others by."""
        primes = len(self.levels.primes) - level
        shape = (2, primes, self.levels.parameters.degree)
        found = np.empty((primes, len(blobs), 2, self.levels.parameters.degree), dtype=np.int64)
        for i, blob in enumerate(blobs):
            one = stream.read(blob, self.levels.ids[level], shape)
            found[:, i] = one.residues.transpose(1, 0, 2)
        return one, found

    def _by_residues(
        self, step: Affine, like: stream.Stream, residues: np.ndarray, level: int, scale: float
    ) -> list[Any]:
        weights = self._integers(step.matrix, level, scale)
        primes, n, size, degree = residues.shape
        out = np.empty((len(weights), size, primes, degree), dtype=np.int64)
        for i, prime in enumerate(self.levels.primes[:primes]):
            columns = torch.from_numpy(residues[i]).reshape(n, -1)
            if not (int(columns.min()) >= 0 and int(columns.max()) < prime):
                raise UsageError("a ciphertext holds numbers that are no residues: encrypt it under this contract")
            product = modular_product(weights.to(self.device), columns, prime).cpu()
            out[:, :, i] = product.reshape(-1, size, degree).numpy()
        found = []
        for one in out:
            ciphertext = self.levels.files.into(
                self.levels.seal.Ciphertext(), like.with_residues(one), self.levels.context
            )
            ciphertext.scale = self.levels.factor(level, scale) * scale
            found.append(ciphertext)
        return found

    def _integers(self, matrix: Tensor, level: int, scale: float) -> Tensor:
        """Weights as integers; a row of zeros gets one of 1, since SEAL refuses ciphertexts that hide nothing."""
        integers = torch.round(matrix * self.levels.factor(level, scale)).long()
        empty = (integers == 0).all(1)
        integers[empty, 0] = 1
        return integers

    def _by_sums(self, step: Affine, inputs: list[Any], level: int, scale: float) -> list[Any]:
        seal, evaluator, factor = self.levels.seal, self.levels.evaluator, self.levels.factor(level, scale)
        found = []
        for integers in self._integers(step.matrix, level, scale).tolist():
            total = None
            for integer, ciphertext in zip(integers, inputs, strict=True):
                if integer == 0:
                    continue
                product = seal.Ciphertext()
                evaluator.multiply_plain(ciphertext, self.levels.encoded(integer / factor, level, factor), product)
                if total is None:
                    total = product
                else:
                    evaluator.add_inplace(total, product)
            found.append(total)
        return found

    def _finished(self, ciphertext: Any, bias: float, level: int) -> Any:
        self.levels.rescale(ciphertext)
        plain = self.levels.encoded(bias, level + 1, self.levels.parameters.scale)
        self.levels.evaluator.add_plain_inplace(ciphertext, plain)
        return ciphertext
