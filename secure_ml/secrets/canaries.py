"""Random secrets that were planted in the text that a language model learns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from math import log2

import numpy as np
import torch
from torch import Tensor

from secure_ml.access import BlackBox
from secure_ml.batch import Batch, Splits, join
from secure_ml.errors import NotApplicable, require
from secure_ml.outputs import Reveal
from secure_ml.randomness import generator
from secure_ml.secrets.base import Hidden, Measured, Secret, Verdict, averaged, withheld
from secure_ml.stats import Floats
from secure_ml.surfaces import Tokens
from secure_ml.task import Task
from secure_ml.training import fit
from secure_ml.victim import Victim


class Completions(BlackBox):
    """The retrained model, the text before each secret ``(C, L)``, and what may follow it: ``(C, m, length)`` symbols.

    One of the ``m`` fillings is the one that was planted; which, only the judge knows.
    """

    def __init__(self, victim: Victim, reveal: Reveal, before: Tensor, fillings: Tensor) -> None:
        super().__init__(withheld(victim.task), victim.served, reveal)
        self.before, self.fillings = before, fillings

    def log_chances(self, sequences: Tensor, last: int) -> Tensor:
        """Log-probability ``(B,)`` of the ``last`` symbols of ``(B, T + 1)`` sequences, by what is revealed."""
        pieces = []
        for piece in sequences.split(self.task.chunk):
            answers = self(piece[:, :-1])[:, -last:].log_softmax(-1)
            pieces.append(answers.gather(2, piece[:, -last:, None])[..., 0].sum(1))
        return torch.cat(pieces)


@dataclass(frozen=True)
class Canaries(Secret[Completions]):
    """Random symbols at the end of windows of the adversary's text, planted as often as ``repeats`` say, or never.

    The victim's task is trained again, with its defenses and seed, on its own text and the canaries. Exposure is the
    logarithm to base 2 of the number of fillings minus that of the planted one's rank by likelihood (ties count half).
    """

    repeats: tuple[int, ...]
    each: int
    length: int
    alphabet: int
    references: int
    reveal: Reveal

    def check(self, name: str, task: Task) -> None:
        """Raise `NotApplicable` for a task whose inputs are no text to be continued."""
        if not any(isinstance(surface, Tokens) and surface.path == () for surface in task.surfaces):
            theirs = " and ".join(type(surface).__name__ for surface in task.surfaces) or "no surface"
            raise NotApplicable(f"{name} plants symbols in text that is all of the input; {task.name} has {theirs}")

    def hide(self, victim: Victim, examples: int, seed: int) -> Hidden[Completions]:
        """Plant, retrain, and hand over the fillings; the guess is how likely each was planted, ``(C, m)``."""
        rng = generator(seed, "canaries")
        windows = _windows(victim.splits.aux, victim.task)
        times = torch.tensor([count for count in (0, *self.repeats) for _ in range(self.each)])
        length = min(self.length, windows.shape[1] - 1)
        require(len(windows) >= len(times), f"{len(times)} canaries need as many windows of auxiliary text")
        chosen = windows[torch.randperm(len(windows), generator=rng)[: len(times)].to(windows.device)]
        symbols = windows.unique()
        symbols = symbols[torch.randperm(len(symbols), generator=rng).to(symbols.device)[: self.alphabet]]
        fillings, place = _fillings(len(times), symbols, length, self.references, rng)
        before = chosen[:, :-length]
        planted = torch.cat([before, fillings[torch.arange(len(times)), place]], 1)
        retrained = _retrained(victim, planted, times)
        access = Completions(retrained, self.reveal, before, fillings)
        space = length * log2(len(symbols))
        return Hidden(access, tuple(fillings.shape[:2]), partial(self._judge, times, place, space))

    def _judge(self, times: Tensor, place: Tensor, space: float, guess: Tensor) -> Verdict:
        bits = exposure(guess, place).cpu()
        most = log2(guess.shape[1])
        exact = abs(most - space) < 1e-9
        note = f"at most {most:.1f} bits; 1.4 by chance" if exact else f"of sampled fillings: at most {most:.1f} bits"
        measured = [
            Measured(_name(count), averaged(bits[times == count]), "bits", note)
            for count in (*sorted(self.repeats, reverse=True), 0)
        ]
        evidence = {"exposure": bits, "times": times}
        if not exact:
            beyond = extrapolated(guess, place, space)
            often = max(self.repeats)
            note = f"by a skew normal fit to the fillings; at most {space:.1f} bits"
            name = f"{_name(often)}, extrapolated"
            measured.insert(1, Measured(name, averaged(beyond[times == often]), "bits", note))
            evidence["extrapolated"] = beyond
        return Verdict(measured, evidence)


def _name(count: int) -> str:
    return f"exposure, planted {count} times" if count else "exposure, never planted"


def exposure(guess: Tensor, place: Tensor) -> Tensor:
    """Bits ``(C,)`` by which the filling at ``place`` ``(C,)`` is exposed among those scored ``(C, m)``."""
    mine = guess.gather(1, place.to(guess.device)[:, None])
    rank = 1 + (guess > mine).sum(1) + ((guess == mine).sum(1) - 1) / 2
    return log2(guess.shape[1]) - rank.double().log2()


def extrapolated(guess: Tensor, place: Tensor, space: float) -> Tensor:
    """Exposure ``(C,)`` in bits from the tail of a skew normal with the moments of the other fillings' scores.

    At most ``space``, the logarithm to base 2 of the number of all fillings.
    """
    from scipy.stats import skewnorm

    bits = []
    for scores, at in zip(guess.double().cpu(), place.tolist(), strict=True):
        others = np.delete(scores.numpy(), at)
        if others.std() == 0:
            bits.append(space if float(scores[at]) > others[0] else 0.0)
            continue
        tail = skewnorm.logsf(float(scores[at]), *_skew_normal(others)) / np.log(2)
        bits.append(float(np.clip(-tail, 0.0, space)))
    return torch.tensor(bits, dtype=torch.float64)


def _skew_normal(values: Floats) -> tuple[float, float, float]:
    """Shape, place and scale of the skew normal distribution with the mean, deviation and skewness of some values."""
    mean, deviation = float(values.mean()), float(values.std())
    skewness = float(np.clip(((values - mean) ** 3).mean() / deviation**3, -0.99, 0.99))
    part = abs(skewness) ** (2 / 3)
    delta = np.sign(skewness) * np.sqrt(np.pi / 2 * part / (part + ((4 - np.pi) / 2) ** (2 / 3)))
    scale = deviation / np.sqrt(1 - 2 * delta**2 / np.pi)
    return float(delta / np.sqrt(1 - delta**2)), float(mean - scale * delta * np.sqrt(2 / np.pi)), float(scale)


def _windows(text: Batch, task: Task) -> Tensor:
    """Windows ``(n, T + 1)`` of a text whose targets are its inputs, one place on; `NotApplicable` for another."""
    inputs, target = text.inputs, text.target
    assert isinstance(inputs, Tensor)
    assert isinstance(target, Tensor)
    if inputs.shape == target.shape and torch.equal(inputs[:, 1:], target[:, :-1]):
        return torch.cat([inputs[:, :1], target], 1)
    raise NotApplicable(f"the targets of {task.name} are not its inputs, one symbol on")


def _fillings(count: int, symbols: Tensor, length: int, references: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Fillings ``(C, m, length)``, all or a sample with the planted ones in it, and the places ``(C,)`` of these."""
    base = len(symbols)
    space = base**length
    planted = torch.randint(space, (count,), generator=rng)
    if space <= references:
        codes = torch.arange(space).expand(count, -1)
        place = planted
    else:
        drawn = torch.randint(space - 1, (count, references - 1), generator=rng)
        drawn = drawn + (drawn >= planted[:, None]).long()
        place = torch.randint(references, (count,), generator=rng)
        shifted = torch.arange(references - 1)[None] + (torch.arange(references - 1)[None] >= place[:, None]).long()
        codes = torch.zeros(count, references, dtype=torch.long).scatter(1, shifted, drawn)
        codes[torch.arange(count), place] = planted
    digits = torch.stack([codes // base**power % base for power in range(length)], 2)
    return symbols[digits.to(symbols.device)], place


def _retrained(victim: Victim, planted: Tensor, times: Tensor) -> Victim:
    """The victim as it is trained on its own text and the canaries; all copies of one belong to one person."""
    splits = victim.splits
    which = torch.arange(len(planted)).repeat_interleave(times)
    copies = planted[which.to(planted.device)]
    train = splits.train
    both = Batch(join([train.inputs, copies[:, :-1]]), join([train.target, copies[:, 1:]]))
    owner = splits.owner
    if owner is not None:
        owner = torch.cat([owner, int(owner.max()) + 1 + which])
    parts: Splits = replace(splits, train=both, owner=owner)
    task = replace(victim.task, name=f"{victim.task.name}_canaries", data=lambda _: parts)
    return fit(task, victim.defenses, seed=victim.seed, device=victim.device)
