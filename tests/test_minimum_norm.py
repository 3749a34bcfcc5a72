"""Attacks that look for the nearest broken point, against closed forms, solvers and other libraries."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secure_ml as sm
from attacks.evasion._losses import margin
from attacks.evasion._nearest import MinimumNorm
from attacks.evasion._plane import DUAL, to_plane
from attacks.evasion.carlini_wagner import CarliniWagner
from attacks.evasion.ddn import DDN
from attacks.evasion.deepfool import DeepFool
from attacks.evasion.fab import FAB
from attacks.evasion.fmn import FMN
from secure_ml.access import WhiteBox
from secure_ml.batch import Batch
from secure_ml.threats.balls import Ball
from tests.laws import tiny_victim

NORMS = [sm.Linf(1.0), sm.L2(1.0), sm.L1(1.0)]


def problems(n: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points in the unit box, a third of them on its faces; slopes, some of them 0; leads of both signs."""
    rng = torch.Generator().manual_seed(n + d)
    point = (torch.rand(n, d, generator=rng) * 1.5 - 0.25).clamp(0, 1)
    slope = torch.randn(n, d, generator=rng) * (torch.rand(n, d, generator=rng) > 0.2)
    lead = torch.randn(n, generator=rng) * torch.logspace(-2, 1, n)
    return point, slope, lead


def solved(norm: Ball, point: Tensor, slope: Tensor, lead: Tensor) -> float | None:
    """The least norm by a general solver, or None where the plane misses the box."""
    from scipy.optimize import linprog, minimize

    w, low, high = slope.double().numpy(), -point.double().numpy(), 1 - point.double().numpy()
    d, c = len(w), float(lead)
    if not (np.minimum(w * low, w * high).sum() <= -c <= np.maximum(w * low, w * high).sum()):
        return None
    if isinstance(norm, sm.L2):
        bounds = list(zip(low, high, strict=True))
        plane = {"type": "eq", "fun": lambda x: w @ x + c, "jac": lambda _: w}
        start = np.clip(-c * w / (w @ w), low, high)
        result = minimize(
            lambda x: x @ x, start, jac=lambda x: 2 * x, bounds=bounds, constraints=[plane], options={"ftol": 1e-14}
        )
        return float(np.sqrt(result.fun))
    if isinstance(norm, sm.Linf):
        cost, sizes = np.r_[np.zeros(d), 1.0], np.ones((d, 1))
    else:
        cost, sizes = np.r_[np.zeros(d), np.ones(d)], np.eye(d)
    a = np.block([[np.eye(d), -sizes], [-np.eye(d), -sizes]])
    free = [(0, None)] * (len(cost) - d)
    bounds = [*zip(low, high, strict=True), *free]
    pad = np.zeros(len(cost) - d)
    result = linprog(cost, a, np.zeros(2 * d), np.r_[w, pad][None], [-c], bounds)
    assert result.success
    return float(result.fun)


@pytest.mark.parametrize("norm", NORMS, ids=repr)
def test_the_way_to_a_plane_against_general_solvers(norm: Ball) -> None:
    """No shorter change within the box reaches the plane; where the plane misses the box, it ends in a corner."""
    point, slope, lead = problems(60, 7)
    change = to_plane(norm, sm.Box(), point, slope, lead)
    assert ((point + change) >= -1e-6).all()
    assert ((point + change) <= 1 + 1e-6).all()
    left = lead + (slope * change).sum(1)
    missed, naive = 0, 0
    for i in range(len(point)):
        least = solved(norm, point[i], slope[i], lead[i])
        if least is None:
            missed += 1
            moving = slope[i] != 0
            ends = (point + change)[i][moving]
            assert (torch.minimum(ends, 1 - ends).abs() < 1e-6).all()
            continue
        assert left[i].abs() < 1e-4
        assert norm.norm(change[i : i + 1]).item() == pytest.approx(least, abs=1e-4)
        free = (lead[i].abs() / DUAL[type(norm)].norm(slope[i : i + 1])).item()
        naive += abs(free - least) > 1e-3
    assert missed > 5
    assert naive > 5, "the box was never in the way: the solver has shown nothing"


