"""UCI Adult as numbers in [0, 1], by a published codebook and bounds that hold all of the official data."""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secure_ml.batch import Batch, Splits
from secure_ml.data import find, hold_out, split
from secure_ml.errors import UsageError, require, unknown

NUMBERS = {
    "age": (17, 90),
    "education_num": (1, 16),
    "hours_per_week": (1, 99),
    "capital_loss": (0, 4356),
    "capital_gain": (0, 99999),
}
"""Columns of whole numbers and their bounds; the last is scaled by its logarithm."""
KINDS = {
    "workclass": "Federal-gov Local-gov Never-worked Private Self-emp-inc Self-emp-not-inc State-gov Without-pay ?",
    "marital_status": "Divorced Married-AF-spouse Married-civ-spouse Married-spouse-absent Never-married Separated "
    "Widowed",
    "occupation": "Adm-clerical Armed-Forces Craft-repair Exec-managerial Farming-fishing Handlers-cleaners "
    "Machine-op-inspct Other-service Priv-house-serv Prof-specialty Protective-serv Sales Tech-support "
    "Transport-moving ?",
    "relationship": "Husband Not-in-family Other-relative Own-child Unmarried Wife",
    "race": "Amer-Indian-Eskimo Asian-Pac-Islander Black Other White",
    "sex": "Female Male",
    "native_country": "Cambodia Canada China Columbia Cuba Dominican-Republic Ecuador El-Salvador England France "
    "Germany Greece Guatemala Haiti Holand-Netherlands Honduras Hong Hungary India Iran Ireland Italy Jamaica Japan "
    "Laos Mexico Nicaragua Outlying-US(Guam-USVI-etc) Peru Philippines Poland Portugal Puerto-Rico Scotland South "
    "Taiwan Thailand Trinadad&Tobago United-States Vietnam Yugoslavia ?",
}
"""Columns of categories as the data's own description spells them; ``?`` is a category too."""
CODES = {name: kinds.split() for name, kinds in KINDS.items()}


def columns(name: str) -> tuple[int, ...]:
    """Where a column of the table lies among the features: one place, or one for each of its categories."""
    if name in NUMBERS:
        return (list(NUMBERS).index(name),)
    before = len(NUMBERS)
    for other, codes in CODES.items():
        if other == name:
            return tuple(range(before, before + len(codes)))
        before += len(codes)
    raise KeyError(name)


FEATURES = len(NUMBERS) + sum(map(len, CODES.values()))
"""Numbers that describe one person: 91."""


def kept(drop: tuple[str, ...]) -> tuple[int, ...]:
    """The features that are left without these columns of the table; `UsageError` for one that is not there."""
    for name in drop:
        if name not in (*NUMBERS, *CODES):
            raise unknown("column of Adult", name, (*NUMBERS, *CODES))
    left = tuple(place for name in (*NUMBERS, *CODES) if name not in drop for place in columns(name))
    require(len(left) > 0, "a person needs at least one column; all were dropped")
    return left


def without(drop: tuple[str, ...], draw: Callable[[torch.Generator], Splits], rng: torch.Generator) -> Splits:
    """The splits without some columns."""
    left, parts = list(kept(drop)), draw(rng)

    def fewer(part: Batch) -> Batch:
        assert isinstance(part.inputs, Tensor)
        return Batch(part.inputs[:, left], part.target)

    changed: dict[str, Any] = {name: fewer(part) for name, part in parts.parts().items()}
    return replace(parts, **changed)


def people(rng: torch.Generator) -> Splits:
    """Official training rows: 2,000 to validate, 4,000 for the adversary, 3,000 non-members, others to train.

    Rows that describe people alike count once, so that no non-member looks like a member; the official test set is
    as it is, and about one row in seven of it describes somebody just like a member.
    """
    train, test = (_read(f"tabular/adult_{part}.csv.gz") for part in ("train", "test"))
    return hold_out(distinct(train), test, rng, validation=2000, aux=4000, others=3000)


def distinct(rows: Batch) -> Batch:
    """The first of all rows that have the same features."""
    assert isinstance(rows.inputs, Tensor)
    _, first = np.unique(rows.inputs.numpy(), axis=0, return_index=True)
    return rows.take(torch.tensor(np.sort(first)))


def made_up(rng: torch.Generator) -> Splits:
    """240 rows of the same columns, drawn evenly; who is educated, works long or has gains earns more."""
    n = 240
    numbers = torch.rand(n, len(NUMBERS), generator=rng)
    for column, (low, high) in enumerate(list(NUMBERS.values())[:-1]):
        numbers[:, column] = (numbers[:, column] * (high - low)).round() / (high - low)
    kinds = [torch.randint(len(codes), (n,), generator=rng) for codes in CODES.values()]
    noise = 0.2 * torch.randn(n, generator=rng)
    target = (numbers[:, 1] + numbers[:, 2] + numbers[:, 4] + noise > 1.5).long()
    return split(Batch(_joined(numbers, kinds), target), rng, validation=30, test=60, aux=40)


def _read(name: str) -> Batch:
    """Features ``(n, 91)`` in [0, 1] and targets ``(n,)``, 1 for an income above 50,000 dollars."""
    path = find(name, "UCI Adult as gzipped CSV with a header, its column income holding <=50K or >50K,")
    try:
        with gzip.open(path, "rt", newline="") as file:
            rows = list(csv.DictReader(file))
        numbers = torch.stack([_scaled([int(row[name]) for row in rows], name) for name in NUMBERS], 1)
        target = torch.tensor([["<=50K", ">50K"].index(row["income"]) for row in rows])
        kinds = [torch.tensor([codes.index(row[name]) for row in rows]) for name, codes in CODES.items()]
    except (OSError, EOFError, zlib.error, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is not whole ({error}): put UCI Adult as gzipped CSV with a header there") from None
    return Batch(_joined(numbers, kinds), target)


def _scaled(values: list[int], name: str) -> Tensor:
    """Values ``(n,)`` cut at their bounds, to [0, 1]."""
    low, high = NUMBERS[name]
    numbers = torch.tensor(values, dtype=torch.float32).clamp(low, high) - low
    return numbers.log1p() / math.log1p(high) if name == "capital_gain" else numbers / (high - low)


def _joined(numbers: Tensor, kinds: list[Tensor]) -> Tensor:
    """Numbers ``(n, 5)`` and category numbers ``(n,)``, as features ``(n, 91)`` with one-hot categories."""
    codes = zip(kinds, CODES.values(), strict=True)
    hot = [torch.nn.functional.one_hot(kind, len(names)).float() for kind, names in codes]
    return torch.cat([numbers, *hot], 1)
