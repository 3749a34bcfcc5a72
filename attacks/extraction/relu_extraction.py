"""The weights of a network with one layer of ReLU units, from the points at which its answers bend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.extraction._exact import SHAPES, Asked, Spent, at_home, box, chain, solve
from attacks.extraction._kinks import Kink, gradient, search
from secure_ml.access import BlackBox
from secure_ml.batch import Batch
from secure_ml.errors import NotApplicable, require
from secure_ml.families.extraction import Extraction
from secure_ml.imitation import Imitation
from secure_ml.outputs import Reveal, check_reveal
from secure_ml.surfaces import Box
from secure_ml.task import Task
from secure_ml.threats import Threat


@dataclass(frozen=True, kw_only=True)
class ReluExtraction(Extraction):
    """A two-layer ReLU network, weight by weight (Jagielski et al. 2020, https://arxiv.org/abs/1909.01838).

    Along lines through the box of inputs ``(queries, *shape)`` the answers are linear but where a unit switches. The
    difference of the slopes on both sides of such a point is the unit's weights, times what it adds to each answer;
    the point gives its bias (Carlini et al. 2020, https://arxiv.org/abs/2003.04884). Which of its sides is the active
    one follows, for all units at once, from the linear part that is left, by least squares; so does the last layer.
    Units that switch nowhere in the box act as a linear map there, and are copied as one. Raises `NotApplicable`
    unless the model is linear, ReLU, linear on one tensor in a box, and `UsageError` for a budget below 1.

    Differs from the papers: it stays inside the box, and signs are solved for, not searched. Works as far as digits
    go: to 1e-9 and better on answers of 64 bits, roughly on 32, not at all on rounded ones.
    """

    exact: ClassVar[bool] = True
    queries: int = 50_000
    """The budget; it stops when all units are found."""
    budgets: tuple[int, ...] = ()
    """Smaller budgets at which the copy is judged on the way."""
    reveal: Reveal = "logits"
    """How much of each answer the adversary sees."""
    lines: int = 200
    """Lines that are searched at most: a unit that none of them crosses does not switch, but in a corner."""

    def __post_init__(self) -> None:
        require(self.queries >= 1, f"ReluExtraction needs a budget of at least 1 query; given {self.queries}")
        require(self.lines >= 1, f"ReluExtraction needs at least 1 line; given {self.lines}")
        check_reveal(self.reveal)

    def check(self, task: Task, threat: Threat | None) -> None:
        """Raise `NotApplicable` unless the model is linear, ReLU, linear, and a box is its input."""
        super().check(task, threat)
        box(task, type(self).__name__)
        layers = [type(layer) for layer in chain(task, type(self).__name__) if not isinstance(layer, SHAPES)]
        if layers != [nn.Linear, nn.ReLU, nn.Linear]:
            raise NotApplicable(f"ReluExtraction needs two linear layers with ReLU between; {task.name} has others")

    def steal(self, access: BlackBox, pool: Batch, train: Imitation, rng: torch.Generator) -> Iterator[nn.Module]:
        """The network of the units found so far, fitted to all answers so far."""
        area = box(train.task, "")
        first, _ = _linears(at_home(train.task))
        assert isinstance(pool.inputs, Tensor)
        inputs = pool.inputs.detach().cpu().double().flatten(1)
        ask = Asked(access, pool.inputs.shape[1:], first.weight.dtype)
        state = rng.get_state()
        for budget in self.stages:
            units = Units.none(first.in_features)
            rng.set_state(state)
            ask.start(budget)
            with suppress(Spent):
                self._search(ask, units, inputs, area, first.out_features, rng)
            yield _network(train, units, ask, area)

    def _search(self, ask: Asked, units: Units, inputs: Tensor, area: Box, hidden: int, rng: torch.Generator) -> None:
        """Add units to those that are known, line by line, until there are as many as the layer has."""
        for number in range(self.lines):
            line = search(ask, *ends(inputs, area, number, rng).unbind())
            slopes: dict[int, Tensor | None] = {}
            for place, kink in enumerate(line.kinks):
                if units.knows(kink, ask):
                    continue
                for side in (place, place + 1):
                    if side not in slopes:
                        slopes[side] = gradient(ask, *line.pieces[side], area)
                units.add(ask, kink, slopes[place], slopes[place + 1])
                if len(units.weight) == hidden:
                    return

    @classmethod
    def tiny(cls) -> ReluExtraction:
        """Three hundred queries."""
        return cls(queries=300, budgets=(40,))


@dataclass
class Units:
    """Hidden units: weights ``(h, d)`` of length 1 and biases ``(h,)`` up to a common sign, jumps ``(h, K)``."""

    weight: Tensor
    bias: Tensor
    jump: list[Tensor]

    @classmethod
    def none(cls, d: int) -> Units:
        """No unit yet."""
        return cls(torch.empty(0, d, dtype=torch.float64), torch.empty(0, dtype=torch.float64), [])

    def knows(self, kink: Kink, ask: Asked) -> bool:
        """Whether a bend is that of a known unit: in its plane, and the answers change alike."""
        reach = 1e3 * ask.eps**0.75 * max(float(kink.point.norm()), 1.0)
        for place in ((self.weight @ kink.point + self.bias).abs() < reach).nonzero()[:, 0].tolist():
            if float(torch.cosine_similarity(self.jump[place], kink.jump, 0).abs()) > 0.99:
                return True
        return False

    def add(self, ask: Asked, kink: Kink, before: Tensor | None, after: Tensor | None) -> None:
        """The unit that changes the slopes ``(K, d)`` there, unless more than one does, or it is known."""
        if before is None or after is None:
            return
        change = after - before
        _, size, right = torch.linalg.svd(change, full_matrices=False)
        weight = right[0] * torch.sign(right[0] @ kink.way)
        bias = -(weight @ kink.point)
        alike = (self.weight @ weight).abs() > 1 - 10 * ask.eps**0.5
        if (len(size) > 1 and float(size[1]) > 2 * ask.eps**0.25 * float(size[0])) or bool(alike.any()):
            return
        self.weight = torch.cat([self.weight, weight[None]])
        self.bias = torch.cat([self.bias, bias[None]])
        self.jump.append(change @ weight)


def ends(inputs: Tensor, area: Box, number: int, rng: torch.Generator) -> Tensor:
    """Two points ``(2, d)`` a little inside the box: by turns two corners, two inputs, and where two inputs differ.

    The corners have from no to all values high, so that units whose weights are mostly of one sign are met as well.
    """
    d, kind = inputs.shape[1], number % 3 if len(inputs) else 0
    dense = torch.rand(2, 1, generator=rng, dtype=torch.float64)
    points = (torch.rand(2, d, generator=rng, dtype=torch.float64) < dense).double()
    if kind:
        pair = inputs[torch.randint(len(inputs), (2,), generator=rng)]
        apart = (pair[0] > pair[1]).double()
        points = (pair - area.low) / (area.high - area.low) if kind == 1 else torch.stack([apart, 1 - apart])
    noise = torch.rand(2, d, generator=rng, dtype=torch.float64)
    return area.low + (area.high - area.low) * (0.005 + 0.98 * points + 0.01 * noise)


def _network(train: Imitation, units: Units, ask: Asked, area: Box) -> nn.Module:
    """A module of the victim's kind with these units, and the last layer that fits all answers."""
    copy = at_home(train.task)
    first, last = _linears(copy)
    points, values = ask.points, ask.values
    before = points @ units.weight.T + units.bias
    h = len(units.weight)
    fitted = solve(torch.cat([before.relu(), points], 1), values)
    out, linear, constant = fitted[:h], fitted[h:-1], fitted[-1]
    if h:  # a unit that is active on its other side leaves minus its linear map
        maps = -(out[:, None, :] * units.weight[:, :, None]).flatten(1)
        turned = torch.linalg.lstsq(maps.T, linear.flatten()[:, None], driver="gelsd").solution[:, 0] > 0.5
        sign = torch.where(turned, -1.0, 1.0).double()
        units = Units(units.weight * sign[:, None], units.bias * sign, units.jump)
        before = points @ units.weight.T + units.bias
    spare = first.out_features - h
    if spare:
        fitted = solve(torch.cat([before.relu(), points], 1), values)
    else:
        fitted = solve(before.relu(), values)
        fitted = torch.cat([fitted[:h], torch.zeros_like(linear), fitted[-1:]])
    out, linear, constant = fitted[:h], fitted[h:-1], fitted[-1]
    left, size, right = torch.linalg.svd(linear, full_matrices=False)
    rank = min(spare, len(size))
    rows = left[:, :rank].T
    lift = 1.0 - (rows.clamp(min=0) * area.low + rows.clamp(max=0) * area.high).sum(1)
    more = size[:rank, None] * right[:rank]
    idle = spare - rank
    with torch.no_grad():
        first.weight.copy_(torch.cat([units.weight, rows, rows.new_zeros(idle, rows.shape[1])]))
        first.bias.copy_(torch.cat([units.bias, lift, lift.new_zeros(idle)]))
        last.weight.copy_(torch.cat([out, more, more.new_zeros(idle, more.shape[1])]).T)
        last.bias.copy_(constant - lift @ more)
    return copy.to(train.victim.device)


def _linears(module: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    first, last = (part for part in module.modules() if isinstance(part, nn.Linear))
    return first, last
