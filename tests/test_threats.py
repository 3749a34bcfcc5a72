"""Threats against brute force, closed forms and an optimiser."""

from itertools import combinations

import numpy as np
import pytest
import torch

import secure_ml as sm
from attacks.evasion.apgd import APGD
from attacks.evasion.pgd import PGD
from attacks.evasion.universal_perturbation import UniversalPerturbation
from attacks.evasion.worst_transformation import WorstTransformation
from secure_ml.access import BlackBox, WhiteBox
from secure_ml.batch import Batch
from secure_ml.families.evasion import attack_batch
from secure_ml.threats import Corruptions, Spatial
from secure_ml.threats.balls import sparse_signs
from tests import evasion_laws
from tests.laws import tiny_victim


def seeded(n: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(n)


@pytest.mark.parametrize("threat", [sm.L1(0.5), sm.L1(0.0), sm.L0(2), sm.L0(0)])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_sparse_balls_project(threat: sm.L1, n: int) -> None:
    evasion_laws.law_projects(threat, sm.Box(), torch.rand(n, 1, 3, 4, generator=seeded()))


def test_projection_onto_l1_ball_and_box_is_the_nearest_point() -> None:
    """Compared with a general optimiser, since one projection after the other is not the nearest."""
    from scipy.optimize import minimize

    rng = seeded(1)
    for _ in range(5):
        clean = torch.rand(1, 6, generator=rng, dtype=torch.double)
        wanted = clean + torch.randn(1, 6, generator=rng, dtype=torch.double)
        mine = sm.L1(0.8).project(sm.Box(), clean, wanted)
        x, u = clean.numpy()[0], wanted.numpy()[0]
        # the change is split into what goes up and what goes down, which makes the ball a linear constraint
        found = minimize(
            lambda z, x=x, u=u: ((x + z[:6] - z[6:] - u) ** 2).sum(),
            np.zeros(12),
            jac=lambda z, x=x, u=u: 2 * np.concatenate([x + z[:6] - z[6:] - u, -(x + z[:6] - z[6:] - u)]),
            bounds=[(0, 1 - v) for v in x] + [(0, v) for v in x],
            constraints={"type": "ineq", "fun": lambda z: 0.8 - z.sum(), "jac": lambda z: -np.ones_like(z)},
            options={"ftol": 1e-12, "maxiter": 500},
        )
        assert found.success
        distance = (mine - wanted).square().sum().item()
        assert distance == pytest.approx(found.fun, abs=1e-5)
        clipped = sm.Box().clamp(clean, clean + sm.L1(0.8).shrink(wanted - clean))
        assert distance <= (clipped - wanted).square().sum().item() + 1e-9


def test_a_sparse_step_has_norm_one() -> None:
    gradient = torch.randn(4, 1, 5, 5, generator=seeded())
    steps = sparse_signs(gradient, torch.tensor([0.04, 0.2, 0.5, 1.0]))
    assert torch.allclose(steps.flatten(1).abs().sum(1), torch.ones(4))
    assert (steps != 0).flatten(1).sum(1).tolist() == [1, 5, 12, 25]


def test_samples_of_the_l1_ball_fill_it_evenly() -> None:
    """The radius of a uniform point of a d-ball has a mean of d / (d + 1)."""
    drawn = sm.L1(2.0).sample(torch.empty(4000, 3), seeded())
    assert sm.L1(2.0).norm(drawn).max() <= 2
    assert sm.L1(2.0).norm(drawn).mean().item() == pytest.approx(1.5, abs=0.02)
    assert drawn.mean(0).abs().max() < 0.03


def linear(weight: torch.Tensor) -> WhiteBox:
    """A linear classifier of two classes over rows."""
    layer = torch.nn.Linear(len(weight), 2)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([weight, -weight]))
        layer.bias.zero_()
    task = sm.Task(name="rows", build=lambda: layer, data=lambda _: None, threat=sm.L0(2))
    return WhiteBox(task, layer)


@pytest.mark.parametrize("attack", [PGD(steps=10, early=False), APGD(steps=10, early=False)])
def test_gradient_attacks_find_the_worst_places(attack: sm.Evasion) -> None:
    """Of a linear model the worst pair of places is known: every pair is tried."""
    weight = torch.tensor([0.3, -1.0, 0.1, 0.7, 0.0, 2.0])
    clean = torch.rand(8, 6, generator=seeded(2))
    access, batch = linear(weight), Batch(clean, torch.zeros(8, dtype=torch.long))
    changed = attack_batch(attack, access, batch, sm.L0(2), seeded())
    loss = access.task.loss(access, changed)
    ends = (weight < 0).float()
    for pair in combinations(range(6), 2):
        rival = clean.clone()
        rival[:, pair] = ends[list(pair)]
        assert bool((loss >= access.task.loss(access, Batch(rival, batch.target)) - 1e-5).all())


