"""Random search with windows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.evasion._asking import PATIENCE, Asking, check_askable
from attacks.evasion._losses import check_loss
from attacks.evasion._windows import as_grid, cells, corners, hill, share, sides, tiles
from secure_ml.access import BlackBox
from secure_ml.batch import Batch, Tree
from secure_ml.errors import require
from secure_ml.families.evasion import Evasion
from secure_ml.outputs import Reveal
from secure_ml.surfaces import Box, Surface
from secure_ml.task import Loss, Task
from secure_ml.threats import L1, L2, Ball, Change, Linf


@dataclass(frozen=True, kw_only=True)
class Square(Evasion):
    """Square Attack: random windows, kept where they help (Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049).

    Asks about inputs ``(B, *shape)`` without gradients. In Linf a window moves to the edge of the threat; in L2 and L1
    (as in https://arxiv.org/abs/2103.01208) it takes the size of the change that another window gives up. The windows
    shrink as queries go by. Images are ``(C, H, W)``; a row of d numbers is one line of d pixels, whose first stripes
    are random signs. Raises `UsageError` for settings out of range, `NotApplicable` for a loss of classes where there
    are none.

    Differs from the paper: each example has windows of its own, that reach the last row and column; the first query
    is the clean input; where a window would change nothing, all its signs are turned.
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Box,)
    threats: ClassVar[tuple[type[Change], ...]] = (Linf, L2, L1)
    sees: ClassVar[Reveal] = "logits"

    queries: int = 5000
    """Queries for each example in each restart."""
    restarts: int = 1
    """Random starting points; each example keeps its worst."""
    p_init: float = 0.8
    """Share of the image that the first windows cover."""
    loss: str | Loss = "margin"
    """What is climbed: margin, ce or dlr for classifiers, the task's own, or a ``(predictor, batch) -> (B,)``."""

    def __post_init__(self) -> None:
        require(self.queries >= 1, f"Square needs at least 1 query; given {self.queries}")
        require(self.restarts >= 1, f"Square needs at least 1 restart; given {self.restarts}")
        require(0 < self.p_init <= 1, f"Square needs a first share in (0, 1]; given {self.p_init}")
        check_loss(self.loss)

    def budget(self, examples: int) -> int:
        """Every restart's queries about every example."""
        return self.queries * self.restarts * examples

    def perturb(self, access: BlackBox, batch: Batch, threat: Ball, rng: torch.Generator) -> Tree:
        """The worst inputs found, of the shape of the batch's."""
        if threat.radius == 0:
            return batch.inputs
        aim = Asking(access, batch, threat, self.loss)
        moves = (_Corners if isinstance(threat, Linf) else _Masses)(aim, threat)
        for _ in range(self.restarts):
            if len(aim.restart()) and self.queries > 1:
                self._search(aim, moves, rng)
        return aim.inputs()

    def _search(self, aim: Asking, moves: _Moves, rng: torch.Generator) -> None:
        """One restart: change, ask, and take the change back where the loss did not rise."""
        point = moves.start(aim.rows, rng)
        loss, broken = aim.look(_shaped(point, aim))
        draws = _Draws(self, moves, rng)
        for query in range(1, self.queries - 1):
            if (not point.is_cuda or query % PATIENCE == 0) and bool(broken.any()):
                point, loss = _leave(aim, moves, draws, point, loss, broken)
                broken = torch.zeros_like(loss, dtype=torch.bool)
                if not len(point):
                    return
            moves.propose(point, aim.rows, *draws.next(query, len(point)))
            there, wrong = aim.look(_shaped(point, aim))
            kept = ((there > loss) | wrong) & ~broken
            moves.settle(point, kept)
            loss, broken = torch.where(kept, there, loss), broken | wrong
        aim.keep(_shaped(point, aim), loss, broken)

    def check_task(self, task: Task) -> None:
        """Raise `NotApplicable` where there is nothing to climb."""
        check_askable(task, self.loss)

    @classmethod
    def tiny(cls) -> Square:
        """Forty queries."""
        return cls(queries=40)


def _shaped(point: Tensor, aim: Asking) -> Tensor:
    return point.view(len(point), *aim.origin.shape[1:])


def _leave(
    aim: Asking, moves: _Moves, draws: _Draws, point: Tensor, loss: Tensor, broken: Tensor
) -> tuple[Tensor, Tensor]:
    """Let broken examples leave; point and loss of those that are left."""
    aim.keep(_shaped(point, aim), loss, broken)
    stay = (~broken).nonzero()[:, 0]
    aim.stay(stay)
    moves.stay(stay)
    draws.stay(stay)
    return point[stay], loss[stay]


