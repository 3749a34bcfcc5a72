"""Examples: trees of tensors whose leading dimension is the example."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

Tree: TypeAlias = "Tensor | tuple[Tree, ...] | dict[str, Tree]"


def tree_map(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """Apply ``function`` to every tensor of a tree, keeping its shape."""
    if isinstance(tree, dict):
        return {name: tree_map(function, branch) for name, branch in tree.items()}
    if isinstance(tree, tuple):
        return tuple(tree_map(function, branch) for branch in tree)
    return function(tree)


def leaves(tree: Tree) -> Iterator[Tensor]:
    """The tensors of a tree, in a fixed order."""
    if isinstance(tree, dict):
        for name in sorted(tree):
            yield from leaves(tree[name])
    elif isinstance(tree, tuple):
        for branch in tree:
            yield from leaves(branch)
    else:
        yield tree


def join(trees: list[Tree]) -> Tree:
    """Concatenate trees of one shape along the example dimension; at least one tree."""
    first = trees[0]
    if isinstance(first, dict):
        return {name: join([cast("dict[str, Tree]", t)[name] for t in trees]) for name in first}
    if isinstance(first, tuple):
        return tuple(join([cast("tuple[Tree, ...]", t)[i] for t in trees]) for i in range(len(first)))
    return torch.cat(cast("list[Tensor]", trees))


@dataclass(frozen=True, eq=False)
class Batch:
    """``inputs`` and ``target``, each a tensor ``(B, *shape)`` or a tree of them."""

    inputs: Tree
    target: Tree

    def __len__(self) -> int:
        return len(next(leaves(self.inputs)))

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with ``function`` applied to each of its tensors."""
        return Batch(tree_map(function, self.inputs), tree_map(function, self.target))

    def take(self, index: Tensor | slice) -> Batch:
        """The examples at ``index``: integers ``(n,)``, a mask ``(B,)``, or a slice."""
        return self.map(lambda tensor: tensor[index])

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def chunks(self, size: int) -> Iterator[Batch]:
        """The batch in pieces of at most ``size`` examples: itself where one is enough, else views of it."""
        if len(self) <= size:
            yield self
            return
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))


@dataclass(frozen=True, eq=False)
class Splits:
    """The disjoint parts of a data set; the victim's members are ``train``, the adversary owns ``aux``.

    ``others`` are non-members drawn like the members, where the test split is not: from an official test set, say.
    """

    train: Batch
    validation: Batch
    test: Batch
    aux: Batch
    others: Batch | None = None
    owner: Tensor | None = field(default=None, kw_only=True)
    """Whose each training example is, ``(n,)``, where persons have several; on the CPU."""

    @property
    def nonmembers(self) -> Batch:
        """Examples of the members' own distribution that were not trained on."""
        return self.test if self.others is None else self.others

    def to(self, device: torch.device) -> Splits:
        """All parts on another device."""
        moved: dict[str, Any] = {name: part.to(device) for name, part in self.parts().items()}
        return replace(self, **moved)

    def parts(self) -> dict[str, Batch]:
        """The parts that there are, by name."""
        named = {part.name: getattr(self, part.name) for part in fields(self)}
        return {name: part for name, part in named.items() if isinstance(part, Batch)}

    def fingerprint(self) -> str:
        """A hash of every number in every part."""
        digest = hashlib.sha256(b"" if self.owner is None else self.owner.numpy().tobytes())
        for name, part in self.parts().items():
            for tensor in (*leaves(part.inputs), *leaves(part.target)):
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