def test_channels_share_their_places() -> None:
    delta = torch.zeros(1, 3, 4, 4)
    delta[0, :, 1, 1] = 0.1
    delta[0, 0, 2, 2] = 0.2
    assert sm.L0(5).norm(delta).tolist() == [2]
    assert sm.L0(1).shrink(delta)[0, :, 1, 1].ne(0).all()


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    images = torch.rand(2, 1, 6, 6, generator=seeded())
    members = Spatial(1e-6, degrees=90, shifts=1, rotations=2).members()
    turned = [Spatial().apply(sm.Box(), images, member) for member in members]
    expected = [torch.rot90(images, k, (2, 3)) for k in (-1, 1)]
    assert any(torch.allclose(turned[0], e, atol=1e-5) for e in expected)
    assert any(torch.allclose(turned[1], e, atol=1e-5) for e in expected)


def test_a_shift_is_a_shift() -> None:
    images = torch.rand(1, 1, 6, 6, generator=seeded())
    (left, *_, right) = Spatial(1, degrees=0, shifts=3, rotations=1).members()
    moved = Spatial().apply(sm.Box(), images, right)
    assert torch.allclose(moved[..., 1:, 1:], images[..., :-1, :-1], atol=1e-5) or torch.allclose(
        moved[..., :-1, :-1], images[..., 1:, 1:], atol=1e-5
    )
    assert not torch.equal(moved, Spatial().apply(sm.Box(), images, left))


@pytest.mark.parametrize("threat", [Spatial(1, degrees=10, shifts=3, rotations=3), Corruptions(3)])
def test_a_catalogue_allows_nothing_else(threat: Spatial) -> None:
    images = torch.rand(3, 1, 8, 8, generator=seeded())
    kept = [threat.apply(sm.Box(), images, member) for member in threat.members()] + [images]
    changed = threat.project(sm.Box(), images, torch.rand(3, 1, 8, 8, generator=seeded(1)))
    for i in range(3):
        assert any(torch.equal(changed[i], member[i]) for member in kept)
    for member in kept:
        assert torch.equal(threat.project(sm.Box(), images, member), member)
    assert torch.equal(threat.within(0).project(sm.Box(), images, kept[0]), images)


def test_the_worst_transformation_is_the_worst() -> None:
    victim = tiny_victim("digits_cnn")
    test, threat = victim.splits.test, Spatial(1, degrees=20, shifts=3, rotations=3)
    access = BlackBox(victim.task, victim.served)
    changed = attack_batch(WorstTransformation(), access, test, threat, seeded())
    wrong = victim.served(changed.inputs).argmax(1) != test.target
    for member in threat.members():
        other = victim.served(threat.apply(sm.Box(), test.inputs, member)).argmax(1) != test.target
        assert bool((wrong | ~other).all()), "a member broke what the search did not"
    assert access.queries == len(test) * (27 + 1)


@pytest.mark.parametrize("severity", [1, 5])
def test_corruptions_grow_and_stay_images(severity: int) -> None:
    images = torch.rand(4, 3, 16, 16, generator=seeded())
    sizes = []
    for member in Corruptions(severity).members():
        changed = Corruptions(severity).apply(sm.Box(), images, member)
        assert changed.min() >= 0
        assert changed.max() <= 1
        sizes.append((changed - images).abs().mean().item())
    milder = [
        (Corruptions(1).apply(sm.Box(), images, m) - images).abs().mean().item() for m in Corruptions(1).members()
    ]
    assert all(a >= b - 1e-6 for a, b in zip(sizes, milder, strict=True))


def test_a_universal_change_is_the_same_for_all() -> None:
    victim = tiny_victim("digits_mlp")
    few = victim.splits.test.take(slice(0, 10))
    middle = Batch(few.inputs * 0.5 + 0.25, few.target)  # no pixel is near the box, so nothing is cut
    access = WhiteBox.open(victim)
    changed = attack_batch(UniversalPerturbation(steps=20), access, middle, sm.Linf(0.1), seeded())
    deltas = changed.inputs - middle.inputs
    assert torch.allclose(deltas, deltas[:1].expand_as(deltas), atol=1e-6)
    before, after = (victim.task.loss(access, batch).mean() for batch in (middle, changed))
    assert after > before


def test_a_radius_of_0_that_pretends_to_change_something_is_refused() -> None:
    """Attacks leave out what has a radius of 0: it would look like full robustness."""
    for make in (lambda: sm.Spatial(0.0, degrees=30.0), lambda: sm.Features(0.0, flips=1)):
        with pytest.raises(sm.UsageError, match="at a radius of 0 nothing changes"):
            make()
    assert sm.Spatial(3.0).within(0.0).members() == []
    assert sm.Features(0.1, flips=2).within(0.0).flips == 0
    assert sm.Features(0.1, flips=2).scaled(0.0).flips == 0
