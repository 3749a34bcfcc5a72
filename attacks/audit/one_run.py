"""One training run, in which each of many canaries stood by a coin of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.audit._marks import marked, signal, with_marks
from attacks.audit._planting import Canary, check_canary, floats, losses, mislabelled, together, untrained
from secure_ml.auditing import (
    CHOICES,
    Choice,
    Guessed,
    chosen_guesses,
    gaussian_epsilon,
    one_run_epsilon,
    one_run_mu,
)
from secure_ml.batch import Batch
from secure_ml.errors import require
from secure_ml.families.audit import Audit, Bound, Laboratory, claimed
from secure_ml.victim import Victim


@dataclass(frozen=True, kw_only=True)
class OneRun(Audit):
    """Guesses which of many canaries one run was trained on (Steinke et al. 2023, https://arxiv.org/abs/2305.08846).

    Each canary joins the victim's own training examples ``(B, *shape)`` by an independent fair coin; the victim is
    trained once more, with its defenses and seed; canaries are ranked by a score, of the highest is said that they were
    in, of the lowest that they were not. From the right guesses follow two bounds: one that holds for any mechanism,
    and the tighter one of Mahloujifar et al. 2024 (https://arxiv.org/abs/2410.22235), which holds if the trade-off of
    the whole run is a Gaussian's. Unlike the paper's canaries, a ``dirac`` one owns a number beside the module, in
    which alone its loss is steep: training as such is audited, and canaries do not stand in each other's way.

    Raises `UsageError` for settings out of range or too few examples, `NotApplicable` where no example is fixed.
    """

    canaries: int = 1000
    """As many as the data allow where they are mislabelled."""
    canary: Canary = "dirac"
    """``dirac``: scored by how far its own number moved, for who holds the weights; ``mislabelled``: an example with
    another's target, scored by how much its loss fell since the beginning, which is what a black box can see."""
    source: str = "aux"
    """Where mislabelled canaries come from: ``aux``, or ``train``, which are then trained on only as canaries."""
    choice: Choice = "bonferroni"
    """How the number of guesses is chosen."""
    shares: tuple[float, ...] = (0.05, 0.2, 0.5, 0.9)
    """Of the canaries that are guessed about, among which is chosen."""
    delta: float = 1e-5
    """Of the bound, where nothing is claimed."""

    def __post_init__(self) -> None:
        check_canary(self.canary)
        require(self.canaries >= 2, f"OneRun needs at least 2 canaries; given {self.canaries}")
        require(self.source in ("aux", "train"), f"OneRun takes canaries from aux or train; given {self.source!r}")
        require(self.choice in CHOICES, f"OneRun chooses by one of {', '.join(CHOICES)}; given {self.choice!r}")
        require(0 <= self.delta < 1, f"OneRun needs a delta in [0, 1); given {self.delta}")

    def bounds(self, lab: Laboratory, rng: torch.Generator) -> Iterator[Bound]:
        """The bound for any mechanism, then the one for a Gaussian."""
        victim, scores, included = (self._dirac if self.canary == "dirac" else self._mislabelled)(lab, rng)
        epsilon, delta = claimed(victim, self.delta)
        ranks, coins = floats(scores), included.numpy()

        def steinke(g: Guessed) -> float:
            return one_run_epsilon(g.canaries, g.guesses, g.right, delta, g.alpha)

        def gaussian(g: Guessed) -> float:
            return gaussian_epsilon(one_run_mu(g.canaries, g.guesses, g.right, g.alpha), delta)

        for name, bound, given in (
            ("one run", steinke, ""),
            ("one run f-DP", gaussian, "if the run's trade-off is a Gaussian's"),
        ):
            found = chosen_guesses(ranks, coins, bound, self.choice, self.shares)
            yield Bound(
                name=f"{name}, {self.canary}",
                epsilon=bound(found),
                delta=delta,
                method=f"{found.right} of {found.guesses} guesses right about {found.canaries} canaries, {self.choice}",
                n=found.canaries,
                upper=epsilon,
                rests_on=given,
            )

    def _dirac(self, lab: Laboratory, rng: torch.Generator) -> tuple[Victim, Tensor, Tensor]:
        """The victim trained again, scores ``(m,)`` and coins ``(m,)``."""
        train, included = lab.splits.train, torch.rand(self.canaries, generator=rng) < 0.5
        chosen = included.nonzero()[:, 0]
        canaries = train.take((chosen % len(train)).to(lab.victim.device))
        marks = torch.cat([torch.zeros(len(train), dtype=torch.long), chosen + 1])
        splits = with_marks(lab.splits_on(together(train, canaries), torch.arange(len(train))), marks)
        victim = lab.fit(lab.task_on(splits, marked(lab.task, self.canaries)))
        return victim, signal(victim.module), included

    def _mislabelled(self, lab: Laboratory, rng: torch.Generator) -> tuple[Victim, Tensor, Tensor]:
        """The victim trained again, scores ``(m,)`` and coins ``(m,)``."""
        kept, canaries = self._sources(lab, rng)
        included = torch.rand(len(canaries), generator=rng) < 0.5
        stays = lab.splits.train.take(kept.to(lab.victim.device))
        planted = together(stays, canaries.take(included.to(lab.victim.device)))
        task = lab.task_on(lab.splits_on(planted, kept))
        victim = lab.fit(task)
        before, after = (losses(task, module, canaries) for module in (untrained(task, victim), victim.module))
        return victim, before - after, included

    def _sources(self, lab: Laboratory, rng: torch.Generator) -> tuple[Tensor, Batch]:
        """Places of the training examples that stay, and the canaries."""
        train = lab.splits.train
        if self.source == "aux":
            require(len(lab.splits.aux) >= 2, f"{lab.task} has no auxiliary examples to plant: use source='train'")
            return torch.arange(len(train)), mislabelled(lab.splits.aux, self.canaries, rng)
        require(len(train) >= 4, f"{lab.task} has {len(train)} training examples; too few to plant some of them")
        order = torch.randperm(len(train), generator=rng)
        count = min(self.canaries, len(train) // 2)
        pool = train.take(order[:count].to(lab.victim.device))
        return order[count:], mislabelled(pool, count, rng)

    @classmethod
    def tiny(cls) -> OneRun:
        """Forty canaries."""
        return cls(canaries=40)
