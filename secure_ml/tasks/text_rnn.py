"""Sentences read word by word, in both directions."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from secure_ml.task import Recipe, Task
from secure_ml.tasks._texts import Data, WordVectors, text_task


def text_rnn(
    *, data: Data = "sst2", vocabulary: int = 32768, width: int = 16, hidden: int = 32, tiny: bool = False
) -> Task:
    """Sentiment of film reviews (SST-2, 6,920 and 1,821 sentences), a gated recurrent network in both directions.

    The cell is that of https://arxiv.org/abs/1406.1078, written from dense layers for the gradients of each example.

    Args:
        data: reviews of SST-2 or MR, questions of TREC (6 kinds), news of AG News (4 kinds).
        vocabulary: word numbers; words are hashed into them, so that nothing is learned from the data.
        width: length of a word vector.
        hidden: length of the state of each direction.
        tiny: 200 sentences made from lists of words, 64 word numbers, vectors and states of length 4, 3 epochs.
    """
    settings = {"data": (data, "sst2"), "vocabulary": (vocabulary, 32768), "width": (width, 16), "hidden": (hidden, 32)}
    vocabulary, width, hidden = (64, 4, 4) if tiny else (vocabulary, width, hidden)
    recipe = Recipe(
        epochs=3 if tiny else 8,
        batch_size=64,
        optimizer="AdamW",
        learning_rate=2e-2 if tiny else 3e-3,
        weight_decay=0.01,
        schedule="linear",
    )
    model = partial(Recurrent, vocabulary, width, hidden)
    return text_task("text_rnn", data, vocabulary, model, recipe, settings=settings, tiny=tiny)


class Recurrent(nn.Module):
    """The mean of words and of the states of two directions: tokens ``(B, L)``, 0 for none, to logits ``(B, K)``."""

    def __init__(self, vocabulary: int, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.embedding = WordVectors(vocabulary, width)
        self.forwards, self.backwards = GRU(width, hidden), GRU(width, hidden)
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(width + 2 * hidden, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits; where there is no word the states stay, and count for nothing."""
        there = (tokens != 0).to(self.output.weight.dtype)[..., None]
        vectors = self.dropout(self.embedding(tokens))
        states = [self.forwards(vectors, there), self.backwards(vectors.flip(1), there.flip(1)).flip(1)]
        mean = (torch.cat([vectors, *states], -1) * there).sum(1) / there.sum(1).clamp(min=1)
        return cast("Tensor", self.output(self.dropout(mean)))


class GRU(nn.Module):
    """A gated recurrent unit: vectors ``(B, L, D)`` and a mask ``(B, L, 1)`` to the states ``(B, L, H)``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.input = nn.Linear(width, 3 * hidden)
        self.state = nn.Linear(hidden, 3 * hidden)

    def forward(self, vectors: Tensor, there: Tensor) -> Tensor:
        """The states from the first word to the last; one stays where there is no word."""
        state = vectors.new_zeros(len(vectors), self.state.in_features)
        states = []
        for seen, word in zip(self.input(vectors).unbind(1), there.unbind(1), strict=True):
            reset_in, keep_in, new_in = seen.chunk(3, -1)
            reset, keep, new = self.state(state).chunk(3, -1)
            proposal = (new_in + (reset_in + reset).sigmoid() * new).tanh()
            change = word * (keep_in + keep).sigmoid()
            state = state + change * (proposal - state)
            states.append(state)
        return torch.stack(states, 1)
