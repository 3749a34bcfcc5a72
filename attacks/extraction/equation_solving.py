"""The weights of a linear model, from as many answers as it has weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.extraction._exact import SHAPES, at_home, box, chain, numbers, solve
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
class EquationSolving(Extraction):
    """Weights as the solution of linear equations (Tramèr et al. 2016, https://arxiv.org/abs/1609.02943).

    Each answer about a point is one equation for every value, or for every log-odds of K classes, in the d weights and
    the bias: d + 1 answers, (d + 1)(K - 1) numbers where probabilities are revealed, leave one solution, whose error is
    that of the digits that were served. The points ``(queries, *shape)`` are of its own making: cosines in the box,
    whose columns are orthogonal, so that no error grows. Fewer answers give the shortest weights that explain them.
    Raises `NotApplicable` unless the model is one linear layer (on fixed features, if any) of one tensor in a box, and
    `UsageError` for a budget below 1.

    Differs from the paper: chosen points in place of random ones, and least squares where answers are rounded. From
    probabilities the weights are known up to what all classes share; the copy's sum to 0 over the classes.
    """

    exact: ClassVar[bool] = True
    queries: int = 10_000
    """The budget; no more than ``rounds`` times d + 1 of them are asked."""
    budgets: tuple[int, ...] = ()
    """Smaller budgets at which the copy is judged on the way."""
    reveal: Reveal = "probabilities"
    """How much of each answer the adversary sees."""
    rounds: int = 1
    """How many times d + 1 points are asked about: more equations than unknowns average out what rounding took."""
    reach: float = 1.0
    """How far from its middle the box is asked about, as a share: probabilities near 0 are rounded worst."""

    def __post_init__(self) -> None:
        require(self.queries >= 1, f"EquationSolving needs a budget of at least 1 query; given {self.queries}")
        require(self.rounds >= 1, f"EquationSolving needs at least 1 round; given {self.rounds}")
        require(0 < self.reach <= 1, f"EquationSolving reaches over a share of the box in (0, 1]; given {self.reach}")
        check_reveal(self.reveal)

    def check(self, task: Task, threat: Threat | None) -> None:
        """Raise `NotApplicable` unless one linear layer holds all weights and nothing but shapes comes after it."""
        super().check(task, threat)
        box(task, type(self).__name__)
        layers = chain(task, type(self).__name__)
        holding = [place for place, layer in enumerate(layers) if next(layer.parameters(), None) is not None]
        linear = len(holding) == 1 and isinstance(layers[holding[0]], nn.Linear)
        if not linear or not all(isinstance(layer, SHAPES) for layer in layers[holding[0] + 1 :]):
            raise NotApplicable(
                f"EquationSolving needs a model with a single linear layer, at its end; {task.name} is none"
            )

    def steal(self, access: BlackBox, pool: Batch, train: Imitation, rng: torch.Generator) -> Iterator[nn.Module]:
        """The module with the weights that explain the answers so far."""
        copy = at_home(train.task)
        (layer,) = (part for part in copy.modules() if isinstance(part, nn.Linear))
        assert isinstance(pool.inputs, Tensor)
        shape, kind = pool.inputs.shape[1:], layer.weight.dtype
        n = self.rounds * (math.prod(shape) + 1)
        points = cosines(n, math.prod(shape), box(train.task, ""), self.reach, rng).to(kind).reshape(n, *shape)
        features, values = torch.empty(0), torch.empty(0)
        for budget in self.stages:
            new = points[len(values) : budget]
            if len(new):
                found = numbers(access, access(new)), _features(copy, layer, new)
                values, features = (
                    torch.cat([old, more]) if len(old) else more
                    for old, more in zip((values, features), found, strict=True)
                )
            yield _filled(train, solve(features, values))

    @classmethod
    def tiny(cls) -> EquationSolving:
        """Eight queries."""
        return cls(queries=8, budgets=(4,))


def cosines(n: int, d: int, area: Box, reach: float, rng: torch.Generator) -> Tensor:
    """Points ``(n, d)`` of a box: with a column of ones before them, any d + 1 in a row have orthogonal columns."""
    place = torch.cat([torch.randperm(d + 1, generator=rng) for _ in range(-(-n // (d + 1)))])[:n, None].double()
    turns = torch.cat([torch.randperm(d, generator=rng).expand(d + 1, d) for _ in range(-(-n // (d + 1)))])[:n] + 1
    waves = torch.cos(math.pi * (2 * place + 1) * turns / (2 * (d + 1)))
    middle, half = (area.high + area.low) / 2, (area.high - area.low) / 2
    return middle + reach * half * waves


def _features(module: nn.Module, layer: nn.Linear, points: Tensor) -> Tensor:
    """What the linear layer is shown ``(n, d)`` for these points: no weight comes before it."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, shown: seen.append(shown[0].detach()))
    with torch.no_grad():
        module(points)
    handle.remove()
    return torch.cat(seen).double()


def _filled(train: Imitation, solution: Tensor) -> nn.Module:
    """A module of the victim's kind with these weights and, in the last row, biases."""
    copy = at_home(train.task)
    (layer,) = (part for part in copy.modules() if isinstance(part, nn.Linear))
    with torch.no_grad():
        layer.weight.copy_(solution[:-1].T)
        if layer.bias is not None:
            layer.bias.copy_(solution[-1])
    return copy.to(train.victim.device)
