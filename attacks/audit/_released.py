"""What a private step gives away: the gradient that the weights are moved by, read off just before they move."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from secure_ml.training import Loader, Plan, train

if TYPE_CHECKING:
    from opacus.optimizers import DPOptimizer

Read = Callable[[], None]


def private_optimizer(plan: Plan) -> DPOptimizer | None:
    """The plan's optimizer if it adds noise, in Opacus's terms: `noise_multiplier`, `max_grad_norm`."""
    from opacus.optimizers import DPOptimizer

    optimizer = plan.optimizer
    return optimizer if isinstance(optimizer, DPOptimizer) else None


@contextmanager
def reading(plan: Plan, read: Read) -> Iterator[None]:
    """Call ``read`` inside each step, when ``p.grad`` is what will move the weights."""
    from opacus.optimizers import DPOptimizer

    inner: torch.optim.Optimizer = plan.optimizer
    while isinstance(inner, DPOptimizer):
        inner = inner.original_optimizer
    handle = inner.register_step_pre_hook(lambda *_: read())
    try:
        yield
    finally:
        handle.remove()


def again(plan: Plan, read: Read, times: int) -> None:
    """Inside a step, release the same sum further times: a private optimizer draws its noise anew each time."""
    optimizer = private_optimizer(plan)
    if optimizer is None:
        return
    for _ in range(times):
        for parameter in optimizer.params:
            parameter.summed_grad = parameter.summed_grad.clone()  # it is marked as used
        optimizer.add_noise()
        optimizer.scale_grad()
        read()


def stand_still(plan: Plan) -> None:
    """Let no step move the weights."""
    for group in plan.optimizer.param_groups:
        group["lr"] = 0.0


def run_on(plan: Plan, batches: Sequence[Tensor], epochs: int = 1) -> None:
    """Run a plan on these batches of indices instead of its own."""
    loader = cast("Loader", plan.loader)
    train(replace(plan, loader=replace(loader, sampler=batches, steps=len(batches)), epochs=epochs, patience=None))


def rows_per_unit(plan: Plan) -> int:
    """Rows that a protected unit brings to a batch: one, or with persons the records of each."""
    owner, loader = plan.splits.owner, cast("Loader", plan.loader)
    if owner is None:
        return 1
    for index in loader.sampler:
        if len(index) > 1:
            _, counts = owner[index.cpu()].unique_consecutive(return_counts=True)
            return int(counts[0]) if bool((counts == counts[0]).all()) else 1
    return 1
