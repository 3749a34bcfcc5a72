"""Labelled texts: what the document models of sentences share."""

from __future__ import annotations

import csv
import re
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from secure_ml.batch import Batch, Splits
from secure_ml.data import directory, find, hashed_tokens, hold_out, split
from secure_ml.errors import UsageError, require
from secure_ml.scores import F1
from secure_ml.surfaces import SpelledTokens
from secure_ml.task import Recipe, Task
from secure_ml.threats import Edits

STEM = 5
"""Letters at the beginning of a word, which words of one stem share."""
SHARE = 4
"""Word numbers for the words of one beginning."""
Data = Literal["sst2", "mr", "trec", "ag_news"]


class Corpus(NamedTuple):
    """What is known of a data set beforehand."""

    labels: tuple[str, ...]
    """How its file writes the classes, in their order."""
    length: int
    """Words after which a text is cut."""
    dropped: float
    """Share of the words that training leaves out, anew in each epoch: large where many words say the same."""
    label: str = "label"
    """The column of the label."""
    texts: tuple[str, ...] = ("text",)
    """The columns that make up the text."""


CORPORA: dict[Data, Corpus] = {
    "sst2": Corpus(("0", "1"), 40, 0.5),
    "mr": Corpus(("0", "1"), 40, 0.5),
    "trec": Corpus(("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"), 20, 0.0, label="coarse"),
    "ag_news": Corpus(("0", "1", "2", "3"), 60, 0.3, texts=("title", "description")),
}


TINY = Corpus(("0", "1"), 8, 0.0)


def corpus(data: Data, tiny: bool = False) -> Corpus:
    """What is known of a data set."""
    return TINY if tiny else CORPORA[data]


def text_task(
    name: str,
    data: Data,
    vocabulary: int,
    module: Callable[[int], nn.Module],
    recipe: Recipe,
    *,
    settings: dict[str, tuple[Any, Any]],
    embedding: str = "embedding",
    tiny: bool = False,
) -> Task:
    """The task of telling classes of texts apart.

    Args:
        name: of the task.
        data: the data set.
        vocabulary: number of word numbers.
        module: makes the model of a number of classes; tokens ``(B, L)``, 0 for none, to logits ``(B, K)``.
        recipe: how it is trained.
        settings: each option with its default.
        embedding: name of the layer that looks words up.
        tiny: made-up sentences instead of the data set.
    """
    known = corpus(data, tiny)
    for option, (value, _) in settings.items():
        least = 2 * SHARE if option == "vocabulary" else 1
        require(isinstance(value, str) or value >= least, f"{name} needs {option} of at least {least}; given {value}")
    options = ", ".join(f"{option}={value!r}" for option, (value, default) in settings.items() if value != default)
    return Task(
        name=name,
        build=partial(module, len(known.labels)),
        data=partial(_made_up if tiny else DRAWS[data], vocabulary),
        also=(F1(),),
        surfaces=(spelled(data, vocabulary, embedding, tiny),),
        threat=Edits(2),
        recipe=recipe,
        augment=partial(drop_words, known.dropped),
        unit="article" if data == "ag_news" else "question" if data == "trec" else "sentence",
        options="tiny=True" if tiny else options,
    )


def drop_words(share: float, batch: Batch, rng: torch.Generator) -> Batch:
    """The tokens ``(B, L)`` with a random share of them set to 0: sentences with gaps."""
    tokens = batch.inputs
    assert isinstance(tokens, Tensor)
    kept = torch.rand(tokens.shape, generator=rng) >= share
    return Batch(tokens * kept.to(tokens.device), batch.target)


def words(text: str) -> list[str]:
    """The words and marks of a text, in small letters; ``n't`` and ``'s`` stand alone, as in a treebank."""
    return re.findall(r"n't|'\w+|\w+|[^\w\s]", re.sub(r"n't\b", " n't", text.lower()))


