"""Text as numbered characters, cut into windows, and its continuation by a model of the next symbol."""

from __future__ import annotations

import string
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from secure_ml.batch import Batch, Splits
from secure_ml.data import find, hold_out, split
from secure_ml.errors import UsageError
from secure_ml.surfaces import SpelledTokens
from secure_ml.task import Predictor, Sample

CHARACTERS = "\n !$&',-.3:;?" + string.ascii_uppercase + string.ascii_lowercase
"""The 65 characters of tiny Shakespeare, in the order of their codes."""
LENGTH = 128
TINY_LENGTH = 8
_NUMBERS = {character: number for number, character in enumerate(CHARACTERS)}


def encode(text: str) -> Tensor:
    """Character numbers ``(n,)``; `UsageError` for a character that is none of the 65."""
    strange = sorted(set(text) - set(CHARACTERS))
    if strange:
        raise UsageError(
            f"the text holds {', '.join(map(repr, strange[:5]))}: "
            f"the characters known are letters, line break, space and {CHARACTERS[2:13]}"
        )
    return torch.tensor([_NUMBERS[character] for character in text], dtype=torch.long)


def spelled(embedding: str = "embedding") -> SpelledTokens:
    """The surface of character numbers."""
    return SpelledTokens(len(CHARACTERS), embedding, frozen=(), read=partial(list, CHARACTERS), write=number)


def number(character: str) -> int:
    """The number of a character, or -1."""
    return _NUMBERS.get(character, -1)


def decode(tokens: Tensor) -> str:
    """The text of character numbers ``(n,)``."""
    return "".join(CHARACTERS[number] for number in tokens.tolist())


def windows(tokens: Tensor, length: int) -> Batch:
    """Stretches of ``length + 1`` symbols that share none: all but the last ``(n, length)``, all but the first."""
    rows = tokens[: len(tokens) // (length + 1) * (length + 1)].view(-1, length + 1)
    return Batch(rows[:, :-1], rows[:, 1:])


def read(name: str) -> str:
    """A text file of the data directory."""
    return find(name, "a plain text file").read_text(encoding="utf-8")


def known(text: str) -> str:
    """The text with a space in the place of every character that is none of the 65."""
    return "".join(character if character in _NUMBERS else " " for character in text)


def shakespeare(rng: torch.Generator) -> Splits:
    """Tiny Shakespeare: windows of the first 90 %, dealt at random, and of the last 10 %, which are the test."""
    tokens = encode(known(read("text/tinyshakespeare.txt")))
    border = len(tokens) * 9 // 10
    train, test = windows(tokens[:border], LENGTH), windows(tokens[border:], LENGTH)
    return hold_out(train, test, rng, validation=300, aux=800, others=500)


def sonnets(rng: torch.Generator) -> Splits:
    """About 200 windows of three sonnets, dealt at random."""
    return split(windows(encode(SONNETS), TINY_LENGTH), rng, validation=20, test=40, aux=40)


def sampled(length: int) -> Callable[[Predictor, str, torch.Generator], Sample]:
    """What shows a model of characters: a prompt and 300 characters that follow it."""
    return partial(_sample, length)


def continued(
    predictor: Predictor, tokens: Tensor, length: int, count: int, rng: torch.Generator, temperature: float = 0.8
) -> Tensor:
    """The symbols ``(n,)`` and ``count`` more, each drawn from the answer to the last ``length`` before it."""
    for _ in range(count):
        logits = predictor(tokens[None, -length:])[0, -1].detach().cpu()
        chances = (logits.double() / temperature).softmax(0)
        tokens = torch.cat([tokens, torch.multinomial(chances, 1, generator=rng)])
    return tokens


def _sample(length: int, predictor: Predictor, prompt: str, rng: torch.Generator) -> Sample:
    """The prompt (a line break if it is empty) and 300 characters that follow it."""
    return Sample(decode(continued(predictor, encode(prompt or "\n"), length, 300, rng)))


SONNETS = """\
Shall I compare thee to a summer's day?
Thou art more lovely and more temperate:
Rough winds do shake the darling buds of May,
And summer's lease hath all too short a date;
Sometime too hot the eye of heaven shines,
And often is his gold complexion dimm'd;
And every fair from fair sometime declines,
By chance or nature's changing course untrimm'd;
But thy eternal summer shall not fade,
Nor lose possession of that fair thou ow'st;
Nor shall death brag thou wander'st in his shade,
When in eternal lines to time thou grow'st:
So long as men can breathe or eyes can see,
So long lives this, and this gives life to thee.

Let me not to the marriage of true minds
Admit impediments. Love is not love
Which alters when it alteration finds,
Or bends with the remover to remove:
O no! it is an ever-fixed mark
That looks on tempests and is never shaken;
It is the star to every wandering bark,
Whose worth's unknown, although his height be taken.
Love's not Time's fool, though rosy lips and cheeks
Within his bending sickle's compass come:
Love alters not with his brief hours and weeks,
But bears it out even to the edge of doom.
If this be error and upon me proved,
I never writ, nor no man ever loved.

When, in disgrace with fortune and men's eyes,
I all alone beweep my outcast state,
And trouble deaf heaven with my bootless cries,
And look upon myself and curse my fate,
Wishing me like to one more rich in hope,
Featured like him, like him with friends possess'd,
Desiring this man's art and that man's scope,
With what I most enjoy contented least;
Yet in these thoughts myself almost despising,
Haply I think on thee, and then my state,
Like to the lark at break of day arising
From sullen earth, sings hymns at heaven's gate;
For thy sweet love remember'd such wealth brings
That then I scorn to change my state with kings.
"""
"""Sonnets 18, 116 and 29, in the public domain."""
