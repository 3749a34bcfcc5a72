"""A trained module as affine maps with squares between them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from math import prod, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defenses.homomorphic.branches import branched, check_bent
from defenses.homomorphic.lookup import looked_up
from defenses.homomorphic.polynomial import AFFINE, Quadratic, flatten, instead, is_chain
from secure_ml.batch import Tree
from secure_ml.errors import NotApplicable, UsageError

ROOM = 2**29
"""Bytes that the matrix of one map may take, or what a layer answers to every unit vector."""


@dataclass(frozen=True, eq=False)
class Affine:
    """``x -> matrix @ x + bias`` with ``matrix (out, in)`` and ``bias (out,)`` in float64."""

    matrix: Tensor
    bias: Tensor


@dataclass(frozen=True, eq=False)
class Skip:
    """A second matrix ``(out, in)`` into the sum of map ``target``: of what map ``source`` before it is applied to."""

    source: int
    target: int
    matrix: Tensor


@dataclass(frozen=True, eq=False)
class Circuit:
    """Affine maps, a square of every value between two of them, and the shape ``(*shape)`` of an answer."""

    maps: tuple[Affine, ...]
    shape: tuple[int, ...]
    windows: Tensor | None = None
    """Where the first map is one convolution: the input ``(K, L)`` under each of K weights at each of L places, or -1;
    its outputs are then channels times places."""
    skips: tuple[Skip, ...] = ()
    """Sums of branches, which take no level of their own."""

    def into(self, target: int) -> list[Skip]:
        """The skips into one map."""
        return [skip for skip in self.skips if skip.target == target]

    @property
    def depth(self) -> int:
        """Levels that it uses up: one for each map and each square."""
        return 2 * len(self.maps) - 1

    @property
    def products(self) -> int:
        """Products of a number and a weight for one input."""
        matrices = [step.matrix for step in self.maps] + [skip.matrix for skip in self.skips]
        return sum(int((matrix != 0).sum()) for matrix in matrices)

    def layers(self, rows: Tensor) -> list[Tensor]:
        """What each map answers, in float64, for inputs ``(B, in)``."""
        entering, found = [rows.double()], []
        for index, step in enumerate(self.maps):
            values = entering[index] @ step.matrix.T + step.bias
            for skip in self.into(index):
                values = values + entering[skip.source] @ skip.matrix.T
            found.append(values)
            entering.append(values.square())
        return found

    def run(self, rows: Tensor) -> Tensor:
        """The circuit in the clear: ``(B, in)`` to ``(B, *shape)``, in float64."""
        return self.layers(rows)[-1].reshape(len(rows), *self.shape)


def rows_of(inputs: Tree) -> Tensor:
    """Inputs ``(B, *shape)`` as rows ``(B, in)`` on the CPU, in float64."""
    assert isinstance(inputs, Tensor)
    return inputs.detach().cpu().double().flatten(1)


def circuit_of(module: nn.Module, sample: Tree) -> Circuit:
    """The circuit of a module for inputs shaped as ``sample (1, *shape)``; checked against the module itself.

    Raises `NotApplicable` for a layer that has no place in one, by its name, and for inputs that are not numbers.
    """
    sample = looked_up(None, sample)
    if not isinstance(sample, Tensor):
        raise NotApplicable("only inputs that are one tensor of real numbers can be encrypted")
    module = deepcopy(module).cpu().double().eval()
    shape, maps = tuple(sample.shape[1:]), []
    if not is_chain(module):
        return _branched_circuit(module, sample)
    segments, bends = _segments(module)
    windows = _windows(segments[0], shape)
    with torch.no_grad():
        for index, segment in enumerate(segments):
            step, shape = _affine(segment, shape)
            step = _after(bends[index - 1], step) if index else step
            maps.append(_before(bends[index], step) if index < len(bends) else step)
        circuit = Circuit(tuple(maps), shape, windows)
        _verify(circuit, module, sample)
    return circuit


def _branched_circuit(module: nn.Module, sample: Tensor) -> Circuit:
    """The circuit of a module with sums of branches."""
    with torch.no_grad():
        found = branched(module, tuple(sample.shape[1:]), ROOM)
        maps = tuple(Affine(m[i], bias) for i, (m, bias) in enumerate(zip(found.matrices, found.biases, strict=True)))
        pairs = ((i, source, matrix) for i, m in enumerate(found.matrices) for source, matrix in m.items())
        skips = tuple(Skip(source, target, matrix) for target, source, matrix in pairs if source < target)
        circuit = Circuit(maps, found.shape, skips=skips)
        _verify(circuit, module, sample)
    return circuit


def _segments(module: nn.Module) -> tuple[list[list[nn.Module]], list[Quadratic]]:
    """Runs of affine layers, and the activations between them."""
    segments: list[list[nn.Module]] = [[]]
    bends: list[Quadratic] = []
    for layer in flatten(module):
        if isinstance(layer, Quadratic):
            check_bent(layer)
            bends.append(layer)
            segments.append([])
        elif isinstance(layer, AFFINE):
            segments[-1].append(layer)
        else:
            raise NotApplicable(f"{type(layer).__name__} cannot be encrypted: {instead(layer)}")
    return segments, bends


def _affine(layers: list[nn.Module], shape: tuple[int, ...]) -> tuple[Affine, tuple[int, ...]]:
    """The one affine map that a run of affine layers is, read off its answers to 0 and to every unit vector."""
    n, run = prod(shape), nn.Sequential(*layers)
    zero = run(torch.zeros(1, *shape, dtype=torch.float64))
    if max(n * zero.numel(), n * n) * 8 > ROOM:
        raise NotApplicable(f"a map of {n:,} numbers to {zero.numel():,} is too large to encrypt: use smaller layers")
    matrix = torch.empty(zero.numel(), n, dtype=torch.float64)
    for rows in torch.arange(n).split(256):
        units = F.one_hot(rows, n).double().reshape(-1, *shape)
        matrix[:, rows] = (run(units).reshape(len(rows), -1) - zero.flatten()).T
    return Affine(matrix, zero.flatten().clone()), tuple(zero.shape[1:])


def _after(bend: Quadratic, step: Affine) -> Affine:
    """``step`` applied to ``± s + c0 - c1^2 / 4 c2``, where ``s`` is the square that is computed before it."""
    c2, c1, c0 = bend.coefficients()
    sign = 1.0 if c2 > 0 else -1.0
    return Affine(step.matrix * sign, step.bias + step.matrix.sum(1) * (c0 - c1**2 / (4 * c2)))


def _before(bend: Quadratic, step: Affine) -> Affine:
    """``step`` scaled and shifted so that its square is, but for sign and constant, the activation after it."""
    c2, c1, _ = bend.coefficients()
    root = sqrt(abs(c2))
    return Affine(step.matrix * root, step.bias * root + (c1 / (2 * root)) * (1.0 if c2 > 0 else -1.0))


def _windows(layers: list[nn.Module], shape: tuple[int, ...]) -> Tensor | None:
    """The inputs under a first convolution, each at its place."""
    kept = [layer for layer in layers if not isinstance(layer, (nn.Dropout, nn.Identity, nn.Flatten))]
    if len(kept) != 1 or not isinstance(kept[0], nn.Conv2d) or len(shape) != 3:
        return None
    conv = kept[0]
    if conv.groups != 1 or isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        return None
    numbers = torch.arange(1, prod(shape) + 1, dtype=torch.float64).reshape(1, *shape)
    found = F.unfold(numbers, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
    return found[0].round().long() - 1


def _verify(circuit: Circuit, module: nn.Module, sample: Tensor) -> None:
    rows = torch.rand(8, sample[0].numel(), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = module(rows.reshape(8, *sample.shape[1:]))
    error = (circuit.run(rows) - expected).abs().max().item()
    if not error <= 1e-8 * max(expected.abs().max().item(), 1.0):
        raise UsageError(
            f"the compiled program differs from the module by {error:.3g}: this is a bug, please report it"
        )
