"""Sentences by BERT, from its configuration."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from secure_ml.data import require_extra
from secure_ml.errors import require
from secure_ml.task import Recipe, Task
from secure_ml.tasks._texts import Data, WordVectors, corpus, text_task

HEADS = 4


def bert_text(
    *, data: Data = "sst2", vocabulary: int = 32768, width: int = 16, layers: int = 2, tiny: bool = False
) -> Task:
    """Sentiment of film reviews (SST-2, 6,920 and 1,821 sentences), a small BERT of transformers, from scratch.

    The architecture of https://arxiv.org/abs/1810.04805; nothing is pretrained.

    Args:
        data: reviews of SST-2 or MR, questions of TREC (6 kinds), news of AG News (4 kinds).
        vocabulary: word numbers; words are hashed into them, so that nothing is learned from the data.
        width: length of a word vector, a multiple of the 4 heads.
        layers: of attention.
        tiny: 200 sentences made from lists of words, 64 word numbers of length 8, 1 layer, 3 epochs.
    """
    require_extra("transformers", "models", "bert_text")
    settings = {"data": (data, "sst2"), "vocabulary": (vocabulary, 32768), "width": (width, 16), "layers": (layers, 2)}
    require(width % HEADS == 0, f"bert_text needs a width that {HEADS} heads divide; given {width}")
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
    model = partial(Bert, vocabulary, length, width, layers)
    return text_task(
        "bert_text",
        data,
        vocabulary,
        model,
        recipe,
        settings=settings,
        embedding="word_embeddings",
        tiny=tiny,
    )


class Bert(nn.Module):
    """BERT, the mean of its last states, one layer: tokens ``(B, L)``, 0 for none, to logits ``(B, K)``."""

    def __init__(self, vocabulary: int, length: int, width: int, layers: int, classes: int) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        config = BertConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=HEADS,
            intermediate_size=2 * width,
            hidden_dropout_prob=0.2,
            attention_probs_dropout_prob=0.0,  # drawn outside of a layer, where no check can switch it off
            max_position_embeddings=length,
            initializer_range=0.1,
        )
        self.bert = cast("Any", BertModel(config, add_pooling_layer=False))
        self.bert.set_input_embeddings(WordVectors(vocabulary, width))
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits; where there is no word nothing is attended to, and nothing counts."""
        if not len(tokens):  # transformers cannot shape the heads of none
            return cast("Tensor", self(tokens.new_zeros(1, tokens.shape[1]))[:0])
        there = (tokens != 0).to(self.output.weight.dtype)
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        states = self.bert(
            input_ids=tokens,
            attention_mask=there,
            token_type_ids=torch.zeros_like(tokens),
            position_ids=places,
        ).last_hidden_state
        mean = (states * there[..., None]).sum(1) / there.sum(1, keepdim=True).clamp(min=1)
        return cast("Tensor", self.output(self.dropout(mean)))
