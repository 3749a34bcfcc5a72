"""Evasion against closed forms, exhaustive search, and an independent implementation."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

import secure_ml as sm
from attacks.evasion.pgd import PGD
from attacks.evasion.token_swap import TokenSwap
from secure_ml.access import WhiteBox
from secure_ml.batch import Batch
from secure_ml.families.evasion import attack_batch
from tests.laws import tiny_task, tiny_victim


def linear_victim(low: float = -10.0, high: float = 10.0) -> sm.Victim:
    """A linear binary classifier of 5 features with one logit."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=generator)
    batch = Batch(x, (x @ torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0]) > 0).long())
    parts = sm.Splits(*(batch.take(slice(i, i + 50)) for i in range(0, 200, 50)))
    task = sm.Task(
        name="linear",
        build=lambda: nn.Sequential(nn.Linear(5, 1), nn.Flatten(0)),
        data=lambda _: parts,
        surfaces=(sm.Box(low, high),),
        threat=sm.Linf(0.1),
        recipe=sm.Recipe(epochs=5),
    )
    return sm.fit(task, seed=0, device="cpu")


@pytest.mark.parametrize(("threat", "dual"), [(sm.Linf(0.3), 1), (sm.L2(0.5), 2)])
def test_pgd_reaches_the_optimum_of_a_linear_model(threat: sm.Linf, dual: int) -> None:
    """The worst logit within a ball is w.x + b - y r ||w||_dual, and no point of the ball is worse."""
    victim = linear_victim()
    test, access = victim.splits.test, WhiteBox.open(victim)
    changed = attack_batch(
        PGD(steps=50, step_size=threat.radius / 2, early=False), access, test, threat, torch.Generator().manual_seed(0)
    )
    weight = victim.module[0].weight.detach()[0]
    sign = test.target * 2 - 1
    expected = access(test.inputs) - sign * threat.radius * weight.norm(dual)
    assert torch.allclose(access(changed.inputs), expected, atol=2e-3)


def test_pgd_respects_the_box_it_is_in() -> None:
    victim = linear_victim(-4.2, 4.2)
    changed = attack_batch(PGD(), WhiteBox.open(victim), victim.splits.test, sm.Linf(9.0), torch.Generator())
    assert changed.inputs.abs().max() <= 4.2


def test_pgd_is_as_strong_as_art() -> None:
    """At equal steps and step size, no weaker than ART's PGD with labels passed, as judged by the same model."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    task = replace(sm.task("digits_cnn"), recipe=sm.Recipe(epochs=10))
    victim = sm.fit(task, seed=0, device="cpu")
    test, threat = victim.splits.test.take(slice(0, 200)), sm.Linf(0.05)
    estimator = PyTorchClassifier(
        victim.module, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu"
    )
    attack = ProjectedGradientDescent(
        estimator, eps=0.05, eps_step=0.01, max_iter=20, num_random_init=1, batch_size=200, verbose=False
    )
    np.random.seed(0)
    theirs = torch.tensor(attack.generate(test.inputs.numpy(), y=test.target.numpy()))
    ours = attack_batch(PGD(steps=20, step_size=0.01), WhiteBox.open(victim), test, threat, torch.Generator())
    correct = {name: task.score.measure(victim.served, Batch(x, test.target)).value for name, x in
               (("clean", test.inputs), ("theirs", theirs), ("ours", ours.inputs))}  # fmt: skip
    assert correct["ours"] <= correct["theirs"] + 0.005
    assert correct["theirs"] < correct["clean"] - 0.05


def test_pgd_is_not_fooled_by_small_gradients() -> None:
    """L2 steps keep their length when the loss is scaled by 1e-20."""
    threat = sm.L2(1.0)
    gradient = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(threat.steepest(gradient * 1e-25), threat.steepest(gradient), atol=1e-5)
    assert torch.equal(threat.steepest(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_more_steps_restarts_and_radius_never_help_the_defender() -> None:
    victim = sm.fit(replace(sm.task("digits_cnn"), recipe=sm.Recipe(epochs=10)), seed=0, device="cpu")

    def robust(attack: PGD, radius: float) -> float:
        row = attack.evaluate(victim, threat=sm.Linf(radius), seed=0, examples=300).rows[0]
        assert row.value is not None
        return row.value

    values = [robust(PGD(), radius) for radius in (0.0, 0.02, 0.05, 0.1, 0.3)]
    assert values == sorted(values, reverse=True)
    assert values[0] == victim.task.score.measure(victim.served, victim.splits.test.take(slice(0, 300))).value
    assert values[-1] == 0
    assert robust(PGD(restarts=3), 0.05) <= robust(PGD(steps=1, step_size=0.05), 0.05)


def test_token_swap_against_exhaustive_search() -> None:
    """With one edit and every candidate tried, it finds the worst of all single replacements."""
    victim = tiny_victim("text_embedding")
    task, test, access = victim.task, victim.splits.test.take(slice(0, 4)), WhiteBox.open(victim)
    changed = attack_batch(TokenSwap(candidates=10_000, early=False), access, test, sm.Edits(1), torch.Generator())
    reached = task.loss(access, changed)
    for i in range(len(test)):
        one = test.take(slice(i, i + 1))
        worst = task.loss(access, one)
        for position, token in product(range(one.inputs.shape[1]), range(1, 64)):
            if one.inputs[0, position] == 0:
                continue
            trial = one.inputs.clone()
            trial[0, position] = token
            worst = torch.maximum(worst, task.loss(access, Batch(trial, one.target)))
        assert torch.allclose(reached[i : i + 1], worst, atol=1e-6)


def test_token_gradient_is_the_gradient_in_the_one_hot_code() -> None:
    victim = tiny_victim("text_embedding")
    batch = victim.splits.test.take(slice(0, 3))
    seen = WhiteBox.open(victim).ascend(batch, victim.task.surfaces[0])
    module = victim.module
    codes = nn.functional.one_hot(batch.inputs, 64).float().requires_grad_()
    there = (batch.inputs != 0).float()[..., None]
    mean = ((codes @ module.embedding.weight) * there).sum(1) / there.sum(1).clamp(min=1)
    losses = nn.functional.cross_entropy(module.output(mean), batch.target, reduction="none")
    (expected,) = torch.autograd.grad(losses.sum(), codes)
    assert torch.allclose(seen.gradient, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"steps": 0}, "at least 1 step"), ({"restarts": 0}, "at least 1 restart"), ({"step_size": 0.0}, "above 0")],
)
def test_settings_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(sm.UsageError, match=message):
        PGD(**settings)


def test_step_longer_than_the_radius() -> None:
    with pytest.raises(sm.UsageError, match="longer than the radius"):
        PGD(step_size=0.5).evaluate(tiny_victim("digits_mlp"), threat=sm.Linf(0.1), seed=0, examples=5)


def test_no_threat() -> None:
    victim = tiny_victim("digits_mlp")
    bare = replace(victim, task=replace(tiny_task("digits_mlp"), threat=None))
    with pytest.raises(sm.UsageError, match="declares no threat"):
        PGD().evaluate(bare, threat=None, seed=0, examples=5)
    with pytest.raises(sm.UsageError, match="changes Tokens inputs; digits_mlp has Box"):
        PGD().evaluate(bare, threat=sm.Edits(2), seed=0, examples=5)


@pytest.mark.parametrize("make", [lambda: sm.Linf(-0.1), lambda: sm.L2(float("nan")), lambda: sm.Edits(-1)])
def test_threats_out_of_range(make: object) -> None:
    with pytest.raises(sm.UsageError, match="at least 0"):
        make()
