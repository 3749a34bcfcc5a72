"""Thousands of queries at a time: a query in each slot, a ciphertext for each number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from defenses.homomorphic import stream
from defenses.homomorphic.circuit import Affine, Skip
from defenses.homomorphic.levels import Levels
from defenses.homomorphic.program import Program
from defenses.homomorphic.residues import modular_product
from defenses.homomorphic.wire import unframe
from secure_ml.errors import UsageError

FEW = 24
"""Outputs for which sums in SEAL are faster than reading its ciphertexts' residues."""


@dataclass(frozen=True, eq=False)
class _Entering:
    """What a map is applied to, as residues ``(primes, n, 2, degree)``, where they are read at all."""

    like: stream.Stream | None
    residues: np.ndarray | None


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
        kept = {skip.source for skip in self.program.circuit.skips}
        entering: list[_Entering] = []
        ciphertexts: list[Any] = []
        for index, step in enumerate(self.program.circuit.maps):
            level, into = 2 * index, self.program.circuit.into(index)
            if index:
                ciphertexts = [self.levels.square(ciphertext) for ciphertext in ciphertexts]
            if index and not into and index not in kept and len(step.bias) <= FEW:
                entering.append(_Entering(None, None))
                ciphertexts = self._by_sums(step, ciphertexts, level)
            else:
                saved = [self.levels.files.to_bytes(ciphertext) for ciphertext in ciphertexts] if index else blobs
                entering.append(_Entering(*self._residues(saved, level)))
                ciphertexts = self._by_residues(step.matrix, index, into, entering)
            ciphertexts = [self._finished(c, float(b), level) for c, b in zip(ciphertexts, step.bias, strict=True)]
        return [self.levels.files.to_bytes(ciphertext) for ciphertext in ciphertexts]

    def substituted(self, weights: Tensor, biases: Tensor, blobs: Sequence[bytes]) -> list[bytes]:
        """Affine functions ``weights (K, in)``, ``biases (K, slots)`` of a query, at an answer's level and scale.

        What a server that does not keep to its program returns: nothing in an answer says what was computed.
        """
        entering, levels, found = [_Entering(*self._residues(blobs, 0))], self.levels, []
        for ciphertext, bias in zip(self._by_residues(weights, 0, [], entering), biases, strict=True):
            levels.rescale(ciphertext)
            plain = levels.encoded(bias.tolist(), 1, levels.parameters.scale)
            levels.evaluator.add_plain_inplace(ciphertext, plain)
            last = len(levels.ids) - 1
            found.append(levels.files.to_bytes(levels.lowered(ciphertext, last) if last > 1 else ciphertext))
        return found

    def _residues(self, blobs: Sequence[bytes], level: int) -> tuple[stream.Stream, np.ndarray]:
        """The residues of ciphertexts, ``(primes, n, 2, degree)``, and a stream to write others by."""
        primes = len(self.levels.primes) - level
        shape = (2, primes, self.levels.parameters.degree)
        found = np.empty((primes, len(blobs), 2, self.levels.parameters.degree), dtype=np.int64)
        for i, blob in enumerate(blobs):
            one = stream.read(blob, self.levels.ids[level], shape)
            found[:, i] = one.residues.transpose(1, 0, 2)
        return one, found

    def _by_residues(self, matrix: Tensor, index: int, into: list[Skip], entering: list[_Entering]) -> list[Any]:
        """The products of what enters this map, and of what entered those before with fewer of its primes."""
        level, like = 2 * index, entering[index].like
        assert like is not None
        columns = [(matrix, index), *((skip.matrix, skip.source) for skip in into)]
        weights = self._integers([self._scaled(weights, level, source) for weights, source in columns])
        primes = len(self.levels.primes) - level
        parts = [each.residues for _, source in columns if (each := entering[source]).residues is not None]
        out = np.empty((len(weights), 2, primes, self.levels.parameters.degree), dtype=np.int64)
        for i, prime in enumerate(self.levels.primes[:primes]):
            residues = torch.from_numpy(np.concatenate([part[i] for part in parts])).reshape(weights.shape[1], -1)
            if not (int(residues.min()) >= 0 and int(residues.max()) < prime):
                raise UsageError("a ciphertext holds numbers that are no residues: encrypt it under this contract")
            product = modular_product(weights.to(self.device), residues, prime).cpu()
            out[:, :, i] = product.reshape(-1, 2, out.shape[-1]).numpy()
        found = []
        for one in out:
            ciphertext = self.levels.files.into(
                self.levels.seal.Ciphertext(), like.with_residues(one), self.levels.context
            )
            scale = self.levels.entering(index)
            ciphertext.scale = self.levels.factor(level, scale) * scale
            found.append(ciphertext)
        return found

    def _scaled(self, matrix: Tensor, level: int, source: int) -> Tensor:
        return torch.round(matrix * self.levels.factor(level, self.levels.entering(source))).long()

    @staticmethod
    def _integers(parts: list[Tensor]) -> Tensor:
        """Weights as integers; a row of zeros gets one of 1, since SEAL refuses ciphertexts that hide nothing."""
        integers = torch.cat(parts, 1)
        integers[(integers == 0).all(1), 0] = 1
        return integers

    def _by_sums(self, step: Affine, inputs: list[Any], level: int) -> list[Any]:
        seal, evaluator, factor = self.levels.seal, self.levels.evaluator, self.levels.factor(level, inputs[0].scale)
        found = []
        for integers in self._integers([torch.round(step.matrix * factor).long()]).tolist():
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
