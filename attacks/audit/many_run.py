"""Many runs on two neighbouring data sets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacks.audit._marks import frozen, marked, signal, with_marks
from attacks.audit._planting import Canary, check_canary, floats, losses, mislabelled, together, untrained
from secure_ml.auditing import chosen_threshold, gaussian_epsilon, gaussian_mu, region_epsilon
from secure_ml.batch import Batch, Splits
from secure_ml.errors import require
from secure_ml.families.audit import Audit, Bound, Laboratory, claimed
from secure_ml.randomness import seeded
from secure_ml.task import Task
from secure_ml.victim import Victim


@dataclass(frozen=True, kw_only=True)
class ManyRun(Audit):
    """Trains many models with a canary and many without it, and tells them apart (Jagielski et al. 2020).

    https://arxiv.org/abs/2006.07709. All begin at the same weights, on a few of the victim's training examples
    ``(B, *shape)``, of which the canary is one more; the threshold is chosen on a fifth of the models for the others,
    where the paper's was chosen on all. The bound of Clopper and Pearson assumes nothing; the Gaussian one is an
    estimate. Raises `UsageError` for settings out of range, `NotApplicable` where no example is fixed.
    """

    runs: int = 50
    """Models with the canary, and as many without."""
    examples: int = 20
    """Training examples beside the canary: the fewer, the worse the case."""
    canary: Canary = "dirac"
    """``dirac``: its own number is read off the weights; ``mislabelled``: its loss is, against the beginning."""
    delta: float = 1e-5
    """Of the bound, where nothing is claimed."""

    def __post_init__(self) -> None:
        check_canary(self.canary)
        require(self.runs >= 3, f"ManyRun needs at least 3 runs of each kind; given {self.runs}")
        require(self.examples >= 3, f"ManyRun needs at least 3 examples beside the canary; given {self.examples}")
        require(0 <= self.delta < 1, f"ManyRun needs a delta in [0, 1); given {self.delta}")

    def bounds(self, lab: Laboratory, rng: torch.Generator) -> Iterator[Bound]:
        """The bound for any mechanism, then the estimate as for a Gaussian."""
        victims, scores = (self._dirac if self.canary == "dirac" else self._mislabelled)(lab, rng)
        ins, outs = (floats(part) for part in scores.split(self.runs))
        upper, delta = max(claimed(victim, self.delta) for victim in victims)
        models = f"{2 * self.runs} models"
        errors, alpha = chosen_threshold(ins, outs, lambda e, a: region_epsilon(e, delta, a))
        yield Bound(
            name=f"many runs, {self.canary}",
            epsilon=region_epsilon(errors, delta, alpha),
            delta=delta,
            method=f"Clopper-Pearson, {models}",
            n=errors.ins + errors.outs,
            upper=upper,
        )
        errors, alpha = chosen_threshold(ins, outs, gaussian_mu)
        yield Bound(
            name=f"many runs f-DP, {self.canary}",
            epsilon=gaussian_epsilon(gaussian_mu(errors, alpha), delta),
            delta=delta,
            method=f"Gaussian trade-off, {models}",
            n=errors.ins + errors.outs,
            upper=upper,
            rests_on="as if the trade-off were a Gaussian's",
            estimate=True,
        )

    def _dirac(self, lab: Laboratory, rng: torch.Generator) -> tuple[list[Victim], Tensor]:
        train = lab.splits.train
        require(len(train) >= self.examples, f"{lab.task} has {len(train)} training examples; give fewer to ManyRun")
        few = train.take(slice(0, self.examples))
        more = together(few, few.take(slice(0, 1)))
        base = marked(lab.task, 1)
        tasks = []
        for part in (more, few):
            marks = torch.arange(len(part)) == self.examples
            tasks.append(self._task(lab, base, with_marks(self._splits(lab, part), marks)))
        victims = lab.fit_many([task for task in tasks for _ in range(self.runs)])
        return victims, torch.cat([signal(victim.module) for victim in victims])

    def _mislabelled(self, lab: Laboratory, rng: torch.Generator) -> tuple[list[Victim], Tensor]:
        train = lab.splits.train
        require(len(train) > self.examples, f"{lab.task} has {len(train)} training examples; one more is planted")
        few, canary = train.take(slice(0, self.examples)), mislabelled(train, 1, rng)
        tasks = [self._task(lab, lab.task, self._splits(lab, part)) for part in (together(few, canary), few)]
        victims = lab.fit_many([task for task in tasks for _ in range(self.runs)])
        after = torch.cat([losses(lab.task, victim.module, canary) for victim in victims])
        return victims, losses(lab.task, untrained(tasks[0], victims[0]), canary) - after

    def _splits(self, lab: Laboratory, train: Batch) -> Splits:
        return lab.splits_on(train, torch.arange(self.examples))

    def _task(self, lab: Laboratory, task: Task, splits: Splits) -> Task:
        """The task on a few examples, all of whose modules begin at the same weights."""
        with seeded(lab.seed, "many runs"):
            return lab.task_on(splits, replace(task, build=frozen(task.build)))

    @classmethod
    def tiny(cls) -> ManyRun:
        """Six models."""
        return cls(runs=3, examples=5)
