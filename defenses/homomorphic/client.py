"""The client: makes the keys, keeps the secret one, encrypts queries and decrypts answers."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from defenses.homomorphic.contract import Contract
from defenses.homomorphic.levels import EXACT, _ids, check_marks, make_context
from defenses.homomorphic.wire import Files, fingerprint, frame, sealapi, unframe
from secure_ml.errors import UsageError


class Secrets(Protocol):
    """Keys, and what they do."""

    def public(self) -> list[bytes]:
        """The keys that the server needs."""

    def encrypt(self, numbers: Sequence[float]) -> bytes:
        """The numbers of one ciphertext."""

    def decrypt(self, blob: bytes) -> Tensor:
        """The numbers in its slots."""


class Client:
    """Holds the secret key; everything else about it is public, and travels as bytes.

    Every message carries the contract's mark and the keys'; an answer with others is refused, since decrypting it
    would give numbers that look as good as any.
    """

    def __init__(self, contract: Contract) -> None:
        from defenses.homomorphic.reference import ReferenceSecrets

        self.contract = contract
        self._secrets: Secrets = (ReferenceSecrets if contract.engine == "reference" else SealSecrets)(contract)
        self._public = self._secrets.public()
        self.keys = fingerprint(*self._public)
        """Fingerprint of the public keys, which stand for the secret one."""

    def public_bytes(self) -> bytes:
        """What the server needs: the keys to relinearise and to rotate, and no secret key."""
        return frame("keys", self._marks(), self._public)

    def encrypt(self, rows: Tensor) -> bytes:
        """A query of inputs ``(B, in)``: for each, or for each batch of them, its ciphertexts.

        Raises `UsageError` for inputs that do not fit the contract, and for more than one batch.
        """
        self.contract.check_inputs(rows)
        rows = rows.double().cpu()
        many = self.contract.engine == "throughput"
        if many and len(rows) > self.contract.batch:
            raise UsageError(f"{len(rows):,} queries do not fit one batch of {self.contract.batch:,}: send several")
        columns = rows.T if many else self._laid(rows)
        blobs = [self._secrets.encrypt(column) for column in columns.tolist()] if len(rows) else []
        return frame("query", {**self._marks(), "queries": len(rows)}, blobs)

    def decrypt(self, answers: bytes) -> Tensor:
        """Answers ``(B, *shape)`` in float64; raises `UsageError` for those to other keys or another model."""
        about, blobs = unframe("answer", answers)
        check_marks(about, self.contract.id, self.keys)
        n, outputs = int(about["queries"]), prod(self.contract.shape)
        many = self.contract.engine == "throughput"
        if len(blobs) != (outputs if many and n else n):
            raise UsageError(f"an answer of {len(blobs)} ciphertexts to {n} queries was given; send it whole")
        if not blobs:
            return torch.zeros(0, *self.contract.shape, dtype=torch.float64)
        values = torch.stack([self._secrets.decrypt(blob) for blob in blobs])
        rows = values.T[:n] if many else values[:, list(self.contract.answers or range(outputs))]
        self._check_range(rows)
        return rows.reshape(n, *self.contract.shape)

    def _check_range(self, values: Tensor) -> None:
        """Raise `UsageError` for answers that no input within the contract's limits has."""
        room, largest = self.contract.parameters.headroom, float(values.abs().max())
        if not largest <= room:
            raise UsageError(
                f"an answer of {largest:.3g} was decrypted, where they wrap beyond {room:.3g}: it is under another "
                "key, has overflowed, or was made up"
            )

    def _marks(self) -> dict[str, Any]:
        return {"contract": self.contract.id, "keys": self.keys}

    def _laid(self, rows: Tensor) -> Tensor:
        """Inputs as they stand in the slots: ``(B, slots)``, or unchanged where the library lays them itself."""
        if not self.contract.layout:
            return rows
        layout = np.array(self.contract.layout)
        values = np.where(layout >= 0, rows.numpy()[:, np.maximum(layout, 0)], 0.0)
        return torch.from_numpy(values).repeat(1, self.contract.parameters.slots // len(layout))


class SealSecrets:
    """Keys of SEAL. Queries are encrypted with the secret key, with less noise than a public one adds.

    Half of a rotation key, and of a single query, is random: its seed is sent instead, and the server draws it again.
    """

    def __init__(self, contract: Contract) -> None:
        seal = sealapi()
        self.contract, self._seal, self._files = contract, seal, Files()
        self._context = make_context(contract.parameters)
        self._keys = seal.KeyGenerator(self._context)
        secret = self._keys.secret_key()
        self._encoder = seal.CKKSEncoder(self._context)
        self._encryptor = seal.Encryptor(self._context, secret)
        self._decryptor = seal.Decryptor(self._context, secret)

    def public(self) -> list[bytes]:
        """Keys to relinearise, and to rotate by the contract's steps if it has any."""
        steps, degree = self.contract.steps, self.contract.parameters.degree
        keys = [self._keys.create_relin_keys()]
        if steps:
            keys.append(self._keys.create_galois_keys([pow(3, step, 2 * degree) for step in steps]))
        return [self._files.to_bytes(key) for key in keys]

    def encrypt(self, numbers: Sequence[float]) -> bytes:
        """One ciphertext; whole where the server reads residues from it, as a seed and a half elsewhere."""
        plain = self._seal.Plaintext()
        self._encoder.encode(numbers, self.contract.parameters.scale, plain)
        if self.contract.engine != "throughput":
            return self._files.to_bytes(self._encryptor.encrypt_symmetric(plain))
        ciphertext = self._seal.Ciphertext()
        self._encryptor.encrypt_symmetric(plain, ciphertext)
        return self._files.to_bytes(ciphertext)

    def decrypt(self, blob: bytes, exact: bool = True) -> Tensor:
        """All slots, in float64, of an answer at the contract's own scale unless it is not to be ``exact``.

        Raises `UsageError` for a ciphertext that no answer of this contract can be.
        """
        ciphertext, plain = self._seal.Ciphertext(), self._seal.Plaintext()
        self._files.into(ciphertext, blob, self._context)
        self._check(ciphertext, exact)
        self._decryptor.decrypt(ciphertext, plain)
        return torch.tensor(self._encoder.decode_double(plain), dtype=torch.float64)

    def _check(self, ciphertext: Any, exact: bool) -> None:
        """An answer has used up its levels, is two polynomials of which one hides the other, and has its scale."""
        last, planned = _ids(self._context)[-1], self.contract.parameters.scale
        if ciphertext.parms_id() != last or ciphertext.size() != 2:
            raise UsageError("a ciphertext of another level or size than an answer's was given: it is none, or made up")
        if exact and abs(ciphertext.scale / planned - 1) > EXACT:
            raise UsageError(
                f"an answer at the scale {ciphertext.scale:.6g} was given; this contract's are at {planned:.6g}"
            )
        if ciphertext.is_transparent():
            raise UsageError("a ciphertext that hides nothing was given: it is no answer, or made up")