def word_numbers(texts: list[str], vocabulary: int, length: int) -> Tensor:
    """Word numbers ``(n, length)`` below ``vocabulary``, 0 for none; ``numbers // SHARE`` are those of beginnings.

    The CRC-32 of a word's beginning picks a group of numbers, and that of the word one of the group: the vocabulary
    is fixed beforehand and learns nothing from the data, so that it needs no privacy budget.
    """
    spoken = [words(text) for text in texts]
    groups = hashed_tokens([" ".join(word[:STEM] for word in said) for said in spoken], vocabulary // SHARE, length)
    return groups * SHARE + hashed_tokens([" ".join(said) for said in spoken], vocabulary, length) % SHARE


def word_number(vocabulary: int, word: str) -> int:
    """The number of one word, as `word_numbers` gives it."""
    group = zlib.crc32(word[:STEM].encode()) % (vocabulary // SHARE - 1) + 1
    return group * SHARE + (zlib.crc32(word.encode()) % (vocabulary - 1) + 1) % SHARE


def spelled(data: Data, vocabulary: int, embedding: str, tiny: bool) -> SpelledTokens:
    """The surface of word numbers, written as the most frequent of the data set's words that share each number."""
    read = partial(made_up_words, vocabulary) if tiny else partial(known_words, data, vocabulary)
    return SpelledTokens(vocabulary, embedding, read=read, write=partial(word_number, vocabulary))


def known_words(data: Data, vocabulary: int) -> list[str]:
    """The most frequent word of each number in a data set's files, empty where there is none."""
    return _known_words(data, vocabulary, str(directory()))


@cache
def _known_words(data: Data, vocabulary: int, folder: str) -> list[str]:
    """The same, kept for each folder that the data may lie in."""
    texts = [text for file in FILES[data] for text in lines(data, file)[0]]
    return frequent_words(texts, vocabulary)


def made_up_words(vocabulary: int) -> list[str]:
    """The most frequent word of each number in the made-up sentences, empty where there is none."""
    return frequent_words([" ".join((*_MOODS[0], *_MOODS[1], *_NEUTRAL))], vocabulary)


def frequent_words(texts: list[str], vocabulary: int) -> list[str]:
    """The most frequent word of each number in some texts, the first in the alphabet of equally frequent ones."""
    counts = Counter(word for text in texts for word in words(text))
    written = [""] * vocabulary
    for word in sorted(counts, key=lambda word: (counts[word], [-ord(letter) for letter in word])):
        written[word_number(vocabulary, word)] = word
    return written


class WordVectors(nn.Module):
    """The vector of a word plus that of its beginning: numbers ``(B, L)`` to vectors ``(B, L, D)``."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.wholes = nn.Embedding(vocabulary, width)
        self.stems = nn.Embedding(-(-vocabulary // SHARE), width)
        for table in (self.wholes, self.stems):
            nn.init.normal_(table.weight, std=0.02)  # so that words never seen in training say next to nothing

    def forward(self, numbers: Tensor) -> Tensor:
        """The vectors."""
        return cast("Tensor", self.wholes(numbers) + self.stems(numbers // SHARE))

    @property
    def weight(self) -> Tensor:
        """The vectors of all numbers ``(vocabulary, D)``, as one table would hold them."""
        stems = self.stems.weight.repeat_interleave(SHARE, 0)
        return self.wholes.weight + stems[: len(self.wholes.weight)]


def read(data: Data, file: str, vocabulary: int) -> Batch:
    """One file of a data set: word numbers ``(n, length)``, 0 for none, and classes ``(n,)``."""
    texts, classes = lines(data, file)
    return Batch(word_numbers(texts, vocabulary, corpus(data).length), classes)


def lines(data: Data, file: str) -> tuple[list[str], Tensor]:
    """The texts of one file of a data set, and their classes ``(n,)``."""
    known = corpus(data)
    columns = (known.label, *known.texts)
    path = find(f"text/{file}.tsv", f"a tab-separated file with the columns {' and '.join(columns)}")
    try:
        with path.open(newline="", encoding="utf-8") as file_of_rows:
            rows = list(csv.DictReader(file_of_rows, delimiter="\t", quoting=csv.QUOTE_NONE))
        classes = torch.tensor([known.labels.index(row[known.label]) for row in rows])
        texts = [" ".join(row[column] for column in known.texts) for row in rows]
    except (KeyError, TypeError, ValueError):
        raise UsageError(
            f"{path} is not whole: every line needs {', '.join(known.labels)} as {known.label}, and a text"
        ) from None
    return texts, classes


def _sst2(vocabulary: int, rng: torch.Generator) -> Splits:
    """6,020 official training sentences to train, 500 for the adversary, 400 non-members; the official others."""
    train, validation, test = (read("sst2", f"sst2_{part}", vocabulary) for part in ("train", "dev", "test"))
    parts = split(train, rng, validation=0, test=400, aux=500)
    return Splits(parts.train, validation, test, parts.aux, others=parts.test)


def _mr(vocabulary: int, rng: torch.Generator) -> Splits:
    """8,000 sentences to train, 600 to validate, 1,062 to test, 1,000 for the adversary."""
    return split(read("mr", "mr_polarity", vocabulary), rng, validation=600, test=1062, aux=1000)


def _trec(vocabulary: int, rng: torch.Generator) -> Splits:
    """4,702 to train, 250 to validate, 250 for the adversary, 250 non-members, the official 500 to test."""
    train, test = (read("trec", f"trec_{part}", vocabulary) for part in ("train", "test"))
    return hold_out(train, test, rng, validation=250, aux=250, others=250)


def _ag_news(vocabulary: int, rng: torch.Generator) -> Splits:
    """5,480 of the 7,600 articles at hand to train, 300 to validate, 1,520 to test, 300 for the adversary."""
    return split(read("ag_news", "ag_news_test", vocabulary), rng, validation=300, test=1520, aux=300)


DRAWS: dict[Data, Callable[[int, torch.Generator], Splits]] = {
    "sst2": _sst2,
    "mr": _mr,
    "trec": _trec,
    "ag_news": _ag_news,
}

FILES: dict[Data, tuple[str, ...]] = {
    "sst2": ("sst2_train", "sst2_dev", "sst2_test"),
    "mr": ("mr_polarity",),
    "trec": ("trec_train", "trec_test"),
    "ag_news": ("ag_news_test",),
}

_MOODS = (
    "dull bad boring weak poor sad slow awful bland messy".split(),
    "fine good lovely great smart warm funny fresh bold superb".split(),
)
_NEUTRAL = "the a film movie story actor scene plot was is with and very quite rather".split()


def _made_up(vocabulary: int, rng: torch.Generator) -> Splits:
    """200 sentences of 3 to 8 words, about half of them of the mood that the label names."""
    labels = torch.randint(2, (200,), generator=rng)
    texts = []
    for label in labels.tolist():
        lengths = torch.randint(3, 9, (1,), generator=rng).item()
        said = []
        for _ in range(int(lengths)):
            kind = _MOODS[label] if torch.rand(1, generator=rng).item() < 0.5 else _NEUTRAL
            said.append(kind[int(torch.randint(len(kind), (1,), generator=rng).item())])
        texts.append(" ".join(said))
    return split(Batch(word_numbers(texts, vocabulary, TINY.length), labels), rng, validation=20, test=40, aux=40)
