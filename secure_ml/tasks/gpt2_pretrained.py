"""A published GPT-2, trained further on a text."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secure_ml.batch import Splits
from secure_ml.data import hold_out, require_extra, split
from secure_ml.errors import UsageError, require
from secure_ml.outputs import NextToken
from secure_ml.scores import NatsPerToken
from secure_ml.surfaces import Tokens
from secure_ml.task import Predictor, Recipe, Sample, Task, next_token_loss
from secure_ml.tasks._characters import SONNETS, TINY_LENGTH, continued, read, windows
from secure_ml.tasks.gpt2 import HEAD, CausalLM, small_gpt2
from secure_ml.threats import Edits

VOCABULARY = 50257
"""Tokens of GPT-2's tokeniser."""
BYTES = 256
WINDOW = 64
TESTED = 200
"""Test windows: an answer to each is 64 times 50,257 logits, 13 MB."""


def gpt2_pretrained(*, model: str = "gpt2", tiny: bool = False) -> Task:
    """Tiny Shakespeare (1,115,394 characters, the last 10 % to test), a GPT-2 from Hugging Face trained further.

    Args:
        model: name of a published model with GPT-2's tokens (gpt2, distilgpt2, gpt2-medium), or a folder with one.
        tiny: three sonnets in windows of 8 bytes, an untrained GPT-2 of 1 block and 1 head of width 32, 3 epochs.
    """
    require_extra("transformers", "models", "gpt2_pretrained")
    return Task(
        name="gpt2_pretrained",
        build=partial(small_gpt2, BYTES, TINY_LENGTH, 1, HEAD) if tiny else partial(_published, model),
        data=_sonnets if tiny else partial(_shakespeare, model),
        loss=next_token_loss,
        output=NextToken(),
        score=NatsPerToken(),
        surfaces=(Tokens(BYTES if tiny else VOCABULARY, embedding="wte", frozen=()),),
        threat=Edits(2),
        recipe=Recipe(
            epochs=3 if tiny else 2,
            batch_size=16 if tiny else 8,
            optimizer="AdamW",
            learning_rate=0.01 if tiny else 5e-5,
            weight_decay=0.01,
            schedule="linear",
        ),
        sample=_sample_bytes if tiny else partial(_sample, model),
        chunk=8,
        unit="window",
        assumes=() if tiny else (f"what {model} was trained on, which may hold this very text, is public",),
        options="tiny=True" if tiny else f"model={model!r}" if model != "gpt2" else "",
    )


def _published(model: str) -> nn.Module:
    """The published weights: tokens ``(B, T)`` to logits ``(B, T, V)``."""
    from transformers import AutoModelForCausalLM

    network = CausalLM(_fetch(AutoModelForCausalLM, model))
    there = network.model.get_input_embeddings().num_embeddings
    require(there == VOCABULARY, f"{model} knows {there} tokens; gpt2_pretrained needs GPT-2's {VOCABULARY}")
    return network


def _tokeniser(model: str) -> Any:
    from transformers import AutoTokenizer

    return _fetch(AutoTokenizer, model)


def _fetch(kind: Any, model: str) -> Any:
    """A part of the model from the cache or the network; `UsageError` where it is in neither."""
    try:
        return kind.from_pretrained(model)
    except (OSError, ValueError):
        raise UsageError(
            f"{model} is neither a folder nor in the Hugging Face cache, and cannot be downloaded: "
            "run this once where there is a network, or give model= a folder that holds a GPT-2"
        ) from None


def _encode(model: str, text: str) -> Tensor:
    return torch.tensor(_tokeniser(model)(text, verbose=False)["input_ids"], dtype=torch.long)


def _shakespeare(model: str, rng: torch.Generator) -> Splits:
    """Windows of 64 tokens: of the first 90 % of the characters, dealt at random; 200, spread evenly, of the rest."""
    text = read("text/tinyshakespeare.txt")
    border = len(text) * 9 // 10
    train, test = (windows(_encode(model, part), WINDOW) for part in (text[:border], text[border:]))
    spread = torch.linspace(0, len(test) - 1, min(TESTED, len(test))).long()
    return hold_out(train, test.take(spread), rng, validation=100, aux=500, others=200)


def _sonnets(rng: torch.Generator) -> Splits:
    """About 200 windows of bytes of three sonnets, dealt at random."""
    tokens = torch.tensor(list(SONNETS.encode()))
    return split(windows(tokens, TINY_LENGTH), rng, validation=20, test=40, aux=40)


def _sample(model: str, predictor: Predictor, prompt: str, rng: torch.Generator) -> Sample:
    """The prompt (a line break if it is empty) and 80 tokens, some 300 characters, that follow it."""
    tokens = continued(predictor, _encode(model, prompt or "\n"), WINDOW, 80, rng)
    return Sample(_tokeniser(model).decode(tokens.tolist()))


def _sample_bytes(predictor: Predictor, prompt: str, rng: torch.Generator) -> Sample:
    """The prompt (a line break if it is empty) and 300 bytes that follow it."""
    tokens = continued(predictor, torch.tensor(list((prompt or "\n").encode())), TINY_LENGTH, 300, rng)
    return Sample(bytes(tokens.tolist()).decode(errors="replace"))
