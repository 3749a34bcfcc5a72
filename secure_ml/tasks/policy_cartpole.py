"""A policy that balances a pole, learned by policy gradient."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from secure_ml.batch import Batch, Splits, Tree
from secure_ml.data import require_extra
from secure_ml.surfaces import Box
from secure_ml.task import Predictor, Recipe, Task
from secure_ml.tasks._policies import (
    TEST,
    VALIDATION,
    Act,
    CartPole,
    Return,
    at_random,
    draw_seed,
    fields,
    play,
    transitions,
)
from secure_ml.threats import Linf
from secure_ml.victim import Plain


def policy_cartpole(*, tiny: bool = False) -> Task:
    """Gymnasium's CartPole-v1, REINFORCE with a baseline (10.1007/BF00992696), two dense layers of 450 parameters.

    Observations are position, speed, angle and angular speed over 2.4 m, 3 m/s, 12 degrees and 3 rad/s, cut at 1:
    ``Linf(0.1)`` moves what the policy sees by up to 24 cm, 30 cm/s, 1.2 degrees and 0.3 rad/s.

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
        threat=Linf(0.1),
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
    sizes = {"train": n, "validation": n // 4, "test": n // 4, "aux": n // 4}
    seeds = {"validation": VALIDATION, "test": TEST}
    return Splits(
        **{
            part: _batch(game, at_random(game, rng), size, seeds.get(part, draw_seed(rng)), rng)
            for part, size in sizes.items()
        }
    )


def _rolled_out(game: CartPole, n: int, module: nn.Module, batch: Batch, rng: torch.Generator) -> Batch:
    """As many transitions of the module's own policy, which replace the last ones."""

    def act(observed: Tensor) -> Tensor:
        return torch.multinomial(Plain(module, 1000)(observed).cpu().softmax(-1), 1, generator=rng)[:, 0]

    seed = fields(batch)["seed"]
    return _batch(game, act, n, int(seed[0]), rng).to(seed.device)


def _batch(game: CartPole, act: Act, n: int, seed: int, rng: torch.Generator) -> Batch:
    """Observations ``(n, 4)``, what was done, and how much more than expected that brought."""
    played = transitions(game, act, n, 16, rng)
    advantage = played["togo"] - baseline(played["observation"], played["time"] / game.limit, played["togo"])
    target: dict[str, Tree] = {
        "action": played["action"],
        "advantage": (advantage - advantage.mean()) / advantage.std().clamp(min=1e-6),
        "seed": torch.full((n,), seed),
    }
    return Batch(played["observation"], target)


def baseline(observed: Tensor, time: Tensor, togo: Tensor) -> Tensor:
    """The part of ``togo`` ``(B,)`` that a quadratic in observation and time explains, by ridge regression."""
    powers = time[:, None] ** torch.arange(4)
    features = torch.cat([observed, observed.square(), powers], 1).double()
    gram = features.T @ features + 1e-3 * torch.eye(features.shape[1], dtype=torch.float64)
    weights: Tensor = torch.linalg.solve(gram, features.T @ togo.double())
    return (features @ weights).float()
