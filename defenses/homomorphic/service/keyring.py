"""A client's keys on its own disk: the secret one in a file that only its owner can read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from defenses.homomorphic.client import Client, SealSecrets
from defenses.homomorphic.contract import Contract
from defenses.homomorphic.levels import make_context
from defenses.homomorphic.wire import Files, fingerprint, frame, sealapi, unframe
from secure_ml.errors import UsageError
from secure_ml.victim import writable

SECRET, PUBLIC = "secret.key", "public.keys"
OWNER_ONLY = 0o600


class KeptSecrets(SealSecrets):
    """Keys of SEAL that are made from a secret one."""

    def __init__(self, contract: Contract, secret: bytes) -> None:
        seal = sealapi()
        self.contract, self._seal, self._files = contract, seal, Files()
        self._context = make_context(contract.parameters)
        key = self._files.into(seal.SecretKey(), secret, self._context)
        self._files.path.unlink()
        self._keys = seal.KeyGenerator(self._context, key)
        self._encoder = seal.CKKSEncoder(self._context)
        self._encryptor = seal.Encryptor(self._context, key)
        self._decryptor = seal.Decryptor(self._context, key)


class KeptClient(Client):
    """A client whose keys were made before."""

    def __init__(self, contract: Contract, secret: bytes, public: list[bytes]) -> None:
        self.contract, self._secrets, self._public = contract, KeptSecrets(contract, secret), public
        self.keys = fingerprint(*public)


def open_keyring(folder: Path, contract: Contract) -> Client:
    """The client of the keys in a folder; they are made where there are none.

    Raises `UsageError` where they were made for another contract, where others can read the secret one, or where
    something in a file was changed.
    """
    if not (folder / SECRET).exists():
        return _made(folder, contract)
    mode = (folder / SECRET).stat().st_mode & 0o777
    if mode & ~OWNER_ONLY:
        raise UsageError(f"{folder / SECRET} can be read by others (mode {mode:o}): chmod 600 it, or make new keys")
    try:
        about, (secret,) = unframe("secret", (folder / SECRET).read_bytes())
        _, public = unframe("keys", (folder / PUBLIC).read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"the keys in {folder} cannot be read ({error}): delete them, and new ones are made") from None
    if about.get("contract") != contract.id:
        raise UsageError(
            f"the keys in {folder} were made for the contract {about.get('contract')}; the server's is {contract.id}: "
            "its model or parameters have changed, name another folder for new keys"
        )
    client = KeptClient(contract, secret, public)
    if about.get("keys") != client.keys:
        raise UsageError(f"the public and the secret keys in {folder} do not belong together: delete them")
    return client


def _made(folder: Path, contract: Contract) -> Client:
    if contract.engine == "reference":
        raise UsageError("the reference engine is for comparison, and its keys are not kept: serve another engine")
    client = Client(contract)
    secrets = client._secrets
    assert isinstance(secrets, SealSecrets)
    writable(folder)
    folder.chmod(0o700)
    _private(
        folder / SECRET, frame("secret", {"contract": contract.id, "keys": client.keys}, [_bytes_of(secrets._keys)])
    )
    (folder / PUBLIC).write_bytes(client.public_bytes())
    return client


def _bytes_of(keys: Any) -> bytes:
    files = Files()
    secret = files.to_bytes(keys.secret_key())
    files.path.unlink()
    return secret


def _private(path: Path, content: bytes) -> None:
    """Write a file that nobody else could read at any time."""
    draft = path.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY), "wb") as file:
        file.write(content)
    draft.replace(path)
