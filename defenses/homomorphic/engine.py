"""Client and server: batches of queries in the slots, one ciphertext for each input value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from defenses.homomorphic.parameters import Parameters
from defenses.homomorphic.program import Program, rows_of
from secure_ml.batch import Tree
from secure_ml.errors import SecureMLError
from secure_ml.victim import Served

if TYPE_CHECKING:
    from defenses.homomorphic.program import Affine


TOLERANCE = 1e-4
"""Largest error of a decrypted answer, relative to the largest answer, that noise explains."""


class Encrypted(Served):
    """A program served on ciphertexts: the first ``encrypt`` queries (all, if None) are really encrypted.

    Every decrypted answer is compared with the program in the clear, since an overflow would be silent.
    """

    decrypted_by_client: ClassVar[bool] = True

    def __init__(self, program: Program, encrypt: int | None = None, twin: Served | None = None) -> None:
        self.program, self.encrypt, self.twin = program, encrypt, twin
        self.parameters = Parameters.for_depth(program.depth)
        self.queries = self.encrypted = 0
        self._ends: tuple[Client, Server] | None = None

    def __call__(self, inputs: Tree) -> Tensor:
        """Answers ``(B, *shape)`` in the inputs' precision and on their device."""
        assert isinstance(inputs, Tensor)
        rows = rows_of(inputs)
        n = len(rows) if self.encrypt is None else min(len(rows), self.encrypt - self.encrypted)
        answers = [self._through_ciphertexts(piece) for piece in rows[:n].split(self.parameters.slots) if len(piece)]
        answers.append(self.program.run(rows[n:]))
        self.queries, self.encrypted = self.queries + len(rows), self.encrypted + n
        return torch.cat(answers).to(inputs.dtype).to(inputs.device)

    def stand_in(self) -> Served:
        """The module in the clear, where it is known: decrypted answers differ from its own by rounding."""
        return self.twin or Encrypted(self.program, encrypt=0)

    def usage(self) -> Mapping[str, int]:
        """Queries so far, and how many of them were encrypted."""
        return {"queries served": self.queries, "queries encrypted": self.encrypted}

    def _through_ciphertexts(self, rows: Tensor) -> Tensor:
        if self._ends is None:
            client = Client(self.parameters)
            self._ends = client, Server(client.public_bytes(), self.program, self.parameters)
        client, server = self._ends
        values = client.decrypt(server.answer(client.encrypt(rows)), len(rows))
        twin = self.program.run(rows).reshape(values.shape)
        error, size = (values - twin).abs().max().item(), max(twin.abs().max().item(), 1.0)
        if not error <= TOLERANCE * size:
            raise SecureMLError(
                f"decrypted answers differ from the program by {error:.3g} at a size of {size:.3g}: they overflow"
            )
        return values.reshape(len(rows), *self.program.shape)


class Client:
    """Holds the keys: encrypts queries and decrypts answers."""

    def __init__(self, parameters: Parameters) -> None:
        ts, seal = _tenseal()
        self.context = ts.context(
            ts.SCHEME_TYPE.CKKS, parameters.degree, coeff_mod_bit_sizes=parameters.bits, n_threads=1
        )
        self.context.global_scale = self.scale = 2.0**parameters.scale_bits
        inside = self.context.seal_context().data
        self._seal = seal
        self._encoder = seal.CKKSEncoder(inside)
        self._encryptor = seal.Encryptor(inside, self.context.public_key().data)
        self._decryptor = seal.Decryptor(inside, self.context.secret_key().data)

    def public_bytes(self) -> bytes:
        """What the server needs: parameters, public and relinearisation keys, and no secret key."""
        return bytes(self.context.serialize(save_secret_key=False, save_galois_keys=False))

    def encrypt(self, rows: Tensor) -> list[Any]:
        """Queries ``(B, in)`` as one ciphertext for each input value, a query in each slot."""
        ciphertexts = []
        for column in rows.T.tolist():
            plain, ciphertext = self._seal.Plaintext(), self._seal.Ciphertext()
            self._encoder.encode(column, self.scale, plain)
            self._encryptor.encrypt(plain, ciphertext)
            ciphertexts.append(ciphertext)
        return ciphertexts

    def decrypt(self, answers: Sequence[Any], n: int) -> Tensor:
        """The first ``n`` slots of each answer, ``(n, out)`` in float64."""
        columns = []
        for ciphertext in answers:
            plain = self._seal.Plaintext()
            self._decryptor.decrypt(ciphertext, plain)
            columns.append(torch.tensor(self._encoder.decode_double(plain)[:n], dtype=torch.float64))
        return torch.stack(columns, 1)


