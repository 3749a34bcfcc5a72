"""A spoken dialogue: two digits are heard over a bad line, and their sum is said or they are asked for again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secure_ml.batch import Batch, Splits, Tree
from secure_ml.errors import require
from secure_ml.scores import Accuracy
from secure_ml.surfaces import Box
from secure_ml.task import Predictor, Recipe, Sample, Task, unchanged
from secure_ml.tasks._calls import LENGTH, TAKES, answers, call, understood
from secure_ml.tasks._speech import DIGITS, Recogniser, chirps, distort, spoken, wav
from secure_ml.threats import SNR

TURNS = 2
OPEN = 0.05
"""Reward for each nat of indecision about asking, without which the policy settles before the words are known."""


def dialogue(*, cost: float = 0.1, voice: str = "", tiny: bool = False) -> Task:
    """Two spoken digits (FSDD, noise at -5 to 20 dB): answer their sum modulo 10, or ask for them again before.

    The policy learns the sum, and when to ask, from the rewards of answers; the words are learned from labels.

    Args:
        cost: what asking again takes off the reward of 1 for the right answer.
        voice: folder of a saved wavenet that speaks the answers; without one they are recordings.
        tiny: 120 dialogues in chirps of 128 samples and 4 kinds, 4 channels, 2 epochs.
    """
    require(0 <= cost <= 1, f"dialogue needs a cost of asking between 0 and 1; given {cost}")
    settings = {"cost": (cost, 0.1), "voice": (voice, "")}
    options = ", ".join(f"{name}={value!r}" for name, (value, default) in settings.items() if value != default)
    words = 4 if tiny else len(DIGITS)
    return Task(
        name="dialogue",
        build=partial(Speaker, 4, 4, bands=8, window=32) if tiny else partial(Speaker, words, 12),
        data=_tiny if tiny else _calls,
        loss=partial(outcome_loss, cost),
        score=Success(),
        also=(AskedAgain(), UnderstoodAnswer(voice, tiny)),
        surfaces=(Box(-1, 1),),
        threat=SNR(30),
        augment=unchanged if tiny else _said_again,
        recipe=Recipe(
            epochs=2 if tiny else 20,
            batch_size=16 if tiny else 32,
            optimizer="AdamW",
            learning_rate=3e-3,
            weight_decay=0.01,
            schedule="cosine",
            patience=None if tiny else 10,
        ),
        sample=None if tiny else partial(_exchange, voice),
        chunk=100,
        unit="dialogue",
        assumes=("a recording may lie in several dialogues, each protected on its own",),
        options="tiny=True" if tiny else options,
    )


class Speaker(nn.Module):
    """A recogniser and a policy: calls ``(B, 4, T)``, two words and the same two again, to scores ``(B, 2 words)``.

    The first half of the scores stands for an answer at once, the second for asking again and answering then. The
    highest is the way that the dialogue goes: whether to ask depends on the first turn alone, since the best answer of
    each half has no more than what asking, or not, is worth. Asked for less, it goes half of the way: a dictionary
    with ``heard`` to the words' log-probabilities ``(B, 4, words)``, one with ``words`` to those of all ways.
    """

    def __init__(self, words: int, width: int, bands: int = 32, window: int = 256) -> None:
        super().__init__()
        self.recogniser = Recogniser(words, width, bands, window)
        self.answer = nn.Linear(words * words, words)
        self.ask = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, inputs: Tree) -> Tensor:
        """Logits, or the half of the way that is asked for."""
        if isinstance(inputs, dict) and "words" in inputs:
            return self.decide(cast("Tensor", inputs["words"]), lambda scores: scores.logsumexp(1, keepdim=True))
        if isinstance(inputs, dict):
            return self.listen(cast("Tensor", inputs["heard"]))
        return self.decide(self.listen(cast("Tensor", inputs)), lambda scores: scores.amax(1, keepdim=True))

    def listen(self, call: Tensor) -> Tensor:
        """The words' log-probabilities."""
        return torch.stack([self.recogniser(wave) for wave in call.unbind(1)], 1).log_softmax(-1)

    def decide(self, words: Tensor, level: Callable[[Tensor], Tensor]) -> Tensor:
        """Scores of the ways that the dialogue may go; a second turn adds to what the first one told."""
        first, again = words[:, :2], words[:, 2:]
        asks = self.ask(torch.cat([first.amax(2), (first.exp() * first).sum(2)], 1))
        both = (first + again).log_softmax(-1)
        at_once, then = (self.answer(10 * pairs(turn)) for turn in (first, both))
        return torch.cat([at_once - level(at_once) + F.logsigmoid(-asks), then - level(then) + F.logsigmoid(asks)], 1)


def pairs(words: Tensor) -> Tensor:
    """The probabilities ``(B, words^2)`` of all pairs of words, from log-probabilities ``(B, 2, words)``."""
    first, second = words.exp().unbind(1)
    return (first[:, :, None] * second[:, None, :]).flatten(1)


