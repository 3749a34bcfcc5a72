"""The standard ensemble."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attacks.evasion._losses import margin, two_columns
from attacks.evasion.apgd import APGD
from attacks.evasion.fab import FAB
from attacks.evasion.square import Square
from secure_ml.access import BlackBox, WhiteBox
from secure_ml.batch import Batch, Tree
from secure_ml.errors import NotApplicable, require, unknown
from secure_ml.families.evasion import Evasion, attack_batch
from secure_ml.surfaces import Box, Surface
from secure_ml.task import Task
from secure_ml.threats import L1, Change, Walk

VERSIONS = ("standard", "plus", "rand")


@dataclass(frozen=True, kw_only=True)
class AutoAttack(Evasion):
    """The parameter-free ensemble AutoAttack (Croce and Hein 2020, https://arxiv.org/abs/2003.01690).

    ``standard`` is Auto-PGD on cross-entropy, targeted Auto-PGD on the difference of logits ratio, targeted FAB and
    Square; ``plus`` adds untargeted Auto-PGD and FAB with 5 restarts each; ``rand`` is Auto-PGD on both losses with
    averaged gradients, for modules that answer at random. Each part attacks the inputs ``(B, *shape)`` that all before
    it left standing, judged by what is served: the pointwise worst case. In threats other than norm balls, the parts
    that cannot keep to them are left out. Raises `UsageError` for settings out of range.

    Differs from the paper: broken examples leave in the middle of a part; with three classes the targeted ratio takes
    the third logit alone, with two it is the margin (the original needs four); inputs need not be images.
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Box,)
    threats: ClassVar[tuple[type[Change], ...]] = (Walk,)
    classifies: ClassVar[bool] = True

    version: Literal["standard", "plus", "rand"] = "standard"
    """Which parts are run."""
    steps: int = 100
    """Gradient steps in each run of Auto-PGD and FAB."""
    targets: int = 9
    """Other classes that targeted parts try, as many as there are at most."""
    queries: int = 5000
    """Queries of Square about each example."""
    samples: int = 20
    """Gradients averaged at each point by ``rand``."""

    def __post_init__(self) -> None:
        if self.version not in VERSIONS:
            raise unknown("version of AutoAttack", self.version, VERSIONS)
        for name in ("steps", "targets", "queries", "samples"):
            require(getattr(self, name) >= 1, f"AutoAttack needs {name} of at least 1; given {getattr(self, name)}")

    def parts(self, threat: Change) -> tuple[Evasion, ...]:
        """The attacks that are run within a threat, in turn. In L1, Auto-PGD has 5 restarts and 5 classes."""
        sparse = isinstance(threat, L1)
        targeted = APGD(loss="dlr", steps=self.steps, targets=min(self.targets, 5) if sparse else self.targets)
        fab, square = FAB(steps=self.steps, targets=self.targets), Square(queries=self.queries)
        named: dict[str, tuple[Evasion, ...]] = {
            "standard": (APGD(loss="ce", steps=self.steps, restarts=5 if sparse else 1), targeted, fab, square),
            "plus": (
                APGD(loss="ce", steps=self.steps, restarts=5),
                APGD(loss="dlr", steps=self.steps, restarts=5),
                FAB(steps=self.steps, restarts=5),
                square,
                targeted,
                fab,
            ),
            "rand": tuple(APGD(loss=loss, steps=self.steps, samples=self.samples) for loss in ("ce", "dlr")),
        }
        return tuple(part for part in named[self.version] if isinstance(threat, part.threats))

    def perturb(self, access: WhiteBox, batch: Batch, threat: Change, rng: torch.Generator) -> Tree:
        """The worst inputs that any part found, of the shape of the batch's."""
        surface, judge = access.task.surface(threat), access.ask()
        worst = surface.get(batch.inputs)
        harm, lead = _judged(judge, batch)
        for part in self.parts(threat):
            left = (harm < access.task.score.ceiling).nonzero()[:, 0]
            if not len(left):
                break
            here = batch.take(left)
            handed = access if part.sees == "module" else access.ask(part.sees, part.budget(len(left)))
            changed = attack_batch(part, handed, here, threat, rng)
            found, further = _judged(judge, changed)
            better = (found > harm[left]) | ((found == harm[left]) & (further > lead[left]))
            worst = worst.index_copy(0, left[better], surface.get(changed.inputs)[better])
            harm = harm.index_copy(0, left[better], found[better])
            lead = lead.index_copy(0, left[better], further[better])
        return surface.put(batch.inputs, worst)

    @classmethod
    def tiny(cls) -> AutoAttack:
        """Three steps, one class, ten queries."""
        return cls(steps=3, targets=1, queries=10)

    def check_task(self, task: Task) -> None:
        """Raise `NotApplicable` for the goal of one class, for which the ensemble has no targeted losses."""
        if not task.score.higher_is_better:
            raise NotApplicable("AutoAttack leaves a class in any direction: to reach one, use APGD or PGD")


def _judged(judge: BlackBox, batch: Batch) -> tuple[Tensor, Tensor]:
    """Harm ``(B,)`` by the score, and how far another class leads, of the answers that are served."""
    assert isinstance(batch.target, Tensor)
    outputs, score = judge(batch.inputs), judge.task.score
    return score.harm(score.per_example(outputs, batch.target)), margin(two_columns(outputs), batch.target, None)
