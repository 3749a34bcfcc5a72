"""Sentences by self-attention."""

from __future__ import annotations

import math
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from secure_ml.errors import require
from secure_ml.task import Recipe, Task
from secure_ml.tasks._texts import Data, WordVectors, corpus, text_task

HEADS = 4


def text_transformer(
    *, data: Data = "sst2", vocabulary: int = 32768, width: int = 16, layers: int = 1, tiny: bool = False
) -> Task:
    """Sentiment of film reviews (SST-2, 6,920 and 1,821 sentences), a small transformer encoder.

    The layers are those of https://arxiv.org/abs/1706.03762, normed beforehand, written from dense layers for the
    gradients of each example.

    Args:
        data: reviews of SST-2 or MR, questions of TREC (6 kinds), news of AG News (4 kinds).
        vocabulary: word numbers; words are hashed into them, so that nothing is learned from the data.
        width: length of a word vector, a multiple of the 4 heads.
        layers: of attention.
        tiny: 200 sentences made from lists of words, 64 word numbers of length 8, 1 layer, 3 epochs.
    """
    settings = {"data": (data, "sst2"), "vocabulary": (vocabulary, 32768), "width": (width, 16), "layers": (layers, 1)}
    require(width % HEADS == 0, f"text_transformer needs a width that {HEADS} heads divide; given {width}")
    length = corpus(data, tiny).length
    vocabulary, width, layers = (64, 8, 1) if tiny else (vocabulary, width, layers)
    recipe = Recipe(
        epochs=3 if tiny else 10,
        batch_size=64,
        optimizer="AdamW",
        learning_rate=2e-2 if tiny else 2e-3,
        weight_decay=0.01,
        schedule="linear",
    )
    model = partial(Transformer, vocabulary, length, width, layers)
    return text_task("text_transformer", data, vocabulary, model, recipe, settings=settings, tiny=tiny)


class Transformer(nn.Module):
    """Words and places, layers of attention, the mean: tokens ``(B, L)``, 0 for none, to logits ``(B, K)``."""

    def __init__(self, vocabulary: int, length: int, width: int, layers: int, classes: int) -> None:
        super().__init__()
        self.embedding = WordVectors(vocabulary, width)
        self.places = nn.Embedding(length, width)
        nn.init.normal_(self.places.weight, std=0.02)
        self.dropout = nn.Dropout(0.5)
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.output = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits; where there is no word nothing is attended to, and nothing counts."""
        there = tokens != 0
        places = torch.arange(tokens.shape[1], device=tokens.device).repeat(len(tokens), 1)
        states = self.dropout(self.embedding(tokens) + self.places(places))
        for layer in self.layers:
            states = layer(states, there)
        weights = there.to(states.dtype)[..., None]
        mean = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
        return cast("Tensor", self.output(self.dropout(mean)))


class Layer(nn.Module):
    """Attention of several heads, then a small network at each place, each added to the states ``(B, L, D)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value, self.join = (nn.Linear(width, width) for _ in range(4))
        self.dropout = nn.Dropout(0.2)
        self.network = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.Dropout(0.2)
        )

    def forward(self, states: Tensor, there: Tensor) -> Tensor:
        """The new states; ``there`` is a mask ``(B, L)`` of the places that may be looked at."""
        states = states + self.dropout(self.attend(self.norm(states), there))
        return cast("Tensor", states + self.network(states))

    def attend(self, states: Tensor, there: Tensor) -> Tensor:
        """What each place gathers from the others, ``(B, L, D)``."""
        query, key, value = (
            part(states).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        fit = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
        share = fit.masked_fill(~there[:, None, None, :], -1e9).softmax(-1)
        return cast("Tensor", self.join((share @ value).transpose(1, 2).flatten(2)))
