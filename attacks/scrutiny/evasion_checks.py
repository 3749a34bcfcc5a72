"""Thirteen reasons to believe a robust accuracy, or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from attacks.scrutiny import _contract as contract
from attacks.scrutiny import _strength as strength
from attacks.scrutiny._scene import Scene
from secure_ml.access import WhiteBox
from secure_ml.errors import NotApplicable, UsageError, require
from secure_ml.families.evasion import is_classifier
from secure_ml.families.scrutiny import Finding, Scrutiny
from secure_ml.surfaces import Box, Table
from secure_ml.task import Task
from secure_ml.threats import Ball, Threat
from secure_ml.victim import Victim

Check = Callable[[Scene], Finding]
CHECKS: tuple[tuple[str, Check], ...] = (
    (contract.BOUNDS, contract.bounds),
    (contract.DETERMINISM, contract.determinism),
    (contract.STATE, contract.restored_state),
    (contract.GRADIENTS, contract.gradients),
    (strength.ORDER, strength.order),
    (strength.CONVERGENCE, strength.convergence),
    (strength.CURVE, strength.curve),
    (strength.BLACK_BOX, strength.black_box),
    (strength.REHEARSED, strength.rehearsed),
    (strength.SECOND, strength.second_norm),
    (strength.POINTWISE, strength.pointwise),
    (strength.SANDWICH, strength.sandwich),
    (strength.CONTROLS, strength.controls),
)
BLINDING = (contract.BOUNDS, contract.DETERMINISM, contract.GRADIENTS, strength.ORDER)
"""Where one of these fails, attacks mean nothing, and all checks that rest on them are skipped."""


@dataclass(frozen=True, kw_only=True)
class EvasionChecks(Scrutiny):
    """Thirteen checks of an evaluation of robustness, each with its evidence (Carlini et al. 2019).

    https://arxiv.org/abs/1902.06705; the indicators of failure of Pintor et al. 2022 and the warnings of AutoAttack are
    among them. Takes a victim and a norm ball around its inputs ``(B, *shape)``; gives one finding a check. Raises
    `NotApplicable` for tasks that are no classifiers of numbers, and for other threats than norm balls.
    """

    points: int = 200
    """Test examples looked at, at most."""

    def __post_init__(self) -> None:
        require(self.points >= 1, f"EvasionChecks needs at least 1 point; given {self.points}")

    def check(self, task: Task, threat: Threat | None) -> None:
        """Raise `NotApplicable` where there is no class to leave, or no ball to leave it in."""
        super().check(task, threat)
        asked = threat or task.threat
        if not is_classifier(task) or not isinstance(asked, Ball | None):
            raise NotApplicable(f"EvasionChecks looks at classifiers within norm balls; {task.name} meets {asked}")
        plain = [surface for surface in task.surfaces if isinstance(surface, Box) and not isinstance(surface, Table)]
        if not plain:
            raise NotApplicable(f"EvasionChecks looks at inputs in a box; {task.name} has none")

    def examine(self, victim: Victim, threat: Threat | None, examples: int, rng: torch.Generator) -> Iterator[Finding]:
        """One finding for each of the thirteen, in their order; what rests on a failed one is skipped."""
        assert isinstance(threat, Ball)
        require(threat.radius > 0, f"{threat} allows no change: there is nothing to check")
        WhiteBox.open(victim)  # who cannot look inside cannot tell
        seed = int(torch.randint(2**31, (1,), generator=rng))
        scene = Scene(victim, threat, min(examples, self.points), seed)
        failed = ""
        for name, check in CHECKS:
            if failed and name not in (contract.DETERMINISM, contract.STATE):
                yield Finding(name, "SKIP", f"rests on {failed!r}, which failed")
                continue
            finding = _guarded(name, check, scene)
            if finding.verdict == "FAIL" and name in BLINDING:
                failed = name
            yield finding

    @classmethod
    def tiny(cls) -> EvasionChecks:
        """Two points."""
        return cls(points=2)


def _guarded(name: str, check: Check, scene: Scene) -> Finding:
    try:
        return check(scene)
    except NotApplicable as why:
        return Finding(name, "SKIP", str(why))
    except UsageError as error:
        return Finding(name, "FAIL", str(error))