def outcome_loss(cost: float, predictor: Predictor, batch: Batch) -> Tensor:
    """The reward ``(B,)`` that is missed on average over the policy's choices, and the words' mean cross-entropy."""
    target = cast("dict[str, Tensor]", batch.target)
    words = predictor({"heard": batch.inputs})
    ways = predictor({"words": words}).softmax(-1).unflatten(1, (TURNS, -1))
    right = ways.gather(2, target["answer"][:, None, None].expand(-1, TURNS, 1))[:, :, 0]
    asks = ways.sum(2).clamp(min=1e-6)
    missed = 1 - right.sum(1) + cost * ways[:, 1].sum(1) - OPEN * torch.special.entr(asks).sum(1)
    heard = F.cross_entropy(words.flatten(0, 1), target["words"].flatten(), reduction="none")
    return cast("Tensor", missed + heard.unflatten(0, target["words"].shape).mean(1))


@dataclass(frozen=True)
class Success(Accuracy):
    """Share of dialogues that end with the right answer, at once or after asking again."""

    name: ClassVar[str] = "task success"

    def per_example(self, outputs: Tensor, target: Tree) -> Tensor:
        """1 where the answer is right, 0 where it is wrong."""
        right = cast("dict[str, Tensor]", target)["answer"]
        answer = outputs.argmax(1) % (outputs.shape[1] // TURNS)
        return answer.eq(right).float()


@dataclass(frozen=True)
class AskedAgain(Accuracy):
    """Share of dialogues in which the digits are asked for again."""

    name: ClassVar[str] = "asked again"
    higher_is_better: ClassVar[bool] = False
    ceiling: ClassVar[float] = 1.0

    def per_example(self, outputs: Tensor, target: Tree) -> Tensor:
        """1 where it asks."""
        return (outputs.argmax(1) >= outputs.shape[1] // TURNS).float()


@dataclass(frozen=True)
class UnderstoodAnswer(Success):
    """Share of dialogues whose right answer was also spoken so that an independent recogniser understands it.

    That recogniser is a support vector machine on undistorted recordings. The answers are spoken by the wavenet saved
    in the folder ``voice``, or, without one, are recordings that the machine was not trained on.
    """

    voice: str = ""
    tiny: bool = False
    name: ClassVar[str] = "task success, answer understood"

    def per_example(self, outputs: Tensor, target: Tree) -> Tensor:
        """1 where the answer is right and understood."""
        answer = (outputs.argmax(1) % (outputs.shape[1] // TURNS)).cpu()
        clear = understood(self.voice, self.tiny)[answer, torch.arange(len(answer)) % TAKES]
        return super().per_example(outputs, target) * clear.to(outputs.device)


def _said_again(batch: Batch, rng: torch.Generator) -> Batch:
    call = cast("Tensor", batch.inputs)
    return Batch(distort(call.flatten(0, 1), rng).reshape(call.shape), batch.target)


def _calls(rng: torch.Generator) -> Splits:
    """1,500 dialogues in 2,000 clips to train; 200 each in 200 to validate and as non-members; 300 in 300 for aux."""
    clips = spoken(LENGTH)
    order = torch.nonzero(~clips.official_test)[:, 0]
    order = order[torch.randperm(len(order), generator=rng)]
    parts = [clips.take(part) for part in order.split([2000, 200, 300, 200])]
    parts.insert(2, clips.take(clips.official_test))
    return Splits(*(call(part, n, rng) for part, n in zip(parts, (1500, 200, 300, 300, 200), strict=True)))


def _tiny(rng: torch.Generator) -> Splits:
    return Splits(*(call(chirps(60, 128, rng), n, rng) for n in (60, 12, 32, 16)))


def _exchange(voice: str, predictor: Predictor, prompt: str, rng: torch.Generator) -> Sample:
    """One dialogue from the official clips about the digits of a prompt like "3 8", or about any."""
    clips = spoken(LENGTH)
    clips = clips.take(clips.official_test)
    asked = [DIGITS.index(w) if w in DIGITS else int(w) for w in prompt.lower().split() if w in DIGITS or w.isdigit()]
    one = call(clips, 500, rng)
    target = cast("dict[str, Tensor]", one.target)
    fits = [i for i, words in enumerate(target["words"][:, :2].tolist()) if len(asked) != 2 or words == asked]
    require(len(fits) > 0, f'dialogue is about two digits, as in "3 8"; given {prompt!r}')
    one = one.take(slice(fits[0], fits[0] + 1))
    target, wave = cast("dict[str, Tensor]", one.target), cast("Tensor", one.inputs)[0]
    way = int(predictor(one.inputs).argmax(1))
    answer, again = way % len(DIGITS), way >= len(DIGITS)
    heard = predictor({"heard": one.inputs})[0].argmax(1).tolist()
    turns = [f"user: {_spell(target['words'][0, :2])} (understood: {_spell(heard[:2])})"]
    if again:
        turns += ["system: again, please", f"user: {_spell(target['words'][0, :2])} (understood: {_spell(heard[2:])})"]
    turns += [f"system: {DIGITS[answer]} ({'right' if answer == int(target['answer'][0]) else 'wrong'})"]
    spoken_words = wave.flatten(0, 1) if again else wave[:2].flatten(0, 1)
    said = answers(voice, clips)[answer, 0]
    return Sample("\n".join(turns), {"user.wav": wav(spoken_words), "system.wav": wav(said)})


def _spell(words: Any) -> str:
    return ", ".join(DIGITS[int(word)] for word in words)
