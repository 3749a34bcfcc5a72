"""A multilayer perceptron on a table of numbers and categories."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from secure_ml.errors import require
from secure_ml.scores import AUC, Accuracy, GroupAccuracy
from secure_ml.surfaces import Table
from secure_ml.task import Recipe, Task
from secure_ml.tasks._adult import CODES, NUMBERS, columns, kept, made_up, people, without
from secure_ml.threats import Features

FIXED = ("age", "race", "sex", "native_country")
"""What nobody can change about themselves; the rest is what they report."""


def adult_mlp(*, hidden: int = 128, drop: tuple[str, ...] = (), tiny: bool = False) -> Task:
    """Income above 50,000 dollars from a census record (UCI Adult, 32,561 and 16,281 people), two hidden layers.

    Numbers are encoded piecewise linearly (https://arxiv.org/abs/2203.05556), inside the module, so that whoever
    changes a record changes one number and not its code.

    Args:
        hidden: units in each hidden layer.
        drop: columns that the model never sees: ('sex', 'race').
        tiny: 240 made-up people, 16 hidden units, 5 epochs.
    """
    require(hidden >= 1, f"adult_mlp needs at least 1 hidden unit; given {hidden}")
    hidden, bins = (16, 4) if tiny else (hidden, 128)
    left, data = kept(drop), made_up if tiny else people
    groups = [(name, columns(name)[place]) for name, place in (("sex", 0), ("race", -1)) if name not in drop]
    settings = {"hidden": (hidden, 16 if tiny else 128), "drop": (drop, ()), "tiny": (tiny, False)}
    return Task(
        name="adult_mlp",
        build=partial(TablePerceptron, len(set(NUMBERS) - set(drop)), len(left), bins, hidden),
        data=partial(without, drop, data) if drop else data,
        score=AUC(),
        also=(Accuracy(), *(GroupAccuracy(left.index(place), name) for name, place in groups)),
        surfaces=(record(drop),),
        threat=Features(0.1, flips=1),
        recipe=Recipe(
            epochs=5 if tiny else 10,
            batch_size=16 if tiny else 128,
            optimizer="AdamW",
            learning_rate=1e-2 if tiny else 2e-3,
            weight_decay=0.05,
            schedule="cosine",
        ),
        unit="person",
        assumes=("the bounds of each number and the categories are public",),
        options=", ".join(f"{name}={value!r}" for name, (value, default) in settings.items() if value != default),
    )


def record(drop: tuple[str, ...] = ()) -> Table:
    """Which columns stay, which hold whole numbers (all but the logarithm of a gain), which are one-hot codes."""
    left = kept(drop)
    places = {name: tuple(map(left.index, columns(name))) for name in (*NUMBERS, *CODES) if name not in drop}
    whole = {name: 1 / (high - low) for name, (low, high) in NUMBERS.items() if name != "capital_gain"}
    return Table(
        frozen=tuple(place for name in FIXED if name in places for place in places[name]),
        steps=tuple((places[name][0], step) for name, step in whole.items() if name in places),
        groups=tuple(places[name] for name in CODES if name in places),
    )


class TablePerceptron(nn.Module):
    """Features ``(B, F)`` in [0, 1], the first ``numbers`` of them numbers, to one logit ``(B,)``.

    A number x becomes ``bins`` of them, clamp(bins x - i, 0, 1): how much of each bin lies below it.
    """

    def __init__(self, numbers: int, features: int, bins: int, hidden: int) -> None:
        super().__init__()
        self.numbers, self.bins = numbers, bins
        width = features + numbers * bins
        self.layers = nn.Sequential(
            nn.Linear(width, hidden),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(hidden, 1),
            nn.Flatten(0),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Logits, above 0 for an income above the line."""
        numbers = features[:, : self.numbers, None]
        lower = torch.arange(self.bins, device=features.device, dtype=features.dtype)
        code = (numbers * self.bins - lower).clamp(0, 1)
        return cast("Tensor", self.layers(torch.cat([features, code.flatten(1)], 1)))
