"""Sentences as the mean of their word vectors."""

from __future__ import annotations

from functools import partial
from typing import cast

from torch import Tensor, nn

from secure_ml.task import Recipe, Task
from secure_ml.tasks._texts import Data, WordVectors, text_task


def text_embedding(*, data: Data = "sst2", vocabulary: int = 32768, width: int = 16, tiny: bool = False) -> Task:
    """Sentiment of film reviews (SST-2, 6,920 and 1,821 sentences), a bag of word embeddings and one dense layer.

    Args:
        data: reviews of SST-2 or MR, questions of TREC (6 kinds), news of AG News (4 kinds).
        vocabulary: word numbers; words are hashed into them, so that nothing is learned from the data.
        width: length of a word vector.
        tiny: 200 sentences made from lists of words, 64 word numbers of length 4, 3 epochs.
    """
    settings = {"data": (data, "sst2"), "vocabulary": (vocabulary, 32768), "width": (width, 16)}
    vocabulary, width = (64, 4) if tiny else (vocabulary, width)
    recipe = Recipe(
        epochs=3 if tiny else 12,
        batch_size=64,
        optimizer="AdamW",
        learning_rate=1e-2 if tiny else 3e-3,
        weight_decay=0.01,
        schedule="linear",
    )
    model = partial(BagOfWords, vocabulary, width)
    return text_task("text_embedding", data, vocabulary, model, recipe, settings=settings, tiny=tiny)


class BagOfWords(nn.Module):
    """The mean of the words' vectors, dropout, one layer: tokens ``(B, L)``, 0 for none, to logits ``(B, K)``."""

    def __init__(self, vocabulary: int, width: int, classes: int) -> None:
        super().__init__()
        self.embedding = WordVectors(vocabulary, width)
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits; a sentence without words counts as a zero vector."""
        there = (tokens != 0).to(self.output.weight.dtype)[..., None]
        mean = (self.embedding(tokens) * there).sum(1) / there.sum(1).clamp(min=1)
        return cast("Tensor", self.output(self.dropout(mean)))
