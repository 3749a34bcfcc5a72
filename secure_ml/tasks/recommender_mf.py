"""Factors of films, and of a user as the mean of what was rated."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from secure_ml.errors import require
from secure_ml.outputs import Ranking
from secure_ml.scores import NDCG, HitRate
from secure_ml.surfaces import Tokens
from secure_ml.task import Recipe, Task
from secure_ml.tasks._films import ASSUMED, LENGTH, leave_last_out, made_up, movielens, recommend, unseen
from secure_ml.threats import Edits


def recommender_mf(*, width: int = 32, tiny: bool = False) -> Task:
    """Next film of MovieLens (671 users, 9,125 films), factors of users times factors of films.

    As in FISM (Kabbur et al. 2013, https://doi.org/10.1145/2487575.2487589) the factors of a user are the sum of
    factors of the films in the history over the root of their number, here weighted by how long ago each was. An
    example is one moment of one user: the last 50 films, and the next one. It is the unit of privacy; one rating
    lies in up to 51 of them.

    Args:
        width: number of factors.
        tiny: 28 made-up users of 30 films, 4 factors, 3 epochs.
    """
    require(width >= 1, f"recommender_mf needs a width of at least 1; given {width}")
    width = 4 if tiny else width
    films, number, length, held = (made_up, 30, 8, 4) if tiny else (movielens, 9125, LENGTH, 70)
    settings = {"width": (width, 32)}
    options = ", ".join(f"{name}={value!r}" for name, (value, default) in settings.items() if value != default)
    return Task(
        name="recommender_mf",
        build=partial(Factors, number, width, length),
        data=partial(leave_last_out, films, length, held),
        output=Ranking(),
        score=HitRate(),
        also=(NDCG(),),
        surfaces=(Tokens(number + 1, path=("history",)),),
        threat=Edits(1),
        recipe=Recipe(
            epochs=3 if tiny else 4,
            batch_size=32 if tiny else 128,
            optimizer="AdamW",
            learning_rate=3e-2 if tiny else 1e-2,
            weight_decay=0.01,
            schedule="linear",
        ),
        unit="moment",
        assumes=ASSUMED,
        sample=partial(recommend, films, length),
        options="tiny=True" if tiny else options,
    )


class Factors(nn.Module):
    """A ``history`` and what was ``seen``, both ``(B, L)`` with 0 for none, to scores of all films ``(B, V + 1)``."""

    def __init__(self, films: int, width: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(films + 1, width)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.recency = nn.Embedding(length, width)
        nn.init.zeros_(self.recency.weight)
        self.dropout = nn.Dropout(0.2)
        self.output = nn.Linear(width, films + 1)
        nn.init.normal_(self.output.weight, std=0.1)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Scores; each factor has its own weights for how long ago a film was rated."""
        history = inputs["history"]
        there = (history != 0)[..., None]
        place = torch.arange(history.shape[1], device=history.device).expand_as(history)
        weight = self.recency(place).masked_fill(~there, -1e4).softmax(1) * there
        user = (weight * self.embedding(history)).sum(1) * there.sum(1).sqrt()
        return unseen(cast("Tensor", self.output(self.dropout(user))), inputs["seen"])
