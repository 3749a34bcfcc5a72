"""Linear and logistic regression on encrypted data: who owns the key, and the loop that the two sides go through.

The owner encrypts examples and labels once. In each step it encrypts the weights, the server answers with the encrypted
gradient over all examples (`trainer`), and the owner, who decrypts it, takes the step. So the owner learns the weights
and gradients of every step, which are its own data's; the server learns the number of examples, columns and steps,
and nothing of the values. The library cannot bootstrap: without this refresh of the weights there were one step.

This is the one training loop beside `secure_ml.training`: it runs on ciphertexts, and differentiates nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from math import ceil, log2
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from defenses.homomorphic.client import SealSecrets
from defenses.homomorphic.contract import Contract
from defenses.homomorphic.levels import check_marks
from defenses.homomorphic.parameters import GUIDELINE, LARGEST, MARGIN, Parameters
from defenses.homomorphic.wire import fingerprint, frame, unframe
from secure_ml.errors import NotApplicable, UsageError, require

Kind = Literal["linear", "logistic"]
DEPTHS: dict[Kind, int] = {"linear": 2, "logistic": 4}
LEAST_SCALE, MOST_SCALE = 30, 40
"""Bits of the scale: below, the gradient's noise would show in the weights; above, there is none to see."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What owner and server know of each other: public."""

    kind: Kind
    rows: int
    """Examples."""
    columns: int
    """Of an example: its features, a one, and for linear regression its label."""
    span: float
    """Margins and residuals stay within: beyond, the polynomial is no sigmoid, and sums wrap."""
    parameters: Parameters

    @property
    def width(self) -> int:
        """Columns, filled up to a power of two."""
        return 1 << ceil(log2(self.columns))

    @property
    def height(self) -> int:
        """Examples in a ciphertext: slot ``f * height + r`` holds column ``f`` of example ``r``."""
        return self.parameters.slots // self.width

    @property
    def across(self) -> tuple[int, ...]:
        """Rotations that sum over columns: once round all slots, so that each of them holds the sum."""
        return tuple(self.height << i for i in range(self.width.bit_length() - 1))

    @property
    def down(self) -> tuple[int, ...]:
        """Rotations that sum over examples, into the first slot of each column."""
        return tuple(1 << i for i in range(self.height.bit_length() - 1))

    @cached_property
    def id(self) -> str:
        """What messages are marked with."""
        return fingerprint(json.dumps(asdict(self), sort_keys=True).encode())

    @property
    def cubic(self) -> tuple[float, float]:
        """``a`` and ``k`` of the sigmoid of ``-m`` as ``1/2 + u (u**2 - k)``, with ``u = a m``.

        The least-squares cubic on the span, with its leading coefficient drawn into the weights: no product with a
        constant is left for the server.
        """
        m = np.linspace(-self.span, self.span, 4001)
        first, third = np.linalg.lstsq(np.stack([m, m**3], 1), 1 / (1 + np.exp(m)) - 0.5, rcond=None)[0]
        a = float(np.cbrt(third))
        return a, float(-first / a)


class Owner:
    """Holds the examples ``(n, d)``, the targets ``(n,)`` (0 or 1 for logistic regression) and the secret key."""

    def __init__(self, inputs: Tensor, targets: Tensor, *, kind: Kind, span: float = 8.0) -> None:
        rows = design(inputs, targets, kind)
        steps = _parameters(rows, kind, span)
        self.agreement = Agreement(kind=kind, rows=len(rows), columns=rows.shape[1], span=span, parameters=steps)
        self.rows = rows
        self._secrets = SealSecrets(_contract(self.agreement))
        self._public = self._secrets.public()
        self.keys = fingerprint(*self._public)

    def public_bytes(self) -> bytes:
        """Keys for the server, none of them secret."""
        return frame("training keys", self._marks(), self._public)

    def data_bytes(self) -> bytes:
        """The encrypted examples with their labels."""
        width, height = self.agreement.width, self.agreement.height
        blobs = []
        for chunk in self.rows.split(height):
            block = torch.zeros(height, width, dtype=torch.float64)
            block[: len(chunk), : chunk.shape[1]] = chunk
            blobs.append(self._secrets.encrypt(block.T.flatten().tolist()))
        return frame("training data", self._marks(), blobs)

    def weights_bytes(self, weights: Tensor) -> bytes:
        """Encrypted weights ``(columns,)``; raises `UsageError` where margins on the owner's data leave the span."""
        largest = float((self.rows @ weights).abs().max())
        if not largest <= self.agreement.span:
            raise UsageError(
                f"a margin of {largest:.3g} leaves the span of {self.agreement.span:g}, beyond which encrypted "
                "training diverges in silence: lower the learning rate, train for fewer steps, or widen the span"
            )
        scale = self.agreement.cubic[0] if self.agreement.kind == "logistic" else 1.0
        padded = torch.zeros(self.agreement.width, dtype=torch.float64)
        padded[: len(weights)] = scale * weights
        slots = padded.repeat_interleave(self.agreement.height)
        return frame("weights", self._marks(), [self._secrets.encrypt(slots.tolist())])

    def gradient(self, answer: bytes) -> Tensor:
        """Of the sum over examples ``(columns,)``; raises `UsageError` for an answer under other keys."""
        about, blobs = unframe("gradient", answer)
        check_marks(about, self.agreement.id, self.keys)
        require(len(blobs) == 1, f"a gradient of {len(blobs)} ciphertexts was given; expected 1")
        return self._secrets.decrypt(blobs[0], exact=False)[:: self.agreement.height][: self.agreement.columns]

    def _marks(self) -> dict[str, Any]:
        return {"contract": self.agreement.id, "keys": self.keys, "agreement": asdict(self.agreement)}