class Server:
    """Holds the program and public keys, built from bytes.

    Scales are tracked exactly: each plaintext is encoded at the scale that makes the next rescaling land on the
    nominal one, so that no drift of the primes is left.
    """

    def __init__(self, public: bytes, program: Program, parameters: Parameters) -> None:
        ts, seal = _tenseal()
        self.context = ts.context_from(public, n_threads=1)
        if self.context.has_secret_key():
            raise SecureMLError("the server was handed a secret key; it must be built from public bytes")
        inside = self.context.seal_context().data
        self._seal, self._relin = seal, self.context.relin_keys().data
        self._encoder, self._eval = seal.CKKSEncoder(inside), seal.Evaluator(inside)
        self.program, self.scale = program, 2.0**parameters.scale_bits
        primes = [prime.value() for prime in inside.key_context_data().parms().coeff_modulus()][:-1]
        self._dropped = primes[:0:-1]
        self._levels = _levels(inside)

    def answer(self, ciphertexts: list[Any]) -> list[Any]:
        """Ciphertexts of the answers, one for each output value."""
        level = 0
        for index, step in enumerate(self.program.maps):
            if index:
                ciphertexts = [self._square(ciphertext) for ciphertext in ciphertexts]
                level += 1
            ciphertexts = self._affine(step, ciphertexts, level)
            level += 1
        return ciphertexts

    def _affine(self, step: Affine, inputs: list[Any], level: int) -> list[Any]:
        """A sum of products for each output, relinearised and rescaled once; the inputs are squares or fresh."""
        scale = self._dropped[level] * self.scale / inputs[0].scale
        few = step.matrix.shape[0] < len(inputs)
        if not few:
            inputs = [self._relinearised(ciphertext) for ciphertext in inputs]
        outputs = []
        for weights, bias in zip(step.matrix.tolist(), step.bias.tolist(), strict=True):
            total = self._relinearised(self._weighted_sum(weights, inputs, level, scale))
            self._eval.rescale_to_next_inplace(total)
            total.scale = self.scale
            self._eval.add_plain_inplace(total, self._encoded(bias, level + 1, self.scale))
            outputs.append(total)
        return outputs

    def _weighted_sum(self, weights: list[float], inputs: list[Any], level: int, scale: float) -> Any:
        """The sum over non-zero weights; a weight too small for the encoding counts as zero."""
        total = None
        smallest = 1 / scale
        for weight, ciphertext in zip(weights, inputs, strict=True):
            if abs(weight) < smallest:
                continue
            product = self._seal.Ciphertext()
            self._eval.multiply_plain(ciphertext, self._encoded(weight, level, scale), product)
            if total is None:
                total = product
            else:
                self._eval.add_inplace(total, product)
        if total is None:  # an output that ignores its inputs: SEAL refuses a product with 0, so the least weight
            total = self._seal.Ciphertext()
            self._eval.multiply_plain(inputs[0], self._encoded(smallest, level, scale), total)
        return total

    def _square(self, ciphertext: Any) -> Any:
        """The square at the next level, of size 3: relinearised later, where there are fewer ciphertexts."""
        result = self._seal.Ciphertext()
        self._eval.square(ciphertext, result)
        self._eval.rescale_to_next_inplace(result)
        return result

    def _relinearised(self, ciphertext: Any) -> Any:
        if ciphertext.size() > 2:
            self._eval.relinearize_inplace(ciphertext, self._relin)
        return ciphertext

    def _encoded(self, value: float, level: int, scale: float) -> Any:
        plain = self._seal.Plaintext()
        self._encoder.encode(float(value), self._levels[level], scale, plain)
        return plain


def _levels(context: Any) -> list[Any]:
    """The identifier of every level of a modulus chain, highest first."""
    found, data = [], context.first_context_data()
    while data is not None:
        found.append(data.parms_id())
        data = data.next_context_data()
    return found


def _tenseal() -> tuple[Any, Any]:
    try:
        import tenseal
        import tenseal.sealapi
    except ImportError:
        raise SecureMLError("encrypted inference needs TenSEAL: pip install tenseal") from None
    return tenseal, tenseal.sealapi
