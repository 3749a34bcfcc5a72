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
EXACT = 2**24
"""Whole numbers up to here are exact in single precision."""
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
    gap: Any = None
    """What the frame writes where a word is missing."""
    gaps: bool = False
    """Whether numbers are missing: a 0 or 1 behind the number says where."""
    filled: float = 0.0
    """What stands in the place of a missing number."""
    seen: np.ndarray | None = None
    """The numbers that occur, ascending, where all are whole: encoders know no others."""

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

    A number that is missing is the median of its column, and a 1 behind it says so; truth values, and whole numbers
    that single precision does not hold, count as words. Only words and gaps that were seen when it was made are known.
    Of a column of whole numbers, the nearest that was seen is what comes back: it may be a code, and an encoder refuses
    what it never saw.
    """

    columns: tuple[Column, ...]

    @classmethod
    def of(cls, frames: Sequence[Any]) -> Columns | None:
        """The columns of some frames; None where all hold whole numbers and reals, as arrays do.

        Raises `UsageError` where frames have other columns, or hold what is neither a number nor a word.
        """
        import pandas as pd  # which is there, or nobody could give a frame

        names = list(frames[0].columns)
        for frame in frames:
            require(frame.columns.is_unique, f"a frame has two columns of one name: {_names(_twice(frame.columns))}")
            others = set(names) ^ set(frame.columns)
            require(not others, f"the frames have other columns: {_names(sorted(map(str, others)))}")
        whole = pd.concat([frame[names] for frame in frames], ignore_index=True)
        made: list[Column] = []
        for name in names:
            place = made[-1].place + made[-1].width if made else 0
            made.append(_column(whole[name], frames[0][name].dtype, place))
        plain = all(isinstance(c.dtype, np.dtype) and c.dtype.kind in "iuf" for c in made)
        if plain and not any(column.values or column.gaps for column in made):
            return None
        return cls(tuple(made))

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
        hot = [column.name for column in self.columns if column.hot]
        many = [column.name for column in self.columns if column.values and not column.hot]
        gaps = [column.name for column in self.columns if column.gaps]
        blank = any(GAP in column.values for column in self.columns if column.hot)
        parts = [f"one-hot codes of words{' and of their absence' if blank else ''} for {_names(hot)}"] if hot else []
        parts += [f"one word, or more than {MOST}, in {_names(many)}, which stays"] if many else []
        parts += [f"gaps in {_names(gaps)}, which stay"] if gaps else []
        whole = [column.name for column in self.columns if column.seen is not None]
        parts += [f"{_names(whole)} whole, and read as the nearest number that occurs"] if whole else []
        return "; ".join(parts) or "all of them numbers"

    def encode(self, frame: Any) -> Tensor:
        """Rows ``(B, d)`` of a frame."""
        parts: list[np.ndarray] = []
        for column in self.columns:
            given = frame[column.name]
            if column.values:
                known = {word: place for place, word in enumerate(column.values)}
                codes = np.array([known[word] for word in _words(given)], dtype=np.int64)
                parts.append(np.eye(len(known), dtype=np.float32)[codes] if column.hot else codes[:, None])
                continue
            numbers = _numbers(given)
            parts.append(np.where(np.isnan(numbers), column.filled, numbers)[:, None])
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
                words = [column.gap if word is GAP else word for word in column.values]
                said = [words[code] for code in codes.clip(0, len(words) - 1)]
                read[column.name] = pd.Series(said, dtype=column.dtype)
                continue
            numbers = table[:, column.place].astype(np.float64)
            numbers = numbers if column.seen is None else _nearest(numbers, column.seen)
            if column.gaps:
                numbers = np.where(table[:, column.place + 1] > 0.5, np.nan, numbers)
            read[column.name] = pd.Series(numbers).astype(column.dtype)
        return pd.DataFrame(read)


def _column(given: Any, first: Any, place: int) -> Column:
    """What a column holds, of all frames together, and of the ``first`` of them its dtype."""
    from pandas.api.types import is_bool_dtype, is_complex_dtype, is_numeric_dtype, is_object_dtype, is_string_dtype

    name, dtype = given.name, given.dtype
    counts = is_numeric_dtype(dtype) and not is_bool_dtype(dtype) and not is_complex_dtype(dtype)
    if counts:
        numbers = _numbers(given)
        missing = bool(np.isnan(numbers).any())
        known = numbers[~np.isnan(numbers)]
        if dtype.kind not in "iu" or not len(known) or np.abs(known).max() <= EXACT:
            median = float(np.median(known)) if len(known) else 0.0
            seen = np.unique(known) if len(known) and (known == known.round()).all() else None
            return Column(name, dtype, place, gaps=missing, filled=median, seen=seen)
    elif not (is_object_dtype(dtype) or is_string_dtype(dtype) or is_bool_dtype(dtype) or str(dtype) == "category"):
        raise UsageError(f"the column {name} holds {dtype}: give it as numbers, or as words")
    try:
        words = dict.fromkeys(_words(given))
    except TypeError:
        raise UsageError(f"the column {name} holds lists or the like: give it as numbers, or as words") from None
    ordered = sorted(words, key=lambda word: (word is GAP, type(word).__name__, str(word)))
    if str(first) == "category":  # categories of its own that other frames lack make plain objects of them
        dtype = first if set(words) - {GAP} <= set(first.categories) else dtype
    blank = given[given.isna()]
    return Column(name, dtype, place, values=tuple(ordered), gap=blank.iloc[0] if len(blank) else None)


def _words(given: Any) -> list[Any]:
    """The words of a column, and what stands for one that is missing."""
    return [GAP if gone else word for word, gone in zip(given.tolist(), given.isna().tolist(), strict=True)]


def _numbers(given: Any) -> np.ndarray:
    """The numbers of a column in double precision, NaN where one is missing."""
    numbers: np.ndarray = given.to_numpy(dtype=np.float64, na_value=np.nan)
    return numbers


def _nearest(numbers: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """For each number the nearest of those that were seen, ascending."""
    above = np.searchsorted(seen, numbers).clip(0, len(seen) - 1)
    below = (above - 1).clip(0)
    nearest: np.ndarray = np.where(numbers - seen[below] < seen[above] - numbers, seen[below], seen[above])
    return nearest


def _twice(names: Any) -> list[str]:
    return sorted({str(name) for name in names[names.duplicated()]})


def _names(names: Sequence[Any]) -> str:
    every = [str(name) for name in names]
    return ", ".join(every[:5]) + (f" and {len(every) - 5} more" if len(every) > 5 else "")
