"""Networks with sums of branches as affine maps of what was computed before, and squares between them.

Every activation's argument, and the answer, is an affine function of the input and of earlier activations' values. Its
matrices are read off the network's answers to unit vectors, with activations replaced by what they are given. What
comes from further back than the layer before is a skip: a second matrix into the same sum, which takes no level.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from defenses.homomorphic.polynomial import AFFINE, BENDS, POOLS, Quadratic, instead
from secure_ml.errors import NotApplicable

SUMS = (operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub, torch.flatten, torch.cat)
METHODS = ("add", "sub", "flatten")
LINEAR_BELOW = 1e-9
"""A coefficient of the square below which an activation is a straight line."""
CHUNK = 256
"""Unit vectors that a network is shown at a time."""
INPUT = "input"
"""The name of the one source that is no activation."""


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Layers that are known are looked at as a whole."""
        return isinstance(m, (*AFFINE, *BENDS, *POOLS, Quadratic)) or super().is_leaf_module(m, module_qualified_name)


def traced(module: nn.Module) -> fx.GraphModule:
    """What a module computes, layer by layer; raises `NotApplicable`, by its name, for what is no affine map or sum."""
    kind = type(module).__name__
    try:
        graph = _Tracer().trace(module)
    except Exception as error:  # whatever the module's own code raises when it is shown no numbers
        raise NotApplicable(f"{kind} cannot be followed layer by layer ({error}): write it as a Sequential") from None
    made = fx.GraphModule(module, graph)
    made.graph.eliminate_dead_code()
    made.recompile()
    inputs = [node for node in made.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise NotApplicable(f"{kind} takes {len(inputs)} inputs; one can be encrypted")
    (output,) = (node for node in made.graph.nodes if node.op == "output")
    if not isinstance(output.args[0], fx.Node):
        raise NotApplicable(f"{kind} answers several tensors; one can be encrypted")
    for node in made.graph.nodes:
        _check(node, made, kind)
    return made


def _check(node: fx.Node, graph: fx.GraphModule, kind: str) -> None:
    if node.op == "call_module":
        layer = graph.get_submodule(str(node.target))
        if not isinstance(layer, (*AFFINE, *BENDS, *POOLS, Quadratic)):
            raise NotApplicable(f"{type(layer).__name__} cannot be encrypted: {instead(layer)}")
    elif (node.op == "call_function" and node.target not in SUMS) or (
        node.op == "call_method" and node.target not in METHODS
    ):
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        raise NotApplicable(
            f"{kind} calls {name}, which cannot be encrypted: use layers of torch.nn, and sums of branches"
        )


class _Replaced(fx.Interpreter):
    """Runs a network with its activations' values given, and keeps what they were asked about."""

    def __init__(self, graph: fx.GraphModule, given: Mapping[str, Tensor]) -> None:
        super().__init__(graph)
        self.given, self.asked = given, {}  # type: ignore[var-annotated]

    def run_node(self, n: fx.Node) -> Any:
        """The value of a step."""
        if n.op == "call_module" and isinstance(self.fetch_attr(str(n.target)), Quadratic):
            (self.asked[n.name],), _ = self.fetch_args_kwargs_from_env(n)
            return self.given[n.name]
        return super().run_node(n)


@dataclass(frozen=True, eq=False)
class Branched:
    """``matrices[target][source]`` and ``biases[target]``: source 0 is the input, source L squares of target L - 1."""

    matrices: tuple[Mapping[int, Tensor], ...]
    biases: tuple[Tensor, ...]
    shape: tuple[int, ...]


def check_bent(layer: Quadratic) -> None:
    """Raise `NotApplicable` for an activation whose square cannot be made of its value."""
    if abs(layer.coefficients()[0]) < LINEAR_BELOW:
        raise NotApplicable("an activation learned to be a straight line: train with fixed ones")


def branched(module: nn.Module, shape: tuple[int, ...], room: int) -> Branched:
    """The layers of a network ``(*shape)`` in float64 and evaluation mode, with sums of branches.

    Raises `NotApplicable` for layers and functions that cannot be encrypted, by name, and where a matrix takes more
    than ``room`` bytes.
    """
    graph = traced(module)
    bends = {n.name: graph.get_submodule(str(n.target)) for n in graph.graph.nodes if n.op == "call_module"}
    quadratics = {name: layer for name, layer in bends.items() if isinstance(layer, Quadratic)}
    for layer in quadratics.values():
        check_bent(layer)
    blank = _shapes(graph, shape)
    zero, answer = _arguments(graph, torch.zeros(1, *shape, dtype=torch.float64), blank)
    widest = max([prod(shape), answer.numel(), *(value.numel() for value in blank.values())])
    if 8 * widest**2 > room:
        raise NotApplicable(f"a layer of {widest:,} values is too large to encrypt: use smaller layers")
    sources = {INPUT: shape, **{name: tuple(blank[name].shape[1:]) for name in quadratics}}
    columns = {name: _columns(graph, name, sources, blank, zero) for name in sources}
    levels = _levels(columns, quadratics)
    return _layered(columns, zero, levels, quadratics, tuple(answer.shape[1:]))


def _shapes(graph: fx.GraphModule, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A zero for every activation, as its argument is shaped."""
    found: dict[str, Tensor] = {}

    class Look(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n.op == "call_module" and isinstance(self.fetch_attr(str(n.target)), Quadratic):
                found[n.name] = torch.zeros_like(value)
            return value

    Look(graph).run(torch.zeros(1, *shape, dtype=torch.float64))
    return found


def _arguments(graph: fx.GraphModule, inputs: Tensor, given: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """What activations are asked about, and the answer under ``""``, each ``(B, n)``; and the answer as shaped."""
    run = _Replaced(graph, given)
    answer = run.run(inputs)
    found = {name: value.reshape(len(value), -1) for name, value in (*run.asked.items(), ("", answer))}
    return found, answer


def _columns(
    graph: fx.GraphModule,
    source: str,
    sources: Mapping[str, tuple[int, ...]],
    blank: Mapping[str, Tensor],
    zero: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The matrix ``(n, size of the source)`` of every argument in one source, where it is not zero."""
    n, found = prod(sources[source]), {name: [] for name in zero}  # type: ignore[var-annotated]
    for rows in torch.arange(n).split(CHUNK):
        units = F.one_hot(rows, n).double()
        given = {k: v.expand(len(rows), *v.shape[1:]) for k, v in blank.items()}
        inputs = torch.zeros(len(rows), *sources[INPUT], dtype=torch.float64)
        if source == INPUT:
            inputs = units.reshape(inputs.shape)
        else:
            given[source] = units.reshape(given[source].shape)
        for name, value in _arguments(graph, inputs, given)[0].items():
            found[name].append(value - zero[name])
    matrices = {name: torch.cat(parts).T.contiguous() for name, parts in found.items()}
    return {name: matrix for name, matrix in matrices.items() if matrix.any()}


def _levels(columns: Mapping[str, Mapping[str, Tensor]], quadratics: Mapping[str, Quadratic]) -> dict[str, int]:
    """The map that computes each argument: the least whose sources are all there by then."""
    ready, levels = {INPUT: 0}, {}
    for name in (*quadratics, ""):
        levels[name] = max((ready[source] for source in ready if name in columns[source]), default=0)
        ready[name] = levels[name] + 1
    return levels


def _layered(
    columns: Mapping[str, Mapping[str, Tensor]],
    zero: Mapping[str, Tensor],
    levels: Mapping[str, int],
    quadratics: Mapping[str, Quadratic],
    shape: tuple[int, ...],
) -> Branched:
    last = levels[""]
    layers = [[name for name in quadratics if levels[name] == level] for level in range(last)]
    sources, targets = [[INPUT], *layers], [*layers, [""]]
    matrices, biases = [], []
    for target in targets:
        bias = torch.cat([zero[name].flatten() for name in target])
        blocks: dict[int, Tensor] = {}
        for index, source in enumerate(sources):
            block = _block(columns, source, target, zero)
            constant = [_constant(quadratics.get(name), _width(columns[name], zero, name)) for name in source]
            sign = torch.cat([one for one, _ in constant])
            bias = bias + block @ torch.cat([two for _, two in constant])
            if block.any():
                blocks[index] = block * sign
        scale, shift = _before(target, quadratics, zero)
        matrices.append({index: block * scale[:, None] for index, block in blocks.items()})
        biases.append(bias * scale + shift)
    return Branched(tuple(matrices), tuple(biases), shape)


def _width(mine: Mapping[str, Tensor], zero: Mapping[str, Tensor], name: str) -> int:
    return int(zero[name].numel()) if name in zero else int(next(iter(mine.values())).shape[1])


def _block(
    columns: Mapping[str, Mapping[str, Tensor]], source: list[str], target: list[str], zero: Mapping[str, Tensor]
) -> Tensor:
    """The matrix between two layers."""
    return torch.cat(
        [
            torch.cat(
                [
                    columns[s].get(t, torch.zeros(zero[t].numel(), _width(columns[s], zero, s), dtype=torch.float64))
                    for s in source
                ],
                1,
            )
            for t in target
        ]
    )


def _constant(bend: Quadratic | None, width: int) -> tuple[Tensor, Tensor]:
    """The sign of the square that stands for an activation, and what is added to it."""
    one = torch.ones(width, dtype=torch.float64)
    if bend is None:
        return one, 0 * one
    c2, c1, c0 = bend.coefficients()
    return one * (1.0 if c2 > 0 else -1.0), one * (c0 - c1**2 / (4 * c2))


def _before(
    target: list[str], quadratics: Mapping[str, Quadratic], zero: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """By what arguments are multiplied, and what is added to them, so that their squares are the activations."""
    scales, shifts = [], []
    for name in target:
        one = torch.ones(zero[name].numel(), dtype=torch.float64)
        scale, shift = 1.0, 0.0
        if name:
            c2, c1, _ = quadratics[name].coefficients()
            scale = sqrt(abs(c2))
            shift = c1 / (2 * scale) * (1.0 if c2 > 0 else -1.0)
        scales.append(one * scale)
        shifts.append(one * shift)
    return torch.cat(scales), torch.cat(shifts)