class _Draws:
    """Random numbers for many queries at a time, drawn on the CPU; those of one block have windows of one size."""

    def __init__(self, attack: Square, moves: _Moves, rng: torch.Generator) -> None:
        self.attack, self.moves, self.rng = attack, moves, rng
        self.stages = [share(query, attack.queries, attack.p_init) for query in range(attack.queries)]
        self.first = self.end = 0
        self.slots: Tensor | None = None

    def next(self, query: int, n: int) -> list[Tensor]:
        """What one query needs to know, each tensor ``(n, ...)``."""
        if query >= self.end:
            self._refill(query, n)
        parts = [part[query - self.first] for part in self.parts]
        return parts if self.slots is None else [part[self.slots] for part in parts]

    def stay(self, those: Tensor) -> None:
        """Only ``those`` of the rows go on."""
        self.slots = those if self.slots is None else self.slots[those]

    def _refill(self, query: int, n: int) -> None:
        stage = self.stages[query]
        room = max(_NUMBERS // max(n * self.moves.numbers, 1), 1)
        self.first, self.end = query, query + 1
        while self.end < len(self.stages) and self.end < query + room and self.stages[self.end] == stage:
            self.end += 1
        self.moves.open(stage)
        uniform = torch.rand(self.end - query, n, self.moves.numbers, generator=self.rng)
        self.parts = [part.to(self.moves.device) for part in self.moves.read(uniform)]
        self.slots = None


_NUMBERS = 1 << 18


class _Moves(ABC):
    """How a window of each point ``(n, d)`` is changed in place and changed back."""

    least = 1

    def __init__(self, aim: Asking, threat: Ball) -> None:
        self.grid = as_grid(aim.origin.shape[1:])
        self.clean = aim.origin.flatten(1) if aim.origin.ndim > 1 else aim.origin[:, None]
        self.surface, self.threat, self.like = aim.surface, threat, aim.origin
        self.device = aim.origin.device
        self.channels = self.grid[0]

    numbers: int
    """Uniform numbers that one change needs."""

    def open(self, covered: float) -> None:
        """From here on, windows cover this share."""
        self.window = sides(covered, *self.grid[1:], self.least)
        self.cells = cells(self.window, self.grid).to(self.device)

    def stay(self, those: Tensor) -> None:  # noqa: B027 - most remember nothing
        """Only ``those`` of the rows go on."""

    @abstractmethod
    def start(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """First points ``(n, d)`` of some rows of the batch."""

    @abstractmethod
    def read(self, uniform: Tensor) -> list[Tensor]:
        """What uniform numbers ``(queries, n, numbers)`` stand for."""

    @abstractmethod
    def propose(self, point: Tensor, rows: Tensor, *drawn: Tensor) -> None:
        """Change a window of each point."""

    @abstractmethod
    def settle(self, point: Tensor, kept: Tensor) -> None:
        """Change it back where it is not kept."""


class _Corners(_Moves):
    """Linf: every pixel lies at the upper or the lower end of what threat and box allow."""

    def __init__(self, aim: Asking, threat: Ball) -> None:
        super().__init__(aim, threat)
        self.numbers = 2 + self.channels
        ends = [
            threat.project(Box(self.surface.low, self.surface.high), self.like, self.like + side * threat.radius)
            for side in (1, -1)
        ]
        self.high, self.low = (end.reshape(self.clean.shape) for end in ends)

    def start(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """Vertical stripes."""
        channels, height, width = self.grid
        up = torch.rand(len(rows), channels, 1, width, generator=rng).to(self.device) < 0.5
        up = up.expand(-1, -1, height, -1).reshape(len(rows), -1)
        return torch.where(up, self.high[rows], self.low[rows])

    def read(self, uniform: Tensor) -> list[Tensor]:
        """Where a window lies, and to which end its channels go."""
        return [corners(uniform, self.window, self.grid), uniform[..., 2:] < 0.5]

    def propose(self, point: Tensor, rows: Tensor, *drawn: Tensor) -> None:
        """All pixels of the window, in each channel, to one end."""
        corner, up = drawn
        index = corner[:, None] + self.cells
        there = index + rows[:, None] * point.shape[1]
        high, low, old = self.high.take(there), self.low.take(there), point.gather(1, index)
        up = up.repeat_interleave(len(self.cells) // self.channels, 1)
        nothing = (torch.where(up, high, low) == old).all(1, keepdim=True)
        new = torch.where(up ^ nothing, high, low)
        point.scatter_(1, index, new)
        self.change = index, old, new

    def settle(self, point: Tensor, kept: Tensor) -> None:
        """The old pixels where the new ones did not help."""
        index, old, new = self.change
        point.scatter_(1, index, torch.where(kept[:, None], new, old))


class _Masses(_Moves):
    """L2 and L1: what one window and the unused radius hold goes to another window, so that the norm stays full."""

    least = 3

    def __init__(self, aim: Asking, threat: Ball) -> None:
        super().__init__(aim, threat)
        self.numbers = 5 + self.channels
        self.order = 2 if isinstance(threat, L2) else 1
        self.mass: Tensor | None = None

    def open(self, covered: float) -> None:
        """From here on, windows cover this share."""
        super().open(covered)
        self.hills = torch.stack([hill(self.window, across).flatten() for across in (False, True)]).to(self.clean)
        self.mass = None

    def stay(self, those: Tensor) -> None:
        """Only ``those`` of the rows go on."""
        if self.mass is not None:
            self.mass = self.mass[those]

    def start(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """Tiles, each one hill up and one down, of random sign in each channel, lying either way."""
        hills, number = tiles(self.grid)
        hills, number = hills.flatten(1), number.flatten()
        draws = torch.rand(len(rows), self.channels + 1, int(number.max()) + 1, generator=rng)[:, :, number]
        lying = torch.where(draws[:, :1] < 0.5, hills[0], hills[1])
        change = (lying * draws[:, 1:].sub(0.5).sign()).to(self.clean).flatten(1)
        size = self.threat.norm(change)[:, None].clamp(min=1e-12)
        change = change / size * self.threat.radius if self.order == 2 else change * self._wide(size)
        clean = self.like[rows]
        whole = Box(self.surface.low, self.surface.high)
        return self.threat.project(whole, clean, clean + change.view_as(clean)).reshape(len(rows), -1)

    def _wide(self, size: Tensor) -> Tensor:
        """How much the tiles are enlarged before they are projected onto an L1 ball."""
        return (self.threat.radius / size).clamp(min=self.surface.high - self.surface.low)

    def read(self, uniform: Tensor) -> list[Tensor]:
        """Where two windows lie, how the hills lie in the first one, and the sign of each channel."""
        places = [corners(uniform[..., i:], self.window, self.grid) for i in (0, 2)]
        return [*places, (uniform[..., 4] < 0.5).long(), uniform[..., 5:].sub(0.5).sign()]

    def propose(self, point: Tensor, rows: Tensor, *drawn: Tensor) -> None:
        """The first window takes hills and the size of both, the second one becomes clean."""
        corner, other, turned, sign = drawn
        if self.mass is None:
            self.mass = self._mass(point - self.clean[rows])
        index, second = corner[:, None] + self.cells, other[:, None] + self.cells
        offset = rows[:, None] * point.shape[1]
        clean, clean2 = self.clean.take(index + offset), self.clean.take(second + offset)
        old, old2 = point.gather(1, index), point.gather(1, second)
        point.scatter_(1, index, clean)
        rest = self._split(point.gather(1, second) - clean2)  # without what both windows share
        point.scatter_(1, second, clean2)
        change = self._split(old - clean)
        held = self._mass(change) + self._mass(rest)
        spare = (self.threat.radius**self.order - self.mass).clamp(min=0)[:, None]
        shape = self.hills[turned][:, None] * sign.to(point)[:, :, None] + self._unit(change)
        size = (held + spare / self.channels) ** (1 / self.order)
        new = self.surface.clamp(clean, clean + (self._unit(shape) * size[:, :, None]).flatten(1))
        point.scatter_(1, index, new)
        after = self.mass - held.sum(1) + self._mass(new - clean)
        self.change = index, second, old, old2, new, clean2, after

    def settle(self, point: Tensor, kept: Tensor) -> None:
        """Both windows as they were where the change did not help."""
        index, second, old, old2, new, clean2, after = self.change
        assert self.mass is not None
        point.scatter_(1, second, torch.where(kept[:, None], clean2, old2))
        point.scatter_(1, index, torch.where(kept[:, None], new, old))
        self.mass = torch.where(kept, after, self.mass)

    def _split(self, window: Tensor) -> Tensor:
        return window.view(len(window), self.channels, -1)

    def _mass(self, change: Tensor) -> Tensor:
        return change.square().sum(-1) if self.order == 2 else change.abs().sum(-1)

    def _unit(self, change: Tensor) -> Tensor:
        return change / (self._mass(change)[..., None] ** (1 / self.order) + 1e-12)
