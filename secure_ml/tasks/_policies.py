"""What the policies share: games in copies that are stepped together, roll-outs, and the return as a score."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from secure_ml.batch import Batch, Tree
from secure_ml.scores import ClosedLoop, Predict
from secure_ml.stats import Estimate, bootstrap
from secure_ml.task import Predictor, Sample

Act = Callable[[Tensor], Tensor]
"""Observations ``(B, *obs)`` to actions ``(B,)``, both on the CPU."""
CPU = torch.device("cpu")
PARTS: dict[str, Sequence[int]] = {"train": range(3, 10), "validation": (1,), "test": (0,), "aux": (2,)}
"""The last digits of the seeds of each part's episodes; a score plays those of the first digit itself."""


class Copies(ABC):
    """``n`` episodes of one game, stepped together; those that have ended stand still."""

    live: Tensor
    """Which episodes have not ended, ``(n,)``."""

    @abstractmethod
    def observe(self) -> Tensor:
        """What the policy sees of each, ``(n, *obs)``."""

    @abstractmethod
    def step(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards ``(n,)`` of actions ``(n,)``, and which episodes ended by them other than by the limit of steps."""

    @abstractmethod
    def frame(self) -> str:
        """The first episode's state as text."""


class Game(ABC):
    """An environment; equal seeds give equal episodes, and seeds that end differently share nothing."""

    actions: ClassVar[int]

    @abstractmethod
    def start(self, n: int, seed: int) -> Copies:
        """``n`` episodes at their start."""

    def practice(self, n: int, seed: int) -> Copies:
        """``n`` episodes to learn from, where these start otherwise than those that count."""
        return self.start(n, seed)


def roll_out(copies: Copies, act: Act) -> dict[str, Tensor]:
    """Episodes to their end: each field ``(n, T, *)``, and where in it an episode was ``live``, ``(n, T)``."""
    steps: list[dict[str, Tensor]] = []
    while bool(copies.live.any()):
        live, before = copies.live.clone(), copies.observe()
        actions = torch.zeros(len(live), dtype=torch.long)
        actions[live] = act(before[live])
        reward, done = copies.step(actions)
        steps.append(
            {
                "observation": before,
                "action": actions,
                "reward": reward * live,
                "next": copies.observe(),
                "done": done,
                "live": live,
            }
        )
    return {name: torch.stack([step[name] for step in steps], 1) for name in steps[0]}


def transitions(
    game: Game, act: Act, n: int, copies: int, digits: Sequence[int], rng: torch.Generator
) -> dict[str, Tensor]:
    """``n`` transitions, ``(n, *)`` a field, drawn from whole episodes of practice, ``copies`` or a multiple of them.

    Their seeds end in one of the ``digits``. ``togo`` is what a transition's episode still brought from there
    on, discounted by 0.99 a step; ``time`` its step.
    """
    parts: list[dict[str, Tensor]] = []
    while sum(len(part["action"]) for part in parts) < n:
        played = roll_out(game.practice(copies, draw_seed(rng, digits)), act)
        played["togo"] = discounted(played["reward"], 0.99)
        played["time"] = torch.arange(played["live"].shape[1]).expand(played["live"].shape)
        live = played.pop("live")
        parts.append({name: field[live] for name, field in played.items()})
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    chosen = torch.randperm(len(whole["action"]), generator=rng)[:n]
    return {name: field[chosen] for name, field in whole.items()}


def discounted(rewards: Tensor, discount: float) -> Tensor:
    """The sum of the rewards ``(n, T)`` from each step on, discounted to that step."""
    togo = rewards.clone()
    for t in range(rewards.shape[1] - 2, -1, -1):
        togo[:, t] += discount * togo[:, t + 1]
    return togo


def draw_seed(rng: torch.Generator, digits: Sequence[int]) -> int:
    """A seed that ends in one of these digits, and that no score plays."""
    digit = digits[int(torch.randint(len(digits), (), generator=rng))]
    return 10 * int(torch.randint(10**3, 10**8, (), generator=rng)) + digit


def at_random(game: Game, rng: torch.Generator) -> Act:
    """Every action with the same probability."""
    return lambda observed: torch.randint(game.actions, (len(observed),), generator=rng)


def greedy(predict: Predict, device: torch.device = CPU) -> Act:
    """The action of the highest logit or value, which is asked for on a device."""
    return lambda observed: predict(observed.to(device)).argmax(-1).cpu()


def fields(batch: Batch) -> dict[str, Tensor]:
    """The fields of a policy's target."""
    return cast("dict[str, Tensor]", batch.target)


@dataclass(frozen=True)
class Return(ClosedLoop):
    """Sum of an episode's rewards where the highest logit or value acts, on episodes that the split's seed names."""

    game: Game
    own: Callable[[Tensor], Tree]
    """Outputs ``(B, A)`` to the target that agrees with them."""
    episodes: int = 100
    name: ClassVar[str] = "return"
    unit: ClassVar[str] = "return"
    higher_is_better: ClassVar[bool] = True

    def values(self, predict: Predict, split: Batch) -> Tensor:
        """The return of each episode, ``(episodes,)``."""
        seed = fields(split)["seed"]
        copies = self.game.start(self.episodes, int(seed[0]))
        return roll_out(copies, greedy(predict, seed.device))["reward"].sum(1)

    def aggregate(self, values: Tensor) -> Estimate:
        """The mean over episodes with a bootstrap interval."""
        return bootstrap(lambda v: float(v.mean()), values.double().cpu().numpy())

    def target(self, outputs: Tensor) -> Tree:
        """The target of the policy's own action: a high loss for it is another action."""
        return self.own(outputs)


def play(game: Game, predictor: Predictor, prompt: str, rng: torch.Generator) -> Sample:
    """One episode, frame by frame; the prompt may be its seed, a whole number."""
    copies = game.start(1, int(prompt) if prompt.strip().isdigit() else draw_seed(rng, PARTS["test"]))
    frames, total = [copies.frame()], 0.0
    while bool(copies.live.any()):
        reward, _ = copies.step(greedy(predictor)(copies.observe()))
        total += reward.sum().item()
        frames.append(copies.frame())
    return Sample("\n".join([*frames, f"return {total:g} in {len(frames) - 1} steps"]))


# -- CartPole ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CartPole(Game):
    """Gymnasium's CartPole-v1: a reward of 1 for each of at most 500 steps that the pole stands."""

    limit: int = 500
    actions: ClassVar[int] = 2

    def start(self, n: int, seed: int) -> Copies:
        """``n`` poles, almost upright."""
        return _Carts(n, seed, self.limit)


class _Carts(Copies):
    SCALE = torch.tensor([2.4, 3.0, 0.2095, 3.0])
    """Metres, metres a second, radians, radians a second; position and angle end an episode at 1."""

    def __init__(self, n: int, seed: int, limit: int) -> None:
        import gymnasium

        self.poles: Any = gymnasium.make_vec(
            "CartPole-v1", n, vectorization_mode="vector_entry_point", max_episode_steps=limit
        )
        self.state = torch.from_numpy(self.poles.reset(seed=seed)[0])
        self.live = torch.ones(n, dtype=torch.bool)

    def observe(self) -> Tensor:
        return (self.state / self.SCALE).clamp(-1, 1)

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        state, reward, fallen, timeout, _ = self.poles.step(actions.numpy())
        self.state = torch.where(self.live[:, None], torch.from_numpy(state), self.state)
        fallen = torch.from_numpy(fallen)
        self.live = self.live & ~fallen & ~torch.from_numpy(timeout)
        return torch.from_numpy(reward).float(), fallen

    def frame(self) -> str:
        x, _, angle, _ = self.state[0].tolist()
        track = [" "] * 49
        track[min(max(round((x + 2.4) * 10), 0), 48)] = "|" if abs(angle) < 0.02 else "/" if angle > 0 else "\\"
        return f"[{''.join(track)}] cart {x:+.2f} m, pole {np.degrees(angle):+5.1f} degrees"


# -- FrozenLake -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FrozenLake(Game):
    """Gymnasium's FrozenLake-v1, slippery; a reward of 1 for the goal within 100 steps.

    The map is the published one of 4x4 or 8x8, or a random one an episode. To practise, an episode starts on any cell
    of its map, so that a random policy meets the goal too.
    """

    size: int = 4
    limit: int = 100
    published: bool = True
    actions: ClassVar[int] = 4

    def start(self, n: int, seed: int) -> Copies:
        """``n`` boards, each from its corner."""
        return _Lakes(self.lakes(n, seed), seed)

    def practice(self, n: int, seed: int) -> Copies:
        """``n`` boards, each from a cell drawn at random."""
        return _Lakes(self.lakes(n, seed, anywhere=True), seed)

    def lakes(self, n: int, seed: int, anywhere: bool = False) -> list[Any]:
        """The environments."""
        import gymnasium

        return [
            gymnasium.make(
                "FrozenLake-v1",
                desc=[row.replace("F", "S") for row in rows] if anywhere else rows,
                render_mode="ansi",
                max_episode_steps=self.limit,
                disable_env_checker=True,
            )
            for rows in islice(self.maps(seed), n)
        ]

    def maps(self, seed: int) -> Iterator[list[str]]:
        """The published map again and again, or random ones whose hash ends in the digit that the seed ends in."""
        from gymnasium.envs.toy_text.frozen_lake import MAPS, generate_random_map

        while self.published:
            yield MAPS[f"{self.size}x{self.size}"]
        for i in count():
            rows = generate_random_map(self.size, seed=seed * 1000 + i)
            if zlib.crc32("".join(rows).encode()) % 10 == seed % 10:
                yield rows

    def optimum(self, n: int, seed: int) -> float:
        """The highest expected return, over the maps of ``start``."""
        return float(np.mean([best_return(lake, self.limit) for lake in self.lakes(n, seed)]))


def best_return(lake: Any, limit: int) -> float:
    """The highest expected return of a lake within a limit of steps, by finite-horizon value iteration."""
    dynamics = lake.unwrapped.P
    gain = np.zeros((len(dynamics), FrozenLake.actions))
    move = np.zeros((*gain.shape, len(dynamics)))
    for state, action in np.ndindex(*gain.shape):
        for probability, after, reward, ended in dynamics[state][action]:
            gain[state, action] += probability * reward
            move[state, action, after] += 0 if ended else probability
    value = np.zeros(len(dynamics))
    for _ in range(limit):
        value = (gain + move @ value).max(1)
    return float(lake.unwrapped.initial_state_distrib @ value)


class _Lakes(Copies):
    def __init__(self, lakes: list[Any], seed: int) -> None:
        self.lakes = lakes
        self.state = torch.tensor([lake.reset(seed=seed + i)[0] for i, lake in enumerate(lakes)])
        letters = np.stack([lake.unwrapped.desc for lake in lakes])
        planes = [np.isin(letters, kinds) for kinds in ([b"F", b"S"], [b"H"], [b"G"])]
        self.maps = torch.from_numpy(np.stack(planes, 1)).float()
        self.live = torch.ones(len(lakes), dtype=torch.bool)

    def observe(self) -> Tensor:
        """Planes ``(n, 4, size, size)`` of ice, holes, the goal and the player."""
        player = torch.zeros_like(self.maps[:, :1])
        player.flatten(1)[torch.arange(len(player)), self.state] = 1
        return torch.cat([self.maps, player], 1)

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        rewards, ended = torch.zeros(len(self.live)), torch.zeros(len(self.live), dtype=torch.bool)
        state, live = self.state.clone(), self.live.clone()
        for i in self.live.nonzero()[:, 0].tolist():
            state[i], rewards[i], ended[i], timeout, _ = self.lakes[i].step(int(actions[i]))
            live[i] = not (ended[i] or timeout)
        self.state, self.live = state, live
        return rewards, ended

    def frame(self) -> str:
        return cast("str", self.lakes[0].render())
