"""Data frames with words and gaps in them: as rows of numbers for attacks, and back for who was fitted on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secure_ml.errors import UsageError, require

MOST = 50
"""Distinct values of a column of words that may be replaced by one another; a column of more stays as it is."""
GAP = object()
"""What stands for a missing word among the values of a column."""


@dataclass(frozen=True, eq=False)
class Column:
    """One column of a frame, and where it stands in a row of numbers."""

    name: Any
    dtype: Any
    place: int
    values: tuple[Any, ...] = ()
    """The words that occur; none where it holds numbers."""
    gaps: bool = False
    """Whether numbers are missing: a 0 or 1 behind the number says where."""

    @property
    def hot(self) -> bool:
        """Whether it is a one-hot code, rather than a single number."""
        return 1 < len(self.values) <= MOST

    @property
    def width(self) -> int:
        """Numbers that it takes in a row."""
        return len(self.values) if self.hot else 1 + self.gaps

    @property
    def places(self) -> tuple[int, ...]:
        """The columns of a row that it takes."""
        return tuple(range(self.place, self.place + self.width))


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a frame as rows ``(B, d)``: numbers, one-hot codes of words, the number of a word of very many.

    A number that is missing is the median of its column, and a 1 behind it says so. Only words and gaps that were seen
    when it was made are known.
    """

    columns: tuple[Column, ...]
    filled: tuple[float, ...]
    """What stands in the place of a missing number, for each column."""

    @classmethod
    def of(cls, frames: Sequence[Any]) -> Columns | None:
        """The columns of some frames of one form; None where all hold whole numbers and reals, as arrays do.

        Raises `UsageError` where frames have other columns, or hold what is neither a number nor a word.
        """
        import pandas as pd  # which is there, or nobody could give a frame

        names = [list(frame.columns) for frame in frames]
        require(
            all(other == names[0] for other in names),
            f"the frames have other columns: {sorted(set(map(str, names[0])) ^ set(map(str, names[-1])))[:5]}",
        )
        whole = pd.concat(frames, ignore_index=True)
        made: list[Column] = []
        for name in names[0]:
            place = made[-1].place + made[-1].width if made else 0
            made.append(_column(whole[name], name, place))
        if not any(column.values or column.gaps for column in made):
            return None
        return cls(tuple(made), tuple(_median(whole[c.name]) if c.gaps else 0.0 for c in made))

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The one-hot codes."""
        return tuple(column.places for column in self.columns if column.hot)

    @property
    def frozen(self) -> tuple[int, ...]:
        """What stays: where numbers are missing, and words of very many, or of one."""
        gaps = [column.place + 1 for column in self.columns if column.gaps]
        words = [column.place for column in self.columns if column.values and not column.hot]
        return tuple(sorted([*gaps, *words]))

    @property
    def said(self) -> str:
        """What was made of the columns that are no plain numbers."""
        many = [column.name for column in self.columns if column.values and not column.hot]
        gaps = [column.name for column in self.columns if column.gaps]
        parts = [f"one-hot codes of words for {_names(c.name for c in self.columns if c.hot)}"] if self.groups else []
        parts += [f"one word, or more than {MOST}, in {_names(many)}, which stays"] if many else []
        parts += [f"gaps in {_names(gaps)}, which stay"] if gaps else []
        return "; ".join(parts)

    def encode(self, frame: Any) -> Tensor:
        """Rows ``(B, d)`` of a frame."""
        parts: list[np.ndarray] = []
        for column, filled in zip(self.columns, self.filled, strict=True):
            given = frame[column.name]
            if column.values:
                known = {word: place for place, word in enumerate(column.values)}
                codes = np.array([known[_word(word)] for word in given], dtype=np.int64)
                parts.append(np.eye(len(known), dtype=np.float32)[codes] if column.hot else codes[:, None])
                continue
            numbers = given.to_numpy(dtype=np.float64, na_value=np.nan)
            parts.append(np.where(np.isnan(numbers), filled, numbers)[:, None])
            if column.gaps:
                parts.append(np.isnan(numbers)[:, None])
        return torch.as_tensor(np.concatenate([part.astype(np.float32) for part in parts], 1))

    def decode(self, rows: Tensor) -> Any:
        """The frame that rows ``(B, d)`` stand for."""
        import pandas as pd

        table, read = rows.numpy(), {}
        for column in self.columns:
            if column.values:
                mine = table[:, list(column.places)]
                codes = mine.argmax(1) if column.hot else mine[:, 0].round().astype(np.int64)
                words = [None if word is GAP else word for word in column.values]
                read[column.name] = pd.Series([words[code] for code in codes], dtype=column.dtype)
                continue
            numbers = table[:, column.place].astype(np.float64)
            if column.gaps:
                numbers = np.where(table[:, column.place + 1] > 0.5, np.nan, numbers)
            read[column.name] = pd.Series(numbers)
        return pd.DataFrame(read)


def _column(given: Any, name: Any, place: int) -> Column:
    """What a column holds, of all frames together."""
    from pandas.api.types import is_numeric_dtype, is_object_dtype, is_string_dtype

    dtype = given.dtype
    if is_numeric_dtype(dtype):
        return Column(name, dtype, place, gaps=bool(given.isna().any()))
    if not (is_object_dtype(dtype) or is_string_dtype(dtype) or str(dtype) == "category"):
        raise UsageError(f"the column {name} holds {dtype}: give it as numbers, or as words")
    words = {_word(word): None for word in given}
    ordered = sorted(words, key=lambda word: (word is GAP, str(type(word)), word if word is not GAP else ""))
    return Column(name, dtype, place, values=tuple(ordered))


def _word(word: Any) -> Any:
    """A word, or what stands for one that is missing."""
    import pandas as pd

    return GAP if pd.isna(word) else word


def _median(given: Any) -> float:
    value = float(given.median())
    return 0.0 if np.isnan(value) else value


def _names(names: Any) -> str:
    every = [str(name) for name in names]
    return ", ".join(every[:5]) + (f" and {len(every) - 5} more" if len(every) > 5 else "")
