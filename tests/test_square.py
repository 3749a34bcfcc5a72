"""Square Attack against closed forms, a naive loop and an independent implementation."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import secure_ml as sm
from attacks.evasion._windows import as_grid, cells, corners, hill, share, sides, tiles
from attacks.evasion.pgd import PGD
from attacks.evasion.square import Square
from secure_ml.access import BlackBox, WhiteBox
from secure_ml.batch import Batch
from secure_ml.families.evasion import attack_batch
from secure_ml.surfaces import Box
from tests.laws import tiny_victim
from tests.test_evasion import linear_victim

BALLS = [sm.Linf(0.1), sm.L2(0.6), sm.L1(2.0)]


def asked(task: sm.Task, served: nn.Module, attack: Square, batch: Batch) -> BlackBox:
    """The access of somebody who asks a module."""

    def answer(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return served(inputs)

    return BlackBox(task, answer, "logits", attack.budget(len(batch)))


def images(n: int, *shape: int) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


def random_net(*shape: int, classes: int) -> nn.Module:
    """A network with fixed random weights; with one class, one logit ``(B,)``."""
    generator = torch.Generator().manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(int(torch.tensor(shape).prod()), 16), nn.Tanh(), nn.Linear(16, classes))
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    return net if classes > 1 else nn.Sequential(net, nn.Flatten(0))


def task_of(net: nn.Module) -> sm.Task:
    return sm.Task(name="net", build=lambda: net, data=lambda _: None, threat=sm.Linf(0.1))


def decided(net: nn.Module, x: Tensor) -> Tensor:
    outputs = net(x)
    return (outputs > 0).long() if outputs.ndim == 1 else outputs.argmax(1)


@pytest.mark.parametrize("threat", BALLS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 6), (3, 4, 12), (7,), (1,), (2, 11), (1, 1, 3), (2, 2, 5, 5)])
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_any_shape_and_any_number_of_classes(threat: sm.Linf, shape: tuple[int, ...], classes: int) -> None:
    """It stays in ball and box, its loss rises, and it never asks more than it may."""
    net, x = random_net(*shape, classes=classes), images(12, *shape)
    batch, task, attack = Batch(x, decided(net, x)), task_of(net), Square(queries=60, restarts=2)
    access = asked(task, net, attack, batch)
    changed = attack_batch(attack, access, batch, threat, torch.Generator().manual_seed(0))
    assert bool((threat.size(x, changed.inputs) <= threat.radius + 1e-6).all())
    Box().check(changed.inputs)
    assert access.queries <= attack.budget(12)
    before, after = (task.loss(net, b) for b in (batch, changed))
    assert after.mean() > before.mean()


@pytest.mark.parametrize(("threat", "dual"), [(sm.Linf(0.3), 1), (sm.L2(0.5), 2), (sm.L1(0.5), torch.inf)])
def test_the_optimum_of_a_linear_model(threat: sm.Linf, dual: float) -> None:
    """The margin climbs to w.x + b - y r ||w||_dual; examples that break on the way leave before."""
    victim = linear_victim()
    test = victim.splits.test
    weight, bias = victim.module[0].weight.detach()[0], victim.module[0].bias.detach()
    distance = (test.inputs @ weight + bias) * (test.target * 2 - 1) - threat.radius * weight.norm(dual)
    test, left = test.take(distance > 0), distance[distance > 0]
    attack = Square(queries=1000)
    access = asked(victim.task, victim.module, attack, test)
    changed = attack_batch(attack, access, test, threat, torch.Generator().manual_seed(0))
    reached = access._served(changed.inputs) * (test.target * 2 - 1)
    assert len(test) > 20
    assert bool((reached >= left - 1e-4).all()), "no point of the ball is worse"
    shortfall = {sm.Linf: 1e-4, sm.L1: 0.05, sm.L2: 0.2}[
        type(threat)
    ]  # in L2, windows move all that they hold or nothing
    slack = shortfall * threat.radius * float(weight.norm(dual))
    assert float((reached - left).mean()) <= slack


def test_every_step_of_a_naive_loop() -> None:
    """One example, one window at a time, by the paper's formula: the same points from the same random numbers."""
    net, x = random_net(2, 7, 5, classes=3), images(1, 2, 7, 5)
    label, queries, radius = decided(net, x), 40, 0.02
    asked_about: list[Tensor] = []

    def served(inputs: Tensor) -> Tensor:
        asked_about.append(inputs.clone())
        with torch.no_grad():
            return net(inputs)

    access, attack = BlackBox(task_of(net), served), Square(queries=queries)
    found = attack.perturb(access, Batch(x, label), sm.Linf(radius), torch.Generator().manual_seed(4))
    assert len(asked_about) == queries, "nothing broke: every query was used"
    rng = torch.Generator().manual_seed(4)

    def loss(point: Tensor) -> float:
        logits = net(point).detach()[0]
        return float(torch.cat([logits[: label[0]], logits[label[0] + 1 :]]).max() - logits[label[0]])

    def inside(point: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(point, x - radius), x + radius).clamp(0, 1)

    best = inside(x + radius * (1 - 2 * (torch.rand(1, 2, 1, 5, generator=rng) >= 0.5).float()))
    reached, query = loss(best), 1
    while query < queries - 1:
        stage = share(query, queries, 0.8)
        n = sum(share(i, queries, 0.8) == stage for i in range(query, queries))
        draws = torch.rand(n, 1, 4, generator=rng)
        side = sides(stage, 7, 5)
        for draw in draws[: queries - 1 - query, 0]:
            top, left = (int(draw[i] * (full - s + 1)) for i, full, s in ((0, 7, side[0]), (1, 5, side[1])))
            area = (0, slice(None), slice(top, top + side[0]), slice(left, left + side[1]))
            step = torch.zeros_like(x)
            step[area] = (2 * radius * (1 - 2 * (draw[2:] >= 0.5).float()))[:, None, None]
            trial = inside(best + step)
            if torch.allclose(trial, best, atol=1e-7):
                trial = inside(best - step)
            assert torch.allclose(asked_about[query + 1], trial, atol=1e-6)
            if loss(trial) > reached:
                best, reached = trial, loss(trial)
            query += 1
    assert torch.allclose(found, best, atol=1e-6)


