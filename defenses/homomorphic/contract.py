"""What client and server agree on: public, and without a weight of the model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from defenses.homomorphic.parameters import Parameters
from defenses.homomorphic.wire import fingerprint
from secure_ml.errors import UsageError, require

Engine = Literal["reference", "latency", "throughput"]
ENGINES: tuple[Engine, ...] = ("reference", "latency", "throughput")


@dataclass(frozen=True, kw_only=True)
class Contract:
    """How inputs are laid in slots, under which parameters, for which model, and where the answers stand."""

    engine: Engine
    parameters: Parameters
    model: str
    """Fingerprint of the weights, which tells versions of a model apart and nothing else about it."""
    inputs: int
    """Numbers in one input."""
    shape: tuple[int, ...]
    """Of an answer."""
    low: float
    high: float
    """Inputs beyond these were not looked at when the headroom was chosen: they may wrap, and are refused."""
    layout: tuple[int, ...] = ()
    """Which number of the input stands in each slot of a period, or -1 (``latency``)."""
    answers: tuple[int, ...] = ()
    """The slot of each number of an answer (``latency``, ``reference``)."""
    steps: tuple[int, ...] = ()
    """Rotations for which the server needs a key; none, all of the library's own set, or these."""
    windows: tuple[int, int, int] | None = None
    """Side of a first convolution's kernel, its stride, and the images' side (``reference``)."""

    def __post_init__(self) -> None:
        require(self.engine in ENGINES, f"an engine is one of {', '.join(ENGINES)}; given {self.engine!r}")
        require(
            self.parameters.secure,
            f"{self.parameters} exceeds the modulus that 128 bits of security allow: use a larger ring or less depth",
        )

    @cached_property
    def id(self) -> str:
        """What a key, a query and an answer are marked with: other parameters or weights, another mark."""
        return fingerprint(self.to_json().encode())

    @property
    def batch(self) -> int:
        """Queries that share ciphertexts."""
        return self.parameters.slots if self.engine == "throughput" else 1

    def to_json(self) -> str:
        """The contract as text, the same for equal contracts."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Contract:
        """The contract of that text; raises `UsageError` where it is none."""
        try:
            fields: dict[str, Any] = json.loads(text)
            fields["parameters"] = Parameters(**fields["parameters"])
            for name in ("shape", "layout", "answers", "steps"):
                fields[name] = tuple(fields[name])
            fields["windows"] = tuple(fields["windows"]) if fields["windows"] else None
            return cls(**fields)
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(f"this text is no contract of an encrypted model: {error}") from None

    def check_inputs(self, rows: Tensor) -> None:
        """Raise `UsageError`, on the client, for inputs of another size or beyond the range looked at."""
        if rows.ndim != 2 or rows.shape[1] != self.inputs:
            raise UsageError(f"an input has {self.inputs} numbers here; given {tuple(rows.shape)}")
        if not rows.is_floating_point():
            raise UsageError(
                "whole numbers were given, and tokens cannot be encrypted: look their vectors up in the table that "
                "stands before this program, and encrypt those; give numbers that are none as floating point"
            )
        if not torch.isfinite(rows).all():
            raise UsageError("an input holds NaN or infinity, which cannot be encrypted")
        if len(rows) and not (self.low <= float(rows.min()) and float(rows.max()) <= self.high):
            raise UsageError(
                f"inputs from {float(rows.min()):.4g} to {float(rows.max()):.4g} leave the calibrated range of "
                f"{self.low:.4g} to {self.high:.4g}, beyond which answers may wrap: rescale them"
            )
