"""What an adversary may change in inputs from outside, and what of it was read off the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from secure_ml.batch import Tree
from secure_ml.outside.adapted import Path, Scale
from secure_ml.surfaces import Box, Surface
from secure_ml.threats import Threat

Bounds = tuple[Any, Any]
"""Lowest and highest value, or mean and deviation: numbers, or one for each column or channel."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What may be changed, what it must be scaled by for the module, and by how much it is changed unless said."""

    surfaces: tuple[Surface, ...] = ()
    threat: Threat | None = None
    scale: Scale | None = None
    public: tuple[str, ...] = ()
    """What was read off the data and so is taken for public."""
    raw: bool = True
    """Whether the data are in the surface's unit already, rather than as the module expects them."""

    def of(self, inputs: Tree) -> Tree:
        """Inputs as they came, in the surface's unit and inside its box."""
        if self.scale is None or self.raw:
            return inputs
        (surface,) = self.surfaces
        assert isinstance(surface, Box)
        values = self.scale.back(surface.get(inputs))
        return surface.put(inputs, values.clamp(surface.low, surface.high))


def slots(tree: Tree, path: Path = ()) -> dict[Path, Tensor]:
    """Every tensor of some inputs, by the way to it."""
    if isinstance(tree, Tensor):
        return {path: tree}
    items: Sequence[tuple[str | int, Tree]] = list(tree.items() if isinstance(tree, dict) else enumerate(tree))
    return {way: leaf for step, part in items for way, leaf in slots(part, (*path, step)).items()}


def name_of(path: Path) -> str:
    """How a tensor of the inputs is called in a sentence."""
    return ".".join(map(str, path)) or "the input"
