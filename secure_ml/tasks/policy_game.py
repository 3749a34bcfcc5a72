"""A policy for a board game, learned by deep Q-learning."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secure_ml.batch import Batch, Splits, Tree, join
from secure_ml.data import require_extra
from secure_ml.errors import require
from secure_ml.task import Predictor, Recipe, Task
from secure_ml.tasks._policies import (
    PARTS,
    Act,
    FrozenLake,
    Return,
    at_random,
    fields,
    greedy,
    play,
    transitions,
)
from secure_ml.threats import Linf
from secure_ml.victim import Plain

DISCOUNT = 0.95
Maps = Literal["published", "random"]


def policy_game(*, maps: Maps = "published", size: int = 4, tiny: bool = False) -> Task:
    """Gymnasium's slippery FrozenLake-v1 from its board, deep Q-learning (https://arxiv.org/abs/1312.5602).

    The network is that of https://arxiv.org/abs/1602.02867, 641 parameters. The highest return that any policy can
    expect is known (`FrozenLake.optimum`). A random map belongs to one part of the data alone.

    Args:
        maps: the published map, or a random one in each episode, none of which was seen before.
        size: rows and columns of a map; 4 or 8 where it is the published one.
        tiny: maps of 4x4, 4 channels, 200 transitions, 3 epochs, episodes of at most 20 steps.
    """
    require_extra("gymnasium", "models", "policy_game")
    require(size >= 3, f"policy_game needs maps of at least 3x3; given {size}")
    require(maps == "random" or size in (4, 8), f"the published maps have 4 or 8 rows; given {size}")
    game = FrozenLake(limit=20, published=False) if tiny else FrozenLake(size, published=maps == "published")
    settings = {"maps": (maps, "published"), "size": (size, 4)}
    options = ", ".join(f"{name}={value!r}" for name, (value, default) in settings.items() if value != default)
    width, explored, added, kept = (4, 200, 50, 75) if tiny else (16, 6000, 500, 6000)
    return Task(
        name="policy_game",
        build=partial(ValueIteration, width, rounds=game.size * (1 if tiny else 3)),
        data=partial(_explored, game, explored),
        renew=partial(_replay, game, added, kept),
        loss=value_loss,
        score=Return(game, _agreeing, episodes=20 if tiny else 500),
        sample=partial(play, game),
        threat=Linf(0.3),
        recipe=Recipe(
            epochs=3 if tiny else 15,
            batch_size=64 if tiny else 128,
            optimizer="Adam",
            learning_rate=0.01,
            schedule="linear",
        ),
        unit="transition",
        options="tiny=True" if tiny else options,
    )


class ValueIteration(nn.Module):
    """A value iteration network: planes ``(B, 4, size, size)`` of ice, holes, goal and player to values ``(B, 4)``.

    What the board holds around a cell says what its actions bring at once, how much of its value they keep, and
    whether the game goes on there; the rest is passed on from cell to cell. Values are read where the player is.
    """

    def __init__(self, width: int, rounds: int) -> None:
        super().__init__()
        self.rounds = rounds
        self.ground = nn.Conv2d(3, width, 3, padding=1)
        self.gain = nn.Conv2d(width, FrozenLake.actions, 1)
        self.stay = nn.Conv2d(width, FrozenLake.actions, 1)
        self.open = nn.Conv2d(width, 1, 1)
        self.move = nn.Conv2d(1, FrozenLake.actions, 3, padding=1)

    def forward(self, planes: Tensor) -> Tensor:
        """One value an action."""
        ground = self.ground(planes[:, :3]).relu()
        gain, stay, goes_on = self.gain(ground), self.stay(ground), self.open(ground).sigmoid()
        values = gain
        for _ in range(self.rounds):
            best = values.amax(1, keepdim=True) * goes_on
            values = gain + self.move(best) + stay * best
        return cast("Tensor", (values * planes[:, 3:]).sum((2, 3)))


def value_loss(predictor: Predictor, batch: Batch) -> Tensor:
    """Squared error ``(B,)`` of the values of the actions that were taken."""
    target = fields(batch)
    error: Tensor = predictor(batch.inputs) - target["value"]
    return (target["taken"] * error.square()).sum(1)


def _agreeing(outputs: Tensor) -> Tree:
    """All actions count; the best is worth more than its output says, each other less."""
    best = F.one_hot(outputs.argmax(-1), outputs.shape[1])
    return {"value": outputs + 2 * best - 1, "taken": torch.ones_like(outputs)}


def _explored(game: FrozenLake, n: int, rng: torch.Generator) -> Splits:
    """Transitions of a policy that acts at random, a sixth as many for each other part as for training."""
    sizes = {part: n if part == "train" else n // 6 for part in PARTS}
    parts: dict[str, Any] = {part: _batch(game, at_random(game, rng), m, part, True, rng) for part, m in sizes.items()}
    return Splits(**parts)


def _replay(game: FrozenLake, added: int, kept: int, module: nn.Module, batch: Batch, rng: torch.Generator) -> Batch:
    """The buffer with new transitions, at most ``kept`` that are not of exploration, valued by the module as it is.

    The module of an epoch's start is the target network of that epoch.
    """
    best, random = greedy(Plain(module, 1000)), at_random(game, rng)

    def act(observed: Tensor) -> Tensor:
        explore = torch.rand(len(observed), generator=rng) < 0.2
        return torch.where(explore, random(observed), best(observed))

    old = fields(batch)
    new = _batch(game, act, added, "train", False, rng).to(old["seed"].device)
    forever, recent = (mask.nonzero()[:, 0] for mask in (old["explored"], ~old["explored"]))
    buffer = batch.take(torch.cat([forever, recent[max(len(recent) + added - kept, 0) :]]))
    inputs, target = join([buffer.inputs, new.inputs]), cast("dict[str, Tensor]", join([buffer.target, new.target]))
    return Batch(inputs, valued(target, Plain(module, 1000)(target["next"])))


def valued(target: dict[str, Tensor], after: Tensor) -> Tree:
    """The target with the values ``(B, A)`` that the rewards and the values ``after`` them give."""
    value = target["reward"] + DISCOUNT * ~target["done"] * after.amax(1)
    return {**target, "value": value[:, None] * target["taken"]}


def _batch(game: FrozenLake, act: Act, n: int, part: str, explored: bool, rng: torch.Generator) -> Batch:
    """Planes ``(n, 4, size, size)`` and what the action that was taken there led to; nothing is known of later."""
    played = transitions(game, act, n, n // 10, PARTS[part], rng)
    taken = F.one_hot(played["action"], game.actions).float()
    target: dict[str, Tree] = {
        "taken": taken,
        "value": played["reward"][:, None] * taken,
        "reward": played["reward"],
        "next": played["next"],
        "done": played["done"],
        "explored": torch.full((n,), explored),
        "seed": torch.full((n,), PARTS[part][0]),
    }
    return Batch(played["observation"], target)
