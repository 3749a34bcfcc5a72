"""Attacks that only ask: estimated gradients, decisions and noise, against closed forms and an independent library."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import secure_ml as sm
from attacks.evasion._asking import Asking
from attacks.evasion._slopes import portions, slope
from attacks.evasion.boundary import Boundary
from attacks.evasion.hop_skip_jump import HopSkipJump
from attacks.evasion.nes import NES
from attacks.evasion.random_noise import RandomNoise
from attacks.evasion.spsa import SPSA
from attacks.evasion.square import Square
from secure_ml.access import BlackBox
from secure_ml.batch import Batch
from secure_ml.families.evasion import Evasion, attack_batch
from secure_ml.surfaces import Box
from tests.test_evasion import linear_victim
from tests.test_square import decided, images, random_net, task_of

SCORES = [SPSA(queries=200, pairs=8), NES(queries=200, pairs=8), RandomNoise(queries=200)]
DECISIONS = [HopSkipJump(queries=200, samples=20), Boundary(queries=200)]
BALLS = [sm.Linf(0.1), sm.L2(0.6), sm.L1(2.0)]
PAIRS = [(a, t) for a in (*SCORES, *DECISIONS) for t in BALLS if isinstance(t, a.threats)]


def asked(task: sm.Task, net: nn.Module, attack: Evasion, batch: Batch) -> BlackBox:
    """The access that an attack is handed to a module."""

    def answer(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return net(inputs)

    return BlackBox(task, answer, attack.sees, attack.budget(len(batch)))


def seed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@cache
def digits() -> tuple[sm.Task, nn.Module, Batch]:
    """A network that has learned the digits, and some of them."""
    task = replace(sm.task("digits_cnn"), recipe=sm.Recipe(epochs=3))
    victim = sm.fit(task, seed=0, device="cpu")
    return task, victim.module, victim.splits.test.take(slice(0, 40))


@pytest.mark.parametrize(("attack", "threat"), PAIRS)
@pytest.mark.parametrize(("shape", "classes"), [((1, 8, 8), 5), ((7,), 1), ((2, 5), 2), ((1,), 2)])
def test_within_threat_and_budget(attack: Evasion, threat: sm.Linf, shape: tuple[int, ...], classes: int) -> None:
    """Whatever the shape, the number of classes and the budget, one query included."""
    net, x = random_net(*shape, classes=classes), images(10, *shape)
    batch, task = Batch(x, decided(net, x)), task_of(net)
    for queries in (1, 2, 17, attack.queries):
        limited = replace(attack, queries=queries)
        access = asked(task, net, limited, batch)
        changed = attack_batch(limited, access, batch, threat, seed())
        assert access.queries <= queries * len(batch)
        assert bool((threat.size(x, changed.inputs) <= threat.radius + 1e-6).all())
        Box().check(changed.inputs)
    if attack.sees == "logits":
        assert task.loss(net, changed).mean() > task.loss(net, batch).mean()


@pytest.mark.parametrize(("threat", "dual"), [(sm.Linf(0.05), 1), (sm.L2(0.05), 2)])
@pytest.mark.parametrize("attack", [HopSkipJump(queries=3000, early=False), Boundary(queries=3000, early=False)])
def test_decisions_find_the_border_of_a_linear_model(attack: Evasion, threat: sm.Linf, dual: int) -> None:
    """The nearest error lies at ``|w.x + b| / ||w||_dual``; none is nearer."""
    if not isinstance(threat, attack.threats):
        return
    victim = linear_victim()
    test = victim.splits.test.take(slice(0, 30))
    weight, bias = victim.module[0].weight.detach()[0], victim.module[0].bias.detach()
    logits = test.inputs @ weight + bias
    test, exact = Batch(test.inputs, (logits > 0).long()), logits.abs() / weight.norm(dual)
    found = attack.perturb(asked(victim.task, victim.module, attack, test), test, threat, seed())
    reached = threat.size(test.inputs, found)
    assert bool((decided(victim.module, found) != test.target).all())
    assert bool((reached >= exact * (1 - 1e-4)).all())
    assert float((reached / exact).median()) < 1.1


def test_an_error_inside_the_threat_ends_the_hunt() -> None:
    task, net, test = digits()
    used = []
    for attack in (HopSkipJump(queries=600), HopSkipJump(queries=600, early=False)):
        access = asked(task, net, attack, test)
        changed = attack_batch(attack, access, test, sm.Linf(0.3), seed())
        assert int((decided(net, changed.inputs) == test.target).sum()) <= 4
        used.append(access.queries)
    assert used[0] < 0.7 * used[1]


def test_where_noise_finds_no_error_another_input_is_the_start() -> None:
    """Two classes, one of which noise never reaches: far corners of a box of many dimensions."""

    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(1) - 90.0  # noise has a sum of 50

    x = torch.cat([torch.full((3, 100), 0.5), torch.full((2, 100), 0.95)])
    batch, attack = Batch(x, torch.tensor([0, 0, 0, 1, 1])), HopSkipJump(queries=400)
    found = attack.perturb(asked(task_of(Sum()), Sum(), attack, batch), batch, sm.L2(4.2), seed())
    assert bool((decided(Sum(), found) != batch.target).all())
    assert bool((sm.L2(1).size(x[:3], found[:3]) <= 4.2).all()), "4.0 is the nearest"
    alone = batch.take(slice(0, 3))
    nothing = attack.perturb(asked(task_of(Sum()), Sum(), attack, alone), alone, sm.L2(4.2), seed())
    assert torch.equal(nothing, alone.inputs)


def test_labels_stop_scores_but_not_decisions() -> None:
    """Where only the class is served, Square has no more to go by than noise has; decisions find what there is."""
    task, net, test = digits()

    class Labels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return task.output.reveal(net(x), "label")

    threat, right = sm.L2(0.8), []
    for attack in (Square(queries=500), HopSkipJump(queries=2000)):
        changed = attack_batch(attack, asked(task, Labels(), attack, test), test, threat, seed())
        right.append(int((decided(net, changed.inputs) == test.target).sum()))
    assert right[0] >= right[1] + 6


@pytest.mark.parametrize("attack", [SPSA(queries=1500, pairs=20), NES(queries=1500, pairs=20)])
@pytest.mark.parametrize(("threat", "dual"), [(sm.Linf(0.3), 1), (sm.L2(0.5), 2)])
def test_estimated_gradients_reach_the_optimum_of_a_linear_model(attack: Evasion, threat: sm.Linf, dual: int) -> None:
    victim = linear_victim()
    test = victim.splits.test
    weight, bias = victim.module[0].weight.detach()[0], victim.module[0].bias.detach()
    sign = test.target * 2 - 1
    left = (test.inputs @ weight + bias) * sign - threat.radius * weight.norm(dual)
    test, left, sign = test.take(left > 0), left[left > 0], sign[left > 0]
    changed = attack_batch(attack, asked(victim.task, victim.module, attack, test), test, threat, seed())
    with torch.no_grad():
        reached = victim.module(changed.inputs) * sign
    assert bool((reached >= left - 1e-4).all())
    assert float((reached - left).mean()) <= 0.1 * threat.radius * float(weight.norm(dual))


def test_a_slope_is_the_gradient() -> None:
    """On a smooth function the mean over many pairs comes close to the gradient, in chunks as all at once."""
    net, x = random_net(6, classes=3), images(4, 6) * 0.2 + 0.4
    batch = Batch(x, decided(net, x))
    task = replace(task_of(net), chunk=50)
    leaf = x.clone().requires_grad_()
    (exact,) = torch.autograd.grad(task.loss(net, Batch(leaf, batch.target)).sum(), leaf)
    aim = Asking(asked(task, net, SPSA(), batch), batch, sm.Linf(0.1))
    rng = seed()
    found = slope(aim, x, 2000, 0.01, lambda shape: torch.randn(shape, generator=rng))
    assert torch.nn.functional.cosine_similarity(found, exact, dim=1).min() > 0.98
    assert torch.allclose(found.norm(dim=1), exact.norm(dim=1), rtol=0.15)
    assert list(portions(7, 10, 30)) == [3, 3, 1]
    assert list(portions(2, 100, 30)) == [1, 1]


def test_noise_finds_less_than_a_search() -> None:
    task, net, test = digits()
    right = []
    for attack in (RandomNoise(queries=300), Square(queries=300)):
        changed = attack_batch(attack, asked(task, net, attack, test), test, sm.Linf(0.1), seed())
        right.append(int((decided(net, changed.inputs) == test.target).sum()))
    assert right[0] >= right[1] + 3


def test_hop_skip_jump_is_as_strong_as_art() -> None:
    """With as many queries, its errors are no farther than those of ART's, which goes one image at a time."""
    import numpy as np
    from art.attacks.evasion import HopSkipJump as Theirs
    from art.estimators.classification import PyTorchClassifier

    task, net, test = digits()
    test = test.take(decided(net, test.inputs) == test.target).take(slice(0, 8))
    asked_about = 0

    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal asked_about
            asked_about += len(x)
            return net(x.float())

    estimator = PyTorchClassifier(
        Counted(), nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu"
    )
    theirs = Theirs(estimator, norm=2, max_iter=8, init_eval=50, max_eval=1000, init_size=50, verbose=False)
    np.random.seed(0)
    found = torch.tensor(theirs.generate(test.inputs.numpy(), y=np.eye(10)[test.target.numpy()])).float()
    attack = HopSkipJump(queries=asked_about // len(test), samples=50, early=False)
    ours = attack.perturb(asked(task, net, attack, test), test, sm.L2(0.1), seed())
    far = [float(sm.L2(1).size(test.inputs, x).median()) for x in (ours, found)]
    assert far[0] <= 1.1 * far[1]


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (SPSA, {"queries": 0}),
        (SPSA, {"pairs": 0}),
        (SPSA, {"width": 0.0}),
        (NES, {"queries": 0}),
        (NES, {"pairs": 0}),
        (NES, {"step_size": 2.0}),
        (NES, {"momentum": 1.0}),
        (RandomNoise, {"queries": 0}),
        (HopSkipJump, {"samples": 0}),
        (Boundary, {"closer": 1.0}),
        (Boundary, {"queries": 0}),
    ],
)
def test_settings_out_of_range(cls: type[Evasion], settings: dict[str, float]) -> None:
    with pytest.raises(sm.UsageError, match=f"{cls.__name__} needs"):
        cls(**settings)
