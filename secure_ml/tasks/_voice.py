"""A voice: dilated causal convolutions over a waveform (https://arxiv.org/abs/1609.03499), and how it speaks."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 256
"""Amplitudes that are told apart, on the logarithmic scale of telephony (mu-law)."""
FRAME = 32
"""Samples for which the voice is told once what it says."""


def compress(wave: Tensor) -> Tensor:
    """Amplitudes in [-1, 1] on the scale of mu-law, again in [-1, 1]."""
    return wave.sign() * torch.log1p((LEVELS - 1) * wave.abs()) / math.log(LEVELS)


def encode(wave: Tensor) -> Tensor:
    """The level, 0 to 255, nearest to each amplitude."""
    return ((compress(wave.clamp(-1, 1)) + 1) / 2 * (LEVELS - 1)).round().long()


def decode(level: Tensor) -> Tensor:
    """The amplitude in [-1, 1] of each level."""
    scale = level / (LEVELS - 1) * 2 - 1
    return scale.sign() * torch.expm1(scale.abs() * math.log(LEVELS)) / (LEVELS - 1)


class WaveNet(nn.Module):
    """Gated dilated convolutions of 3 taps, conditioned on word, speaker and place in the clip.

    Inputs are ``wave`` ``(B, T)``, and ``digit``, ``speaker``, ``position`` (the window's first sample in the clip)
    and ``length`` (samples of the clip), all ``(B,)``; outputs are logits ``(B, T, 256)`` of the level that comes next.
    """

    def __init__(self, words: int, speakers: int, width: int, dilations: tuple[int, ...], taps: int = 16) -> None:
        super().__init__()
        self.width, self.dilations, self.taps = width, dilations, taps
        self.word, self.speaker = nn.Embedding(words, 16), nn.Embedding(speakers, 16)
        self.course = nn.Sequential(nn.Linear(49, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.told = nn.Linear(64, 2 * width * len(dilations))
        self.first = nn.Conv1d(2, width, taps)
        self.gates = nn.ModuleList(nn.Conv1d(width, 2 * width, 3, dilation=d) for d in dilations)
        self.mixes = nn.ModuleList(nn.Conv1d(width, 3 * width, 1) for _ in dilations)
        self.middle, self.last = nn.Conv1d(2 * width, 2 * width, 1), nn.Conv1d(2 * width, LEVELS, 1)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Logits of the sample after each."""
        samples = inputs["wave"].shape[1]
        told = self.tell(inputs, samples)
        hidden = self.first(F.pad(sound(inputs["wave"]), (self.taps - 1, 0)))
        skips = torch.zeros_like(hidden).repeat(1, 2, 1)
        for gate, mix, dilation, words in zip(self.gates, self.mixes, self.dilations, told, strict=True):
            turned = gate(F.pad(hidden, (2 * dilation, 0))) + words.repeat_interleave(FRAME, 2)[:, :, :samples]
            mixed = mix(gated(turned))
            hidden, skips = hidden + mixed[:, : self.width], skips + mixed[:, self.width :]
        return cast("Tensor", self.last(self.middle(skips.relu()).relu())).transpose(1, 2)

    def tell(self, inputs: dict[str, Tensor], samples: int) -> tuple[Tensor, ...]:
        """What each layer is told, ``(B, 2 width, frames)``: the word's course for this speaker at this place."""
        middles = torch.arange(0, samples, FRAME, device=inputs["wave"].device) + FRAME / 2
        length = inputs["length"][:, None].clamp(min=1)
        place = (inputs["position"][:, None] + middles) / length
        bumps = torch.exp(-((place[..., None] * 15 - torch.arange(16, device=place.device)) ** 2))
        pace = (length / 4000).expand_as(place)[..., None]
        who = torch.cat([self.word(inputs["digit"]), self.speaker(inputs["speaker"])], 1)
        course = self.course(torch.cat([bumps, pace, who[:, None].expand(-1, len(middles), -1)], 2))
        told = cast("Tensor", self.told(course)).transpose(1, 2)
        return torch.split(told, 2 * self.width, 1)


def sound(wave: Tensor) -> Tensor:
    """A waveform as the voice hears it, ``(B, 2, T)``: on both scales."""
    return torch.stack([wave, compress(wave)], 1)


def gated(turned: Tensor) -> Tensor:
    """One half of the channels, let through by the other."""
    content, door = turned.chunk(2, 1)
    return content.tanh() * door.sigmoid()


@torch.no_grad()
def speak(voice: WaveNet, said: dict[str, Tensor], rng: torch.Generator, temperature: float = 0.9) -> Tensor:
    """Waves ``(B, T)`` of the words, speakers and lengths ``(B,)`` in ``said``, T being the greatest length.

    Each convolution keeps what it heard last, so that a sample costs one step of each and not a whole window.
    """
    n, total = len(said["length"]), int(said["length"].max())
    start = torch.zeros(n, device=said["length"].device)
    told = voice.tell({"wave": start[:, None], "position": start, **said}, total)
    heard = torch.zeros(n, 2, voice.taps, device=start.device)
    pasts = [heard.new_zeros(2 * d + 1, n, voice.width) for d in voice.dilations]
    weights = [gate.weight.permute(2, 1, 0).flatten(0, 1) for gate in voice.gates]  # type: ignore[operator]
    wave = torch.zeros(n, total, device=start.device)
    last = decode(encode(start))
    for t in range(total):
        heard = torch.cat([heard[:, :, 1:], sound(last[:, None])], 2)
        hidden = voice.first(heard)[:, :, 0]
        skips = hidden.new_zeros(n, 2 * voice.width)
        layers = zip(voice.gates, voice.mixes, voice.dilations, told, pasts, weights, strict=True)
        for gate, mix, d, words, past, weight in layers:
            past[t % (2 * d + 1)] = hidden
            taps = torch.cat([past[(t - back) % (2 * d + 1)] for back in (2 * d, d, 0)], 1)
            turned = taps @ weight + gate.bias + words[:, :, t // FRAME]
            mixed = mix(gated(turned)[:, :, None])[:, :, 0]
            hidden, skips = hidden + mixed[:, : voice.width], skips + mixed[:, voice.width :]
        logits = voice.last(voice.middle(skips.relu()[:, :, None]).relu())[:, :, 0]
        wave[:, t] = last = decode(draw(logits, rng, temperature))
    return wave * (torch.arange(total, device=wave.device) < said["length"][:, None])


def draw(logits: Tensor, rng: torch.Generator, temperature: float) -> Tensor:
    """A level ``(B,)`` for each logits ``(B, 256)``, drawn on the CPU."""
    shares = (logits / temperature).softmax(-1).cpu()
    return torch.multinomial(shares, 1, generator=rng)[:, 0].to(logits.device)
