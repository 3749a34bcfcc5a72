"""The compiler: a trained module to a program that a server runs on ciphertexts.

What is built on it needs three calls::

    program = compile_module(module, sample, calibration=inputs, engine="latency", precision=1e-3)   # before any key
    client = Client(program.contract)               # makes the keys; the contract is public and holds no weight
    server = Server.from_bytes(program.to_bytes(), client.public_bytes())   # neither holds a secret key
    answers = client.decrypt(server.answer(client.encrypt(rows)))           # bytes between them, (B, *shape)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from defenses.homomorphic.circuit import Affine, Circuit, Skip, circuit_of, rows_of
from defenses.homomorphic.contract import Contract, Engine
from defenses.homomorphic.noise import TAIL, packed_noise, packed_values, predicted_error
from defenses.homomorphic.packing import Layout, Packed, Values, check_fits, pack, widest
from defenses.homomorphic.parameters import GUIDELINE, Parameters, candidates
from defenses.homomorphic.wire import fingerprint, frame, unframe
from secure_ml.batch import Tree
from secure_ml.errors import NotApplicable, UsageError, require

PROBES = 64
"""Inputs at the corners of the range that are looked at beside those of calibration."""
ROTATED = 128.0
"""How much TenSEAL's own rotations, which are not counted one by one, are taken to add to its errors."""
SEEN = 12
"""Inputs that are followed through every slot: the first, and as many of the corners, which are the last."""
COMPACT = 4
"""Rotations by powers of this are all that a compact set of keys has."""


@dataclass(frozen=True, eq=False)
class Program:
    """A circuit with the contract under which it is run."""

    circuit: Circuit
    contract: Contract
    expected_error: float
    """The largest error of an answer that the noise of these parameters explains."""
    largest: float
    """The largest number in any slot of an answer, in calibration."""
    early: bool = False
    """Whether folds come before rescaling: slower, and with less noise."""

    @cached_property
    def packed(self) -> tuple[Layout, tuple[Packed, ...]]:
        """Layout and matrix products of the ``latency`` engine."""
        return pack(self.circuit, self.contract.parameters.slots)

    def describe(self) -> str:
        """What the compiler chose, and why, in a few lines."""
        contract, parameters = self.contract, self.contract.parameters
        lines = [
            f"engine {contract.engine}, model {contract.model}: {len(self.circuit.maps)} maps, "
            f"{len(self.circuit.maps) - 1} squares, depth {parameters.depth}",
            str(parameters),
            f"expected error at most {self.expected_error:.2g}; answers up to {self.largest:.3g} in calibration, "
            f"they wrap beyond {parameters.headroom:.3g}",
            f"inputs between {contract.low:.4g} and {contract.high:.4g}; {contract.batch:,} queries to a batch",
        ]
        if contract.engine == "latency":
            lines.append(f"rotation keys for steps of {', '.join(map(str, contract.steps)) or 'none'}")
            lines += [f"map {i}: {_shown(step)}" for i, step in enumerate(self.packed[1])]
            lines += [
                f"skip {j} to {i}: {_shown(skip)}" for i, step in enumerate(self.packed[1]) for j, skip in step.skips
            ]
        return "\n".join(lines)

    def to_bytes(self) -> bytes:
        """Weights and contract, for a server in another process; no key."""
        tensors = {f"matrix {i}": step.matrix for i, step in enumerate(self.circuit.maps)}
        tensors |= {f"bias {i}": step.bias for i, step in enumerate(self.circuit.maps)}
        tensors |= {f"skip {i}": skip.matrix for i, skip in enumerate(self.circuit.skips)}
        if self.circuit.windows is not None:
            tensors["windows"] = self.circuit.windows
        about: dict[str, Any] = {
            "maps": len(self.circuit.maps),
            "expected": self.expected_error,
            "largest": self.largest,
        }
        about["early"] = self.early
        about["skips"] = [[skip.source, skip.target] for skip in self.circuit.skips]
        return frame("program", about, [self.contract.to_json().encode(), save(tensors)])

    @classmethod
    def from_bytes(cls, message: bytes) -> Program:
        """The program that `to_bytes` wrote; raises `UsageError` for other bytes."""
        about, blobs = unframe("program", message)
        try:
            contract = Contract.from_json(blobs[0].decode())
            tensors = load(blobs[1])
            maps = tuple(Affine(tensors[f"matrix {i}"], tensors[f"bias {i}"]) for i in range(about["maps"]))
            skips = tuple(
                Skip(source, target, tensors[f"skip {i}"]) for i, (source, target) in enumerate(about["skips"])
            )
        except (SafetensorError, KeyError, IndexError, UnicodeDecodeError) as error:
            raise UsageError(f"these bytes are no program: {error}") from None
        circuit = Circuit(maps, contract.shape, tensors.get("windows"), skips)
        if weights_of(circuit) != contract.model:
            raise UsageError("the weights of a program are not those of its contract: compile it again")
        return cls(circuit, contract, about["expected"], about["largest"], about["early"])


