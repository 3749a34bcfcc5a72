"""A picture and a sentence, read by two networks whose features meet in one head."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from secure_ml.batch import Batch, Splits
from secure_ml.data import hold_out, images, require_extra
from secure_ml.surfaces import Box, Surface, Tokens
from secure_ml.task import Recipe, Task
from secure_ml.tasks._resnet import Block, group_norm
from secure_ml.tasks.mnist_cnn import enlarged_digits
from secure_ml.threats import Change, Edits, Joint, Linf

Half = Literal["both", "image", "text"]
DEPARTMENTS = (0, 1, 0, 1, 0, 2, 0, 2, 3, 2)
"""Tops, dresses and trousers, shoes, or bags: where each of the ten classes of Fashion-MNIST is sold."""
WISHES = (
    ("i would like to buy {}", "how much is {}", "can i order {} today"),
    ("i want my money back for {}", "please take {} back", "i ask for a refund of {}"),
    ("do you have {} in a larger size", "please swap {} for another", "can i exchange {}"),
)
"""What may be asked for, each in several ways: to buy, to be paid back, to exchange."""
GREETINGS = ("hello", "good morning", "dear team", "excuse me", "hi there")
THINGS = ("this", "this one", "it", "the thing shown here", "what you see")
NAMING = sorted({word for ways in WISHES for way in ways for word in way.replace("{}", "").split()})
"""Words that say what is asked for: an adversary who changed them would change the right answer."""
WORDS = [*NAMING, *sorted({word for text in (*GREETINGS, *THINGS) for word in text.split()} - set(NAMING))]
VOCABULARY = len(WORDS) + 1
LENGTH = 14
DESKS = len(set(DEPARTMENTS)) * len(WISHES)


def fusion(*, half: Half = "both", tiny: bool = False) -> Task:
    """Which desk of a shop does a customer need? Fashion-MNIST and made-up sentences, ResNet-18 and BERT.

    The picture tells one of 4 departments, the sentence one of 3 wishes, and there are 12 desks: the picture alone is
    right at most once in 3 times, the sentence alone in 40 % (most pictures show tops). An adversary may not touch
    the words of the wish, which would change the right answer.

    Args:
        half: what the model reads: both, or the image or the text alone (for comparison).
        tiny: 160 of scikit-learn's digits, each standing for a class of Fashion-MNIST, 1 epoch.
    """
    require_extra("transformers", "models", "fusion")
    width, size = (2, 8) if tiny else (16, 64)
    naming = tuple(range(len(NAMING) + 1))
    changes: dict[str, tuple[Surface, Change]] = {
        "image": (Box(path=("image",)), Linf(0.05)),
        "text": (Tokens(VOCABULARY, "word_embeddings", naming, path=("text",)), Edits(1)),
    }
    changed = [changes[part] for part in halves(half)]
    options = {"half": (half, "both"), "tiny": (tiny, False)}
    return Task(
        name="fusion",
        build=partial(Fusion, half, width, size),
        data=_digits if tiny else _shop,
        surfaces=tuple(surface for surface, _ in changed),
        threat=Joint(tuple(threat for _, threat in changed)) if half == "both" else changed[0][1],
        recipe=Recipe(
            epochs=1 if tiny else 5,
            batch_size=8 if tiny else 64,
            optimizer="AdamW",
            learning_rate=1e-2 if tiny else 2e-3,
            weight_decay=0.01,
            schedule="cosine",
        ),
        unit="pair",
        options=", ".join(f"{key}={value!r}" for key, (value, default) in options.items() if value != default),
    )


def halves(half: Half) -> tuple[str, ...]:
    """The names of the inputs that a model reads."""
    return ("image", "text") if half == "both" else (half,)


class Fusion(nn.Module):
    """Inputs ``image`` ``(B, 1, 28, 28)`` and ``text`` ``(B, L)``, 0 for no word, to logits ``(B, 12)``."""

    def __init__(self, half: Half, width: int, size: int) -> None:
        super().__init__()
        self.read = halves(half)
        makers: dict[str, Callable[[], nn.Module]] = {
            "image": partial(small_resnet, width),
            "text": partial(SmallBert, size),
        }
        lengths = {"image": 8 * width, "text": size}
        self.encoders = nn.ModuleDict({part: makers[part]() for part in self.read})
        self.head = nn.Sequential(
            nn.Linear(sum(lengths[part] for part in self.read), 2 * size), nn.ReLU(), nn.Linear(2 * size, DESKS)
        )

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Logits of the desks."""
        features = [self.encoders[part](inputs[part]) for part in self.read]
        return cast("Tensor", self.head(torch.cat(features, 1)))


