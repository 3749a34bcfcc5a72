"""Data of any common form, read into batches: datasets, pairs of arrays, dictionaries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from secure_ml.batch import Batch, Tree, join, leaves, tree_map
from secure_ml.errors import UsageError, require
from secure_ml.families.scrutiny import Finding
from secure_ml.outside.columns import Columns
from secure_ml.randomness import generator

TARGETS = ("labels", "label", "target", "targets", "y")
"""Keys under which a dictionary holds its target."""
LARGEST = 2**30
"""Bytes of one part that are read into memory; of a larger one, a random part is."""
EXAMPLES = "examples"


def read(data: object, what: str, found: list[Finding], seed: int = 0, most: int = LARGEST) -> tuple[Tree, Any]:
    """Inputs and targets of ``data``; what was done to them besides is added to ``found``.

    A target is a tensor, or an array where labels are no numbers. Raises `UsageError` for what cannot be read.
    """
    if isinstance(data, Batch):
        return data.inputs, data.target
    if isinstance(data, DataLoader):
        data = data.dataset
    if isinstance(data, TensorDataset):
        return _split(data.tensors, what)
    if isinstance(data, IterableDataset) or not (isinstance(data, (Dataset, Sequence)) or _is_mapped(data)):
        raise UsageError(
            f"{what} is a {type(data).__name__}; expected a map-style dataset of (x, y) or dictionaries, or a pair of "
            "tensors or arrays"
        )
    if isinstance(data, (tuple, list)) and len(data) == 2 and _is_array(data[1]):
        return _whole(data[0], what), _targets(data[1])
    return _collected(cast("Sequence[Any]", data), what, found, seed, most)


def _is_mapped(data: object) -> bool:
    return isinstance(data, Sized) and callable(getattr(type(data), "__getitem__", None)) and not _is_array(data)


def _is_array(data: object) -> bool:
    return isinstance(data, (Tensor, np.ndarray)) or type(data).__module__.partition(".")[0] == "pandas"


def _whole(inputs: Any, what: str) -> Tree:
    """All inputs at once: arrays, tensors, frames, and dictionaries or tuples of them."""
    if isinstance(inputs, Mapping):
        return {str(name): _whole(part, what) for name, part in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(_whole(part, what) for part in inputs)
    if isinstance(inputs, Tensor):
        return inputs
    array = np.asarray(inputs)
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{what} holds {_odd(inputs, array)}, which are no numbers: encode them before the model")
    return torch.tensor(np.ascontiguousarray(array))


def as_rows(sources: dict[str, Any], names: Any) -> tuple[dict[str, Any], Columns | None]:
    """Data frames with words or gaps as rows of numbers, and what the columns stand for; all else as it came.

    Where a model knows its columns by ``names``, frames are put in that order; `UsageError` where one is missing.
    """
    pairs = [data for data in sources.values() if isinstance(data, (tuple, list)) and len(data) == 2]
    if len(pairs) < len(sources) or not all(_is_frame(frame) for frame, _ in pairs):
        return sources, None
    if names is not None:
        for name, (frame, _) in sources.items():
            missing = [str(one) for one in names if one not in frame.columns]
            require(not missing, f"{name} lacks columns that the model was fitted on: {', '.join(missing[:5])}")
        sources = {name: (frame[list(names)], target) for name, (frame, target) in sources.items()}
    columns = Columns.of([frame for frame, _ in sources.values()])
    if columns is None:
        return sources, None
    return {name: (columns.encode(frame), target) for name, (frame, target) in sources.items()}, columns


def _is_frame(data: Any) -> bool:
    return type(data).__module__.partition(".")[0] == "pandas" and np.ndim(data) == 2


def _odd(inputs: Any, array: np.ndarray) -> str:
    """What there is besides numbers: the columns of a frame by name."""
    kinds = dict(inputs.dtypes) if _is_frame(inputs) else {}
    odd = [f"{name} ({kind})" for name, kind in kinds.items() if getattr(kind, "kind", "O") not in "biuf"]
    return f"the columns {', '.join(odd[:5])}" if odd else str(array.dtype)


def _targets(target: Any) -> Any:
    return target if isinstance(target, Tensor) else np.asarray(target)


def _split(parts: Sequence[Any], what: str) -> tuple[Tree, Any]:
    """The last is the target, the others are inputs."""
    require(len(parts) >= 2, f"{what} holds {len(parts)} values an example; expected inputs and a target")
    *inputs, target = parts
    return (inputs[0] if len(inputs) == 1 else tuple(inputs)), target


def _collected(data: Sequence[Any], what: str, found: list[Finding], seed: int, most: int) -> tuple[Tree, Any]:
    n = len(data)
    require(n > 0, f"{what} is empty")
    first = _example(data[0], what)
    size = sum(leaf.numel() * leaf.element_size() for leaf in leaves(_stacked([first[0]], what)))
    chosen = range(n)
    if n * size > most:
        kept = max(most // max(size, 1), 1)
        chosen = torch.randperm(n, generator=generator(seed, "read", what))[:kept].tolist()  # type: ignore[assignment]
        found.append(Finding(EXAMPLES, "WARN", f"{kept} of {n} examples of {what} are read, drawn at random"))
    if _text(_stacked([first[0]], what)) != _text(_stacked([_example(data[0], what)[0]], what)):
        found.append(
            Finding(
                EXAMPLES,
                "WARN",
                f"{what} answers differently each time it is asked: examples are taken as they were read once",
                "leave random augmentation out, or members are not recognised",
            )
        )
    read_in = [_example(data[int(i)], what) for i in chosen]
    inputs = _stacked([x for x, _ in read_in], what)
    labels = [y for _, y in read_in]
    if isinstance(labels[0], str):
        return inputs, np.array(labels)
    return inputs, _stacked(labels, what)


def _example(example: Any, what: str) -> tuple[Any, Any]:
    """Inputs and target of one example."""
    if isinstance(example, Mapping):
        names = [name for name in TARGETS if name in example]
        require(
            bool(names), f"{what} holds dictionaries of {', '.join(map(str, example))}; expected a key called labels"
        )
        numbers = {k: v for k, v in example.items() if k not in TARGETS and not isinstance(v, str)}
        return (numbers if len(numbers) > 1 else next(iter(numbers.values()))), example[names[0]]
    require(
        isinstance(example, (tuple, list)) and len(example) >= 2,
        f"{what} holds examples of type {type(example).__name__}; expected (x, y) or a dictionary",
    )
    return _split(example, what)


def _stacked(values: list[Any], what: str) -> Tree:
    """Examples put together; `UsageError` where they do not fit one another."""
    try:
        return _tree(default_collate([_plain(value) for value in values]))
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        kind = type(values[0]).__name__
        raise UsageError(
            f"examples of {what} cannot be put together ({kind}: {str(error).splitlines()[0][:120]}): they must be "
            "tensors or numbers of one shape; pad texts to one length, turn images into tensors"
        ) from None


def _plain(value: Any) -> Any:
    """Lists of numbers are arrays, as tokenisers give them."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return torch.as_tensor(np.asarray(value))
    return tuple(_plain(part) for part in value) if isinstance(value, tuple) else value


