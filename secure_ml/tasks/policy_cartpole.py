"""A policy that balances a pole, learned by policy gradient."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secure_ml.batch import Batch, Splits, Tree
from secure_ml.data import require_extra
from secure_ml.surfaces import Box
from secure_ml.task import Predictor, Recipe, Task
from secure_ml.tasks._policies import (
    PARTS,
    Act,
    CartPole,
    Return,
    at_random,
    fields,
    play,
    transitions,
)
from secure_ml.threats import Linf
from secure_ml.victim import Plain


def policy_cartpole(*, tiny: bool = False) -> Task:
    """Gymnasium's CartPole-v1, REINFORCE with a baseline (10.1007/BF00992696), two dense layers of 450 parameters.

    Observations are position, speed, angle and angular speed over 2.4 m, 3 m/s, 12 degrees and 3 rad/s, cut at 1:
    ``Linf(0.3)`` moves what the policy sees by up to 72 cm, 90 cm/s, 3.6 degrees and 0.9 rad/s. Near balance
    that is more than there is to see: adversarial training learns with radius 0.03, and nothing from 0.2 on.

    Args:
        tiny: 16 units, 400 transitions an epoch, 3 epochs, episodes of at most 50 steps.
    """
    require_extra("gymnasium", "models", "policy_cartpole")
    game, hidden, n = (CartPole(limit=50), 16, 400) if tiny else (CartPole(), 64, 4000)
    return Task(
        name="policy_cartpole",
        build=lambda: nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 2)),
        data=partial(_explored, game, n),
        renew=partial(_rolled_out, game, n),
        loss=policy_loss,
        score=Return(game, _agreeing, episodes=10 if tiny else 100),
        sample=partial(play, game),
        surfaces=(Box(-1, 1),),
        threat=Linf(0.3),
        recipe=Recipe(
            epochs=3 if tiny else 20,
            batch_size=32 if tiny else 64,
            optimizer="Adam",
            learning_rate=0.02 if tiny else 3e-3,
            schedule="linear",
        ),
        unit="transition",
        options="tiny=True" if tiny else "",
    )


def policy_loss(predictor: Predictor, batch: Batch) -> Tensor:
    """Minus the advantage times the action's log-probability, ``(B,)``, less a little entropy."""
    target = fields(batch)
    logs: Tensor = predictor(batch.inputs).log_softmax(-1)
    chosen = logs.gather(1, target["action"][:, None])[:, 0]
    return -target["advantage"] * chosen + 0.01 * (logs.exp() * logs).sum(1)


def _agreeing(outputs: Tensor) -> Tree:
    return {"action": outputs.argmax(-1), "advantage": torch.ones_like(outputs[:, 0])}


def _explored(game: CartPole, n: int, rng: torch.Generator) -> Splits:
    """Transitions of a policy that acts at random, a quarter as many for each other part as for training."""
    sizes = {part: n if part == "train" else n // 4 for part in PARTS}
    parts: dict[str, Any] = {part: _batch(game, at_random(game, rng), m, part, rng) for part, m in sizes.items()}
    return Splits(**parts)


def _rolled_out(game: CartPole, n: int, module: nn.Module, batch: Batch, rng: torch.Generator) -> Batch:
    """As many transitions of the module's own policy, which replace the last ones."""

    def act(observed: Tensor) -> Tensor:
        return torch.multinomial(Plain(module, 1000)(observed).cpu().softmax(-1), 1, generator=rng)[:, 0]

    return _batch(game, act, n, "train", rng).to(fields(batch)["seed"].device)


def _batch(game: CartPole, act: Act, n: int, part: str, rng: torch.Generator) -> Batch:
    """Observations ``(n, 4)``, what was done, and how much more than expected that brought."""
    played = transitions(game, act, n, 16, PARTS[part], rng)
    advantage = played["togo"] - baseline(played["observation"], played["time"] / game.limit, played["togo"])
    target: dict[str, Tree] = {
        "action": played["action"],
        "advantage": (advantage - advantage.mean()) / advantage.std().clamp(min=1e-6),
        "seed": torch.full((n,), PARTS[part][0]),
    }
    return Batch(played["observation"], target)


def baseline(observed: Tensor, time: Tensor, togo: Tensor) -> Tensor:
    """The part of ``togo`` ``(B,)`` that a quadratic in observation and time explains, by ridge regression."""
    powers = time[:, None] ** torch.arange(4)
    features = torch.cat([observed, observed.square(), powers], 1).double()
    gram = features.T @ features + 1e-3 * torch.eye(features.shape[1], dtype=torch.float64)
    weights: Tensor = torch.linalg.solve(gram, features.T @ togo.double())
    return (features @ weights).float()