@pytest.mark.parametrize("threat", BALLS)
def test_the_loss_never_falls_and_the_norm_stays_full(threat: sm.Linf) -> None:
    """More queries reach a higher loss; in the middle of the box no part of the radius is left unused."""
    net, x = random_net(1, 8, 8, classes=4), images(20, 1, 8, 8) * 0.2 + 0.4
    batch = Batch(x, decided(net, x))
    small = threat.scaled(0.3)
    reached = []
    for queries in (1, 2, 20, 300):
        attack = Square(queries=queries)
        changed = attack_batch(attack, asked(task_of(net), net, attack, batch), batch, small, torch.Generator())
        reached.append(float(task_of(net).loss(net, changed).mean().detach()))
    assert reached == sorted(reached)
    assert torch.allclose(small.size(x, changed.inputs), torch.full((20,), small.radius), atol=1e-5)


def test_what_is_wrong_already_is_asked_about_once() -> None:
    net, x = random_net(1, 8, 8, classes=4), images(5, 1, 8, 8)
    batch, attack = Batch(x, (decided(net, x) + 1) % 4), Square()
    access = asked(task_of(net), net, attack, batch)
    changed = attack.perturb(access, batch, sm.Linf(0.1), torch.Generator())
    assert access.queries == 5
    assert torch.equal(changed, x)


def test_masked_gradients_do_not_stop_it() -> None:
    """Where answers are computed on rounded inputs, gradients are 0: PGD only has its start, Square has its way."""

    class Rounded(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x + ((x * 16).round() / 16 - x).detach() - x + x.detach())

    victim = sm.fit(replace(sm.task("digits_cnn"), recipe=sm.Recipe(epochs=5)), seed=0, device="cpu")
    net = Rounded(victim.module)
    test = victim.splits.test.take(slice(0, 100))
    attack, threat = Square(queries=300), sm.Linf(0.12)
    square = attack_batch(attack, asked(victim.task, net, attack, test), test, threat, torch.Generator())
    pgd = attack_batch(PGD(), WhiteBox(victim.task, net), test, threat, torch.Generator())
    right = [int((decided(net, found.inputs) == test.target).sum()) for found in (square, pgd)]
    assert right[0] < right[1] - 20


