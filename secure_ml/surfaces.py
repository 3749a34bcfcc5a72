"""What an adversary may change in an input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from secure_ml.batch import Tree
from secure_ml.errors import UsageError, require

Run = Callable[[Tree], Tensor]


class Surface(ABC):
    """One tensor inside the inputs, found by ``path``, and the values that it may hold."""

    path: tuple[str | int, ...]

    def get(self, inputs: Tree) -> Tensor:
        """The tensor ``(B, *shape)`` that the adversary may change."""
        for step in self.path:
            inputs = cast("dict[str | int, Tree]", inputs)[step]
        return cast("Tensor", inputs)

    def put(self, inputs: Tree, value: Tensor) -> Tree:
        """The inputs with that tensor replaced; the given tree stays as it was."""
        return _put(inputs, self.path, value)

    @abstractmethod
    def check(self, inputs: Tree) -> None:
        """Raise `UsageError` where an input lies outside what this surface allows."""

    @abstractmethod
    def gradient(self, module: nn.Module, inputs: Tree, run: Run) -> tuple[Tensor, Tensor]:
        """``run(inputs)`` values ``(B,)`` and their gradient in the surface's tensor."""


@dataclass(frozen=True)
class Box(Surface):
    """Real numbers ``(B, *shape)`` in ``[low, high]``."""

    low: float = 0.0
    high: float = 1.0
    path: tuple[str | int, ...] = ()

    def __post_init__(self) -> None:
        require(self.low < self.high, f"a Box needs low < high; given {self.low} and {self.high}")

    def check(self, inputs: Tree) -> None:
        """Raise `UsageError` for values outside the box (beyond rounding) or not finite."""
        values = self.get(inputs)
        if not values.numel():
            return
        low, high = values.min().item(), values.max().item()
        if not (low >= self.low - 1e-6 and high <= self.high + 1e-6):
            raise UsageError(
                f"inputs lie in [{low:.4g}, {high:.4g}], outside the declared Box({self.low}, {self.high}): "
                "scale them, or declare the box they live in"
            )

    def clamp(self, clean: Tensor, proposal: Tensor) -> Tensor:
        """The point of the box nearest to the proposal; a clean value outside it (by rounding) may stay."""
        return torch.clamp(proposal, clean.clamp(max=self.low), clean.clamp(min=self.high))

    def snap(self, clean: Tensor, proposal: Tensor) -> Tensor:
        """The allowed point between the clean one and a proposal in the box: every point of a plain box is allowed."""
        return proposal

    def gradient(self, module: nn.Module, inputs: Tree, run: Run) -> tuple[Tensor, Tensor]:
        """Values ``(B,)`` and the gradient ``(B, *shape)``; no gradient reaches a weight."""
        leaf = self.get(inputs).detach().requires_grad_()
        with torch.enable_grad():
            values = run(self.put(inputs, leaf))
            try:
                (gradient,) = torch.autograd.grad(values.sum(), leaf)
            except RuntimeError as error:
                if not any(word in str(error) for word in ("does not require grad", "not have been used")):
                    raise
                raise UsageError(
                    "the module's answers have no gradient in its inputs: give the attack a differentiable stand-in "
                    "(BPDA), or use one that only asks, Square or HopSkipJump say"
                ) from None
        return values.detach(), gradient


