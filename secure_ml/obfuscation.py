"""Weights that are of less use to whoever copies the file: a few kept apart, or units in an order of their own.

Neither is a cipher. Whoever has some labelled examples trains the missing weights again (`recovered` measures how
many examples that takes), and whoever may ask what is served steals by extraction, which meets none of this. Weights at
rest are protected by `secure_ml.vault`; in use, only by hardware that keeps the memory to itself.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from secure_ml.batch import Batch, Splits
from secure_ml.errors import NotApplicable, require
from secure_ml.modes import evaluating
from secure_ml.stats import Estimate
from secure_ml.task import Task
from secure_ml.training import fit
from secure_ml.victim import Victim


@dataclass(frozen=True)
class Secret:
    """The weights that were kept apart: without them the rest is a ruin."""

    places: Tensor
    """Of each, ``(k,)``, in all weights of a module one after another."""
    values: Tensor
    """What belongs there, ``(k,)``."""


def split_weights(victim: Victim, count: int, rounds: int = 10, examples: int = 500) -> tuple[nn.Module, Secret]:
    """A copy of the module with ``count`` weights changed, and what belongs there (NNSplitter, Zhou et al. 2023, https://arxiv.org/abs/2305.00097).

    In each of ``rounds`` those weights are changed that raise the loss of training examples most, by its gradient, each
    to the largest or smallest value of its own layer: no single weight stands out. Raises `UsageError` for more
    weights than there are.

    Stops: running the copied file as it is. Does not stop: fine-tuning on a few labelled examples, extraction from
    answers, anybody who reads the memory in which the secret is put back. Differs from the paper: weights are chosen
    by the gradient rather than by a learned policy over filters.
    """
    module = deepcopy(victim.module)
    weights = _weights(module)
    total = sum(weight.numel() for weight in weights)
    require(1 <= count <= total, f"between 1 and {total} weights can be kept apart; given {count}")
    low, high = (
        torch.cat([limit(weight).expand(weight.numel()) for weight in weights]) for limit in (torch.amin, torch.amax)
    )
    original = _flat(weights)
    free = torch.ones_like(original, dtype=torch.bool)
    batch = victim.splits.train.take(slice(0, examples))
    for done in range(rounds):
        now = _flat(weights)
        slope = _slope(victim.task, module, weights, batch)
        worst = torch.where(slope > 0, high, low)
        gain = (slope * (worst - now)).masked_fill(~free, -torch.inf)
        chosen = gain.topk(count * (done + 1) // rounds - count * done // rounds).indices
        free[chosen] = False
        _write(weights, torch.where(_at(chosen, now), worst, now))
    places = (~free).nonzero()[:, 0]
    return module, Secret(places.cpu(), original[places].cpu())


def join_weights(module: nn.Module, secret: Secret) -> nn.Module:
    """A copy of a module with the weights back that were kept apart."""
    whole = deepcopy(module)
    weights = _weights(whole)
    values = _flat(weights)
    values[secret.places.to(values.device)] = secret.values.to(values)
    _write(weights, values)
    return whole


def recovered(victim: Victim, module: nn.Module | None, labelled: int, seed: int, rate: float = 1.0) -> Estimate:
    """The victim's score, by whoever has its ruined weights and some ``labelled`` examples of their own.

    Training goes on from the ruin, through the shared loop, by the victim's recipe at ``rate`` times its learning rate
    and for as many steps. Without a module it starts anew: what the weights are worth is the difference.
    """
    task, data = victim.task, victim.splits.aux.take(slice(0, labelled))
    require(1 <= labelled <= len(victim.splits.aux), f"{task} has {len(victim.splits.aux)} examples; given {labelled}")
    none, recipe = data.take(slice(0, 0)), task.recipe
    steps = recipe.epochs * -(-len(victim.splits.train) // recipe.batch_size)
    own = replace(
        task,
        name=f"{task.name}_ruin",
        build=task.build if module is None else partial(deepcopy, module.cpu()),
        data=partial(_given, Splits(data, none, none, none)),
        recipe=replace(
            recipe,
            epochs=-(-steps // -(-len(data) // recipe.batch_size)),
            learning_rate=rate * recipe.learning_rate,
            patience=None,
        ),
    )
    return task.score.measure(fit(own, seed=seed, device=victim.device).served, victim.splits.test)


def shuffle_units(module: nn.Module, rng: torch.Generator) -> nn.Module:
    """A copy that computes the same with its hidden units in another order and scale.

    Between two linear or convolutional layers of a Sequential that only ReLU, pooling, flattening or dropout part, each
    unit is moved, and multiplied by a number that the next layer divides by. Stops: comparing two files weight by
    weight. Does not stop anything else: it is the same function, and is undone by sorting the units. Raises
    `NotApplicable` where there is no such pair of layers.
    """
    shuffled = deepcopy(module)
    pairs = _pairs(shuffled)
    if not pairs:
        raise NotApplicable("no two layers of this module are parted by ReLU, pooling or flattening alone")
    with torch.no_grad():
        for first, second in pairs:
            units = len(first.weight)
            order = torch.randperm(units, generator=rng)
            scale = (torch.rand(units, generator=rng) * 2 - 1).exp2().to(first.weight)
            first.weight.copy_((first.weight * scale.view(-1, *[1] * (first.weight.ndim - 1)))[order])
            if first.bias is not None:
                first.bias.copy_((first.bias * scale)[order])
            incoming = second.weight.reshape(len(second.weight), units, -1) / scale[:, None]
            second.weight.copy_(incoming[:, order].reshape(second.weight.shape))
    return shuffled


BETWEEN = (nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.Flatten, nn.Dropout, nn.Identity)
Layer = nn.Linear | nn.Conv2d


def _pairs(module: nn.Module) -> list[tuple[Layer, Layer]]:
    """Layers that follow each other with nothing between them that would notice an order or a scale."""
    found, last = [], None
    for part in module if isinstance(module, nn.Sequential) else ():
        if isinstance(part, nn.Linear) or (isinstance(part, nn.Conv2d) and part.groups == 1):
            if last is not None:
                found.append((last, part))
            last = part
        elif not isinstance(part, BETWEEN):
            last = None
    return found


def _weights(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.ndim > 1]


def _flat(weights: list[nn.Parameter]) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in weights])


def _write(weights: list[nn.Parameter], values: Tensor) -> None:
    with torch.no_grad():
        for weight, piece in zip(weights, values.split([weight.numel() for weight in weights]), strict=True):
            weight.copy_(piece.view_as(weight))


def _slope(task: Task, module: nn.Module, weights: list[nn.Parameter], batch: Batch) -> Tensor:
    with evaluating(module), torch.enable_grad():
        slopes = torch.autograd.grad(task.loss(module, batch).mean(), weights, allow_unused=True)
    pairs = zip(slopes, weights, strict=True)
    return torch.cat([(torch.zeros_like(w) if slope is None else slope).flatten() for slope, w in pairs])


def _at(places: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.bool).index_fill(0, places, True)


def _given(parts: Splits, rng: torch.Generator) -> Splits:
    return parts