def small_resnet(width: int) -> nn.Module:
    """ResNet-18's eight blocks, narrower and normed by groups: ``(B, 1, 28, 28)`` to ``(B, 8 width)``."""
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, 2, 1, bias=False), group_norm(width), nn.ReLU()]
    for stage in range(4):
        inputs, outputs, stride = width * 2 ** max(stage - 1, 0), width * 2**stage, 2 if stage else 1
        layers += [Block(inputs, outputs, stride, group_norm), Block(outputs, outputs, 1, group_norm)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class SmallBert(nn.Module):
    """BERT of one layer, no weight of it learned beforehand: tokens ``(B, L)`` to their mean ``(B, size)``."""

    def __init__(self, size: int) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=size,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=2 * size,
            max_position_embeddings=LENGTH,
            type_vocab_size=1,
            attention_probs_dropout_prob=0.0,
        )
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """The mean over the words that are there."""
        rows = tokens if len(tokens) else tokens.new_zeros(1, tokens.shape[1])  # transformers takes no batch of 0
        there = rows != 0
        # one row of places for each example: BERT would share one among them, and Opacus tell their gradients wrong
        places = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
        kinds = torch.zeros_like(rows)
        words = self.bert(rows, there.long(), token_type_ids=kinds, position_ids=places).last_hidden_state
        share = there.to(words.dtype)[..., None]
        return cast("Tensor", (words * share).sum(1) / share.sum(1).clamp(min=1))[: len(tokens)]


def _shop(rng: torch.Generator) -> Splits:
    """8,000 pairs to train, 1,000 to validate, 1,600 for the adversary, 2,000 non-members; 4,000 official images."""
    train, test = images("FashionMNIST")
    some = train.take(torch.randperm(len(train), generator=rng)[:12600])
    fixed = _pairs(test.take(slice(0, 4000)), torch.Generator().manual_seed(0))
    return hold_out(_pairs(some, rng), fixed, rng, validation=1000, aux=1600, others=2000)


def _digits(rng: torch.Generator) -> Splits:
    return Splits(*(_pairs(part, rng) for part in enlarged_digits(rng).parts().values()))


def _pairs(pictures: Batch, rng: torch.Generator) -> Batch:
    """Images of classes ``(n,)``, each with a sentence of a random wish; the target is the desk."""
    assert isinstance(pictures.target, Tensor)
    n, sentences = len(pictures), _sentences()
    wish = torch.randint(len(WISHES), (n,), generator=rng)
    which = torch.randint(sentences.shape[1], (n,), generator=rng)
    desk = torch.tensor(DEPARTMENTS)[pictures.target] * len(WISHES) + wish
    return Batch({"image": pictures.inputs, "text": sentences[wish, which]}, desk)


@cache
def _sentences() -> Tensor:
    """Every sentence of each wish: tokens ``(3, 75, L)``."""
    texts = [
        [f"{greeting} {way.format(thing)}" for way in ways for greeting in GREETINGS for thing in THINGS]
        for ways in WISHES
    ]
    return torch.tensor([[_numbered(text) for text in same] for same in texts])


def _numbered(text: str) -> list[int]:
    numbers = [WORDS.index(word) + 1 for word in text.split()]
    return numbers + [0] * (LENGTH - len(numbers))