def _tree(value: Any) -> Tree:
    if isinstance(value, Mapping):
        return {str(name): _tree(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_tree(part) for part in value)
    return cast("Tensor", value)


def _text(tree: Tree) -> list[bytes]:
    return [leaf.numpy(force=True).tobytes() for leaf in leaves(tree)]


def as_floats(tree: Tree, every: bool = False) -> Tree:
    """Real numbers in single precision; whole numbers stay, but for bytes (images), or all where ``every`` is."""

    def convert(leaf: Tensor) -> Tensor:
        return leaf.float() if every or leaf.is_floating_point() or leaf.dtype == torch.uint8 else leaf

    return tree_map(lambda leaf: convert(leaf).detach(), tree)


def as_classes(parts: Sequence[Any], encode: Callable[[np.ndarray], Tensor] | None) -> tuple[list[Tensor], str]:
    """The targets of several parts as tensors of one meaning, and what was done to them, empty if nothing was.

    ``encode`` knows the places of a model's own labels. Labels that are no numbers are numbered in their order.
    """
    if encode is not None:
        return [encode(np.asarray(part)) for part in parts], ""
    if all(isinstance(part, Tensor) or part.dtype.kind in "biuf" for part in parts):
        return [_column(torch.as_tensor(part)) for part in parts], ""
    kinds = np.unique(np.concatenate([np.asarray(part).astype(str) for part in parts]))
    coded = [torch.as_tensor(np.searchsorted(kinds, np.asarray(part).astype(str))) for part in parts]
    named = ", ".join(f"{i} = {kind}" for i, kind in enumerate(kinds[:5])) + (", ..." if len(kinds) > 5 else "")
    return coded, f"labels are numbered in the order of the alphabet: {named}"


def _column(target: Tensor) -> Tensor:
    """Targets ``(n,)`` where they came as ``(n, 1)`` or as one-hot rows; whole numbers as such, others in float32."""
    if target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if target.ndim == 2 and len(target) and _is_one_hot(target):
        target = target.argmax(1)
    return target.float() if target.is_floating_point() else target.long()


def _is_one_hot(target: Tensor) -> bool:
    return bool(((target == 0) | (target == 1)).all() and (target.sum(1) == 1).all())


def joined(*batches: Batch) -> Batch:
    """The examples of all batches."""
    return Batch(join([batch.inputs for batch in batches]), join([batch.target for batch in batches]))
