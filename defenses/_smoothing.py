"""The smoothed classifier: its answers, its differentiable twin, and what is proved about it (Cohen et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from defenses._wrappers import Around
from secure_ml.adaptive import average, log_probabilities
from secure_ml.batch import Batch, Tree, leaves, tree_map
from secure_ml.certificate import Certificate
from secure_ml.modes import evaluating
from secure_ml.stats import clopper_pearson
from secure_ml.surfaces import Box
from secure_ml.threats import L2, Ball
from secure_ml.victim import Served


def noisy(surface: Box, inputs: Tree, noise: Tensor) -> Tree:
    """Each example once with each of ``noise (k, *shape)`` on its surface: ``(B * k, *shape)``, its copies together."""
    copies = tree_map(lambda tensor: tensor.repeat_interleave(len(noise), 0), inputs)
    clean = surface.get(inputs)
    return surface.put(copies, (clean[:, None] + noise.to(clean.dtype)).flatten(0, 1))


class SmoothedTwin(Around):
    """The mean probabilities over a fixed bank of noise ``(votes, *shape)``: what an attacker differentiates.

    The attack on it is that of Salman et al. 2019 (https://arxiv.org/abs/1906.04584), with the noise that is served.
    No more than ``rows`` copies, or one of each example, go through the module at a time; where that takes several
    times, they go twice for a gradient.
    """

    def __init__(self, module: nn.Module, surface: Box, bank: Tensor, rows: int) -> None:
        super().__init__(module)
        self.surface, self.bank, self.rows = surface, bank, rows

    def forward(self, inputs: Tree) -> Tensor:
        """The log of the mean probabilities ``(B, K)``, or their log-odds ``(B,)``."""
        one_logit = False

        def ask(values: Tensor, noise: Tensor) -> Tensor:
            nonlocal one_logit
            outputs = self.inner(noisy(self.surface, self.surface.put(inputs, values), noise))
            one_logit = outputs.ndim == 1
            logs = log_probabilities(outputs)
            return logs.reshape(len(values), len(noise), logs.shape[1]).transpose(0, 1)

        values = self.surface.get(inputs)
        pieces = []
        banks = self.bank.split(max(1, self.rows // max(len(values), 1)))
        for noise in banks:
            if torch.is_grad_enabled() and len(banks) > 1:
                pieces.append(checkpoint(ask, values, noise, use_reentrant=False, preserve_rng_state=False))
            else:
                pieces.append(ask(values, noise))
        return average(torch.cat(pieces), one_logit)


class Votes(Served):
    """The votes of a module on copies of each input with a fixed bank of noise ``(votes, *shape)``.

    Equal inputs get equal answers, whenever they are asked and in whatever company.
    """

    def __init__(self, module: nn.Module, surface: Box, bank: Tensor, rows: int) -> None:
        self.module, self.surface, self.bank, self.rows = module, surface, bank, rows

    def __call__(self, inputs: Tree) -> Tensor:
        """The log of each class's share of the votes, one vote more given to each; or the log-odds ``(B,)``."""
        inputs = tree_map(lambda tensor: tensor.to(self.bank.device), inputs)
        size = max(1, self.rows // len(self.bank))
        with evaluating(self.module), torch.no_grad():
            return torch.cat([self._few(piece.inputs) for piece in Batch(inputs, ()).chunks(size)])

    def _few(self, inputs: Tree) -> Tensor:
        tally: Tensor | None = None
        one_logit = False
        for noise in self.bank.split(self.rows):
            outputs = self.module(noisy(self.surface, inputs, noise))
            one_logit = outputs.ndim == 1
            logs = log_probabilities(outputs)
            votes = F.one_hot(_classes(outputs), logs.shape[1]).reshape(-1, len(noise), logs.shape[1]).sum(1)
            tally = votes if tally is None else tally + votes
            kind = logs.dtype
        assert tally is not None
        shares = ((tally + 1) / (len(self.bank) + tally.shape[1])).log().to(kind)
        return shares[:, 1] - shares[:, 0] if one_logit else shares


@dataclass(frozen=True, kw_only=True, eq=False)
class Smoothing(Certificate):
    """What is proved about ``g(x)``, the class that ``module`` gives most often to ``x`` plus Gaussian noise.

    CERTIFY and PREDICT of Cohen et al. 2019 (https://arxiv.org/abs/1902.02918), with noise of its own for every
    example, drawn on the module's device. A radius is wrong with a chance of at most ``alpha`` for each example.
    """

    module: nn.Module
    surface: Box
    sigma: float
    n0: int
    n: int
    rows: int
    alpha: float = 0.001
    norm: type[Ball] = L2

    def radii(self, batch: Batch, rng: torch.Generator) -> Tensor:
        """The certified radius ``(B,)``; -1 where the class is wrong or withheld."""
        assert isinstance(batch.target, Tensor)
        return self.certify(batch.inputs, rng, wanted=batch.target)[1]

    def certify(self, inputs: Tree, rng: torch.Generator, wanted: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Classes ``(B,)``, -1 where withheld, and radii ``(B,)``, -1 there.

        Where classes are ``wanted`` and another is selected, nothing more is drawn, and the radius is -1: examples do
        not share noise, so that this changes no other.
        """
        target = None if wanted is None else wanted.long().tolist()
        classes, radii = [], []
        for i, (one, noise) in enumerate(self._examples(inputs, rng)):
            chosen = int(self.tally(one, self.n0, noise).argmax())
            radius = -1.0
            if target is None or target[i] == chosen:
                radius = self.radius(self.count(one, chosen, noise))
            withheld = target is None and radius < 0
            classes.append(-1 if withheld else chosen)
            radii.append(radius)
        place = next(leaves(inputs)).device
        return torch.tensor(classes, device=place), torch.tensor(radii, device=place)

    def predict(self, inputs: Tree, rng: torch.Generator) -> Tensor:
        """The class ``(B,)`` of ``g``, wrong with a chance of at most ``alpha``; -1 where it cannot be told."""
        from scipy.stats import binomtest

        classes = []
        for one, noise in self._examples(inputs, rng):
            first, second = self.tally(one, self.n, noise).topk(2)
            most, next_most = first.tolist()
            sure = binomtest(most, most + next_most, 0.5).pvalue <= self.alpha
            classes.append(int(second[0]) if sure else -1)
        return torch.tensor(classes, device=next(leaves(inputs)).device)

    def lower(self, count: int) -> float:
        """The lower confidence bound, at ``1 - alpha``, on a probability that was met ``count`` times in ``n``."""
        return clopper_pearson(count, self.n, 2 * self.alpha).low

    def radius(self, count: int) -> float:
        """``sigma * Phi^-1(bound)`` where the bound is above 1/2; else -1."""
        bound = self.lower(count)
        return self.sigma * NormalDist().inv_cdf(bound) if bound > 0.5 else -1.0

    @cached_property
    def needed(self) -> int:
        """The smallest count that certifies anything; n + 1 where none does."""
        low, high = self.n // 2, self.n + 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.lower(middle) > 0.5 else (middle + 1, high)
        return low

    def tally(self, one: Tree, n: int, noise: torch.Generator) -> Tensor:
        """How often each class is given to ``n`` noisy copies of one example, ``(K,)``."""
        return torch.stack([votes.sum(0) for votes in self._votes(one, n, noise)]).sum(0)

    def count(self, one: Tree, chosen: int, noise: torch.Generator) -> int:
        """How often a class is given in ``n`` copies; less than that where it can no longer certify anything."""
        hits = torch.zeros((), dtype=torch.long, device=noise.device)
        drawn = 0
        for i, votes in enumerate(self._votes(one, self.n, noise)):
            hits += votes[:, chosen].sum()
            drawn += len(votes)
            if i % 8 == 7 and int(hits) + self.n - drawn < self.needed:
                break
        return int(hits)

    def _votes(self, one: Tree, n: int, noise: torch.Generator) -> Iterator[Tensor]:
        """The votes ``(k, K)`` of ``n`` noisy copies of one example, piece by piece."""
        clean = self.surface.get(one)
        with evaluating(self.module), torch.no_grad():
            for k in [self.rows] * (n // self.rows) + [n % self.rows] * (n % self.rows > 0):
                drawn = torch.randn(k, *clean.shape[1:], generator=noise, device=clean.device, dtype=clean.dtype)
                outputs = self.module(noisy(self.surface, one, self.sigma * drawn))
                yield F.one_hot(_classes(outputs), 2 if outputs.ndim == 1 else outputs.shape[1])

    def _examples(self, inputs: Tree, rng: torch.Generator) -> Iterator[tuple[Tree, torch.Generator]]:
        """Each example ``(1, *shape)`` on the module's device, with a stream of noise of its own."""
        device = next(self.module.parameters()).device
        n = len(next(leaves(inputs)))
        for i, seed in enumerate(torch.randint(2**62, (n,), generator=rng).tolist()):
            one = Batch(inputs, ()).take(slice(i, i + 1)).to(device)
            yield one.inputs, torch.Generator(device).manual_seed(seed)


def _classes(outputs: Tensor) -> Tensor:
    return (outputs > 0).long() if outputs.ndim == 1 else outputs.argmax(-1)
