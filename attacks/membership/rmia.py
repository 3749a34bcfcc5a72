"""The robust membership inference attack."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.membership._signals import confidence, log_probability, of_shadows
from secure_ml.batch import Batch
from secure_ml.errors import require
from secure_ml.families.membership import Membership, Questioned
from secure_ml.outputs import Reveal, check_reveal
from secure_ml.shadows import Shadows


@dataclass(frozen=True, kw_only=True)
class RMIA(Membership):
    """Does the victim prefer an example to others more than it should? (Zarifzadeh et al. 2024, https://arxiv.org/abs/2312.03262).

    ``LR(x, z)`` is how much likelier the victim makes an example ``x`` of inputs ``(B, *shape)`` than models in general
    do, over the same for an example ``z`` of the population; the score is the share of ``z`` for which it is at least
    ``gamma``. Online, half of the shadows saw ``x``; offline none did, and what all of them would say of it is
    ``((1 + a) p_out + 1 - a) / 2``. Raises `UsageError` for settings out of range or, offline, without auxiliary data.

    Differs from the paper: ``gamma`` is 1, not 2, which changes no order within a victim; but where the score is the
    number of the few ``z`` worth half of an ordinary ``x``, victims cannot be pooled. ``z`` are auxiliary examples that
    at least one shadow did not see, by the offline formula either way; of examples with the same share, the one with
    the higher ratio of its own comes first; ``p`` is the plain softmax of one query, and ``exp(-loss)`` where there are
    no classes.
    """

    reveal: Reveal = "probabilities"
    """How much of each answer the adversary sees."""
    shadows: int = 16
    """Shadow models, an even number."""
    online: bool = False
    """Whether shadows are trained on halves of the examples in question, else on none of them."""
    gamma: float = 1.0
    """How much the victim must prefer x to z; above 1 and the scores of two victims can no longer be compared."""
    a: float = 0.3
    """Offline: how far what shadows that did not see an example say of it holds for those that did."""
    population: int = 2500
    """Auxiliary examples that are compared with, at most."""

    def __post_init__(self) -> None:
        check_reveal(self.reveal)
        require(self.gamma > 0, f"RMIA needs a gamma above 0; given {self.gamma}")
        require(0 <= self.a <= 1, f"RMIA needs an a in [0, 1]; given {self.a}")
        require(self.population >= 1, f"RMIA needs a population of at least 1; given {self.population}")

    def score(self, access: Questioned, batch: Batch, aux: Batch, rng: torch.Generator) -> Tensor:
        """The share of the population that each example beats, ``(B,)``."""
        shadows = access.shadows(self.shadows, online=self.online)
        population = aux.take(slice(0, self.population))
        out = ~shadows.saw_aux[:, : self.population]
        x, theirs = self._ask(access, shadows, batch)
        z, of_z = self._ask(access, shadows, population)
        x -= balanced(theirs, shadows.saw) if self.online else from_outside(theirs, ~shadows.saw, self.a)
        z -= from_outside(of_z, out, self.a)
        return beaten(x, z[out.any(0)], self.gamma)

    def _ask(self, access: Questioned, shadows: Shadows, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities by the victim ``(B,)`` and by each shadow ``(S, B)``."""
        mine, theirs = confidence(access, batch), of_shadows(access, shadows, batch)
        return log_probability(mine, access.task, batch), log_probability(theirs, access.task, batch)

    @classmethod
    def tiny(cls) -> RMIA:
        """Two shadows."""
        return cls(shadows=2)


def from_outside(log_p: Tensor, out: Tensor, a: float) -> Tensor:
    """``log p(x)`` ``(B,)`` from the shadows ``out`` of ``(S, B)`` alone; where there is none, of an impossible x."""
    outside = log_mean(log_p, out) + math.log((1 + a) / 2)
    inside = torch.full_like(outside, math.log((1 - a) / 2) if a < 1 else -torch.inf)
    return torch.logaddexp(outside, inside)


def balanced(log_p: Tensor, saw: Tensor) -> Tensor:
    """``log p(x)`` ``(B,)``: the mean of those that saw it and those that did not, each kind counting half."""
    return torch.logaddexp(log_mean(log_p, saw), log_mean(log_p, ~saw)) - math.log(2)


def log_mean(log_p: Tensor, chosen: Tensor) -> Tensor:
    """The log of the mean probability over the chosen of ``(S, B)``, ``(B,)``; minus infinity where there is none."""
    return log_p.masked_fill(~chosen, -torch.inf).logsumexp(0) - chosen.sum(0).clamp(min=1).log()


def beaten(x: Tensor, z: Tensor, gamma: float) -> Tensor:
    """How many log-ratios z ``(Z,)`` each x ``(B,)`` exceeds by the factor, then x itself; in [0, 1)."""
    count = torch.searchsorted(z.sort().values, x - math.log(gamma), right=True)
    return (count + x.sigmoid()) / (len(z) + 1)
