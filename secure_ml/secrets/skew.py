"""Whether a training set was skewed: the share of one class in it, high or low."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from secure_ml.access import Access, BlackBox
from secure_ml.batch import Batch, Splits, Tree, leaves
from secure_ml.errors import NotApplicable
from secure_ml.outputs import Reveal
from secure_ml.randomness import derive, generator
from secure_ml.secrets.base import Hidden, Measured, Secret, Verdict, require_class, withheld
from secure_ml.stats import auc, clopper_pearson, pooled
from secure_ml.task import Task
from secure_ml.training import fit_many
from secure_ml.victim import Victim

LEAST = 8
"""Examples of which a skewed training set can be made."""


class Suspects(Access):
    """Served models, each trained on data of one share or the other, and shadows of known shares for the asking."""

    def __init__(self, secret: Skew, victim: Victim, suspects: Sequence[Victim], own: Batch, seed: int) -> None:
        super().__init__(withheld(victim.task))
        self.aux, self._secret, self._victim, self._own, self._seed = own, secret, victim, own, seed
        self._served = list(suspects)

    def __call__(self, inputs: Tree) -> Tensor:
        """What is revealed of every suspect's answers, ``(M, B, ...)``."""
        self.queries += len(self._served) * len(next(leaves(inputs)))
        return self._ask(self._served, inputs)

    def shadows(self, count: int, inputs: Tree) -> tuple[Tensor, Tensor]:
        """Answers ``(count, B, ...)`` of the adversary's own models, and which of them ``(count,)`` had the high share.

        They are trained on auxiliary data like the suspects, with the victim's defenses, and reveal as much.
        """
        high = torch.arange(count) % 2 == 1
        return self._ask(self._secret.train(self._victim, self._own, high, self._seed), inputs), high

    def _ask(self, models: Sequence[Victim], inputs: Tree) -> Tensor:
        return torch.stack([BlackBox(self.task, model.served, self._secret.reveal)(inputs) for model in models])


@dataclass(frozen=True)
class Skew(Secret[Suspects]):
    """Which of ``suspects`` models were trained on data with the higher share of class ``label``: half of them.

    Each is trained, like the victim and with its defenses, on another sample of the victim's training data; the size is
    the largest at which the data of victim and adversary allow both shares.
    """

    label: int
    shares: tuple[float, float]
    suspects: int
    reveal: Reveal

    def check(self, name: str, task: Task) -> None:
        """Raise `NotApplicable` where an answer is not one class."""
        require_class(name, task)

    def hide(self, victim: Victim, examples: int, seed: int) -> Hidden[Suspects]:
        """Train the suspects; the guess is a number for each ``(suspects,)``, above 0 for the higher share.

        Raises `NotApplicable` where there are too few examples for both shares.
        """
        high = torch.randperm(self.suspects, generator=generator(seed, "coins")) % 2 == 1
        models = self.train(victim, victim.splits.train, high, derive(seed, "suspects"))
        access = Suspects(self, victim, models, victim.splits.aux, derive(seed, "shadows"))
        return Hidden(access, (self.suspects,), partial(self._judge, high))

    def train(self, victim: Victim, data: Batch, high: Tensor, seed: int) -> list[Victim]:
        """A model for each entry of ``high`` ``(M,)``, on samples of this data with the higher or the lower share."""
        size = min(self._size(part, victim.task) for part in (victim.splits.train, victim.splits.aux))
        rng, none = generator(seed, "samples"), victim.splits.test.take(slice(0, 0))
        tasks = []
        for skewed in high.tolist():
            sample = self._sample(data, size, self.shares[1 if skewed else 0], rng)
            parts = Splits(sample, victim.splits.validation, none, none)
            tasks.append(replace(victim.task, name=f"{victim.task.name}_skewed", data=partial(_always, parts)))
        seeds = [derive(seed, "model", i) % 2**31 for i in range(len(tasks))]
        return fit_many(tasks, victim.defenses, seeds=seeds, device=victim.device)

    def _size(self, data: Batch, task: Task) -> int:
        assert isinstance(data.target, Tensor)
        mine = int((data.target == self.label).sum())
        size = int(min(mine / self.shares[1], (len(data) - mine) / (1 - self.shares[0])))
        if size < LEAST:
            raise NotApplicable(
                f"{task} has {mine} of {len(data)} examples of class {self.label}: too few for a training set of "
                f"{LEAST} of which {self.shares[1]:.0%} are; name another class or other shares"
            )
        return size

    def _sample(self, data: Batch, size: int, share: float, rng: torch.Generator) -> Batch:
        assert isinstance(data.target, Tensor)
        mine = (data.target == self.label).cpu()
        count = max(round(share * size), 0)
        rows = []
        for mask, n in ((mine, count), (~mine, size - count)):
            there = mask.nonzero()[:, 0]
            rows.append(there[torch.randperm(len(there), generator=rng)[:n]])
        return data.take(torch.cat(rows).to(data.target.device))

    def _judge(self, high: Tensor, guess: Tensor) -> Verdict:
        right = (guess.cpu() > 0) == high
        low, up = self.shares
        note = f"class {self.label} was {low:.0%} or {up:.0%} of the training set; by chance one half"
        measured = [Measured("skew told", clopper_pearson(int(right.sum()), len(right)), note=note)]
        scores = guess.double().cpu().numpy()
        measured.append(Measured("skew AUC", pooled(auc, [(scores[high.numpy()], scores[~high.numpy()])])))
        return Verdict(measured, {"right": right, "high": high})


def _always(parts: Splits, rng: torch.Generator) -> Splits:
    return parts
