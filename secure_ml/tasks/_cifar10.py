"""CIFAR-10 from the data directory, and a few coloured digits in its place."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from secure_ml.batch import Batch, Splits
from secure_ml.data import directory, find, hold_out
from secure_ml.errors import UsageError
from secure_ml.tasks.digits_cnn import tiny_digits

MEAN, SPREAD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
"""Of the three colours over all training images, as everybody uses them."""
PUBLIC = "mean and spread of the colours of CIFAR-10 are public"


def cifar10(rng: torch.Generator) -> Splits:
    """Images ``(B, 3, 32, 32)`` in [0, 1]: 40,000, 2,000, the official test set, 5,000 and 3,000 non-members."""
    parts = hold_out(*_images(directory()), rng, validation=2000, aux=5000, others=3000)
    scaled_parts: dict[str, Any] = {name: scaled(part) for name, part in parts.parts().items()}
    return Splits(**scaled_parts)


def scaled(part: Batch) -> Batch:
    """Bytes as numbers in [0, 1]."""
    return part.map(lambda tensor: tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor)


def coloured_digits(side: int, rng: torch.Generator) -> Splits:
    """The tiny digits, enlarged to ``(B, 3, side, side)``, each in a colour of its own."""

    def paint(part: Batch) -> Batch:
        assert isinstance(part.inputs, Tensor)
        large = torch.nn.functional.interpolate(part.inputs, (side, side))
        return Batch(large * (0.5 + torch.rand(len(large), 3, 1, 1, generator=rng) / 2), part.target)

    return Splits(*(paint(part) for part in tiny_digits(rng).parts().values()))


@lru_cache(maxsize=1)
def _images(root: Path) -> tuple[Batch, Batch]:
    """All training and test images as bytes ``(B, 3, 32, 32)``, kept for the next draw."""
    what = "CIFAR-10 as cifar10.npz with the arrays x_train, y_train, x_test, y_test (bytes, NHWC)"
    small = root / "cifar10_jpegbytes.npz"
    whole = (root / "cifar10.npz").exists() or not small.exists()
    files = [find("cifar10.npz", what)] * 2 if whole else [small, find("cifar10_exact.npz", what)]
    try:
        with np.load(files[0], allow_pickle=False) as arrays:
            x = arrays["x_train"] if "x_train" in arrays else _decode(arrays["train_bytes"], arrays["train_offsets"])
            train = _batch(x, arrays["y_train"])
        with np.load(files[1], allow_pickle=False) as arrays:
            return train, _batch(arrays["x_test"], arrays["y_test"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        raise UsageError(f"CIFAR-10 in {root} is not whole: put {what} there") from None


def _decode(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """JPEG files, one after the other, as images ``(n, 32, 32, 3)``."""
    from PIL import Image

    files = data.tobytes()
    pairs = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    return np.stack([np.asarray(Image.open(io.BytesIO(files[a:b])).convert("RGB")) for a, b in pairs])


def _batch(images: np.ndarray, labels: np.ndarray) -> Batch:
    return Batch(torch.tensor(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels, dtype=torch.long))
