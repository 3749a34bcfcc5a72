"""A trained module as affine maps with squares between them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from defenses.homomorphic.parameters import Parameters
from defenses.homomorphic.polynomial import AFFINE, Quadratic, flatten
from secure_ml.batch import Tree
from secure_ml.errors import NotApplicable, UsageError


@dataclass(frozen=True, eq=False)
class Affine:
    """``x -> matrix @ x + bias`` with ``matrix (out, in)`` and ``bias (out,)`` in float64."""

    matrix: Tensor
    bias: Tensor


@dataclass(frozen=True, eq=False)
class Program:
    """Affine maps, a square of every value between two of them, and the shape ``(*shape)`` of an answer."""

    maps: tuple[Affine, ...]
    shape: tuple[int, ...]

    @property
    def depth(self) -> int:
        """Levels that it uses up: one for each map and each square."""
        return 2 * len(self.maps) - 1

    @property
    def products(self) -> int:
        """Products of a ciphertext and a weight for one batch."""
        return sum(int((step.matrix != 0).sum()) for step in self.maps)

    def run(self, rows: Tensor) -> Tensor:
        """The program in the clear: ``(B, in)`` to ``(B, *shape)``, in float64."""
        values = rows.double()
        for index, step in enumerate(self.maps):
            values = (values.square() if index else values) @ step.matrix.T + step.bias
        return values.reshape(len(rows), *self.shape)

    def check_headroom(self, inputs: Tree, parameters: Parameters) -> None:
        """Raise `NotApplicable` where four times the largest answer to these inputs would wrap around."""
        answers = self.run(rows_of(inputs)).abs()
        largest = answers.max().item() if answers.numel() else 0.0
        if largest * 4 > parameters.headroom:
            raise NotApplicable(
                f"answers as large as {largest:.3g} leave no headroom below {parameters.headroom:.3g}, where they wrap"
            )


def rows_of(inputs: Tree) -> Tensor:
    """Inputs ``(B, *shape)`` as rows ``(B, in)`` on the CPU."""
    assert isinstance(inputs, Tensor)
    return inputs.detach().cpu().double().flatten(1)


def compile_module(module: nn.Module, sample: Tree) -> Program:
    """The program of a Sequential for inputs shaped as ``sample (1, *shape)``; checked against the module itself."""
    if not isinstance(sample, Tensor) or not sample.is_floating_point():
        raise NotApplicable("only inputs that are one tensor of real numbers can be encrypted")
    module = deepcopy(module).cpu().double().eval()
    shape = tuple(sample.shape[1:])
    maps: list[Affine] = []
    bend: Quadratic | None = None
    segment: list[nn.Module] = []
    with torch.no_grad():
        for layer in [*flatten(module), None]:
            if isinstance(layer, AFFINE):
                segment.append(layer)
                continue
            if layer is not None and not isinstance(layer, Quadratic):
                raise NotApplicable(f"{type(layer).__name__} cannot be encrypted")
            step, shape = _affine(segment, shape)
            maps.append(_after(bend, step))
            bend, segment = layer, []
        maps = [_before(step, i < len(maps) - 1, module) for i, step in enumerate(maps)]
        program = Program(tuple(maps), shape)
        _verify(program, module, sample)
    return program


def _affine(layers: list[nn.Module], shape: tuple[int, ...]) -> tuple[Affine, tuple[int, ...]]:
    """The one affine map that a run of affine layers is, read off its answers to 0 and to every unit vector."""
    n = int(torch.tensor(shape).prod())
    run = nn.Sequential(*layers)
    probes = torch.cat([torch.zeros(1, n), torch.eye(n)]).double()
    answers = run(probes.reshape(n + 1, *shape))
    bias, *_ = rows = answers.reshape(n + 1, -1)
    return Affine((rows[1:] - bias).T.contiguous(), bias.clone()), tuple(answers.shape[1:])


def _after(bend: Quadratic | None, step: Affine) -> Affine:
    """``step`` applied to ``c2 s + c0 - c1^2 / 4 c2``, where ``s`` is the square that is computed before it."""
    if bend is None:
        return step
    constant = bend.c0 - bend.c1**2 / (4 * bend.c2)
    return Affine(step.matrix * bend.c2, step.bias + step.matrix.sum(1) * constant)


def _before(step: Affine, squared: bool, module: nn.Module) -> Affine:
    """``step`` with the shift ``c1 / 2 c2`` added that completes the square after it."""
    if not squared:
        return step
    bend = next(layer for layer in flatten(module) if isinstance(layer, Quadratic))
    return Affine(step.matrix, step.bias + bend.c1 / (2 * bend.c2))


def _verify(program: Program, module: nn.Module, sample: Tensor) -> None:
    rows = torch.rand(8, sample[0].numel(), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = module(rows.reshape(8, *sample.shape[1:]))
    error = (program.run(rows) - expected).abs().max().item()
    if not error <= 1e-8 * max(expected.abs().max().item(), 1.0):
        raise UsageError(
            f"the compiled program differs from the module by {error:.3g}: this is a bug, please report it"
        )
