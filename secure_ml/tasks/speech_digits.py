"""Spoken digits from the waveform, by known speakers or by one who was never heard."""

from __future__ import annotations

from functools import partial

import torch

from secure_ml.batch import Batch, Splits
from secure_ml.data import hold_out, split
from secure_ml.errors import require
from secure_ml.surfaces import Box
from secure_ml.task import Recipe, Task, unchanged
from secure_ml.tasks._speech import SPEAKERS, Recogniser, chirps, distort, spoken
from secure_ml.threats import SNR

LENGTH = 6144
"""Samples, 0.77 seconds; 2.4 % of the clips are longer, and 1.1 % of all sound is cut off."""


def speech_digits(*, speaker: int | None = None, width: int = 16, tiny: bool = False) -> Task:
    """Spoken digits (FSDD, 3,000 clips of 6 speakers, 8 kHz), convolutions over a fixed log-mel spectrogram.

    Args:
        speaker: 0 to 5, left out of training and tested on; none means the official split, all speakers in both.
        width: channels of the first convolution.
        tiny: 160 chirps of 256 samples and 4 kinds, 4 channels, 2 epochs.
    """
    require(speaker is None or 0 <= speaker < len(SPEAKERS), f"speech_digits has speakers 0 to 5; given {speaker}")
    require(width >= 4 and width % 4 == 0, f"speech_digits needs a width divisible by 4; given {width}")
    settings = {"speaker": (speaker, None), "width": (width, 16)}
    options = ", ".join(f"{name}={value!r}" for name, (value, default) in settings.items() if value != default)
    return Task(
        name="speech_digits",
        build=partial(Recogniser, 4, 4, bands=8, window=32) if tiny else partial(Recogniser, 10, width),
        data=_tiny if tiny else partial(_clips, speaker),
        surfaces=(Box(-1, 1),),
        threat=SNR(30),
        augment=unchanged if tiny else _said_again,
        recipe=Recipe(
            epochs=4 if tiny else 40,
            batch_size=16 if tiny else 64,
            optimizer="AdamW",
            learning_rate=3e-3,
            weight_decay=0.01,
            schedule="cosine",
        ),
        unit="clip",
        options="tiny=True" if tiny else options,
    )


def _said_again(batch: Batch, rng: torch.Generator) -> Batch:
    assert isinstance(batch.inputs, torch.Tensor)
    return Batch(distort(batch.inputs, rng), batch.target)


def _clips(speaker: int | None, rng: torch.Generator) -> Splits:
    """Of 2,700 (one speaker left out: 2,500) clips 200 validate, 300 are the adversary's, 200 non-members."""
    clips = spoken(LENGTH)
    test = clips.official_test if speaker is None else clips.speaker == speaker
    known, held = clips.take(~test).labelled(), clips.take(test).labelled()
    return hold_out(known, held, rng, validation=200, aux=300, others=200, owner=clips.take(~test).speaker)


def _tiny(rng: torch.Generator) -> Splits:
    clips = chirps(160, 256, rng)
    return split(clips.labelled(), rng, validation=16, test=40, aux=24, owner=clips.speaker)
