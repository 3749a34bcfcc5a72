"""The hidden width and the output layer of a model with more classes than hidden units."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.extraction._exact import at_home
from secure_ml.access import BlackBox
from secure_ml.batch import Batch, Tree
from secure_ml.errors import NotApplicable, require
from secure_ml.families.extraction import Extraction
from secure_ml.imitation import Imitation
from secure_ml.outputs import Classes, NextToken, Output, Ranking, Reveal, check_reveal
from secure_ml.projection import Projection, head, weighted
from secure_ml.surfaces import Box, Surface, Tokens
from secure_ml.task import Task
from secure_ml.threats import Threat


@dataclass(frozen=True, kw_only=True)
class HeadExtraction(Extraction):
    """Singular values of many logit vectors give the hidden width (Carlini et al. 2024, https://arxiv.org/abs/2403.06634).

    Logits of K classes are the last layer's weights times as many numbers as there are hidden units: a table of them
    has that rank, which shows as the largest ratio of neighbouring singular values, and its singular vectors span what
    the weights span. Inputs ``(queries, *shape)`` are random tokens, or random points of a box; of a generator every
    place gives a vector, and no more is asked than gives four vectors for each class. From log-probabilities those of
    one class are taken away first. Where only the ``top`` likeliest classes are shown, a bias on logits brings any
    others there, a few at a time. The mean vector is taken away, and with it the bias of the last layer. A layer
    normalisation before the last layer leaves one dimension less, which is added; then the mean stays in the matrix, as
    it holds that dimension. Raises `NotApplicable` unless the model ends in a linear layer of more classes than hidden
    units, and `UsageError` for a budget below 1, or a ``top`` of 1.

    Differs from the paper: the architecture is known but for its widths, so that the normalisation is accounted for.
    """

    outputs: ClassVar[tuple[type[Output], ...]] = (Classes, NextToken)
    queries: int = 2000
    """The budget."""
    budgets: tuple[int, ...] = ()
    """Smaller budgets at which what is found is judged on the way."""
    reveal: Reveal = "logits"
    """How much of each answer the adversary sees."""
    top: int = 0
    """How many of the likeliest classes are shown, of a generator after the last place; 0 shows all, everywhere."""
    bias: float = 32.0
    """What is added to the logits of the classes that are to be shown, where only some are."""

    def __post_init__(self) -> None:
        require(self.queries >= 1, f"HeadExtraction needs a budget of at least 1 query; given {self.queries}")
        require(
            self.top == 0 or self.top > 1, f"HeadExtraction compares 2 classes or more, or all (0); given {self.top}"
        )
        require(self.bias > 0, f"HeadExtraction needs a bias above 0; given {self.bias}")
        check_reveal(self.reveal)

    def check(self, task: Task, threat: Threat | None) -> None:
        """Raise `NotApplicable` unless a linear layer maps fewer numbers to more classes, from inputs we can make."""
        super().check(task, threat)
        if isinstance(task.output, Ranking):
            raise NotApplicable(f"HeadExtraction needs plain logits; {task.name} rewrites those of items seen")
        _asked(task)
        layer = head(at_home(task), task.name)
        if layer.out_features <= layer.in_features:
            raise NotApplicable(
                f"{task.name} has {layer.out_features} classes, no more than its hidden width: logits do not show it"
            )

    def steal(self, access: BlackBox, pool: Batch, train: Imitation, rng: torch.Generator) -> Iterator[Projection]:
        """The width and the matrix from the vectors so far."""
        task, home = train.task, at_home(train.task)
        normed = isinstance(weighted(home)[-2], nn.LayerNorm) if len(weighted(home)) > 1 else False
        with torch.no_grad():
            shape = home(pool.take(slice(0, 1)).to(torch.device("cpu")).inputs).shape
        contexts = 4 * shape[-1] if self.top else 4 * shape[-1] // shape[1:-1].numel() + 1
        inputs = made(pool, _asked(task), contexts, rng)
        table, asked = torch.empty(0, shape[-1], dtype=torch.float64), 0
        sets = shown(shape[-1], self.top)
        for budget in self.stages:
            new = torch.arange(asked, min(budget, contexts * len(sets)))
            asked += len(new)
            if len(new):
                these = inputs.take(new // len(sets)).inputs
                some = self._some(access, these, sets[new % len(sets)]) if self.top else access(these)
                table = torch.cat([table, some.cpu().double().reshape(-1, shape[-1])])
            yield found(whole(table, len(sets)), normed, self.reveal if not self.top else "probabilities")

    def _some(self, access: BlackBox, inputs: Tree, classes: Tensor) -> Tensor:
        """Log-odds ``(B, K)`` of these classes ``(B, K)``, true where they are meant, to the first; others are nan."""
        there, shares = (part.cpu() for part in access.biased(inputs, classes * self.bias, self.top))
        table = torch.full(classes.shape, torch.nan, dtype=torch.float64).scatter(1, there, shares.double())
        return torch.where(classes, table - table[:, :1], torch.nan)

    @classmethod
    def tiny(cls) -> HeadExtraction:
        """Sixteen queries."""
        return cls(queries=16, budgets=(4,))


def _asked(task: Task) -> Surface:
    """What is made up in an input."""
    for surface in task.surfaces:
        if isinstance(surface, Tokens) or type(surface) is Box:
            return surface
    raise NotApplicable(f"HeadExtraction makes up tokens or points of a box; {task.name} has other inputs")


def made(pool: Batch, surface: Surface, n: int, rng: torch.Generator) -> Batch:
    """``n`` inputs of the pool with random tokens, or a random point, in the place of their own."""
    batch = Batch(pool.take(torch.randint(len(pool), (n,), generator=rng)).inputs, ())
    old = surface.get(batch.inputs)
    if isinstance(surface, Tokens):
        known = torch.tensor([token for token in range(surface.vocabulary) if token not in surface.frozen])
        new = known[torch.randint(len(known), old.shape, generator=rng)]
    else:
        assert isinstance(surface, Box)
        new = surface.low + (surface.high - surface.low) * torch.rand(old.shape, generator=rng, dtype=torch.float64)
    return Batch(surface.put(batch.inputs, new.to(old)), ())


def shown(classes: int, top: int) -> Tensor:
    """Sets of classes ``(sets, K)`` of at most ``top`` that all hold the first and together all; one of all for 0."""
    if not top:
        return torch.ones(1, classes, dtype=torch.bool)
    groups = torch.arange(1, classes).split(top - 1)
    sets = torch.zeros(len(groups), classes, dtype=torch.bool)
    for row, group in zip(sets, groups, strict=True):
        row[0] = row[group] = True
    return sets


def whole(table: Tensor, sets: int) -> Tensor:
    """Vectors ``(n, K)`` of which all classes have been seen, each put together from so many rows in a row."""
    parts = table[: len(table) // sets * sets].reshape(-1, sets, table.shape[1])
    vectors = parts.nan_to_num(-torch.inf).amax(1)
    return vectors[vectors.isfinite().all(1)]


def found(vectors: Tensor, normed: bool, reveal: Reveal) -> Projection:
    """The width and the matrix behind logit vectors ``(n, K)``; width 1 and zeros where there are too few to tell."""
    classes = vectors.shape[1]
    if reveal != "logits":
        vectors = vectors[:, 1:] - vectors[:, :1]
    if len(vectors) < 3:
        return Projection(1, torch.zeros(classes, 1, dtype=torch.float64))
    centred = vectors - vectors.mean(0)
    width = rank(torch.linalg.svdvals(centred)[: len(vectors) - 1]) + normed
    _, size, right = torch.linalg.svd(vectors if normed else centred, full_matrices=False)
    matrix = (size[:width, None] * right[:width]).T
    if reveal != "logits":
        matrix = torch.cat([matrix.new_zeros(1, matrix.shape[1]), matrix])
    return Projection(width, matrix)


def rank(sizes: Tensor) -> int:
    """The place of the largest drop in singular values, those below rounding set to it."""
    sizes = sizes.clamp(min=float(sizes[0]) * 1e-9 + 1e-300)
    return int((sizes[:-1] / sizes[1:]).argmax()) + 1 if len(sizes) > 1 else 1
