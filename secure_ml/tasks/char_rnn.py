"""A recurrent network that writes text, character by character."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from secure_ml.batch import Splits
from secure_ml.data import split
from secure_ml.errors import require
from secure_ml.outputs import NextToken
from secure_ml.scores import NatsPerCharacter
from secure_ml.task import Recipe, Task, next_token_loss
from secure_ml.tasks._characters import (
    CHARACTERS,
    LENGTH,
    TINY_LENGTH,
    encode,
    known,
    read,
    sampled,
    shakespeare,
    sonnets,
    spelled,
    windows,
)
from secure_ml.threats import Edits

NAMES_LENGTH = 32


def char_rnn(*, text: Literal["shakespeare", "names"] = "shakespeare", width: int = 256, tiny: bool = False) -> Task:
    """Tiny Shakespeare (1,115,394 characters, the last 10 % to test), an LSTM that starts each window from nothing.

    Args:
        text: shakespeare in windows of 128 characters, or names (32,033 of them, one a line) in windows of 32.
        width: units of the LSTM.
        tiny: three sonnets in windows of 8 characters, 8 units, 3 epochs.
    """
    require(width >= 1, f"char_rnn needs a width of at least 1; given {width}")
    width = 8 if tiny else width
    settings = {"text": (text, "shakespeare"), "width": (width, 256)}
    options = ", ".join(f"{name}={value!r}" for name, (value, default) in settings.items() if value != default)
    length = TINY_LENGTH if tiny else {"shakespeare": LENGTH, "names": NAMES_LENGTH}[text]
    return Task(
        name="char_rnn",
        build=partial(LSTM, len(CHARACTERS), 32, width),
        data=sonnets if tiny else {"shakespeare": shakespeare, "names": _names}[text],
        loss=next_token_loss,
        output=NextToken(),
        score=NatsPerCharacter(),
        surfaces=(spelled(),),
        threat=Edits(2),
        recipe=Recipe(
            epochs=3 if tiny else 8,
            batch_size=16 if tiny else 32,
            optimizer="AdamW",
            learning_rate=0.03 if tiny else 4e-3,
            weight_decay=0.01,
            schedule="cosine",
        ),
        sample=sampled(length),
        chunk=64,
        unit="window",
        assumes=("the 65 characters that occur are public",),
        options="tiny=True" if tiny else options,
    )


class LSTM(nn.Module):
    """Long short-term memory (https://doi.org/10.1162/neco.1997.9.8.1735): tokens ``(B, T)`` to logits ``(B, T, V)``.

    The states are found step by step, then the layer ``state`` is shown all of them at once: it has one gradient
    to work out for each example instead of T, and Opacus sees one call of a `torch.nn.Linear`.
    """

    def __init__(self, vocabulary: int, embedding: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.input = nn.Linear(embedding, 4 * width)
        self.state = nn.Linear(width, 4 * width, bias=False)
        self.dropout = nn.Dropout(0.1)
        self.output = nn.Linear(width, vocabulary)
        nn.init.orthogonal_(self.state.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits; the state before the first token is zero."""
        drive, weight = self.input(self.embedding(tokens)), self.state.weight.detach()
        states, steps = unroll(drive.detach(), weight)
        after = states[:, 1:]
        if torch.is_grad_enabled():
            after = _Replay.apply(drive + self.state(states[:, :-1]), weight, after, steps)
        return cast("Tensor", self.output(self.dropout(after)))


_Step = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Gates keep, write and show, the new value, the cell before, and the tanh of the cell after: each ``(B, H)``."""


def unroll(drive: Tensor, weight: Tensor) -> tuple[Tensor, list[_Step]]:
    """States ``(B, T + 1, H)``, the first of them zero, from the inputs' part ``(B, T, 4 H)`` of the gates' sums."""
    width = weight.shape[1]
    state = cell = drive.new_zeros(len(drive), width)
    states, steps = [state], []
    for part in drive.unbind(1):
        sums = torch.addmm(part, state, weight.T)
        keep, write, show = sums[:, : 3 * width].sigmoid().chunk(3, 1)
        new = sums[:, 3 * width :].tanh()
        before, cell = cell, keep * cell + write * new
        bent = cell.tanh()
        state = show * bent
        steps.append((keep, write, show, new, before, bent))
        states.append(state)
    return torch.stack(states, 1), steps


class _Replay(torch.autograd.Function):
    """The states after each step as a function of the gates' sums, whose steps are known already."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, weight: Tensor, after: Tensor, steps: list[_Step]) -> Tensor:  # noqa: ARG004
        ctx.weight, ctx.steps = weight, steps
        return after.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Backpropagation through time."""
        found = []
        state = cell = torch.zeros_like(gradient[:, 0])
        for (keep, write, show, new, before, bent), part in zip(
            reversed(ctx.steps), reversed(gradient.unbind(1)), strict=True
        ):
            state = state + part
            cell = cell + state * show * (1 - bent * bent)
            slopes = (
                cell * before * keep * (1 - keep),
                cell * new * write * (1 - write),
                state * bent * show * (1 - show),
                cell * write * (1 - new * new),
            )
            found.append(torch.cat(slopes, 1))
            cell, state = cell * keep, found[-1] @ ctx.weight
        return torch.stack(found[::-1], 1), None, None, None


def _names(rng: torch.Generator) -> Splits:
    """Windows of the names, one name a line, dealt at random."""
    tokens = encode(known(read("text/names.txt")))
    return split(windows(tokens, NAMES_LENGTH), rng, validation=300, test=700, aux=700)