@pytest.mark.parametrize("norm", NORMS, ids=repr)
def test_the_way_to_a_plane_does_not_depend_on_the_scale_of_the_logits(norm: Ball) -> None:
    point, slope, lead = problems(20, 9)
    expected = to_plane(norm, sm.Box(), point, slope, lead)
    assert torch.allclose(to_plane(norm, sm.Box(), point, slope * 1e-15, lead * 1e-15), expected, atol=1e-5)
    still = to_plane(norm, sm.Box(), point, torch.zeros_like(slope), lead)
    assert torch.equal(still, torch.zeros_like(point))


def linear_victim(classes: int, low: float = -10.0, high: float = 10.0, seed: int = 0) -> sm.Victim:
    """A linear classifier of 6 features that is right about all examples; of 2 classes, with one logit."""
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(max(classes, 2), 6, generator=rng)
    weight = weight[1:] - weight[:1] if classes == 2 else weight

    def build() -> nn.Module:
        layer = nn.Linear(6, len(weight))
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.zero_()
        return nn.Sequential(layer, nn.Flatten(0)) if classes == 2 else nn.Sequential(layer)

    x = (torch.randn(160, 6, generator=rng) * 2).clamp(low, high)
    logits = x @ weight.T
    batch = Batch(x, (logits[:, 0] > 0).long() if classes == 2 else logits.argmax(1))
    parts = sm.Splits(*(batch.take(slice(i, i + 40)) for i in range(0, 160, 40)))
    task = sm.Task(
        name="linear",
        build=build,
        data=lambda _: parts,
        surfaces=(sm.Box(low, high),),
        threat=sm.Linf(0.1),
        recipe=sm.Recipe(epochs=1, learning_rate=1e-12),
    )
    return sm.fit(task, seed=0, device="cpu")


def nearest_plane(victim: sm.Victim, norm: Ball, boxed: bool = False) -> Tensor:
    """The distance of each test example to the nearest class boundary of a linear model; in its box, by a solver."""
    layer, test = victim.module[0], victim.splits.test
    weight = layer.weight.detach()
    weight = torch.cat([torch.zeros_like(weight), weight]) if len(weight) == 1 else weight
    least = torch.full((len(test),), torch.inf)
    for k in range(len(weight)):
        slope = weight[k] - weight[test.target]
        lead = (slope * test.inputs).sum(1)
        size = lead.abs() / DUAL[type(norm)].norm(slope).clamp(min=1e-30)
        if boxed:
            box = victim.task.surfaces[0]
            width = box.high - box.low
            for i in (test.target != k).nonzero()[:, 0].tolist():
                found = solved(norm, (test.inputs[i] - box.low) / width, slope[i] * width, lead[i])
                size[i] = torch.inf if found is None else found * width
        least = torch.where((test.target != k) & (size < least), size, least)
    return least


@pytest.mark.parametrize("targets", [0, 3])
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("norm", NORMS, ids=repr)
def test_fab_finds_the_distance_to_the_boundary_of_a_linear_model(norm: Ball, classes: int, targets: int) -> None:
    victim = linear_victim(classes)
    access, test = WhiteBox.open(victim), victim.splits.test
    points, sizes = FAB(steps=30, targets=targets).distances(access, test, norm, torch.Generator())
    expected = nearest_plane(victim, norm)
    assert (sizes >= expected * (1 - 1e-4)).all(), "nearer than the boundary"
    assert torch.allclose(sizes, expected, rtol=0.01)
    assert torch.allclose(norm.norm(points - test.inputs), sizes)
    assert (victim.task.score.per_example(access(points), test.target) == 0).all()


@pytest.mark.parametrize("norm", NORMS, ids=repr)
def test_fab_finds_the_distance_to_the_boundary_within_a_box(norm: Ball) -> None:
    """Where the box is in the way, the distance is the solver's, which is more than the plane's."""
    victim = linear_victim(3, low=-1.5, high=1.5)
    access, test = WhiteBox.open(victim), victim.splits.test
    _, sizes = FAB(steps=50, targets=2).distances(access, test, norm, torch.Generator())
    expected = nearest_plane(victim, norm, boxed=True)
    assert torch.equal(sizes.isfinite(), expected.isfinite())
    known = expected.isfinite()
    assert (sizes[known] >= expected[known] * (1 - 1e-4)).all()
    assert torch.allclose(sizes[known], expected[known], rtol=0.02)
    assert (expected > nearest_plane(victim, norm) * 1.05).any(), "the box was never in the way"


