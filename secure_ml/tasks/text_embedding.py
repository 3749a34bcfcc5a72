"""Sentences as the mean of their word vectors."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from secure_ml.batch import Batch, Splits
from secure_ml.data import hashed_tokens, sentences, split
from secure_ml.errors import require
from secure_ml.surfaces import Tokens
from secure_ml.task import Recipe, Task
from secure_ml.threats import Edits

LENGTH = 40


def text_embedding(*, vocabulary: int = 16384, width: int = 32, tiny: bool = False) -> Task:
    """Sentiment of film reviews (SST-2, 6,920 and 1,821 sentences), a bag of word embeddings and one dense layer.

    Args:
        vocabulary: word numbers; words are hashed into them, so that nothing is learned from the data.
        width: length of a word vector.
        tiny: 200 sentences made from lists of words, 64 word numbers of length 4, 3 epochs.
    """
    require(vocabulary >= 2, f"text_embedding needs at least 2 word numbers; given {vocabulary}")
    require(width >= 1, f"text_embedding needs a width of at least 1; given {width}")
    vocabulary, width = (64, 4) if tiny else (vocabulary, width)
    settings = {"vocabulary": (vocabulary, 16384), "width": (width, 32)}
    options = ", ".join(f"{name}={value!r}" for name, (value, default) in settings.items() if value != default)
    return Task(
        name="text_embedding",
        build=partial(BagOfWords, vocabulary, width),
        data=partial(_made_up if tiny else _reviews, vocabulary),
        surfaces=(Tokens(vocabulary),),
        threat=Edits(2),
        recipe=Recipe(
            epochs=3 if tiny else 20,
            batch_size=64,
            optimizer="AdamW",
            learning_rate=3e-3,
            weight_decay=0.01,
            patience=4,
        ),
        unit="sentence",
        options="tiny=True" if tiny else options,
    )


class BagOfWords(nn.Module):
    """The mean of the words' vectors, dropout, one layer: tokens ``(B, L)``, 0 for none, to logits ``(B, 2)``."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(width, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits; a sentence without words counts as a zero vector."""
        there = (tokens != 0).to(self.output.weight.dtype)[..., None]
        mean = (self.embedding(tokens) * there).sum(1) / there.sum(1).clamp(min=1)
        return cast("Tensor", self.output(self.dropout(mean)))


def _reviews(vocabulary: int, rng: torch.Generator) -> Splits:
    """5,120 official training sentences to train, 1,000 for the adversary, 800 non-members; the official others."""
    train, validation, test = (_read(f"text/sst2_{part}.tsv", vocabulary) for part in ("train", "dev", "test"))
    parts = split(train, rng, validation=0, test=800, aux=1000)
    return Splits(parts.train, validation, test, parts.aux, others=parts.test)


def _read(name: str, vocabulary: int) -> Batch:
    texts, labels = sentences(name)
    return Batch(hashed_tokens(texts, vocabulary, LENGTH), labels)


_MOODS = (
    "dull bad boring weak poor sad slow awful bland messy".split(),
    "fine good lovely great smart warm funny fresh bold superb".split(),
)
_NEUTRAL = "the a film movie story actor scene plot was is with and very quite rather".split()


def _made_up(vocabulary: int, rng: torch.Generator) -> Splits:
    """Sentences of 3 to 8 words, about half of them of the mood that the label names."""
    labels = torch.randint(2, (200,), generator=rng)
    texts = []
    for label in labels.tolist():
        lengths = torch.randint(3, 9, (1,), generator=rng).item()
        words = []
        for _ in range(int(lengths)):
            kind = _MOODS[label] if torch.rand(1, generator=rng).item() < 0.5 else _NEUTRAL
            words.append(kind[int(torch.randint(len(kind), (1,), generator=rng).item())])
        texts.append(" ".join(words))
    return split(Batch(hashed_tokens(texts, vocabulary, 8), labels), rng, validation=20, test=40, aux=40)
