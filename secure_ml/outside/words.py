"""Tokens: the layer that looks them up, and those of them that are no words."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secure_ml.batch import Tree, tree_map
from secure_ml.families.scrutiny import Finding
from secure_ml.modes import evaluating
from secure_ml.outside.adapted import Call, Path, ask
from secure_ml.outside.change import Change, name_of
from secure_ml.outside.opaque import opaque
from secure_ml.surfaces import Box, Tokens
from secure_ml.threats import Edits

WORDS, THREAT = "tokens", "threat"


def worded(module: nn.Module, inputs: Tree, call: Call, slots: dict[Path, Tensor], found: list[Finding]) -> Change:
    """The tokens among the inputs: what the module looks up in a table, or, of one that only answers, whole numbers."""
    blind = opaque(module) is not None
    for path, tokens in sorted(slots.items(), key=lambda slot: -_kinds(slot[1])):  # words differ more than places do
        layer = None if blind or not _kinds(tokens) else _table(module, inputs, path, call)
        if blind and _kinds(tokens) > 2 and bool((tokens >= 0).all()):
            layer = "", int(tokens.max()) + 1
        if layer is not None:
            name, size = layer
            surface = Tokens(size, name, _marks(path, tokens, slots), path)
            Tokens(size).check(tokens)
            stay = ", ".join(map(str, surface.frozen)) or "none"
            whence = (
                f"below {size}, looked up in {name}" if name else f"no higher than {size - 1}, none being higher here"
            )
            said = f"{name_of(path)} holds tokens {whence}; no words, which stay: {stay}"
            remedy = "" if name else "give surfaces=(sm.Tokens(vocabulary, path=...),) and threat="
            found.append(Finding(WORDS, "PASS" if name else "WARN", said, remedy))
            found.append(Finding(THREAT, "WARN", "Edits(2): two tokens are replaced", "give threat=sm.Edits(...)"))
            return Change(surfaces=(surface,), threat=Edits(2))
    said = "no input is known to be real numbers or tokens: nothing is changed by an attack"
    found.append(Finding(WORDS, "WARN", said, "give surfaces= and threat="))
    return Change()


def _kinds(leaf: Tensor) -> int:
    """How many different whole numbers ``(B, L)`` hold; 0 for others, and where all examples have the same."""
    if leaf.is_floating_point() or leaf.ndim != 2 or bool((leaf == leaf[:1]).all()):
        return 0
    return int(leaf.unique().numel())


def _table(module: nn.Module, inputs: Tree, path: Path, call: Call) -> tuple[str, int] | None:
    """The embedding that is handed these tokens, by name, and its size: seen while one example is answered."""
    one = tree_map(lambda leaf: leaf[:1], inputs)
    tokens, seen = Box(path=path).get(one), dict[str, int]()

    def watch(name: str, layer: nn.Embedding) -> torch.utils.hooks.RemovableHandle:
        def look(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            if given and given[0].shape == tokens.shape and bool((given[0] == tokens).all()):
                seen[name] = layer.num_embeddings

        return layer.register_forward_pre_hook(look)

    handles = [watch(name, part) for name, part in module.named_modules() if isinstance(part, nn.Embedding)]
    try:
        with evaluating(module), torch.no_grad():
            ask(module, one, call)
    finally:
        for handle in handles:
            handle.remove()
    return max(seen.items(), key=lambda item: item[1], default=None)


def _marks(path: Path, tokens: Tensor, slots: dict[Path, Tensor]) -> tuple[int, ...]:
    """The tokens that are no words: those under a mask, and those that begin or end every text."""
    masks = [leaf for way, leaf in slots.items() if way != path and leaf.shape == tokens.shape and _is_mask(leaf)]
    there = masks[0].bool() if masks else torch.ones_like(tokens, dtype=torch.bool)
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    marks = set(tokens[~there].unique().tolist())
    for end in (places.masked_fill(~there, tokens.shape[1]).argmin(1), places.masked_fill(~there, -1).argmax(1)):
        column = tokens.gather(1, end[:, None])
        if len(column) > 1 and bool((column == column[0]).all()):
            marks.add(int(column[0]))
    return tuple(sorted(marks))


def _is_mask(leaf: Tensor) -> bool:
    """Whether each row is ones with zeros before or behind them."""
    whole = leaf.long()
    turns = (whole.diff(dim=1) != 0).sum(1)
    return bool(((leaf == 0) | (leaf == 1)).all() and (turns <= 1).all() and (whole.sum(1) > 0).all())
