"""Pictures as PNG (https://www.w3.org/TR/png-3/), without a library for pictures."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray


def png(image: NDArray[np.uint8]) -> bytes:
    """An image ``(C, H, W)`` of 1 or 3 channels in 8 bits as a PNG file."""
    channels, height, width = image.shape
    lines = image.transpose(1, 2, 0).reshape(height, width * channels)
    raw = b"".join(b"\x00" + line.tobytes() for line in lines)
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in parts)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