def test_fab_counts_as_broken_what_lies_within_the_radius() -> None:
    """Robust accuracy of a linear model is the share of examples that are farther from the boundary than the radius."""
    victim = linear_victim(4)
    for norm in (sm.Linf(0.3), sm.L2(0.8), sm.L1(1.5)):
        expected = (nearest_plane(victim, norm) > norm.radius).float().mean().item()
        for targets in (0, 3):
            row = FAB(steps=40, targets=targets).evaluate(victim, threat=norm, seed=0, examples=40).rows[0]
            assert row.value == pytest.approx(expected)
        assert 0 < expected < 1


OTHERS = [
    (DeepFool(), sm.Linf(1.0), 0.03),
    (DeepFool(), sm.L2(1.0), 0.03),
    (DDN(steps=200), sm.L2(1.0), 0.02),
    (FMN(steps=300), sm.Linf(1.0), 0.03),
    (FMN(steps=300), sm.L2(1.0), 0.02),
    (FMN(steps=300), sm.L1(1.0), 0.1),
    (CarliniWagner(steps=150, step_size=0.03, weight=0.1), sm.L2(1.0), 0.05),
]


@pytest.mark.parametrize(("attack", "norm", "slack"), OTHERS, ids=repr)
def test_the_others_find_the_distance_of_a_linear_model(attack: MinimumNorm, norm: Ball, slack: float) -> None:
    """Never nearer than the boundary, and on average hardly farther; of three classes they may follow a farther one."""
    for classes in (2, 3):
        victim = linear_victim(classes)
        access, test = WhiteBox.open(victim), victim.splits.test
        points, sizes = attack.distances(access, test, norm, torch.Generator())
        expected = nearest_plane(victim, norm)
        assert (sizes >= expected * (1 - 1e-4)).all(), "nearer than the boundary"
        assert sizes.mean() <= expected.mean() * (1 + slack if classes == 2 else 1.1)
        assert torch.allclose(norm.norm(points - test.inputs), sizes)
        assert (victim.task.score.per_example(access(points), test.target) == 0).all()


def test_an_attack_that_stops_short_is_seen_by_these_tests() -> None:
    """Too few steps find no more than a part of the distances, and those too far."""
    victim = linear_victim(3)
    test, expected = victim.splits.test, nearest_plane(victim, sm.L2(1.0))
    _, sizes = DDN(steps=3).distances(WhiteBox.open(victim), test, sm.L2(1.0), torch.Generator())
    assert sizes.mean() > expected.mean() * 1.02


@pytest.mark.parametrize("attack", [FAB(steps=20), DeepFool(), DDN(steps=50), FMN(steps=50)], ids=repr)
def test_distances_give_the_curve_of_robust_accuracy(attack: MinimumNorm) -> None:
    """What one run finds at any distance breaks no less than a run that may stop at the radius."""
    victim = linear_victim(3)
    test = victim.splits.test
    _, sizes = attack.distances(WhiteBox.open(victim), test, sm.L2(1.0), torch.Generator().manual_seed(0))
    for radius in (0.3, 1.0):
        row = attack.evaluate(victim, threat=sm.L2(radius), seed=0, examples=40).rows[0]
        curve = (sizes > radius).float().mean().item()
        assert row.value is not None
        assert curve - 0.05 <= row.value <= curve + 1e-6


def test_wrong_answers_have_distance_0_and_are_left_alone() -> None:
    victim = linear_victim(3)
    access, test = WhiteBox.open(victim), victim.splits.test
    wrong = Batch(test.inputs, (test.target + 1) % 3)
    points, sizes = FAB(steps=3).distances(access, wrong, sm.L2(1.0), torch.Generator())
    assert torch.equal(points, wrong.inputs)
    assert not sizes.any()
    assert access.gradients == 0


