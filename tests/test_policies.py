"""Games, roll-outs and returns, against answers known beforehand."""

from itertools import islice

import pytest
import torch
from torch import Tensor

import secure_ml as sm
from secure_ml.batch import Batch
from secure_ml.tasks._policies import CartPole, FrozenLake, at_random, best_return, discounted, roll_out
from secure_ml.tasks.policy_cartpole import baseline
from secure_ml.tasks.policy_game import policy_game, valued

gymnasium = pytest.importorskip("gymnasium")


def controller(observed: Tensor) -> Tensor:
    """Push to where the pole leans and turns, with a little pull to the middle: it never falls."""
    push = observed @ torch.tensor([0.12, 0.3, 1.0, 1.0])
    return torch.stack([-push, push], 1)


def test_a_controller_keeps_every_pole_up() -> None:
    score = sm.task("policy_cartpole", tiny=True).score
    split = Batch(torch.zeros(1, 4), {"seed": torch.tensor([0])})
    assert score.measure(controller, split).value == 50
    falling = score.values(lambda observed: torch.tensor([[1.0, 0.0]]).expand(len(observed), 2), split)
    assert falling.shape == (10,)
    assert bool(((falling >= 8) & (falling <= 10)).all()), "pushed one way only, a pole falls in 8 to 10 steps"


def test_the_optimum_of_the_published_map() -> None:
    """Without a limit of steps the 4x4 map is won with probability 14/17."""
    lake = gymnasium.make("FrozenLake-v1", map_name="4x4")
    assert best_return(lake, 5000) == pytest.approx(14 / 17, abs=1e-6)
    assert best_return(lake, 5) == 0
    assert best_return(lake, 100) < best_return(lake, 200)


def test_no_policy_beats_the_optimum() -> None:
    """One action a cell that is optimal in the long run, played on a map of its own."""
    game = FrozenLake(3, limit=30, published=False)
    returns = roll_out(game.start(200, 5), at_random(game, torch.Generator().manual_seed(0)))["reward"].sum(1)
    assert 0 < returns.mean().item() < game.optimum(200, 5) < 1


def test_parts_share_no_map() -> None:
    game = FrozenLake(3, published=False)
    seen = [{tuple(rows) for rows in islice(game.maps(10 * n + digit), 40)} for digit in (0, 1, 2) for n in (5, 6)]
    assert seen[0] & seen[1], "of the few maps of 3x3, a part meets some again"
    assert not (seen[0] | seen[1]) & (seen[2] | seen[3])
    assert not (seen[2] | seen[3]) & (seen[4] | seen[5])


@pytest.mark.parametrize(
    "game", [CartPole(limit=20), FrozenLake(4, limit=20), FrozenLake(4, limit=20, published=False)], ids=repr
)
def test_equal_seeds_give_equal_episodes(game: CartPole | FrozenLake) -> None:
    def played(seed: int) -> dict[str, Tensor]:
        return roll_out(game.practice(5, seed), at_random(game, torch.Generator().manual_seed(0)))

    first, again, other = played(7), played(7), played(8)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["observation"][:, 0], other["observation"][:, 0])
    live = first["live"]
    assert torch.equal(first["observation"][:, 1:][live[:, 1:]], first["next"][:, :-1][live[:, 1:]])
    assert not first["reward"][~live].any()
    assert live.shape[1] <= 20


def test_discounted_returns() -> None:
    assert discounted(torch.tensor([[1.0, 0.0, 4.0]]), 0.5).tolist() == [[2.0, 2.0, 4.0]]


def test_the_baseline_explains_what_is_quadratic() -> None:
    rng = torch.Generator().manual_seed(0)
    observed, time = torch.rand(500, 4, generator=rng) * 2 - 1, torch.rand(500, generator=rng)
    togo = 3 + observed @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + observed[:, 0] ** 2 - 4 * time**3
    assert torch.allclose(baseline(observed, time, togo), togo, atol=1e-2)


def test_values_stop_where_an_episode_does() -> None:
    target = {
        "reward": torch.tensor([1.0, 0.0]),
        "done": torch.tensor([True, False]),
        "taken": torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
    }
    given = valued(target, torch.tensor([[5.0, 6.0], [2.0, 1.0]]))
    assert isinstance(given, dict)
    assert torch.allclose(given["value"], torch.tensor([[0.0, 1.0], [0.95 * 2, 0.0]]))


def test_exploration_stays_in_the_replay() -> None:
    task = policy_game(tiny=True)
    module, first = task.build(), task.draw(0).train
    assert task.renew is not None
    buffer, rng = first, torch.Generator().manual_seed(0)
    sizes = []
    for _ in range(3):
        last, buffer = buffer, task.renew(module, buffer, rng)
        sizes.append(len(buffer))
    assert sizes == [250, 275, 275]
    assert torch.equal(buffer.inputs[:200], first.inputs)
    assert torch.equal(buffer.inputs[200:225], last.inputs[250:]), "the oldest are dropped first"
    assert bool((buffer.target["value"].abs().sum(1) > 0).any())


@pytest.mark.parametrize("name", ["policy_cartpole", "policy_game"])
def test_an_episode_can_be_read(name: str) -> None:
    task = sm.task(name, tiny=True)
    assert task.sample is not None
    module = task.build()
    first, again = (task.sample(module, "3", torch.Generator()).text for _ in range(2))
    assert first == again
    assert "return" in first.splitlines()[-1]
