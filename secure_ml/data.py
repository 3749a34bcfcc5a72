"""Real data: torchvision's sets and plain files, all under one directory, and how they are split."""

from __future__ import annotations

import csv
import gzip
import os
import warnings
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from secure_ml.batch import Batch, Splits
from secure_ml.errors import UsageError, require

VARIABLE = "SECURE_ML_DATA"


def directory() -> Path:
    """Where data sets lie: ``SECURE_ML_DATA``, or ``~/.cache/secure_ml``."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "secure_ml")


def find(name: str, what: str) -> Path:
    """A file of the data directory; `UsageError` that says what to put where if it is missing."""
    path = directory() / name
    if not path.exists():
        raise UsageError(
            f"{path} is missing: put {what} there, or name another directory with --data-dir or {VARIABLE}"
        )
    return path


def require_extra(module: str, extra: str, task: str) -> None:
    """Raise `UsageError` with what to install where a module that a task needs is missing."""
    if find_spec(module) is None:
        raise UsageError(f"{task} needs {module}, which is not installed: pip install {module} (the extra {extra!r})")


def images(name: str) -> tuple[Batch, Batch]:
    """Training and test images ``(B, 1, 28, 28)`` in [0, 1] of torchvision's ``MNIST`` or ``FashionMNIST``.

    What lies in the data directory is used; what does not is downloaded, where there is a network.
    """
    import torchvision

    kind = getattr(torchvision.datasets, name)
    root = directory()
    here = (root / name / "raw").exists()
    try:
        if not here:
            root.mkdir(parents=True, exist_ok=True)
        parts = [kind(root, train=train, download=not here) for train in (True, False)]
    except (RuntimeError, OSError, ValueError) as error:
        raise UsageError(
            f"{name} is neither whole in {root / name / 'raw'} nor to be downloaded ({_first_line(error)}): "
            f"put its four *-ubyte files there, or name another directory with --data-dir or {VARIABLE}"
        ) from None
    train, test = (Batch(part.data[:, None].float() / 255, part.targets.clone()) for part in parts)
    return train, test


def sentences(name: str) -> tuple[list[str], Tensor]:
    """Texts and labels ``(n,)`` of a tab-separated file with the columns ``label`` and ``text``."""
    path = find(name, "a tab-separated file with the columns label and text")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        return [row["text"] for row in rows], torch.tensor([int(row["label"]) for row in rows])
    except (KeyError, TypeError, ValueError):
        raise UsageError(f"{path} is not whole: every line needs a whole number as label, and a text") from None


def table(path: Path | str, target: str = "y") -> Batch:
    """A user's own data: inputs ``(n, d)`` and targets ``(n,)`` of a ``.npz`` or ``.csv`` (or ``.csv.gz``) file.

    A ``.npz`` holds the arrays ``x``, of any shape ``(n, ...)``, and ``target``; a CSV has a header, numbers only,
    and a column named ``target``. Whole numbers of at most 100 kinds as target are classes, numbered in their order.
    """
    path = Path(path)
    require(path.exists(), f"there is no data file {path}")
    try:
        inputs, labels = _read_npz(path, target) if path.suffix == ".npz" else _read_csv(path, target)
    except (OSError, ValueError, TypeError, EOFError, BadZipFile, zlib.error, StopIteration) as error:
        raise UsageError(f"{path} cannot be read as a data set: {_first_line(error)}") from None
    require(len(inputs) == len(labels), f"{path} has {len(inputs)} inputs but {len(labels)} targets")
    require(inputs.ndim > 1 and inputs[0].size > 0, f"{path} has no inputs beside the target")
    require(bool(np.isfinite(inputs).all()), f"{path} has inputs that are missing or not finite")
    require(bool(np.isfinite(labels).all()), f"{path} has targets that are missing or not finite")
    kinds, classes = np.unique(labels, return_inverse=True)
    whole = len(kinds) <= 100 and bool((kinds == np.round(kinds)).all())
    targets = torch.tensor(classes) if whole else torch.tensor(labels, dtype=torch.float32)
    return Batch(torch.tensor(inputs, dtype=torch.float32), targets)


def scale(batch: Batch) -> Batch:
    """Inputs mapped to [0, 1] by the smallest and largest value of each feature.

    The bounds are read off the data: where privacy counts, scale by bounds that are known beforehand instead.
    """
    inputs = batch.inputs
    assert isinstance(inputs, Tensor)
    low, high = inputs.amin(0), inputs.amax(0)
    return Batch((inputs - low) / (high - low).clamp(min=1e-12), batch.target)


def split(
    data: Batch, rng: torch.Generator, *, validation: int, test: int, aux: int, owner: Tensor | None = None
) -> Splits:
    """A random split into parts of these sizes; what is left is for training. ``owner`` ``(n,)`` says whose each is."""
    held = validation + test + aux
    require(held < len(data), f"{len(data)} examples are too few to hold out {held} and train on the rest")
    order = torch.randperm(len(data), generator=rng)
    sizes = [len(data) - held, validation, test, aux]
    parts = order.split(sizes)
    return Splits(*(data.take(part) for part in parts), owner=None if owner is None else owner[parts[0]])


def hold_out(
    train: Batch,
    test: Batch,
    rng: torch.Generator,
    *,
    validation: int,
    aux: int,
    others: int,
    owner: Tensor | None = None,
) -> Splits:
    """A random split of a training set whose test set is given; ``others`` of it are kept as non-members."""
    parts = split(train, rng, validation=validation, test=others, aux=aux, owner=owner)
    return Splits(parts.train, parts.validation, test, parts.aux, others=parts.test, owner=parts.owner)


def hashed_tokens(texts: list[str], vocabulary: int, length: int) -> Tensor:
    """Word numbers ``(n, length)``: CRC-32 of each word into ``[1, vocabulary)``, cut or padded with 0.

    The vocabulary is fixed beforehand and learns nothing from the data, so that it needs no privacy budget.
    """
    tokens = torch.zeros(len(texts), length, dtype=torch.long)
    for row, text in zip(tokens, texts, strict=True):
        words = text.lower().split()[:length]
        row[: len(words)] = torch.tensor([zlib.crc32(w.encode()) % (vocabulary - 1) + 1 for w in words])
    return tokens


def _read_npz(path: Path, target: str) -> tuple[np.ndarray, np.ndarray]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        for name in ("x", target):
            require(name in arrays, f"{path} has no array called {name!r}; it holds {', '.join(arrays)}")
        return arrays["x"].astype(np.float64), arrays[target].astype(np.float64)


def _read_csv(path: Path, target: str) -> tuple[np.ndarray, np.ndarray]:
    open_text: Callable[..., object] = gzip.open if path.suffix == ".gz" else open
    with open_text(path, "rt", newline="") as file:  # type: ignore[attr-defined]
        reader = csv.reader(file)
        header = next(reader)
        require(target in header, f"{path} has no column called {target!r}; it has {', '.join(header)}")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            numbers = np.array(list(reader), dtype=np.float64)
    column = header.index(target)
    return np.delete(numbers, column, axis=1), numbers[:, column]


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
