"""Weights encrypted at rest: AES-256-GCM around a safetensors file, with what is said about them authenticated."""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from secure_ml.errors import UsageError, require

VARIABLE = "SECURE_ML_KEY"
MAGIC = b"secure-ml AES-256-GCM 1\n"
NAME, NONCE, TAG = 8, 12, 16
LARGEST = 2**31 - 1 - TAG
HOW = "64 hexadecimal digits, as `openssl rand -hex 32` prints"


@dataclass(frozen=True)
class Key:
    """256 bits that are drawn at random, and never shown."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        require(len(self.secret) == 32, f"a key has 32 bytes; given {len(self.secret)}")

    @classmethod
    def draw(cls) -> Key:
        """A new key, from the operating system."""
        return cls(os.urandom(32))

    @classmethod
    def read(cls, text: str, where: str) -> Key:
        """The key that is written as 64 hexadecimal digits; `UsageError` names where, and not what, was read."""
        try:
            return cls(bytes.fromhex(text.strip()))
        except ValueError:
            raise UsageError(f"{where} holds no key: expected {HOW}") from None

    @property
    def name(self) -> bytes:
        """A fingerprint by which a wrong key is told from a damaged file; it says nothing about the key."""
        return hashlib.sha256(b"secure-ml key fingerprint\n" + self.secret).digest()[:NAME]

    def write(self, path: Path | str) -> None:
        """Keep the key in a new file that only its owner can read; `UsageError` if something is there."""
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise UsageError(f"cannot write a key to {path}: {error.strerror}") from None
        with os.fdopen(handle, "w") as file:
            file.write(self.secret.hex() + "\n")


def key_from(file: Path | str | None = None) -> Key | None:
    """The key of a file, or else of the environment variable ``SECURE_ML_KEY``; None where there is neither.

    Warns of a file that others can read; raises `UsageError` for one that is missing or holds no key, and where the
    library that encrypts is missing: before anything is trained.
    """
    if file is None:
        text = os.environ.get(VARIABLE)
        return _usable(Key.read(text, f"the environment variable {VARIABLE}")) if text else None
    path = Path(file)
    try:
        text, mode = path.read_text(errors="replace"), path.stat().st_mode
    except OSError as error:
        raise UsageError(f"cannot read the key file {path}: {error.strerror}") from None
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        warnings.warn(f"others can read the key file {path}: chmod 600 {path}", stacklevel=2)
    return _usable(Key.read(text, f"the key file {path}"))


def seal(content: bytes, about: bytes, key: Key) -> bytes:
    """The content encrypted under a fresh nonce; header and ``about`` are authenticated, and stay readable.

    The nonce is 96 random bits: a key should seal no more than 2**32 files. `UsageError` from 2 GiB on.
    """
    require(len(content) <= LARGEST, f"weights of {len(content)} bytes are more than AES-GCM encrypts at once, 2 GiB")
    header = MAGIC + key.name + os.urandom(NONCE)
    return header + bytes(_cipher(key).encrypt(header[-NONCE:], content, _bound(header, about)))


def unseal(sealed: bytes, about: bytes, key: Key, where: str) -> bytes:
    """The content, if key, header, content and ``about`` are what they were; `UsageError`, and nothing, otherwise."""
    size = len(MAGIC) + NAME + NONCE
    require(
        len(sealed) >= size + TAG and sealed.startswith(MAGIC),
        f"{where} is no encrypted model, or was cut short: bring it back from a copy, or train it again",
    )
    header, name = sealed[:size], sealed[len(MAGIC) : len(MAGIC) + NAME]
    require(
        name == key.name,
        f"{where} was encrypted with the key {name.hex()}, and the key given is {key.name.hex()}: give that one",
    )
    from cryptography.exceptions import InvalidTag

    try:
        return bytes(_cipher(key).decrypt(header[-NONCE:], sealed[size:], _bound(header, about)))
    except InvalidTag:
        raise UsageError(
            f"{where} or what is said about it was changed since it was encrypted: nothing was loaded"
        ) from None


def _bound(header: bytes, about: bytes) -> bytes:
    """What is authenticated beside the content; the header has one length, so that no two pairs read alike."""
    return header + about


def _usable(key: Key) -> Key:
    _cipher(key)
    return key


def _cipher(key: Key) -> Any:
    if find_spec("cryptography") is None:
        raise UsageError("encrypted weights need cryptography: pip install cryptography (the extra 'encryption')")
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key.secret)
