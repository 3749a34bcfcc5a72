"""Weights kept apart come back to the bit, the rest is a ruin, and what a ruin is worth is measured by repairing it."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import secure_ml as sm
from secure_ml.obfuscation import Secret, _flat, _weights, join_weights, recovered, shuffle_units, split_weights
from tests.laws import same, tiny_victim, untouched


@cache
def victim() -> sm.Victim:
    return sm.fit(sm.task("digits_cnn"), seed=0, device="cpu")


@cache
def split() -> tuple[nn.Module, Secret]:
    return split_weights(victim(), 20)


def accuracy(module: nn.Module) -> float:
    with torch.no_grad():
        return victim().task.score.measure(module.eval(), victim().splits.test).value


def test_joined_weights_are_the_victims() -> None:
    with untouched(victim().module):
        ruin, secret = split_weights(victim(), 20)
        whole = join_weights(ruin, secret)
    assert same(list(whole.state_dict().values()), list(victim().module.state_dict().values()))
    assert len(secret.places) == len(secret.values) == len(secret.places.unique()) == 20


def test_few_weights_ruin_it_and_none_stands_out() -> None:
    ruin, secret = split()
    before, after = _flat(_weights(victim().module)), _flat(_weights(ruin))
    changed = (before != after).nonzero()[:, 0]
    assert set(changed.tolist()) <= set(secret.places.tolist())
    assert len(changed) >= 15
    for one, other in zip(_weights(victim().module), _weights(ruin), strict=True):
        assert one.min() <= other.min()
        assert other.max() <= one.max()
    assert accuracy(victim().module) > 0.95
    assert accuracy(ruin) < 0.3


def test_weights_chosen_at_random_ruin_nothing() -> None:
    """A broken choice: the same number of weights, set to a limit of their layer, but anywhere."""
    module, _ = split_weights(victim(), 20)
    values = _flat(_weights(victim().module))
    places = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))[:20]
    values[places] = values.max()
    random = join_weights(module, Secret(torch.arange(len(values)), values))
    assert accuracy(random) > 0.8 > accuracy(module)


def test_the_first_weight_is_the_best_of_all_by_its_gradient() -> None:
    """Of a linear model the choice can be made by hand."""
    task = sm.task("linear_regression", tiny=True)
    small = tiny_victim("linear_regression")
    _, secret = split_weights(small, 1, rounds=1)
    (weight,) = _weights(small.module)
    batch = small.splits.train
    (slope,) = torch.autograd.grad(task.loss(small.module, batch).mean(), [weight])
    values = weight.detach().flatten()
    gains = [
        float(g * ((values.max() if g > 0 else values.min()) - w)) for g, w in zip(slope.flatten(), values, strict=True)
    ]
    assert secret.places.tolist() == [gains.index(max(gains))]
    assert torch.equal(secret.values, values[secret.places])


def test_repairing_a_ruin_takes_few_examples() -> None:
    """It does not stop whoever has labelled examples: that is what is to be known about it."""
    ruin, _ = split()
    found = [recovered(victim(), ruin, k, seed=0).value for k in (10, 300)]
    assert found[0] < found[1]
    assert found[1] > 0.9
    with pytest.raises(sm.UsageError, match="has 500 examples; given 501"):
        recovered(victim(), ruin, 501, seed=0)
    with pytest.raises(sm.UsageError, match="between 1 and"):
        split_weights(victim(), 10**9)


def moved(first: nn.Module, second: nn.Module) -> bool:
    return not same(list(first.state_dict().values()), list(second.state_dict().values()))


@pytest.mark.parametrize("name", ["digits_cnn", "fashion_mnist_cnn", "table_mlp"])
def test_shuffled_units_compute_the_same(name: str) -> None:
    task = sm.task(name, tiny=True)
    module = task.build().double().eval()
    inputs = task.draw(0).test.inputs
    assert isinstance(inputs, Tensor)
    with untouched(module):
        shuffled = shuffle_units(module, torch.Generator().manual_seed(0))
    assert moved(module, shuffled)
    assert torch.allclose(module(inputs.double()), shuffled(inputs.double()), rtol=1e-9, atol=1e-9)


def test_units_that_cannot_be_moved_are_refused() -> None:
    rng = torch.Generator().manual_seed(0)
    with pytest.raises(sm.NotApplicable, match="no two layers"):
        shuffle_units(sm.task("digits_mlp", tiny=True).build(), rng)  # a sigmoid notices the scale
    broken = nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 2))
    with pytest.raises(sm.NotApplicable):
        shuffle_units(broken, rng)


def test_a_shuffle_that_forgets_the_next_layer_is_caught() -> None:
    task = sm.task("digits_cnn", tiny=True)
    module, inputs = task.build().double(), task.draw(0).test.inputs
    shuffled = shuffle_units(module, torch.Generator().manual_seed(0))
    forgetful = replace_last(shuffled, module)
    assert not torch.allclose(module(inputs.double()), forgetful(inputs.double()), rtol=1e-9, atol=1e-9)


def replace_last(shuffled: nn.Module, module: nn.Module) -> nn.Module:
    assert isinstance(shuffled, nn.Sequential)
    assert isinstance(module, nn.Sequential)
    return nn.Sequential(*list(shuffled)[:-1], list(module)[-1])


def test_recovery_starts_where_it_says() -> None:
    """At a rate of nearly nothing a ruin stays a ruin, and the victim's own weights stay good."""
    ruin, secret = split()
    assert recovered(victim(), ruin, 20, seed=0, rate=1e-9).value == pytest.approx(accuracy(ruin))
    whole = join_weights(ruin, secret)
    assert recovered(victim(), whole, 20, seed=0, rate=1e-9).value == pytest.approx(accuracy(victim().module))
    short = replace(victim(), task=replace(victim().task, recipe=replace(victim().task.recipe, epochs=1)))
    assert recovered(short, None, 20, seed=0, rate=1e-9).value < 0.5
