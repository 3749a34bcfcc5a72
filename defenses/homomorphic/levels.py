"""What the engines on SEAL share: levels, exact scales, squares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from defenses.homomorphic.parameters import Parameters
from defenses.homomorphic.wire import Files, sealapi
from secure_ml.errors import SecureMLError, UsageError

LEVEL = "TC128"
"""What SEAL checks a parameter set for."""
EXACT = 1e-9
"""How far a scale may be from the one that was planned: rounding of doubles, and nothing else."""


class Levels:
    """A context on the server's side. Scales are tracked exactly.

    Each plaintext is encoded at the scale that makes the next rescaling land on the planned one, whatever prime it
    drops, so that no drift of the primes is left in the values.
    """

    def __init__(self, parameters: Parameters, relin: bytes) -> None:
        seal = sealapi()
        self.parameters, self.seal, self.files = parameters, seal, Files()
        self.context = make_context(parameters)
        self.evaluator, self.encoder = seal.Evaluator(self.context), seal.CKKSEncoder(self.context)
        self.relin = self.files.into(seal.RelinKeys(), relin, self.context)
        self.primes = [prime.value() for prime in self.context.key_context_data().parms().coeff_modulus()][:-1]
        self.ids = _ids(self.context)

    def read(self, blob: bytes) -> Any:
        """A fresh ciphertext; raises `UsageError` for bytes that are none, or of another level or scale."""
        ciphertext = self.files.into(self.seal.Ciphertext(), blob, self.context)
        if ciphertext.parms_id() != self.ids[0] or ciphertext.size() != 2 or ciphertext.scale != self.parameters.scale:
            raise UsageError("a ciphertext of another level, size or scale was given; encrypt it under this contract")
        return ciphertext

    def prime(self, level: int) -> int:
        """What rescaling drops at a level, counted from the top."""
        if level >= self.parameters.depth:
            raise SecureMLError(f"no level is left after {level} of {self.parameters.depth}: the program is too deep")
        return int(self.primes[len(self.primes) - 1 - level])

    def factor(self, level: int, scale: float) -> float:
        """The scale of a plaintext whose product with a ciphertext of this scale rescales to the planned one."""
        return self.prime(level) * self.parameters.scale / scale

    def entering(self, index: int) -> float:
        """The scale of what a map is applied to: of fresh ciphertexts, or of squares."""
        return self.parameters.scale if index == 0 else self.parameters.scale**2 / self.prime(2 * index - 1)

    def lowered(self, ciphertext: Any, level: int) -> Any:
        """The same numbers at the same scale, at a later level: a copy with fewer primes."""
        result = self.seal.Ciphertext()
        self.evaluator.mod_switch_to(ciphertext, self.ids[level], result)
        return result

    def encoded(self, value: float | Sequence[float], level: int, scale: float) -> Any:
        """A plaintext."""
        plain = self.seal.Plaintext()
        self.encoder.encode(value, self.ids[level], scale, plain)
        return plain

    def rescale(self, ciphertext: Any) -> Any:
        """In place, to the planned scale; raises `SecureMLError` where that is not what comes out."""
        self.evaluator.rescale_to_next_inplace(ciphertext)
        self.check(ciphertext)
        ciphertext.scale = self.parameters.scale
        return ciphertext

    def check(self, ciphertext: Any) -> None:
        """Raise `SecureMLError` where a scale is not the planned one: values would be off by their ratio."""
        ratio = ciphertext.scale / self.parameters.scale
        if abs(ratio - 1) > EXACT:
            raise SecureMLError(f"a ciphertext's scale is {ratio:.12g} times the planned one: its values are off")

    def exhaust(self, blob: bytes) -> None:
        """Multiply an answer once more than there are levels for, which must raise an error."""
        ciphertext = self.files.into(self.seal.Ciphertext(), blob, self.context)
        self.square(ciphertext)

    def square(self, ciphertext: Any) -> Any:
        """The square, at the next level and a scale that the next plaintext makes up for."""
        result = self.seal.Ciphertext()
        self.evaluator.square(ciphertext, result)
        self.evaluator.relinearize_inplace(result, self.relin)
        self.evaluator.rescale_to_next_inplace(result)
        return result


def make_context(parameters: Parameters) -> Any:
    """SEAL's context at 128 bits for these parameters; raises `UsageError` where SEAL grants less."""
    seal = sealapi()
    chosen = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    chosen.set_poly_modulus_degree(parameters.degree)
    chosen.set_coeff_modulus(seal.CoeffModulus.Create(parameters.degree, parameters.bits))
    context = seal.SEALContext(chosen, True, getattr(seal.SEC_LEVEL_TYPE, LEVEL))
    if not context.parameters_set():
        raise UsageError(f"SEAL does not grant 128 bits to {parameters}: use a larger ring or less depth")
    return context


def check_marks(about: dict[str, Any], contract: str, keys: str) -> None:
    """Raise `UsageError` unless a message belongs to the contract and the keys of these marks."""
    if about.get("contract") != contract:
        raise UsageError(
            f"a message for the contract {about.get('contract')} was given; this one is {contract}: fetch the contract "
            "again, the model or its parameters have changed"
        )
    if about.get("keys") != keys:
        raise UsageError(
            f"a message under the keys {about.get('keys')} was given; these are {keys}: send the public keys that "
            "belong to it"
        )


def _ids(context: Any) -> list[Any]:
    """The identifier of every level of a modulus chain, highest first."""
    found, data = [], context.first_context_data()
    while data is not None:
        found.append(data.parms_id())
        data = data.next_context_data()
    return found
