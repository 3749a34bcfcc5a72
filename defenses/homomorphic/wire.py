"""What travels between client and server: SEAL's objects as bytes, in frames that say what they hold."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secure_ml.errors import SecureMLError, UsageError

MAGIC = b"SMLHE1\n"
LENGTH = struct.Struct("<Q")
MOST_BLOBS = 1 << 20
MEMORY = Path("/dev/shm")  # noqa: S108
"""Where there is such a folder, files in it never reach a disk."""


def sealapi() -> Any:
    """TenSEAL's bindings of SEAL; raises `SecureMLError` where TenSEAL is not installed."""
    try:
        import tenseal.sealapi
    except ImportError:
        raise SecureMLError("encrypted inference needs TenSEAL: pip install tenseal") from None
    return tenseal.sealapi


def tenseal() -> Any:
    """TenSEAL itself; raises `SecureMLError` where it is not installed."""
    sealapi()
    import tenseal

    return tenseal


class Files:
    """Objects of SEAL to bytes and back; the bindings read and write files only, so one is used again and again.

    One at a time: two threads that shared the file would swap their ciphertexts in silence.
    """

    def __init__(self) -> None:
        folder = MEMORY if MEMORY.is_dir() else None
        kept = tempfile.mkdtemp(prefix="secure-ml-", dir=folder)
        weakref.finalize(self, shutil.rmtree, kept, ignore_errors=True)
        self.path, self._lock = Path(kept) / "object", threading.Lock()

    def to_bytes(self, item: Any) -> bytes:
        """The object as SEAL saves it."""
        with self._lock:
            item.save(str(self.path))
            return self.path.read_bytes()

    def into(self, item: Any, blob: bytes, *context: Any) -> Any:
        """The object, filled from bytes and checked by SEAL against its context; `UsageError` if it does not fit."""
        with self._lock:
            self.path.write_bytes(blob)
            try:
                item.load(*context, str(self.path))
            except (RuntimeError, ValueError, IndexError) as error:
                kind = type(item).__name__
                raise UsageError(f"{len(blob):,} bytes are no {kind} of these parameters: {error}") from None
            return item


def frame(kind: str, about: dict[str, Any], blobs: Sequence[bytes]) -> bytes:
    """One message: what it is, what is said about it, and its parts."""
    head = json.dumps({"kind": kind, **about}).encode()
    parts = [MAGIC, LENGTH.pack(len(head)), head, LENGTH.pack(len(blobs))]
    for blob in blobs:
        parts += [LENGTH.pack(len(blob)), blob]
    return b"".join(parts)


def unframe(kind: str, message: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """What a message of this kind says and its parts; raises `UsageError` for anything else, and for a cut one."""
    if message[: len(MAGIC)] != MAGIC:
        raise UsageError(f"{len(message):,} bytes that are no message of this protocol were given; expected {kind}")
    reader = _Reader(message, len(MAGIC), kind)
    try:
        about = json.loads(reader.part())
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise UsageError(f"the head of a message cannot be read; expected {kind}") from None
    if not isinstance(about, dict) or about.get("kind") != kind:
        given = about.get("kind") if isinstance(about, dict) else about
        raise UsageError(f"a message of the kind {given!r} was given; expected {kind}")
    count = reader.number()
    if count > MOST_BLOBS:
        raise UsageError(f"a message of {count:,} parts is refused; {kind} has at most {MOST_BLOBS:,}")
    blobs = [reader.part() for _ in range(count)]
    if reader.at != len(message):
        raise UsageError(f"{len(message) - reader.at:,} bytes too many follow a message; expected {kind} alone")
    return about, blobs


class _Reader:
    def __init__(self, message: bytes, at: int, kind: str) -> None:
        self.message, self.at, self.kind = message, at, kind

    def number(self) -> int:
        """The next length."""
        if self.at + LENGTH.size > len(self.message):
            raise self._cut()
        (value,) = LENGTH.unpack_from(self.message, self.at)
        self.at += LENGTH.size
        return int(value)

    def part(self) -> bytes:
        """The next so many bytes."""
        length = self.number()
        if self.at + length > len(self.message):
            raise self._cut()
        self.at += length
        return self.message[self.at - length : self.at]

    def _cut(self) -> UsageError:
        return UsageError(f"a message of {len(self.message):,} bytes is cut short; send {self.kind} whole")


def fingerprint(*parts: bytes) -> str:
    """Sixteen hex digits that are different for different bytes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(LENGTH.pack(len(part)) + part)
    return digest.hexdigest()[:16]
