"""Projected gradient descent that sets its own steps."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from attacks.evasion._aim import Aim
from attacks.evasion._losses import check_loss, check_meaning
from secure_ml.access import WhiteBox
from secure_ml.batch import Batch, Tree
from secure_ml.errors import require
from secure_ml.families.evasion import Evasion
from secure_ml.surfaces import Box, Surface
from secure_ml.task import Loss, Task
from secure_ml.threats import L1, Change, Walk
from secure_ml.threats.balls import sparse_signs
from secure_ml.threats.base import broadcast


@dataclass(frozen=True, kw_only=True)
class APGD(Evasion):
    """Auto-PGD: steps with momentum that are halved where they no longer help (Croce and Hein 2020).

    https://arxiv.org/abs/2003.01690; in L1 with steps of adaptive sparsity and shrinking radii (Croce and Hein 2021,
    https://arxiv.org/abs/2103.01208). Climbs the loss over inputs ``(B, *shape)`` within any threat that a gradient
    can walk. With ``targets``, each example is sent towards the classes that come closest to its own, one run for
    each of them. Raises `UsageError` for settings out of range, `NotApplicable` for a loss of classes where there are
    none.

    Differs from the paper: an example leaves once it is broken, which changes no score; the worst point seen is
    returned, worst by score and then by loss.
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Box,)
    threats: ClassVar[tuple[type[Change], ...]] = (Walk,)

    steps: int = 100
    """Gradient steps in each run."""
    restarts: int = 1
    """Random starting points (for each class, where there are targets)."""
    loss: str | Loss = "task"
    """What is climbed: the task's own loss, ce, dlr or margin for classifiers, or a ``(predictor, batch) -> (B,)``."""
    targets: int = 0
    """Other classes to be sent to, as many as there are at most; 0 leaves the label in any direction."""
    samples: int = 1
    """Gradients averaged at each point: more than 1 for modules that answer at random."""
    early: bool = True
    """Whether an example leaves once its answer is wrong; else its loss is climbed further."""

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "samples"):
            require(getattr(self, name) >= 1, f"APGD needs {name} of at least 1; given {getattr(self, name)}")
        require(self.targets >= 0, f"APGD needs a number of targets of at least 0; given {self.targets}")
        require(
            not self.targets or self.loss in ("ce", "dlr", "margin"),
            f"APGD with targets climbs ce, dlr or margin; given {self.loss!r}",
        )
        check_loss(self.loss)

    def perturb(self, access: WhiteBox, batch: Batch, threat: Walk, rng: torch.Generator) -> Tree:
        """The worst inputs found, of the shape of the batch's."""
        aim = Aim(access, batch, threat, self.loss, self.early, self.samples)
        for others in aim.rounds(self.targets):
            for _ in range(self.restarts):
                start = threat.start(aim.surface, aim.origin, rng)
                rows = aim.restart(others)
                if len(rows):
                    climb(aim, threat, start[rows], self.steps)
        return aim.inputs()

    @classmethod
    def tiny(cls) -> APGD:
        """Five steps."""
        return cls(steps=5)

    def check_task(self, task: Task) -> None:
        """Raise `NotApplicable` where a loss of classes is asked of a task without."""
        check_meaning(self.loss, task)


@dataclass
class _Climb:
    """What each row in play remembers between steps."""

    point: Tensor
    before: Tensor
    slope: Tensor
    loss: Tensor
    best_point: Tensor
    best_slope: Tensor
    best_loss: Tensor
    step: Tensor
    """Length of the next step ``(n,)``."""
    rises: Tensor
    """Steps since the last look back that raised the loss, ``(n,)``."""
    last_best: Tensor
    """The best loss at the last look back, ``(n,)``."""
    halved: Tensor
    """Whether the step was halved then, ``(n,)``."""
    spread: Tensor
    """In L1: share of the coordinates that a step moves, ``(n,)``."""
    moved: Tensor
    """In L1: coordinates that the best point moved at the last look back, ``(n,)``."""

    def leave(self, aim: Aim) -> _Climb:
        """What is left of it when broken examples have left."""
        return _Climb(*aim.leave(*(getattr(self, field.name) for field in fields(self))))


def climb(aim: Aim, threat: Walk, start: Tensor, steps: int) -> None:
    """One run from a start ``(n, *shape)`` of every row in play; in L1 through larger radii first."""
    if isinstance(threat, L1):
        for factor, share in _WIDE:
            wide = replace(threat, radius=factor * threat.radius)
            start = wide.settle(aim.surface, aim.clean, start)
            start = _run(aim, wide, start, int(share * steps), keep=False, first=factor == _WIDE[0][0])
            steps -= int(share * steps)
        start = threat.settle(aim.surface, aim.clean, start)
    _run(aim, threat, start, steps)


