"""TenSEAL's own products, as its tutorials use them, made correct: what the other engines are measured against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from defenses.homomorphic.circuit import Affine
from defenses.homomorphic.contract import Contract
from defenses.homomorphic.program import Program
from defenses.homomorphic.wire import tenseal, unframe
from secure_ml.errors import UsageError


class ReferenceSecrets:
    """TenSEAL's own context with its full set of Galois keys."""

    def __init__(self, contract: Contract) -> None:
        self._ts, self.contract, parameters = tenseal(), contract, contract.parameters
        kind = self._ts.SCHEME_TYPE.CKKS
        self._context = self._ts.context(kind, parameters.degree, coeff_mod_bit_sizes=parameters.bits, n_threads=1)
        self._context.global_scale = parameters.scale
        self._context.generate_galois_keys()

    def public(self) -> list[bytes]:
        """Parameters, public key and all keys to relinearise and rotate; not the secret key."""
        return [bytes(self._context.serialize(save_secret_key=False))]

    def encrypt(self, numbers: Sequence[float]) -> bytes:
        """One vector; under a convolution, one of its windows."""
        if self.contract.windows is None:
            return bytes(self._ts.ckks_vector(self._context, list(numbers)).serialize())
        kernel, stride, side = self.contract.windows
        image = [list(numbers[row * side : (row + 1) * side]) for row in range(side)]
        vector, _ = self._ts.im2col_encoding(self._context, image, kernel, kernel, stride)
        return bytes(vector.serialize())

    def decrypt(self, blob: bytes) -> Tensor:
        """The vector's numbers, in float64."""
        return torch.tensor(self._ts.ckks_vector_from(self._context, blob).decrypt(), dtype=torch.float64)


class Reference:
    """`CKKSVector.mm` and `conv2d_im2col`, one query at a time, on TenSEAL's full set of Galois keys.

    Where it differs from the tutorials: biases are encrypted, and so stand in every slot, as the next `mm` expects (a
    plain list fills the first slots only); the scales that TenSEAL overwrites after each rescaling are made up for
    in the weights; answers have headroom. Raises `UsageError` for a context with a secret key.
    """

    def __init__(self, program: Program, blobs: Sequence[bytes]) -> None:
        if len(blobs) != 1:
            raise UsageError("keys for another engine were given: make them from this program's contract")
        self.program, self._ts = program, tenseal()
        self.context = self._ts.context_from(blobs[0], n_threads=1)
        if self.context.has_secret_key():
            raise UsageError("the server was handed a secret key: send it public bytes only")
        inside = self.context.seal_context().data
        primes = [prime.value() for prime in inside.key_context_data().parms().coeff_modulus()][:-1]
        scale = program.contract.parameters.scale
        self._drift = [prime / scale for prime in primes[:0:-1]]
        """What TenSEAL's fixed scale leaves out at each level."""

    @property
    def inside(self) -> Any:
        """SEAL's context."""
        return self.context.seal_context().data

    def exhaust(self, answer: bytes) -> None:
        """Go on with an answer beyond the last level, which must raise an error."""
        self._read(unframe("answer", answer)[1][0]).square_()

    def run(self, blobs: Sequence[bytes]) -> list[bytes]:
        """One vector for each query, one for each answer."""
        return [bytes(self.compute(self._read(blob)).serialize()) for blob in blobs]

    def _read(self, blob: bytes) -> Any:
        try:
            return self._ts.ckks_vector_from(self.context, blob)
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"{len(blob):,} bytes are no vector of this contract: {error}") from None

    def compute(self, vector: Any) -> Any:
        """The answer to one query."""
        drift, lost = iter(self._drift), 1.0
        entering: list[tuple[Any, float]] = []
        """What each map is applied to, and by what its weights make up for its own level and those before."""
        for index, step in enumerate(self.program.circuit.maps):
            if index:
                vector.square_()
                lost *= next(drift)
            if index == 0 and self.program.contract.windows is not None:
                vector = self._convolved(step, vector, next(drift))
                lost = next(drift)
            else:
                entering.append((vector, lost * next(drift)))
                vector, lost = self._mapped(step, *entering[-1]), 1.0
                for skip in self.program.circuit.into(index):  # at its own level: TenSEAL brings it down to this one
                    other, made_up = entering[skip.source]
                    vector = vector + other.mm((skip.matrix.T * made_up).tolist())
        return vector

    def _mapped(self, step: Affine, vector: Any, drift: float) -> Any:
        """``mm`` with weights that make up for what was lost, and the bias in every slot."""
        vector = vector.mm((step.matrix.T * drift).tolist())
        return vector + self._ts.ckks_vector(self.context, step.bias.tolist())

    def _convolved(self, step: Affine, vector: Any, drift: float) -> Any:
        """``conv2d_im2col`` for each channel, whose packing takes a level more; its drift is left to the next map."""
        windows = self.program.circuit.windows
        assert windows is not None
        weights, places = windows.shape
        channels = len(step.bias) // places
        found = []
        for channel in range(channels):
            kernel = step.matrix[channel * places, windows[:, 0]] * drift
            side = round(weights**0.5)
            one = vector.conv2d_im2col(kernel.reshape(side, side).tolist(), places)
            found.append(one + float(step.bias[channel * places]))
        return self._ts.CKKSVector.pack_vectors(found)