def test_random_restarts_never_lose_what_was_found() -> None:
    victim = tiny_victim("digits_cnn")
    test, norm = victim.splits.test.take(slice(0, 20)), sm.Linf(0.2)
    once, thrice = (
        FAB(steps=5, restarts=n).distances(WhiteBox.open(victim), test, norm, torch.Generator().manual_seed(0))[1]
        for n in (1, 3)
    )
    assert (thrice <= once + 1e-6).all()


def test_kappa_asks_for_a_lead() -> None:
    """Where another class must lead by 1, it does, and the points are farther away."""
    victim = linear_victim(3)
    access, test = WhiteBox.open(victim), victim.splits.test
    plain = CarliniWagner(steps=100, searches=6, step_size=0.03, weight=0.1)
    _, near = plain.distances(access, test, sm.L2(1.0), torch.Generator())
    points, far = replace(plain, kappa=1.0).distances(access, test, sm.L2(1.0), torch.Generator())
    leads = margin(access(points), test.target, None)
    found = far.isfinite()
    assert (leads[found] >= 1 - 1e-4).all()
    assert found.float().mean() > 0.8
    assert (far[found] > near[found]).all()


@pytest.mark.parametrize("art_name", ["DeepFool", "CarliniL2Method"])
def test_no_farther_than_art(art_name: str) -> None:
    """The same attack of ART finds no smaller distances on average, and our FAB smaller ones."""
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    victim = sm.fit(replace(sm.task("digits_cnn"), recipe=sm.Recipe(epochs=5)), seed=0, device="cpu")
    test, norm = victim.splits.test.take(slice(0, 20)), sm.L2(1.0)
    estimator = PyTorchClassifier(
        victim.module, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu"
    )
    if art_name == "DeepFool":
        theirs = evasion.DeepFool(estimator, max_iter=50, epsilon=0.02, batch_size=20, verbose=False)
        ours: MinimumNorm = DeepFool()
    else:
        settings = {"max_iter": 20, "binary_search_steps": 5, "learning_rate": 0.05, "initial_const": 1.0}
        theirs = evasion.CarliniL2Method(estimator, batch_size=20, verbose=False, **settings)
        # ART tries up to ten lengths for each of its steps
        ours = CarliniWagner(steps=200, searches=5, step_size=0.05, weight=1.0)
    np.random.seed(0)
    found = torch.tensor(theirs.generate(test.inputs.numpy(), y=np.eye(10, dtype="float32")[test.target.numpy()]))
    access = WhiteBox.open(victim)
    broken = victim.task.score.per_example(access(found), test.target) == 0
    there = torch.where(broken, norm.norm(found - test.inputs), torch.inf)
    _, mine = ours.distances(access, test, norm, torch.Generator())
    both = there.isfinite()
    assert mine.isfinite().all()
    assert mine[both].mean() <= there[both].mean() * 1.05
    _, fab = FAB(steps=50, targets=9).distances(access, test, norm, torch.Generator())
    assert fab[both].mean() <= there[both].mean() * 1.005


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FAB(steps=0), "steps of at least 1"),
        (lambda: FAB(beta=1.0), "beta between 0 and 1"),
        (lambda: FAB(eta=0.9), "eta of at least 1"),
        (lambda: FAB(targets=-1), "targets of at least 0"),
        (lambda: DeepFool(overshoot=0.0), "overshoot above 0"),
        (lambda: DeepFool(candidates=1), "at least 2 candidates"),
        (lambda: DDN(gamma=1.0), "gamma between 0 and 1"),
        (lambda: FMN(step_size=0.0), "step_size above 0"),
        (lambda: CarliniWagner(kappa=-1.0), "kappa of at least 0"),
        (lambda: CarliniWagner(weight=0.0), "weight above 0"),
    ],
)
def test_settings_out_of_range(make: Callable[[], MinimumNorm], message: str) -> None:
    with pytest.raises(sm.UsageError, match=message):
        make()


def test_threats_that_they_cannot_keep_to() -> None:
    victim = tiny_victim("digits_mlp")
    with pytest.raises(sm.errors.NotApplicable, match="within L2; the threat is Linf"):
        CarliniWagner.tiny().evaluate(victim, threat=sm.Linf(0.1), seed=0, examples=5)
