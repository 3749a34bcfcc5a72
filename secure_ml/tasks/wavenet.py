"""A voice that says digits, sample by sample."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from secure_ml.batch import Batch, Splits, Tree
from secure_ml.errors import UsageError, require
from secure_ml.outputs import NextToken
from secure_ml.scores import NatsPerSample
from secure_ml.surfaces import Box
from secure_ml.task import Predictor, Recipe, Sample, Task, next_token_loss
from secure_ml.tasks._speech import DIGITS, SPEAKERS, Clips, chirps, spoken, wav
from secure_ml.tasks._voice import WaveNet, decode, draw, encode, speak
from secure_ml.threats import SNR
from secure_ml.victim import Plain

PACE = (3441, 3933, 4335, 2789, 2957, 2776)
"""Samples that each speaker takes for a word, the median."""
CONTEXT = 512
"""Samples that are shown to a predictor for the next one, where it can only be asked."""


def wavenet(*, width: int = 48, window: int = 1024, tiny: bool = False) -> Task:
    """WaveNet of spoken digits (FSDD, 8 kHz, 256 levels) by 6 speakers, told the word, the speaker and the place in it.

    Args:
        width: channels.
        window: samples of one example; a clip is cut into as many as fit side by side.
        tiny: about 300 windows of 64 samples of made-up words, 8 channels, 2 epochs.
    """
    require(width >= 1, f"wavenet needs a width of at least 1; given {width}")
    require(window >= 32, f"wavenet needs windows of at least 32 samples; given {window}")
    settings = {"width": (width, 48), "window": (window, 1024)}
    options = ", ".join(f"{name}={value!r}" for name, (value, default) in settings.items() if value != default)
    real = partial(WaveNet, len(DIGITS), len(SPEAKERS), width, (1, 3, 9, 27, 81, 243))
    return Task(
        name="wavenet",
        build=partial(WaveNet, 4, 2, 8, (1, 3, 9), taps=4) if tiny else real,
        data=_tiny if tiny else partial(_windows, window),
        loss=next_token_loss,
        output=NextToken(),
        score=NatsPerSample(),
        surfaces=(Box(-1, 1, path=("wave",)),),
        threat=SNR(30),
        recipe=Recipe(
            epochs=2,
            batch_size=16 if tiny else 8,
            optimizer="Adam",
            learning_rate=3e-3,
            schedule="cosine",
        ),
        sample=partial(_say, 64 if tiny else None),
        chunk=64,
        unit="window",
        assumes=("a clip may hold several windows, each protected on its own",),
        options="tiny=True" if tiny else options,
    )


def _windows(window: int, rng: torch.Generator) -> Splits:
    """About 6,000 windows of 2,000 clips to train; 300 of 200 clips to validate, 300 of the official test's.

    The adversary has those of 300 clips, and non-members are those of 200: cut as the members are.
    """
    clips = spoken(8192)
    order = torch.nonzero(~clips.official_test)[:, 0]
    order = order[torch.randperm(len(order), generator=rng)]
    validation, aux, others, train = (clips.take(part) for part in order.split([200, 300, 200, 2000]))
    test = clips.take(clips.official_test)
    heard = cut(test, window)
    spread = torch.linspace(0, len(heard) - 1, 300).long()
    parts = (shuffled(cut(part, window), rng) for part in (train, validation, aux, others))
    members, checked, pool, strangers = parts
    return Splits(members, checked.take(slice(0, 300)), heard.take(spread), pool, others=strangers)


def _tiny(rng: torch.Generator) -> Splits:
    order = torch.randperm(200, generator=rng)
    clips = chirps(200, 128, rng)
    train, validation, test, aux = (clips.take(part) for part in order.split([120, 20, 40, 20]))
    return Splits(*(cut(part, 64) for part in (train, validation, test, aux)))


def cut(clips: Clips, window: int) -> Batch:
    """As many windows as fit into each clip side by side, evenly spread; of a shorter clip one, padded with silence."""
    which, starts = [], []
    for i, length in enumerate(clips.length.tolist()):
        count = max(length // (window + 1), 1)
        which += [i] * count
        starts += torch.linspace(0, max(length - window - 1, 0), count).long().tolist()
    return _at(clips.take(torch.tensor(which)), torch.tensor(starts), window)


def shuffled(batch: Batch, rng: torch.Generator) -> Batch:
    """The examples in random order, so that any first few come from many clips."""
    return batch.take(torch.randperm(len(batch), generator=rng))


def _at(clips: Clips, start: Tensor, window: int) -> Batch:
    index = start[:, None] + torch.arange(window + 1)
    levels = encode(torch.nn.functional.pad(clips.wave, (0, window + 1)).gather(1, index))
    inputs: dict[str, Tree] = {
        "wave": decode(levels[:, :-1]),
        "digit": clips.digit,
        "speaker": clips.speaker,
        "position": start,
        "length": clips.length,
    }
    return Batch(inputs, levels[:, 1:])


def _say(samples: int | None, predictor: Predictor, prompt: str, rng: torch.Generator) -> Sample:
    """The digit and, if named, the speaker of a prompt like "7 jackson", as a WAV file."""
    digit, _, name = (prompt.strip() or "7").lower().partition(" ")
    number = DIGITS.index(digit) if digit in DIGITS else int(digit) if digit in tuple("0123456789") else -1
    speaker = SPEAKERS.index(name.strip()) if name.strip() in SPEAKERS else 1 if not name.strip() else -1
    if number < 0 or speaker < 0:
        raise UsageError(f'wavenet says a digit, as in "7" or "7 jackson"; given {prompt!r} (speakers: {SPEAKERS})')
    said = {name: torch.tensor([value]) for name, value in (("digit", number), ("speaker", speaker))}
    if samples is not None:
        said = {"digit": said["digit"] % 4, "speaker": said["speaker"] % 2}
    said["length"] = torch.tensor([samples or PACE[speaker]])
    module = predictor.module if isinstance(predictor, Plain) else predictor
    if isinstance(module, WaveNet):
        device = module.first.weight.device
        heard = speak(module.eval(), {key: value.to(device) for key, value in said.items()}, rng)
    else:
        heard = _ask(predictor, said, rng)
    seconds = heard.shape[1] / 8000
    return Sample(f"{DIGITS[number]}, said by {SPEAKERS[speaker]} in {seconds:.2f} s", {f"{number}.wav": wav(heard[0])})


def _ask(predictor: Predictor, said: dict[str, Tensor], rng: torch.Generator) -> Tensor:
    """The same from answers alone: a window for every sample."""
    wave = torch.zeros(1, 1)
    for _ in range(int(said["length"])):
        near = decode(encode(wave[:, -CONTEXT:]))
        position = torch.tensor([wave.shape[1] - near.shape[1]])
        logits = predictor({"wave": near, "position": position, **said})[:, -1].cpu()
        wave = torch.cat([wave, decode(draw(logits, rng, 0.9))[:, None]], 1)
    return wave[:, 1:]