def _shown(step: Packed) -> str:
    return (
        f"{step.period} slots to {len(step.bias)} rows: {len(step.diagonals)} diagonals, "
        f"{len(step.babies) - 1} + {len(step.giants) - 1} steps, {len(step.folds)} folds"
    )


def compile_module(
    module: nn.Module,
    sample: Tree,
    *,
    calibration: Tree | None = None,
    engine: Engine = "throughput",
    precision: float = 1e-3,
    degree: int | None = None,
    compact: bool = False,
) -> Program:
    """The encrypted program of a trained module, for inputs shaped as ``sample (1, *shape)``; no key is made.

    ``calibration (B, *shape)`` shows which values occur (the sample alone unless given); answers four times as large
    still do not wrap. ``precision`` is the largest error wanted of an answer: of the rings whose moduli give 128
    bits, the smallest that is expected to keep it is taken, or ``degree`` where given. ``compact`` halves the number
    of rotation keys and more, for a few more rotations.

    Raises `NotApplicable` for layers that cannot be encrypted, by name, and where no ring at 128 bits carries the
    depth, the answers or the precision.
    """
    require(precision > 0, f"a precision above 0 is needed; given {precision}")
    circuit = circuit_of(module, sample)
    rows = rows_of(sample if calibration is None else calibration)
    low, high = float(rows.min()), float(rows.max())
    rows, spare = torch.cat([rows, _corners(rows.shape[1], low, high)]), (high - low) / 2
    limits = low - spare, high + spare
    return choose(circuit, rows, limits, engine=engine, precision=precision, degree=degree, compact=compact)


