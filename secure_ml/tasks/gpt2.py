"""A small transformer of the GPT-2 kind that writes text, character by character."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from secure_ml.data import require_extra
from secure_ml.errors import require
from secure_ml.outputs import NextToken
from secure_ml.scores import NatsPerCharacter
from secure_ml.task import Recipe, Task, next_token_loss
from secure_ml.tasks._characters import CHARACTERS, LENGTH, TINY_LENGTH, sampled, shakespeare, sonnets, spelled
from secure_ml.threats import Edits

HEAD = 32
"""Width of an attention head."""


def gpt2(*, layers: int = 4, width: int = 96, tiny: bool = False) -> Task:
    """Tiny Shakespeare (1,115,394 characters, the last 10 % to test), a small GPT-2 from nothing.

    Args:
        layers: transformer blocks.
        width: length of a vector, a multiple of 32; an attention head has 32.
        tiny: three sonnets in windows of 8 characters, 1 block, 1 head of width 32, 3 epochs.
    """
    require_extra("transformers", "models", "gpt2")
    require(layers >= 1, f"gpt2 needs at least 1 layer; given {layers}")
    require(width >= HEAD and width % HEAD == 0, f"gpt2 needs a width that is a multiple of {HEAD}; given {width}")
    settings = {"layers": (layers, 4), "width": (width, 96)}
    options = ", ".join(f"{name}={value!r}" for name, (value, default) in settings.items() if value != default)
    layers, width, length = (1, HEAD, TINY_LENGTH) if tiny else (layers, width, LENGTH)
    return Task(
        name="gpt2",
        build=partial(small_gpt2, len(CHARACTERS), length, layers, width),
        data=sonnets if tiny else shakespeare,
        loss=next_token_loss,
        output=NextToken(),
        score=NatsPerCharacter(),
        surfaces=(spelled("wte"),),
        threat=Edits(2),
        recipe=Recipe(
            epochs=3 if tiny else 16,
            batch_size=16,
            optimizer="AdamW",
            learning_rate=0.01 if tiny else 3e-3,
            weight_decay=0.01,
            schedule="cosine",
        ),
        sample=sampled(length),
        chunk=64,
        unit="window",
        assumes=("the 65 characters that occur are public",),
        options="tiny=True" if tiny else options,
    )


def small_gpt2(vocabulary: int, length: int, layers: int, width: int) -> nn.Module:
    """A GPT-2 of random weights without dropout: tokens ``(B, T)``, T up to ``length``, to logits ``(B, T, V)``."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=length,
        n_embd=width,
        n_layer=layers,
        n_head=width // HEAD,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own, in one kernel
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
        use_cache=False,
    )
    return CausalLM(GPT2LMHeadModel(config))


class CausalLM(nn.Module):
    """A causal language model of transformers, in layers that Opacus knows: tokens ``(B, T)`` to logits ``(B, T, V)``.

    GPT-2's layers named Conv1D become `torch.nn.Linear`, and the output layer has weights of its own.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        model.config.tie_word_embeddings = model.config.use_cache = False
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        for part in list(model.modules()):
            for name, layer in list(part.named_children()):
                if type(layer).__name__ == "Conv1D":
                    setattr(part, name, _linear(layer))
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits; every example has its own row of positions, as per-example gradients need it."""
        rows = tokens if len(tokens) else tokens.new_zeros(1, tokens.shape[1])  # transformers takes no batch of 0
        positions = torch.arange(rows.shape[1], device=rows.device).expand(rows.shape)
        return cast("Tensor", self.model(input_ids=rows, position_ids=positions).logits[: len(tokens)])


def _linear(layer: Any) -> nn.Linear:
    """The same map as a Conv1D of transformers, whose weight is the transpose."""
    linear = nn.Linear(*layer.weight.shape)
    linear.weight = nn.Parameter(layer.weight.detach().T.contiguous())
    linear.bias = nn.Parameter(layer.bias.detach().clone())
    return linear
