"""SEAL's stream of a ciphertext, read and written without SEAL."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_ml.errors import SecureMLError, UsageError

HEADER = struct.Struct("<HBBBBHQ")
"""Magic, size of the header, version of SEAL (two numbers), compression, nothing, size of the whole."""
MAGIC = 0xA15E
NONE, ZSTD = 0, 2
SHAPE = struct.Struct("<QQQ")
"""Polynomials, degree and primes, behind 32 bytes of the level's identifier and one that says NTT."""


@dataclass(frozen=True, eq=False)
class Stream:
    """The residues ``(polynomials, primes, degree)`` of a ciphertext, and what stands before them."""

    residues: NDArray[np.int64]
    version: tuple[int, int]
    head: bytes

    def with_residues(self, residues: NDArray[np.int64]) -> bytes:
        """The stream, not compressed, of a ciphertext of the same level and shape with other residues."""
        body = self.head + np.ascontiguousarray(residues, dtype="<i8").tobytes()
        return HEADER.pack(MAGIC, HEADER.size, *self.version, NONE, 0, HEADER.size + len(body)) + body


def read(blob: bytes, level: Any, shape: tuple[int, int, int]) -> Stream:
    """The stream of a ciphertext of a level and shape; raises `UsageError` for anything else."""
    if len(blob) < HEADER.size:
        raise UsageError(f"{len(blob)} bytes are no ciphertext")
    magic, size, major, minor, compression, _, total = HEADER.unpack_from(blob)
    if magic != MAGIC or size != HEADER.size or total != len(blob) or compression not in (NONE, ZSTD):
        raise UsageError(f"{len(blob):,} bytes that are no ciphertext of SEAL were given")
    most = 8 * shape[0] * shape[1] * shape[2] + 256
    body = _decompressed(blob, most) if compression == ZSTD else blob[HEADER.size :]
    given = SHAPE.unpack_from(body, 33) if len(body) >= 57 else ()
    numbers = shape[0] * shape[1] * shape[2]
    identity = struct.pack("<4Q", *level)
    if given != (shape[0], shape[2], shape[1]) or body[:32] != identity or len(body) < 57 + 8 * numbers:
        raise UsageError("a ciphertext of another level or shape was given; encrypt it under this contract")
    start = len(body) - 8 * numbers
    residues = np.frombuffer(body, dtype="<i8", offset=start).reshape(shape)
    return Stream(residues, (major, minor), bytes(body[:start]))


def _decompressed(blob: bytes, most: int) -> bytes | memoryview:
    room = np.empty(most, np.uint8)
    body = np.frombuffer(blob, np.uint8, offset=HEADER.size)
    size = _zstd().ZSTD_decompress(room.ctypes.data, most, body.ctypes.data, len(body))
    if size > most:
        raise UsageError("a ciphertext is damaged, or larger than this contract's")
    return room.data[:size]


@cache
def _zstd() -> ctypes.CDLL:
    """Zstandard as SEAL brings it along."""
    import _sealapi_cpp  # type: ignore[import-not-found]

    library = ctypes.CDLL(_sealapi_cpp.__file__)
    try:
        function = library.ZSTD_decompress
    except AttributeError:
        raise SecureMLError("this build of TenSEAL hides Zstandard: use the latency engine") from None
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t]
    return library