@dataclass(frozen=True)
class Table(Box):
    """Rows ``(B, d)`` of numbers in ``[low, high]`` with rules.

    Columns in ``frozen`` cannot be changed (and pin the group they lie in). ``steps`` names columns whose values are
    whole multiples of a step, ``(column, step)``. Each of ``groups`` is a one-hot code: one of its columns is 1, the
    others are 0.
    """

    frozen: tuple[int, ...] = ()
    steps: tuple[tuple[int, float], ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()

    def check(self, inputs: Tree) -> None:
        """Raise `UsageError` for values outside the box, off their grid, or no one-hot code."""
        super().check(inputs)
        rows = self.get(inputs)
        require(rows.ndim == 2, f"a Table holds rows (B, d); given {tuple(rows.shape)}")
        for column, step in self.steps:
            counts = rows[:, column] / step
            if not bool(((counts - counts.round()).abs() < 1e-3).all()):
                raise UsageError(f"column {column} holds values that are no whole multiples of its step {step:.4g}")
        for group in self.groups:
            code = rows[:, list(group)]
            if not bool(((code == 0) | (code == 1)).all() and (code.sum(1) == 1).all()):
                raise UsageError(f"columns {group} hold rows that are no one-hot code: one must be 1, the others 0")

    @property
    def free_groups(self) -> list[tuple[int, ...]]:
        """The groups without a frozen column."""
        return [group for group in self.groups if not set(group) & set(self.frozen)]

    def snap(self, clean: Tensor, proposal: Tensor) -> Tensor:
        """Frozen columns and categories as they were; numbers on the grid, rounded towards the clean value."""
        snapped = proposal.clone()
        for column, step in self.steps:
            counts = ((proposal[:, column] - clean[:, column]) / step * (1 + 1e-5)).trunc()
            moved = ((clean[:, column] / step).round() + counts) * step
            snapped[:, column] = torch.where(counts == 0, clean[:, column], moved)
        fixed = [*self.frozen, *(column for group in self.groups for column in group)]
        snapped[:, fixed] = clean[:, fixed]
        return snapped


@dataclass(frozen=True)
class Tokens(Surface):
    """Token numbers ``(B, L)`` below ``vocabulary``, looked up in the module's layer ``embedding``.

    The tokens in ``frozen`` (padding) can be neither changed nor written.
    """

    vocabulary: int
    embedding: str = "embedding"
    frozen: tuple[int, ...] = (0,)
    path: tuple[str | int, ...] = ()

    def check(self, inputs: Tree) -> None:
        """Raise `UsageError` for anything but whole numbers in ``[0, vocabulary)``."""
        tokens = self.get(inputs)
        require(not tokens.is_floating_point(), f"tokens must be whole numbers; given {tokens.dtype}")
        if tokens.numel() and not (tokens.min().item() >= 0 and tokens.max().item() < self.vocabulary):
            raise UsageError(
                f"tokens lie in [{tokens.min().item()}, {tokens.max().item()}], outside [0, {self.vocabulary})"
            )

    def editable(self, tokens: Tensor) -> Tensor:
        """Where a token may be changed: a mask ``(B, L)``."""
        return ~torch.isin(tokens, torch.tensor(self.frozen, dtype=tokens.dtype, device=tokens.device))

    def gradient(self, module: nn.Module, inputs: Tree, run: Run) -> tuple[Tensor, Tensor]:
        """Values ``(B,)`` and the gradient ``(B, L, vocabulary)`` in the one-hot code of each token."""
        layer = self._layer(module)
        found: list[Tensor] = []

        def leaf(_: nn.Module, __: tuple[Tensor, ...], vectors: Tensor) -> Tensor:
            found.append(vectors.detach().requires_grad_())
            return found[-1]

        handle = layer.register_forward_hook(leaf)
        try:
            with torch.enable_grad():
                values = run(inputs)
                (gradient,) = torch.autograd.grad(values.sum(), found)
        finally:
            handle.remove()
        return values.detach(), gradient @ cast("Tensor", layer.weight).detach().T

    def vectors(self, module: nn.Module) -> Tensor:
        """The vector of each token in the module's own embedding, ``(vocabulary, D)``."""
        return cast("Tensor", self._layer(module).weight).detach()

    def _layer(self, module: nn.Module) -> nn.Module:
        for name, layer in module.named_modules():
            if name == self.embedding or name.endswith("." + self.embedding):
                return cast("nn.Module", layer)
        raise UsageError(f"the module has no layer called {self.embedding!r}, which Tokens names as its embedding")


@dataclass(frozen=True, kw_only=True)
class SpelledTokens(Tokens):
    """Tokens of which it is known how they are written.

    ``read`` gives the string of each token number, empty where nothing is known to be written so, and ``write`` the
    number of a string, or -1 where it is no token.
    """

    read: Callable[[], Sequence[str]] = field(repr=False)
    write: Callable[[str], int] = field(repr=False)


def _put(tree: Tree, path: tuple[str | int, ...], value: Tensor) -> Tree:
    if not path:
        return value
    step, *rest = path
    branch = _put(cast("dict[str | int, Tree]", tree)[step], tuple(rest), value)
    if isinstance(tree, dict):
        return {**tree, cast("str", step): branch}
    return tuple(branch if i == step else kept for i, kept in enumerate(cast("tuple[Tree, ...]", tree)))
