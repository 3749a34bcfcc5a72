"""Calls over a bad line, and spoken answers with somebody who listens to them."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from secure_ml.batch import Batch
from secure_ml.tasks._speech import DIGITS, Clips, LogMel, chirps, spoken
from secure_ml.tasks._voice import speak

LENGTH = 5120
"""Samples of a word, 0.64 seconds; 6.6 % of the clips are longer, and 2.2 % of all sound is cut off."""
VOICE = 1
"""The speaker that the answers are given by."""
TAKES = 5
"""Ways in which each answer is spoken, in turn."""


def call(clips: Clips, n: int, rng: torch.Generator) -> Batch:
    """Calls ``(n, 4, T)`` of one speaker each, noise included; the sum of the words, and the words ``(n, 4)``."""
    first = torch.randint(len(clips.digit), (n,), generator=rng)
    second = _pick(clips.speaker[first][:, None] == clips.speaker, rng)
    index = torch.stack([first, second, *(_pick(_alike(clips, word), rng) for word in (first, second))], 1)
    wave, words = clips.wave[index], clips.digit[index]
    length = clips.length[index][..., None]
    loudness = (wave.square().sum(2, keepdim=True) / length).sqrt()
    decibels = torch.rand(n, 1, 1, generator=rng) * 25 - 5
    noise = torch.randn(wave.shape, generator=rng) * loudness * 10 ** (-decibels / 20)
    wave = wave + noise
    answer = (words[:, 0] + words[:, 1]) % (int(clips.digit.max()) + 1)
    return Batch(wave / wave.abs().amax(2, keepdim=True).clamp(min=1e-6), {"answer": answer, "words": words})


def _alike(clips: Clips, index: Tensor) -> Tensor:
    """Which clips ``(n, clips)`` have the speaker and the word of those at ``index``, themselves only if alone."""
    same = (clips.speaker[index][:, None] == clips.speaker) & (clips.digit[index][:, None] == clips.digit)
    return same & ((index[:, None] != torch.arange(len(clips.digit))) | (same.sum(1, keepdim=True) == 1))


def _pick(allowed: Tensor, rng: torch.Generator) -> Tensor:
    """One allowed column ``(n,)`` of each row of a mask ``(n, clips)``."""
    return torch.multinomial(allowed.float(), 1, generator=rng)[:, 0]


def answers(voice: str, clips: Clips) -> Tensor:
    """Every answer in ``TAKES`` takes, ``(words, TAKES, T)``: by the voice saved in a folder, or recordings."""
    length = clips.wave.shape[1]
    if not voice:
        mine = clips.take(clips.speaker == VOICE)
        takes = [mine.wave[mine.digit == digit] for digit in range(int(clips.digit.max()) + 1)]
        return torch.stack([wave[torch.arange(TAKES) % len(wave)] for wave in takes])
    from secure_ml.tasks.wavenet import PACE, wavenet
    from secure_ml.victim import Victim

    module = Victim.load(voice, wavenet(), device="cpu").module
    digit = torch.arange(len(DIGITS)).repeat_interleave(TAKES)
    said = {"digit": digit, "speaker": torch.full_like(digit, VOICE), "length": torch.full_like(digit, PACE[VOICE])}
    wave = speak(cast("Any", module), said, torch.Generator().manual_seed(0))
    wave = wave / wave.abs().amax(1, keepdim=True).clamp(min=1e-6)
    return F.pad(wave, (0, length - wave.shape[1])).reshape(-1, TAKES, length)


@cache
def understood(voice: str, tiny: bool) -> Tensor:
    """Whether the independent recogniser understands each take of each answer, ``(words, TAKES)``."""
    from sklearn.svm import SVC

    ear = LogMel(8, 32) if tiny else LogMel()
    clips = chirps(200, 128, torch.Generator().manual_seed(0)) if tiny else spoken(LENGTH)
    known = torch.arange(200) < 100 if tiny else ~clips.official_test
    judge: Any = SVC(C=10).fit(ear(clips.wave[known]).flatten(1).numpy(), clips.digit[known])
    said = answers(voice, clips.take(~known))
    heard = torch.as_tensor(judge.predict(ear(said.flatten(0, 1)).flatten(1).numpy())).reshape(said.shape[:2])
    right: Tensor = heard == torch.arange(len(said))[:, None]
    return right.float()
