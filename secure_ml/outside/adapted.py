"""A module from outside, asked and answering as everything here expects: one tree in, logits or values out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from secure_ml.batch import Tree, leaves, tree_map
from secure_ml.errors import UsageError
from secure_ml.outputs import SURE
from secure_ml.surfaces import Box

Path = tuple[str | int, ...]
Reads = Literal["as they are", "probabilities", "chance", "labels"]
"""What answers are made of: logits or values, a distribution, the chance of class 1, a 1 for the class alone."""
Call = Literal["one", "names", "places"]
"""How inputs are handed over: as they are, by name, or one after another."""


@dataclass(frozen=True, eq=False)
class Scale:
    """What a module expects in the place of a tensor ``x`` of its inputs: ``x * factor + shift``."""

    factor: Tensor
    shift: Tensor
    path: Path = ()

    def back(self, given: Tensor) -> Tensor:
        """The ``x`` in whose place a module expects this; 0 where nothing it could be makes a difference."""
        return ((given - self.shift) / torch.where(self.factor == 0, torch.inf, self.factor)).to(given)


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How one module is asked, and how its answers are read; found once and used for every module like it."""

    call: Call = "one"
    reads: Reads = "as they are"
    flat: bool = False
    """Whether answers ``(B, 1)`` are ``(B,)``."""
    scale: Scale | None = None

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module in this manner."""
        return Adapted(module, self)


class Adapted(nn.Module):
    """A module and the manner in which it is asked."""

    factor: Tensor
    shift: Tensor

    def __init__(self, inner: nn.Module, manner: Manner) -> None:
        super().__init__()
        self.inner, self.manner = inner, manner
        if next(inner.parameters(), None) is None:
            self.place = nn.Parameter(torch.zeros(()), requires_grad=False)
        if manner.scale is not None:
            self.register_buffer("factor", manner.scale.factor, persistent=False)
            self.register_buffer("shift", manner.scale.shift, persistent=False)
        self.training = inner.training

    def forward(self, inputs: Tree) -> Tensor:
        """Logits ``(B, K)`` or ``(B,)``, or values, of ``(B, *shape)`` inputs; there may be none."""
        if not len(next(leaves(inputs))):  # many modules cannot shape the answer to nothing
            return cast("Tensor", self(tree_map(lambda leaf: leaf.new_zeros(1, *leaf.shape[1:]), inputs))[:0])
        outputs = answer_of(ask(self.inner, self._scaled(inputs), self.manner.call))
        return read(outputs[:, 0] if self.manner.flat and outputs.ndim == 2 else outputs, self.manner.reads)

    def _scaled(self, inputs: Tree) -> Tree:
        if self.manner.scale is None:
            return inputs
        slot = Box(path=self.manner.scale.path)
        return slot.put(inputs, slot.get(inputs) * self.factor + self.shift)


def ask(module: nn.Module, inputs: Tree, call: Call) -> Any:
    """What the module returns."""
    if call == "names":
        return module(**cast("dict[str, Tree]", inputs))
    return module(*cast("tuple[Tree, ...]", inputs)) if call == "places" else module(inputs)


def answer_of(returned: Any) -> Tensor:
    """The answers in what a module returned: ``logits`` of several by name, the first of several in a row."""
    if isinstance(returned, Mapping):
        if "logits" not in returned:
            raise UsageError(f"the module returns {', '.join(map(str, returned))}; expected a tensor, or one of logits")
        returned = returned["logits"]
    if isinstance(returned, (tuple, list)) and returned:
        returned = returned[0]
    if not isinstance(returned, Tensor):
        raise UsageError(f"the module returns a {type(returned).__name__}; expected a tensor of answers")
    return returned


def read(outputs: Tensor, reads: Reads) -> Tensor:
    """Answers as logits, whatever they are made of."""
    least = torch.finfo(outputs.dtype).tiny if outputs.is_floating_point() else 0.0
    if reads == "probabilities":
        return outputs.clamp(min=least).log()
    if reads == "chance":
        return outputs.clamp(min=least).log() - (1 - outputs).clamp(min=least).log()
    return (outputs * SURE).log_softmax(-1) if reads == "labels" else outputs


def call_of(module: nn.Module, inputs: Tree, blind: bool) -> Call:
    """How inputs are handed over, by the names that the module's ``forward`` takes; one that is blind takes a tree."""
    if isinstance(inputs, Tensor) or blind:
        return "one"
    takes = inspect.signature(module.forward).parameters.values()
    if isinstance(inputs, dict):
        return (
            "names" if {p.name for p in takes} >= set(inputs) or any(p.kind is p.VAR_KEYWORD for p in takes) else "one"
        )
    several = [p for p in takes if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return "places" if len(several) >= len(inputs) or any(p.kind is p.VAR_POSITIONAL for p in takes) else "one"