def agreement_from(about: dict[str, Any]) -> Agreement:
    """The agreement in the head of a message; raises `UsageError` where there is none."""
    try:
        said = dict(about["agreement"])
        return Agreement(**{**said, "parameters": Parameters(**said["parameters"])})
    except (KeyError, TypeError, ValueError):
        raise UsageError("a message without an agreement on encrypted training was given") from None


def design(inputs: Tensor, targets: Tensor, kind: Kind) -> Tensor:
    """Rows ``(n, columns)`` whose product with the weights is the margin, or the residual; raises `UsageError`."""
    require(
        inputs.ndim == 2 and targets.shape == inputs.shape[:1] and len(inputs) > 0,
        f"examples (n, d) and targets (n,) are needed; given {tuple(inputs.shape)} and {tuple(targets.shape)}",
    )
    x, y = inputs.double().cpu(), targets.double().cpu()
    require(bool(torch.isfinite(x).all() and torch.isfinite(y).all()), "examples hold NaN or infinity")
    ones = torch.ones(len(x), 1, dtype=torch.float64)
    if kind == "linear":
        return torch.cat([x, ones, y[:, None]], 1)
    require(bool(((y == 0) | (y == 1)).all()), "logistic regression needs targets of 0 and 1")
    return torch.cat([x, ones], 1) * (2 * y - 1)[:, None]


def start(agreement: Agreement) -> Tensor:
    """Weights ``(columns,)`` of 0; that of a label is -1, and stays so."""
    weights = torch.zeros(agreement.columns, dtype=torch.float64)
    if agreement.kind == "linear":
        weights[-1] = -1.0
    return weights


def plain_gradient(agreement: Agreement, rows: Tensor, weights: Tensor) -> Tensor:
    """What the server computes, in the clear: of the same polynomial."""
    m = rows @ weights
    if agreement.kind == "linear":
        return m @ rows
    a, k = agreement.cubic
    return (0.5 + a * m * ((a * m) ** 2 - k)) @ rows


def stepped(
    agreement: Agreement, weights: Tensor, velocity: Tensor, gradient: Tensor, rate: float, momentum: float
) -> tuple[Tensor, Tensor]:
    """Weights and velocity after a step along the mean gradient of the loss; that of a label is not learned."""
    towards = gradient / agreement.rows * (rate if agreement.kind == "logistic" else -rate)
    if agreement.kind == "linear":
        towards = torch.cat([towards[:-1], towards.new_zeros(1)])
    velocity = momentum * velocity + towards
    return weights + velocity, velocity


def _parameters(rows: Tensor, kind: Kind, span: float) -> Parameters:
    """The smallest ring whose gradient is exact enough; its headroom is for sums that cross two columns."""
    require(span > 0, f"encrypted training needs a span above 0; given {span}")
    most = 2 * float(rows.abs().sum(0).max()) * (span if kind == "linear" else 1.25)
    spare, depth = 1 + ceil(log2(max(most * MARGIN, 1.0))), DEPTHS[kind]
    for degree, limit in GUIDELINE.items():
        bits = min((limit - 2 * spare) // (depth + 2), LARGEST - spare, MOST_SCALE)
        if bits >= LEAST_SCALE and degree // 2 >= 2 * rows.shape[1]:
            return Parameters(degree, bits + spare, bits, depth, bits + spare)
    raise NotApplicable(f"{rows.shape[1]} columns with sums of {most:.3g} fit no ring: standardise the examples")


def _contract(agreement: Agreement) -> Contract:
    return Contract(
        engine="latency",
        parameters=agreement.parameters,
        model=agreement.id,
        inputs=agreement.columns,
        shape=(agreement.columns,),
        low=-agreement.span,
        high=agreement.span,
        steps=agreement.across + agreement.down,
    )
