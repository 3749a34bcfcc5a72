"""What asking a module costs: seconds for an example, and how many examples fit at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secure_ml.batch import Batch, leaves
from secure_ml.errors import UsageError
from secure_ml.families.scrutiny import Finding
from secure_ml.modes import evaluating
from secure_ml.outside.opaque import opaque
from secure_ml.surfaces import Surface
from secure_ml.task import Loss

COST = "cost"
USUAL, MOST = 64, 1000
"""Examples at a time where costs are measured, and at most."""
SHARE = 8
"""Part of the free memory that a pass may take: one in so many."""
ENOUGH = 0.2
"""Seconds after which a measurement is long enough."""
HOUSEKEEPING = 2e-3
"""Seconds that an attack takes besides, for each call."""


@dataclass(frozen=True)
class Price:
    """Seconds that a call takes: so many, and so many more for each of its examples."""

    call: float
    example: float

    @property
    def in_batch(self) -> float:
        """Seconds of an example in a batch of the usual size."""
        return self.example + self.call / USUAL

    def of(self, calls: float, examples: int, chunk: int) -> float:
        """Seconds of so many calls about each of some examples, shown a chunk at a time."""
        turns = -(-examples // chunk)
        return calls * (turns * (self.call + HOUSEKEEPING) + examples * self.example)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What it takes to ask, and to climb."""

    forward: Price
    backward: Price | None
    """Forward and backward together; None where there is no gradient."""
    chunk: int
    """Examples that are shown at a time."""

    def ask(self, calls: float, examples: int) -> float:
        """Seconds of so many answers about each of some examples."""
        return self.forward.of(calls, examples, self.chunk)

    def climb(self, calls: float, examples: int) -> float:
        """Seconds of so many gradients for each of some examples; guessed where there are none."""
        return self.backward.of(calls, examples, self.chunk) if self.backward else 3 * self.ask(calls, examples)


def measure(module: nn.Module, batch: Batch, loss: Loss, surface: Surface | None, found: list[Finding]) -> Costs:
    """The costs of a module, measured on a batch of some examples."""
    few = batch.take(slice(0, 4))
    blind = opaque(module) is not None

    def ask(part: Batch) -> None:
        with evaluating(module), torch.no_grad():
            module(part.inputs)

    def climb(part: Batch) -> None:
        assert surface is not None
        with evaluating(module):
            surface.gradient(module, part.inputs, lambda inputs: loss(module, Batch(inputs, part.target)))

    chunk = MOST if blind else min(max(_free(batch) // SHARE // max(_saved(module, few, loss), 1), 1), MOST)
    some, one = (batch.take(slice(0, n)) for n in (min(chunk, USUAL), 1))
    forward = _price(ask, one, some)
    try:
        backward = None if blind or surface is None else _price(climb, one, some)
    except UsageError:  # a module without a gradient: the checks say what that means
        backward = None
    slope = f", {backward.in_batch * 1e3:.2g} ms with the gradient" if backward else ""
    said = f"in a batch, an example takes {forward.in_batch * 1e3:.2g} ms{slope}; at most {chunk} at a time"
    found.append(Finding(COST, "PASS", said))
    return Costs(forward=forward, backward=backward, chunk=chunk)


def _price(work: Callable[[Batch], None], one: Batch, some: Batch) -> Price:
    alone, together = _seconds(work, one), _seconds(work, some)
    each = max(together - alone, 0.0) / max(len(some) - 1, 1)
    return Price(max(alone - each, 0.0), each)


def _seconds(work: Callable[[Batch], None], batch: Batch) -> float:
    """The fastest of several calls, the first of which is not counted unless it is long."""
    best, spent = float("inf"), 0.0
    for turn in range(6):
        start = time.perf_counter()
        work(batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took = time.perf_counter() - start
        spent += took
        if turn or took > ENOUGH:
            best = min(best, took)
        if spent > ENOUGH and best < float("inf"):
            break
    return best


def _saved(module: nn.Module, batch: Batch, loss: Loss) -> int:
    """Bytes that one example leaves for a backward pass."""
    weights = {part.data_ptr() for part in module.parameters()}
    held = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal held
        if tensor.data_ptr() not in weights:
            held += tensor.numel() * tensor.element_size()
        return tensor

    with evaluating(module), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        loss(module, batch)
    return held // len(batch)


def _free(batch: Batch) -> int:
    """Bytes of memory that are free where the batch lies."""
    device = next(leaves(batch.inputs)).device
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
