"""Two towers that know films by their text, so that films nobody has rated yet can be recommended too."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secure_ml.data import require_extra
from secure_ml.errors import require
from secure_ml.outputs import Ranking
from secure_ml.scores import NDCG, HitRate
from secure_ml.surfaces import Tokens
from secure_ml.task import Recipe, Task
from secure_ml.tasks._films import (
    ASSUMED,
    LENGTH,
    Films,
    leave_last_out,
    made_up,
    movielens,
    recommend,
    text_features,
    unseen,
)
from secure_ml.threats import Edits

if TYPE_CHECKING:
    from transformers import BertModel

RECENT = 20
"""Films of a history that are read."""


def recommender_bert(*, width: int = 64, layers: int = 1, tiny: bool = False) -> Task:
    """Next film of MovieLens (671 users, 9,125 films) from what titles, years and genres say of the last 20 films.

    Two towers (Yi et al. 2019, https://doi.org/10.1145/3298689.3346996): that of the user is a small BERT
    (https://arxiv.org/abs/1810.04805) over the texts of the films in their order, that of the film is one layer
    over its own text. Beside a popularity for each film, nothing is learned of a film as such. An example is one
    moment of one user: the last 50 films, and the next one. It is the unit of privacy; one rating lies in up to 51.

    Args:
        width: length of the vectors of users and films; even.
        layers: of BERT.
        tiny: 28 made-up users of 30 films, vectors of length 8, 2 epochs.
    """
    require_extra("transformers", "models", "recommender_bert")
    require(width >= 2 and width % 2 == 0, f"recommender_bert needs an even width of at least 2; given {width}")
    require(layers >= 1, f"recommender_bert needs at least 1 layer; given {layers}")
    width, layers = (8, 1) if tiny else (width, layers)
    films, number, length, held = (made_up, 30, 8, 4) if tiny else (movielens, 9125, LENGTH, 70)
    settings = {"width": (width, 64), "layers": (layers, 1)}
    options = ", ".join(f"{name}={value!r}" for name, (value, default) in settings.items() if value != default)
    return Task(
        name="recommender_bert",
        build=partial(TwoTowers, films, width, layers),
        data=partial(leave_last_out, films, length, held),
        output=Ranking(),
        score=HitRate(),
        also=(NDCG(),),
        surfaces=(Tokens(number + 1, embedding="texts", path=("history",)),),
        threat=Edits(1),
        recipe=Recipe(
            epochs=2 if tiny else 6,
            batch_size=32 if tiny else 128,
            optimizer="AdamW",
            learning_rate=1e-2 if tiny else 3e-3,
            weight_decay=0.01,
            schedule="linear",
            patience=None if tiny else 3,
        ),
        unit="moment",
        assumes=ASSUMED,
        sample=partial(recommend, films, length),
        options="tiny=True" if tiny else options,
    )


class TwoTowers(nn.Module):
    """A ``history`` and what was ``seen``, both ``(B, L)`` with 0 for none, to scores of all films ``(B, V + 1)``."""

    def __init__(self, films: Callable[[], Films], width: int, layers: int) -> None:
        super().__init__()
        self.texts = Texts(text_features(films()))
        number, features = self.texts.weight.shape
        self.read = nn.Linear(features, width)
        self.bert = small_bert(width, layers)
        self.film = nn.Linear(width, features)
        self.popularity = nn.Linear(1, number, bias=False)
        nn.init.zeros_(self.popularity.weight)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Scores; the user is what BERT makes of the last film, having looked at those before it.

        The film's layer is applied to the user, and its text to that: the same product, taken in the order in
        which every weight meets each example apart.
        """
        history = inputs["history"]
        if not len(history):  # BERT cannot take an empty batch
            none = history.new_zeros(1, history.shape[1])
            return cast("Tensor", self({"history": none, "seen": none})[:0])
        recent, texts = history[:, -RECENT:], self.texts(history)  # all are looked up: a surface changes any of them
        place = torch.arange(RECENT - recent.shape[1], RECENT, device=history.device).expand_as(recent)
        user = self.bert(
            inputs_embeds=self.read(texts[:, -RECENT:]),
            attention_mask=(recent != 0).long(),
            position_ids=place,
            token_type_ids=torch.zeros_like(recent),
        ).last_hidden_state[:, -1]
        scores = self.film(user) @ self.texts.weight.T + self.popularity(user.new_ones(len(user), 1))
        return unseen(scores, inputs["seen"])


class Texts(nn.Module):
    """A table of fixed vectors, numbers ``(B, L)`` to ``(B, L, width)``: no parameter, not kept with the weights."""

    weight: Tensor

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", vectors, persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        """The vectors of these numbers."""
        return F.embedding(numbers, self.weight)


def small_bert(width: int, layers: int) -> BertModel:
    """A BERT with two heads over vectors ``(B, L, width)``, without the words and the pooling it would not use."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=1,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=RECENT,
        type_vocab_size=1,
        attention_probs_dropout_prob=0.0,
    )
    bert = BertModel(config, add_pooling_layer=False)
    del bert.embeddings.word_embeddings
    return bert
