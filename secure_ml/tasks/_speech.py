"""Spoken digits: the clips, their distortions, what a recogniser hears in them, and WAV files."""

from __future__ import annotations

import io
import math
import wave
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from secure_ml.batch import Batch
from secure_ml.data import find
from secure_ml.errors import UsageError

RATE = 8000
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True, eq=False)
class Clips:
    """Recordings of one word each: waves ``(n, T)`` in [-1, 1], each scaled to its own peak and padded with 0."""

    wave: Tensor
    length: Tensor
    """Samples ``(n,)`` before the padding."""
    digit: Tensor
    speaker: Tensor
    official_test: Tensor

    def take(self, index: Tensor) -> Clips:
        """The clips at ``index``: integers ``(m,)`` or a mask ``(n,)``."""
        return Clips(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def labelled(self) -> Batch:
        """Waves ``(n, T)`` and digits ``(n,)``."""
        return Batch(self.wave, self.digit)


def spoken(length: int) -> Clips:
    """The Free Spoken Digit Dataset: 3,000 clips of 6 speakers at 8 kHz, cut or padded to ``length`` samples."""
    path = find("fsdd.npz", "the spoken digits as arrays wave, offsets, label, speaker and is_test")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            whole, offsets = torch.tensor(arrays["wave"]).float(), arrays["offsets"].tolist()
            label, speaker, test = (torch.tensor(arrays[name]) for name in ("label", "speaker", "is_test"))
    except (KeyError, ValueError, OSError):
        raise UsageError(f"{path} is not whole: it needs the arrays wave, offsets, label, speaker, is_test") from None
    waves = torch.zeros(len(label), length)
    for row, start, end in zip(waves, offsets[:-1], offsets[1:], strict=True):
        clip = whole[start : min(end, start + length)]
        row[: len(clip)] = clip / clip.abs().max().clamp(min=1)
    lengths = torch.tensor(offsets).diff().clamp(max=length)
    return Clips(waves, lengths, label.long(), speaker.long(), test.bool())


def chirps(n: int, length: int, rng: torch.Generator) -> Clips:
    """Made-up words of 4 kinds by 2 speakers: a tone that rises or falls from a low or a high pitch, with noise."""
    kind, speaker = torch.randint(4, (n,), generator=rng), torch.randint(2, (n,), generator=rng)
    lengths = torch.randint(length * 3 // 4, length + 1, (n,), generator=rng)
    time = torch.arange(length) / length
    pitch = 0.06 + 0.12 * (kind % 2) + 0.01 * speaker
    slope = 0.08 * (kind // 2)
    phase = torch.rand(n, 1, generator=rng) + (pitch[:, None] + slope[:, None] * time) * length * time
    waves = 0.8 * torch.sin(2 * math.pi * phase) + 0.05 * torch.randn(n, length, generator=rng)
    heard = torch.arange(length) < lengths[:, None]
    return Clips((waves * heard).clamp(-1, 1), lengths, kind, speaker, torch.zeros(n, dtype=torch.bool))


def distort(wave: Tensor, rng: torch.Generator) -> Tensor:
    """Waves ``(B, T)`` said again: other speed and pitch, start, colour, level of noise, with a gap and a lost band."""
    n, length = wave.shape

    def uniform(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(n, 1, generator=rng)).to(wave.device)

    speed, start = torch.exp(uniform(-0.22, 0.22)), uniform(-0.1, 0.1) * length
    wave = resample(wave, start, speed)
    at = torch.arange(length, device=wave.device)
    hole, width = uniform(-0.1, 1) * length, uniform(0, 0.1) * length
    wave = wave * ~((at > hole) & (at < hole + width))
    spectrum = spectrum_of(wave)
    share = torch.arange(spectrum.shape[1], device=wave.device) / spectrum.shape[1]
    decibels = sum(uniform(-6, 6) * torch.cos(math.pi * k * share) for k in (1, 2, 3))
    hole, width = uniform(-0.1, 1), uniform(0, 0.1)
    kept = ~((share > hole) & (share < hole + width))
    wave = torch.fft.irfft(spectrum * 10 ** (decibels / 20) * kept, length) if n else wave
    loudness = wave.square().mean(1, keepdim=True).sqrt()
    noise = torch.randn(n, length, generator=rng).to(wave.device)
    wave = wave + loudness * 10 ** (-uniform(10, 50) / 20) * noise
    return wave / wave.abs().amax(1, keepdim=True).clamp(min=1e-6) * uniform(0.5, 1)


def spectrum_of(waves: Tensor) -> Tensor:
    """The spectra ``(..., T // 2 + 1)`` of real waves ``(..., T)``; of no waves at all none, which MKL may refuse."""
    half = waves[..., : waves.shape[-1] // 2 + 1]
    spectra: Tensor = torch.fft.rfft(waves) if waves.numel() else torch.complex(half, half)
    return spectra


def resample(wave: Tensor, start: Tensor, speed: Tensor) -> Tensor:
    """Waves ``(B, T)`` read from ``start`` at ``speed``, ``(B, 1)`` in samples: between samples a line, outside 0."""
    length = wave.shape[1]
    place = start + speed * torch.arange(length, device=wave.device)
    left = place.floor()
    weight = place - left
    padded = torch.nn.functional.pad(wave, (1, 1))
    index = left.long() + 1
    before, after = (padded.gather(1, i.clamp(0, length + 1)) for i in (index, index + 1))
    return before + weight * (after - before)


class LogMel(nn.Module):
    """What is heard: waves ``(B, T)`` to log-energies ``(B, bands, frames)``, the same at every loudness.

    Nothing in it is trained. Energies more than 30 dB below the clip's mean are no louder than silence, and each
    band's mean over the clip's loud frames is taken off, and with it the colour of the room and the microphone.
    """

    window: Tensor
    mel: Tensor

    def __init__(self, bands: int = 32, window: int = 256) -> None:
        super().__init__()
        self.hop = window // 2
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        self.register_buffer("mel", mel_bands(bands, window // 2 + 1), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        """Log-energies around 0, of half-overlapping frames."""
        frames = nn.functional.pad(wave, (self.hop // 2, self.hop // 2)).unfold(1, len(self.window), self.hop)
        spectrum = spectrum_of(frames * self.window)
        energy = (spectrum.real.square() + spectrum.imag.square()) @ self.mel
        level = energy.mean((1, 2), keepdim=True) + 1e-8
        heard = (energy / level + 1e-3).log()
        loud = energy.mean(2, keepdim=True) / level
        loud = loud / (loud + 0.1)
        mean = (loud * heard).sum(1, keepdim=True) / (loud.sum(1, keepdim=True) + 1e-3)
        return (heard - mean).transpose(1, 2) / 3


def mel_bands(bands: int, bins: int) -> Tensor:
    """Triangles ``(bins, bands)`` over the bins of a spectrum up to 4 kHz, as wide as hearing is coarse."""

    def to_mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    edges = 700 * (10 ** (torch.linspace(to_mel(60), to_mel(RATE / 2), bands + 2) / 2595) - 1)
    at = torch.linspace(0, RATE / 2, bins)[:, None]
    step = RATE / 2 / (bins - 1)
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rise = (at - low) / (middle - low).clamp(min=step)
    fall = (high - at) / (high - middle).clamp(min=step)
    return torch.minimum(rise, fall).clamp(min=0)


class Recogniser(nn.Module):
    """Convolutions over what is heard, over time and bands alike: waves ``(B, T)`` to logits ``(B, words)``."""

    def __init__(self, words: int, width: int, bands: int = 32, window: int = 256) -> None:
        super().__init__()
        self.ear = LogMel(bands, window)
        self.body = nn.Sequential(
            *_layer(1, width, 5, stride=2),
            *_layer(width, 2 * width, 3),
            nn.MaxPool2d((2, 1)),
            *_layer(2 * width, 4 * width, 3),
            nn.MaxPool2d(2),
            nn.Conv2d(4 * width, 6 * width, (bands // 8, 3), padding=(0, 1), bias=False),
            nn.GroupNorm(4, 6 * width),
            nn.ReLU(),
        )
        self.dropout = nn.Dropout(0.3)
        self.output = nn.Linear(12 * width, words)

    def forward(self, wave: Tensor) -> Tensor:
        """Logits from the mean and the largest response over time."""
        heard = self.body(self.ear(wave)[:, None]).flatten(2)
        return cast("Tensor", self.output(self.dropout(torch.cat([heard.mean(2), heard.amax(2)], 1))))


def _layer(inputs: int, outputs: int, size: int, stride: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)  # the norm would take it off again
    return convolution, nn.GroupNorm(4, outputs), nn.ReLU()


def wav(samples: Tensor) -> bytes:
    """A WAV file, 8 kHz and 16 bits, of samples ``(T,)`` in [-1, 1]."""
    data = (samples.detach().cpu().clamp(-1, 1) * 32767).round().short().numpy()
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(data.astype("<i2").tobytes())
    return buffer.getvalue()
