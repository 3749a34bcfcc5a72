"""The server's side of encrypted training: gradients of data that it cannot read, for weights that it cannot read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from defenses.homomorphic.levels import Levels, check_marks
from defenses.homomorphic.training import Owner, agreement_from, start, stepped
from defenses.homomorphic.wire import fingerprint, frame, unframe
from secure_ml.errors import UsageError, require


class Trainer:
    """Packed gradient descent (after Kim et al. 2018, https://doi.org/10.1186/s12920-018-0401-7), from bytes alone.

    Examples stand column by column, so that a sum over columns goes once round all slots and is left in each of them:
    nothing needs to be masked and spread again, which saves a level and half of the rotations. Products of examples
    and errors are added up before they are relinearised and rescaled, once for all ciphertexts.
    """

    def __init__(self, public: bytes, data: bytes) -> None:
        about, keys = unframe("training keys", public)
        self.agreement = agreement_from(about)
        self.keys = fingerprint(*keys)
        check_marks(about, self.agreement.id, self.keys)
        require(len(keys) == 2, f"{len(keys)} keys were given; expected those to relinearise and to rotate")
        require(self.agreement.parameters.secure, f"{self.agreement.parameters} gives less than 128 bits")
        self.levels = Levels(self.agreement.parameters, keys[0])
        self.galois = self.levels.files.into(self.levels.seal.GaloisKeys(), keys[1], self.levels.context)
        self.counts: Counter[tuple[str, int]] = Counter()
        """How often each operation ran, by name and level."""
        self.examples = self._read(data)

    def gradient(self, weights: bytes) -> bytes:
        """The encrypted gradient at encrypted weights; raises `UsageError` for other messages."""
        (blob,) = self._blobs("weights", weights, 1)
        result = self.compute(self.levels.read(blob))
        marks = {"contract": self.agreement.id, "keys": self.keys}
        return frame("gradient", marks, [self.levels.files.to_bytes(result)])

    def compute(self, weights: Any) -> Any:
        """One ciphertext, with the gradient in the first slot of each column."""
        total = None
        for rows, lower in self.examples:
            error = self._error(self._summed(self._product(rows, weights), self.agreement.across))
            product = self._multiplied(lower, error)
            if total is None:
                total = product
            else:
                self._count("add", error)
                self.levels.evaluator.add_inplace(total, product)
        return self._summed(self._reduced(total), self.agreement.down)

    def _error(self, margin: Any) -> Any:
        """The residual itself, or the cubic that stands for the sigmoid: two products, and constants that are added."""
        if self.agreement.kind == "linear":
            return margin
        square = self.levels.seal.Ciphertext()
        self._count("square", margin)
        self.levels.evaluator.square(margin, square)
        self._plus(self._reduced(square), -self.agreement.cubic[1])
        return self._plus(self._product(self._at(margin, square), square), 0.5)

    def _product(self, one: Any, other: Any) -> Any:
        return self._reduced(self._multiplied(one, other))

    def _multiplied(self, one: Any, other: Any) -> Any:
        result = self.levels.seal.Ciphertext()
        self._count("multiply", one)
        self.levels.evaluator.multiply(one, other, result)
        return result

    def _reduced(self, product: Any) -> Any:
        """In place: of two polynomials again, and a level lower; scales are what they are, and exact."""
        self._count("relinearise", product)
        self.levels.evaluator.relinearize_inplace(product, self.levels.relin)
        self._count("rescale", product)
        self.levels.evaluator.rescale_to_next_inplace(product)
        return product

    def _plus(self, ciphertext: Any, constant: float) -> Any:
        self._count("add constant", ciphertext)
        plain = self.levels.encoded(constant, self._level(ciphertext), ciphertext.scale)
        self.levels.evaluator.add_plain_inplace(ciphertext, plain)
        return ciphertext

    def _summed(self, ciphertext: Any, steps: Sequence[int]) -> Any:
        """With what stands so many slots further added, again and again, in place."""
        turned = self.levels.seal.Ciphertext()
        for step in steps:
            self._count("rotate", ciphertext)
            self.levels.evaluator.rotate_vector(ciphertext, step, self.galois, turned)
            self._count("add", ciphertext)
            self.levels.evaluator.add_inplace(ciphertext, turned)
        return ciphertext

    def _at(self, ciphertext: Any, like: Any) -> Any:
        """A copy at the level of another."""
        lower = self.levels.seal.Ciphertext()
        self.levels.evaluator.mod_switch_to(ciphertext, like.parms_id(), lower)
        return lower

    def _read(self, data: bytes) -> list[tuple[Any, Any]]:
        """Each ciphertext of examples, fresh and at the level of the last product."""
        agreement = self.agreement
        blobs = self._blobs("training data", data, -(-agreement.rows // agreement.height))
        fresh = [self.levels.read(blob) for blob in blobs]
        last = self.levels.ids[agreement.parameters.depth - 1]
        lower = []
        for ciphertext in fresh:
            low = self.levels.seal.Ciphertext()
            self.levels.evaluator.mod_switch_to(ciphertext, last, low)
            lower.append(low)
        return list(zip(fresh, lower, strict=True))

    def _blobs(self, kind: str, message: bytes, count: int) -> list[bytes]:
        about, blobs = unframe(kind, message)
        check_marks(about, self.agreement.id, self.keys)
        if len(blobs) != count:
            raise UsageError(f"{kind} of {len(blobs)} ciphertexts were given; expected {count}")
        return blobs

    def _level(self, ciphertext: Any) -> int:
        return self.levels.ids.index(ciphertext.parms_id())

    def _count(self, operation: str, ciphertext: Any) -> None:
        self.counts[operation, self._level(ciphertext)] += 1


def train(owner: Owner, trainer: Trainer, *, steps: int, rate: float, momentum: float = 0.9) -> Tensor:
    """Weights ``(columns,)`` after so many steps of gradient descent with momentum; bytes between the two sides.

    Raises `UsageError`, from the owner, where margins leave the span.
    """
    require(steps >= 1 and rate > 0, f"training needs at least 1 step and a rate above 0; given {steps} and {rate:g}")
    weights = start(owner.agreement)
    velocity = torch.zeros_like(weights)
    for _ in range(steps):
        gradient = owner.gradient(trainer.gradient(owner.weights_bytes(weights)))
        weights, velocity = stepped(owner.agreement, weights, velocity, gradient, rate, momentum)
    return weights