def choose(
    circuit: Circuit,
    rows: Tensor,
    limits: tuple[float, float],
    *,
    engine: Engine = "throughput",
    precision: float = 1e-3,
    degree: int | None = None,
    compact: bool = False,
) -> Program:
    """The program of a circuit whose inputs are like ``rows (B, in)`` and within the limits."""
    windows = _side(circuit) if engine == "reference" else None
    depth = circuit.depth + (windows is not None)
    best, answers = float("inf"), float(circuit.run(rows).abs().max())
    needed = widest(circuit) if engine == "latency" else 1
    if engine == "latency":
        check_fits(circuit, (degree or max(GUIDELINE)) // 2)
    walks: dict[int, _Walk] = {}

    def largest(slots: int) -> float:
        if engine != "latency":
            return answers
        walks[slots] = _Walk(*pack(circuit, slots), _some(rows), slots)
        return max(answers, float(np.abs(walks[slots].values[-1]).max()))

    for sets in candidates(depth, largest, degree, needed):
        walk = walks.get(sets[0].slots)
        for trial in walk.trials(sets) if walk else _trials(circuit, rows, sets, engine):
            best = min(best, trial.error)
            if trial.error <= precision:
                contract = Contract(
                    engine=engine,
                    parameters=trial.parameters,
                    model=weights_of(circuit),
                    inputs=rows.shape[1],
                    shape=circuit.shape,
                    low=limits[0],
                    high=limits[1],
                    windows=windows,
                )
                size = max(answers, float(np.abs(walk.values[-1]).max())) if walk else answers
                program = Program(circuit, contract, trial.error, size, trial.early)
                return _packed(program, walk, trial, compact) if walk else program
    raise NotApplicable(
        f"no parameter set at 128 bits keeps errors below {precision:.2g} at a depth of {depth}: the best is expected "
        f"at {best:.2g}; ask for less precision, or use fewer activations or smaller weights"
    )


@dataclass(frozen=True, eq=False)
class _Trial:
    parameters: Parameters
    error: float
    early: bool = False
    noise: Values | None = None


def _trials(circuit: Circuit, rows: Tensor, sets: Sequence[Parameters], engine: Engine) -> Iterator[_Trial]:
    """The best set of a ring where nothing is rotated, or nobody counts how often."""
    more = ROTATED if engine == "reference" else 1.0
    yield min((_Trial(one, more * predicted_error(circuit, rows, one)) for one in sets), key=lambda t: t.error)


class _Walk:
    """Some inputs through every slot of a packed program."""

    def __init__(self, layout: Layout, steps: tuple[Packed, ...], rows: Values, slots: int) -> None:
        self.layout, self.steps = layout, steps
        self.values = packed_values(steps, layout, rows, slots)
        self.index = np.tile(steps[-1].output.index, slots // steps[-1].output.period)
        """The output in each slot."""

    def trials(self, sets: Sequence[Parameters]) -> Iterator[_Trial]:
        """The best set of a ring: with folds behind rescaling, which is faster, and then before it."""
        choices = [(one, early) for early in (False, True) for one in sets]
        noise = packed_noise(self.steps, self.values, choices)
        errors = TAIL * noise[:, self.index >= 0].max(1) ** 0.5
        for start in (0, len(sets)):
            best = start + int(errors[start : start + len(sets)].argmin())
            yield _Trial(choices[best][0], float(errors[best]), choices[best][1], noise[best])


def _packed(program: Program, walk: _Walk, trial: _Trial, compact: bool) -> Program:
    """The contract with its layout and rotations; of answers that stand more than once, those with the least noise."""
    noise, slots = trial.noise, program.contract.parameters.slots
    assert noise is not None
    places = [np.flatnonzero(walk.index == j) for j in range(len(program.circuit.maps[-1].bias))]
    answers = [int(place[noise[place].argmin()]) for place in places]
    wanted = rotations(walk.steps)
    have = {COMPACT**i for i in range(16) if COMPACT**i < slots} if compact else wanted
    contract = replace(
        program.contract,
        layout=tuple(map(int, walk.layout.index)),
        answers=tuple(answers),
        steps=tuple(sorted(have & {part for step in wanted for part in composed(step, have)})),
    )
    error = TAIL * float(noise[answers].max()) ** 0.5
    return replace(program, contract=contract, expected_error=error)


def _some(rows: Tensor) -> Values:
    found: Values = torch.cat([rows[: SEEN // 2], rows[-(SEEN // 2) :]]).numpy()
    return found


def rotations(steps: Sequence[Packed]) -> set[int]:
    """Every step by which something is rotated: between baby steps, between giant steps, and folds."""
    found: set[int] = set()
    for step in (part for one in steps for part in (one, *(skip for _, skip in one.skips))):
        found |= {b - a for a, b in zip(step.babies, step.babies[1:], strict=False)}
        found |= {b - a for a, b in zip(step.giants, step.giants[1:], strict=False)}
        found |= set(step.folds)
    return found


def composed(step: int, have: set[int] | tuple[int, ...]) -> list[int]:
    """The fewest steps, largest first, out of those that have a key, that add up to one."""
    parts: list[int] = []
    for size in sorted(have, reverse=True):
        parts += [size] * (step // size)
        step %= size
    require(step == 0, f"no keys add up to a rotation with {step} left: make keys for this program's contract")
    return parts


def weights_of(circuit: Circuit) -> str:
    """The fingerprint of a circuit."""
    parts = [part.contiguous().numpy().tobytes() for step in circuit.maps for part in (step.matrix, step.bias)]
    for skip in circuit.skips:
        parts += [json.dumps([skip.source, skip.target]).encode(), skip.matrix.contiguous().numpy().tobytes()]
    return fingerprint(json.dumps(circuit.shape).encode(), *parts)


def _corners(n: int, low: float, high: float) -> Tensor:
    """All low, all high, and corners of the box of inputs."""
    rng = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 2, (PROBES, n), generator=rng).double()
    corners[0], corners[1] = 0.0, 1.0
    return low + (high - low) * corners


def _side(circuit: Circuit) -> tuple[int, int, int] | None:
    """Kernel, stride and image side where the first map is a square convolution that TenSEAL's own can be."""
    return None if circuit.windows is None else _square(circuit.windows, circuit.maps[0].matrix.shape[1])


def _square(windows: Tensor, inputs: int) -> tuple[int, int, int] | None:
    kernel, side = round(windows.shape[0] ** 0.5), round(inputs**0.5)
    places = round(windows.shape[1] ** 0.5)
    if kernel**2 != windows.shape[0] or side**2 != inputs or places**2 != windows.shape[1] or (windows < 0).any():
        return None
    stride = int(windows[0, 1] - windows[0, 0]) if places > 1 else 1
    return kernel, stride, side