def test_as_strong_as_art() -> None:
    """With as many queries, no weaker than ART's Square."""
    import numpy as np
    from art.attacks.evasion import SquareAttack
    from art.estimators.classification import PyTorchClassifier

    victim = sm.fit(replace(sm.task("digits_cnn"), recipe=sm.Recipe(epochs=5)), seed=0, device="cpu")
    test = victim.splits.test.take(slice(0, 60))
    net = nn.Sequential(nn.AvgPool2d(2), victim.module)  # ART's L2 tiles need images of more than 10 pixels a side
    test = Batch(nn.functional.interpolate(test.inputs, (16, 16)), test.target)
    for norm, threat in ((np.inf, sm.Linf(0.08)), (2, sm.L2(1.0))):
        estimator = PyTorchClassifier(
            net, nn.CrossEntropyLoss(), (1, 16, 16), 10, clip_values=(0, 1), device_type="cpu"
        )
        theirs = SquareAttack(estimator, norm=norm, eps=threat.radius, max_iter=200, batch_size=60, verbose=False)
        np.random.seed(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = torch.tensor(theirs.generate(test.inputs.numpy(), y=np.eye(10)[test.target.numpy()]))
        attack = Square(queries=200)
        ours = attack_batch(attack, asked(victim.task, net, attack, test), test, threat, torch.Generator())
        right = [int((decided(net, x) == test.target).sum()) for x in (ours.inputs, found)]
        assert right[0] <= right[1] + 1
        assert right[0] < 50


def test_windows() -> None:
    """As many stages for any number of queries; windows of the wanted size, inside, and at the edges too."""
    assert [share(i, 5000, 0.8) for i in (0, 5, 6, 25, 26, 4001)] == [0.8, 0.8, 0.4, 0.4, 0.2, 0.8 / 512]
    assert [share(i, 50, 0.8) for i in (0, 1, 49)] == [0.8, 0.2, 0.8 / 512]
    assert sides(0.8, 28, 28) == (25, 25)
    assert sides(0.001, 28, 28) == (1, 1)
    assert sides(0.5, 4, 100) == (4, 50)
    assert sides(0.5, 1, 10) == (1, 5)
    assert sides(0.1, 28, 28, 3) == (9, 9)
    assert [as_grid(shape) for shape in [(3, 4, 5), (4, 5), (7,), ()]] == [(3, 4, 5), (1, 4, 5), (1, 1, 7), (1, 1, 1)]
    grid, window = (2, 4, 5), (2, 3)
    place = corners(torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)), window, grid)
    hit = torch.zeros(40).index_add(0, (place[:, None] + cells(window, grid)).flatten(), torch.ones(12_000))
    assert bool((hit > 0).all()), "a pixel is never reached"
    assert corners(torch.full((2,), 1 - 2**-24), window, grid) == 2 * 5 + 2


def test_hills_are_those_of_the_paper() -> None:
    """By its loop over rectangles."""

    def rise(height: int, width: int) -> Tensor:
        out = torch.zeros(height, width)
        top, left = height // 2, width // 2
        for k in range(max(height // 2 + 1, width // 2 + 1)):
            out[max(top - k, 0) : top + k + 1, max(left - k, 0) : left + k + 1] += 1 / (k + 1) ** 2
        return out / out.norm()

    for side in (3, 5, 6, 9):
        both = torch.cat([rise(side // 2, side), -rise(side - side // 2, side)])
        assert torch.allclose(hill((side, side), False), both / both.norm(), atol=1e-6)
        assert torch.allclose(hill((side, side), True), (both / both.norm()).T, atol=1e-6)
    hills, number = tiles((1, 28, 28))
    assert torch.allclose(hills[0, 1:6, 1:6], hill((5, 5), False))
    assert torch.allclose(hills[1, 1:6, 1:6], hill((5, 5), True))
    assert int(number.max()) == 24


@pytest.mark.parametrize("settings", [{"queries": 0}, {"restarts": 0}, {"p_init": 0.0}, {"p_init": 1.1}])
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(sm.UsageError, match="Square needs"):
        Square(**settings)


def test_what_it_cannot_climb() -> None:
    victim = tiny_victim("linear_regression")
    with pytest.raises(sm.NotApplicable, match="one of classes"):
        Square.tiny().evaluate(victim, threat=None, seed=0, examples=5)
    rows = Square(queries=40, loss="task").evaluate(victim, threat=None, seed=0, examples=5).rows
    assert rows[0].queries <= 200