def _run(aim: Aim, threat: Walk, start: Tensor, steps: int, keep: bool = True, first: bool = False) -> Tensor:
    """Climb, and return the points of the highest losses of the rows still in play."""
    now = _begin(aim, threat, start, keep, first)
    window, shortest, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    waited = 0
    for i in range(steps):
        now = now.leave(aim)
        if not len(now.point) or (i == 0 and aim.samples == 1 and not now.slope.any()):  # nothing would ever move
            break
        _step(aim, threat, now, 1.0 if i == 0 else _MOMENTUM)
        before = now.loss
        now.loss, now.slope = aim.look(now.point, gradient=i < steps - 1, keep=keep)
        now.rises += now.loss > before
        _remember(now)
        waited += 1
        if waited == window:
            _look_back(aim, threat, now, window)
            window, waited = max(window - shrink, shortest), 0
    return now.best_point


def _begin(aim: Aim, threat: Walk, start: Tensor, keep: bool, first: bool) -> _Climb:
    loss, slope = aim.look(start, keep=keep)
    none, size = torch.zeros_like(loss), max(start[:1].numel(), 1)
    length = threat.radius if isinstance(threat, L1) else 2 * threat.radius
    moved = (start != aim.clean).flatten(1).sum(1).to(loss.dtype)
    return _Climb(
        point=start,
        before=start,
        slope=slope,
        loss=loss,
        best_point=start,
        best_slope=slope,
        best_loss=loss,
        step=none + length,
        rises=none.clone(),
        last_best=loss,
        halved=torch.ones_like(loss, dtype=torch.bool),
        spread=none + 1.0 if first else moved / size / 1.5,
        moved=moved,
    )


def _step(aim: Aim, threat: Walk, now: _Climb, share: float) -> None:
    """Move every point: ``share`` of the way that its gradient asks for, the rest as it moved before."""
    surface, clean, length = aim.surface, aim.clean, broadcast(now.step, now.point)
    if isinstance(threat, L1):
        now.before, now.point = (
            now.point,
            threat.settle(surface, clean, now.point + length * sparse_signs(now.slope, now.spread)),
        )
        return
    there = threat.advance(surface, clean, now.point, now.slope, length)
    if share < 1:
        there = threat.settle(
            surface, clean, now.point + share * (there - now.point) + (1 - share) * (now.point - now.before)
        )
    now.before, now.point = now.point, there


def _remember(now: _Climb) -> None:
    better = now.loss > now.best_loss
    shape = broadcast(better, now.point)
    now.best_point = torch.where(shape, now.point, now.best_point)
    now.best_slope = torch.where(shape, now.slope, now.best_slope)
    now.best_loss = torch.where(better, now.loss, now.best_loss)


def _look_back(aim: Aim, threat: Walk, now: _Climb, window: int) -> None:
    """Where too few steps helped, or none since the last look back: shorter steps, from the best point."""
    if isinstance(threat, L1):
        back = _sparser(aim, threat, now)
    else:
        back = (now.rises <= _RISES * window) | (~now.halved & (now.last_best >= now.best_loss))
        now.step = torch.where(back, now.step / 2, now.step)
    now.halved, now.last_best, now.rises = back, now.best_loss, torch.zeros_like(now.rises)
    shape = broadcast(back, now.point)
    now.point = torch.where(shape, now.best_point, now.point)
    now.slope = torch.where(shape, now.best_slope, now.slope)


def _sparser(aim: Aim, threat: L1, now: _Climb) -> Tensor:
    """In L1: where the best point moves fewer coordinates than before, start over from it with full steps."""
    moved = (now.best_point != aim.clean).flatten(1).sum(1).to(now.loss.dtype)
    back = moved < 0.95 * now.moved
    shorter = (now.step / 1.5).clamp(min=threat.radius / 10)
    now.step = torch.where(back, torch.full_like(now.step, threat.radius), shorter)
    now.spread, now.moved = moved / max(now.point[:1].numel(), 1) / 1.5, moved
    return back


_MOMENTUM = 0.75
_RISES = 0.75
_WIDE = ((3, 0.3), (2, 3 / 7))
"""Radii in L1, as multiples of the threat's, before it, and the share of the steps left that each takes."""
