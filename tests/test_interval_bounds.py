"""Interval and CROWN bounds: never wrong, as tight as others compute them, and a training that keeps them tight."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secure_ml as sm
from attacks import PGD, Certified
from defenses import IBP
from defenses.interval_bounds import _claim
from defenses.interval_bounds.certificate import IntervalCertificate, rounding_unit
from defenses.interval_bounds.chain import chain_of
from defenses.interval_bounds.layers import Interval, Layer, Weighted
from defenses.interval_bounds.propagate import Bounds, ball, boxes, margins
from secure_ml.access import WhiteBox
from secure_ml.batch import Batch
from secure_ml.families.evasion import attack_batch
from secure_ml.tasks._resnet import Standardize
from tests.laws import tiny_task
from tests.test_checkpoint import often

__all__ = ["often"]

WIDE = sm.Box(-100.0, 100.0)


def image_net(*bends: nn.Module, side: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), *bends, nn.Flatten(), nn.Linear(4 * side * side, 3))


NETS = {
    "strided": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 4, stride=2, padding=1, dilation=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 5),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(5, 3),
    ),
    "odd stride": lambda: nn.Sequential(nn.Conv2d(2, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)),
    "largest": lambda: image_net(nn.ReLU(), nn.MaxPool2d(2), side=3),
    "overlapping": lambda: image_net(nn.MaxPool2d(2, stride=1), nn.ReLU(), side=5),
    "padded": lambda: image_net(nn.Tanh(), nn.MaxPool2d(3, stride=2, padding=1), side=3),
    "average": lambda: image_net(nn.ReLU(), nn.AvgPool2d(2), side=3),
    "uneven average": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.AvgPool2d((2, 3), stride=(1, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(40, 3)
    ),
    "normal": lambda: image_net(nn.BatchNorm2d(4), nn.ReLU(), side=6),
    "leaky": lambda: image_net(nn.LeakyReLU(0.2), side=6),
    "sigmoid": lambda: image_net(nn.Sigmoid(), side=6),
    "tanh": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(72, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)
    ),
    "standardized": lambda: nn.Sequential(Standardize([0.2, 0.7], [0.5, -0.3]), image_net(nn.ReLU(), side=6)),
    "one logit": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(72, 6), nn.ReLU(), nn.Linear(6, 1), nn.Identity(), nn.Flatten(0)
    ),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 3)),
}


def net(name: str) -> nn.Module:
    """A net of double precision with weights that make its bends matter."""
    with torch.random.fork_rng():
        torch.manual_seed(sum(map(ord, name)))
        module = NETS[name]().double()
        if name == "normal":
            module(torch.randn(20, 2, 6, 6).double())
    return module.eval()


def examples(n: int = 4) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(n, 2, 6, 6, generator=rng).double(), torch.arange(n) % 2


def points(box: Interval, count: int, seed: int = 0) -> Tensor:
    """Points of a box, half of them corners, ``(count, B, *shape)``."""
    rng = torch.Generator().manual_seed(seed)
    share = torch.rand(count, *box.lower.shape, generator=rng, dtype=box.lower.dtype)
    share[::2] = share[::2].round()
    return box.lower + share * (box.upper - box.lower)


def lead(answers: Tensor, target: Tensor) -> Tensor:
    """By how much the right class leads each other one, ``(B, K)``; of one logit, ``(B, 1)``."""
    if answers.ndim == 1:
        return ((2 * target - 1) * answers)[:, None]
    gap = answers.gather(1, target[:, None]) - answers
    return gap.scatter(1, target[:, None], torch.inf)


def broken(module: nn.Module, chain: Sequence[Layer], box: Interval, target: Tensor) -> list[str]:
    """Which bounds some point of the box refutes."""
    reached = boxes(chain, box)
    promised = {bounds: margins(chain, reached, target, bounds) for bounds in ("ibp", "crown")}
    found = set()
    for point in points(box, 300):
        with torch.no_grad():
            answers = module(point)
        inside = (answers >= reached[-1].lower - 1e-9) & (answers <= reached[-1].upper + 1e-9)
        found |= {"interval"} if not inside.all() else set()
        for bounds, margin in promised.items():
            found |= {bounds} if (lead(answers, target) < margin - 1e-9).any() else set()
    return sorted(found)


@pytest.mark.parametrize("radius", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("name", NETS)
def test_no_point_of_the_box_refutes_a_bound(name: str, radius: float) -> None:
    module, (inputs, target) = net(name), examples()
    assert not broken(module, chain_of(module), ball(sm.Box(), inputs, radius), target)


@pytest.mark.parametrize("name", NETS)
def test_bounds_of_a_point_are_its_answers(name: str) -> None:
    module, (inputs, target) = net(name), examples()
    chain = chain_of(module)
    reached = boxes(chain, ball(sm.Box(), inputs, 0.0))
    for bounds in ("ibp", "crown"):
        assert torch.allclose(margins(chain, reached, target, bounds), lead(module(inputs), target))


def forgets_signs(layer: Layer) -> Layer:
    """The widths of intervals through the weights instead of their absolute values."""
    if not isinstance(layer, Weighted):
        return layer
    signed = layer.weight.detach()
    return replace(layer, forward=lambda x, w: layer.forward(x, signed if x.min() >= 0 else w))


class Unsound(Layer):
    """Goes back through a bend by the line above, whatever a coefficient's sign."""

    def __init__(self, inner: Layer) -> None:
        self.inner, self.affine = inner, inner.affine
        self.interval = inner.interval  # type: ignore[method-assign]

    def interval(self, box: Interval, unit: float) -> Interval:
        raise NotImplementedError

    def back(self, rows: object, box: Interval, unit: float) -> object:  # type: ignore[override]
        flipped = replace(rows, coefficients=-rows.coefficients, constant=-rows.constant)  # type: ignore[type-var]
        back = self.inner.back(flipped, box, unit)
        return replace(back, coefficients=-back.coefficients, constant=-back.constant)


def test_unsound_bounds_are_refuted() -> None:
    module, (inputs, target) = net("strided"), examples()
    chain, box = chain_of(module), ball(sm.Box(), inputs, 0.3)
    assert "interval" in broken(module, [forgets_signs(layer) for layer in chain], box, target)
    assert "crown" in broken(module, [Unsound(layer) if not layer.affine else layer for layer in chain], box, target)


@pytest.mark.parametrize("bounds", ["ibp", "crown"])
def test_a_linear_net_is_bounded_exactly(bounds: Bounds) -> None:
    """The radius is the margin over the L1 distance of the two classes' weights."""
    module, (inputs, _) = net("linear"), examples()
    target = module(inputs).argmax(1)
    weight = module[1].weight
    gaps = lead(module(inputs), target)
    lengths = (weight[target][:, None] - weight[None]).abs().sum(2)
    exact = (gaps / lengths.clamp(min=1e-9)).amin(1)
    certificate = IntervalCertificate(module=module, surface=WIDE, first=0.1, bounds=bounds, steps=40)
    found = certificate.radii(Batch(inputs, target), torch.Generator())
    assert torch.allclose(found, exact.detach(), rtol=1e-3, atol=2e-4)
    assert bool((found <= exact).all())
    wrong = certificate.radii(Batch(inputs, (target + 1) % 3), torch.Generator())
    assert wrong.tolist() == [-1.0] * 4


def lowest_by_loop(module: nn.Sequential, box: Interval) -> list[list[float]]:
    """Intervals of dense layers and ReLUs, one number at a time."""
    found = []
    for low, high in zip(box.lower.flatten(1).tolist(), box.upper.flatten(1).tolist(), strict=True):
        for layer in module:
            if isinstance(layer, nn.Linear):
                pairs = []
                for row, bias in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True):
                    ends = [sorted((w * a, w * b)) for w, a, b in zip(row, low, high, strict=True)]
                    pairs.append((bias + sum(e[0] for e in ends), bias + sum(e[1] for e in ends)))
                low, high = [p[0] for p in pairs], [p[1] for p in pairs]
            elif isinstance(layer, nn.ReLU):
                low, high = [max(v, 0.0) for v in low], [max(v, 0.0) for v in high]
        found.append(low)
    return found


def dense() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).double()


def test_intervals_equal_a_loop() -> None:
    module, inputs = dense(), torch.rand(3, 3, generator=torch.Generator().manual_seed(1)).double()
    box = ball(sm.Box(), inputs, 0.2)
    assert torch.allclose(boxes(chain_of(module), box)[-1].lower, torch.tensor(lowest_by_loop(module, box)).double())


def exact_and_relaxed(module: nn.Sequential, reached: Sequence[Interval], right: int, other: int) -> list[float]:
    """The least lead by mixed-integer programming, and by linear programming over each ReLU's triangle (scipy)."""
    import numpy as np
    from scipy.optimize import Bounds as Ranges
    from scipy.optimize import LinearConstraint, milp

    sizes = [box.lower.shape[1] for box in reached]
    starts = np.cumsum([0, *sizes])
    bends = [place for place, layer in enumerate(module) if isinstance(layer, nn.ReLU)]
    switches = {place: starts[-1] + sum(sizes[b] for b in bends if b < place) for place in bends}
    total = starts[-1] + sum(sizes[place] for place in bends)
    low, high = np.full(total, -np.inf), np.full(total, np.inf)
    low[: sizes[0]], high[: sizes[0]] = reached[0].lower[0].numpy(), reached[0].upper[0].numpy()
    low[starts[-1] :], high[starts[-1] :] = 0, 1
    rows, least, most = [], [], []

    def constrain(terms: dict[int, float], lower: float, upper: float) -> None:
        row = np.zeros(total)
        for index, value in terms.items():
            row[index] += value
        rows.append(row)
        least.append(lower)
        most.append(upper)

    for place, layer in enumerate(module):
        for i in range(sizes[place + 1]):
            out = int(starts[place + 1]) + i
            if isinstance(layer, nn.Linear):
                terms = {int(starts[place]) + j: -float(w) for j, w in enumerate(layer.weight[i])}
                constrain({out: 1.0, **terms}, float(layer.bias[i]), float(layer.bias[i]))
                continue
            into, switch = int(starts[place]) + i, int(switches[place]) + i
            a, b = float(reached[place].lower[0, i]), float(reached[place].upper[0, i])
            a, b = min(a, 0.0), max(b, 0.0)
            constrain({out: 1.0}, 0, np.inf)
            constrain({out: 1.0, into: -1.0}, 0, np.inf)
            constrain({out: 1.0, switch: -b}, -np.inf, 0)
            constrain({out: 1.0, into: -1.0, switch: -a}, -np.inf, -a)
    cost = np.zeros(total)
    cost[int(starts[-2]) + right], cost[int(starts[-2]) + other] = 1, -1
    found = []
    for whole in (1, 0):
        kinds = np.zeros(total)
        kinds[starts[-1] :] = whole
        done = milp(
            cost, constraints=LinearConstraint(np.array(rows), least, most), bounds=Ranges(low, high), integrality=kinds
        )
        assert done.success
        found.append(float(done.fun))
    return found


@pytest.mark.parametrize("radius", [0.05, 0.3])
def test_bounds_of_a_small_net_stand_below_linear_and_exact_programs(radius: float) -> None:
    module, inputs = (
        dense().requires_grad_(False),
        torch.rand(1, 3, generator=torch.Generator().manual_seed(2)).double(),
    )
    chain, target = chain_of(module), module(inputs).argmax(1)
    with torch.no_grad():
        reached = boxes(chain, ball(WIDE, inputs, radius))
        crown, plain = (margins(chain, reached, target, bounds)[0] for bounds in ("crown", "ibp"))
    for other in {0, 1, 2} - {int(target)}:
        exact, relaxed = exact_and_relaxed(module, reached, int(target), other)
        assert plain[other] <= crown[other] <= relaxed + 1e-7
        assert relaxed <= exact + 1e-7


def test_bounds_equal_those_of_auto_lirpa() -> None:
    """Recorded from auto_LiRPA 0.3 (methods IBP and CROWN-IBP, adaptive ReLU), which current torch no longer runs."""
    module = nn.Sequential(
        nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)
    ).double()
    n = 0
    with torch.no_grad():
        for parameter in module.parameters():
            values = torch.sin(torch.arange(n, n + parameter.numel(), dtype=torch.double) * 1.7) * 0.6
            parameter.copy_(values.reshape(parameter.shape))
            n += parameter.numel()
    inputs = (torch.cos(torch.arange(32, dtype=torch.double) * 0.9).reshape(2, 1, 4, 4) + 1) / 2
    chain = chain_of(module)
    reached = boxes(chain, ball(WIDE, inputs, 0.15))
    lower = [
        [-1.248576441645366, -0.24641055708638293, -0.09307810614802484],
        [-1.1411445795125263, -0.3596036392789266, -0.0015079911220579334],
    ]
    assert torch.allclose(reached[-1].lower, torch.tensor(lower).double(), atol=1e-12)
    crown = margins(chain, reached, torch.tensor([2, 0]), "crown")
    expected = [[1.089721745629408, -0.7075853159490332], [-1.8897653940343966, -1.735921856713276]]
    found = torch.stack([crown[0, :2], crown[1, 1:]])
    best = torch.maximum(
        torch.tensor(expected).double(),
        torch.stack([m[m.isfinite()] for m in margins(chain, reached, torch.tensor([2, 0]), "ibp")]),
    )
    assert torch.allclose(found, best, atol=1e-12)


# -- floating point ---------------------------------------------------------------------------------------------------


def test_rounding_of_the_served_module_is_covered() -> None:
    """Sums that cancel: the answers in single precision leave the exact bounds, and stay in those with the margin."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(400, 30), nn.ReLU(), nn.Linear(30, 2))
    with torch.no_grad():
        module[0].weight.mul_(1000)
        module[0].weight[:, 200:] = -module[0].weight[:, :200]
        inputs = torch.rand(5, 200, generator=torch.Generator().manual_seed(1)).repeat(1, 2)
        answers = module(inputs).double()
        chain = chain_of(nn.Sequential(*module).double())
        unit = 2.0**-24
        exact, covered = (boxes(chain, ball(WIDE, inputs.double(), 0.0), u)[-1] for u in (0.0, unit))
    inside = [bool(((box.lower <= answers) & (answers <= box.upper)).all()) for box in (exact, covered)]
    assert inside == [False, True]


def test_the_rounding_unit_is_that_of_the_weights() -> None:
    layer, inputs = nn.Linear(2, 2), torch.zeros(1, 2)
    assert rounding_unit(layer, inputs) == 2.0**-24
    assert rounding_unit(layer.bfloat16(), inputs) == 2.0**-8
    assert rounding_unit(layer.double(), inputs) < 2.0**-40


# -- certificates -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def victim() -> sm.Victim:
    """A net on digits that is trained for its proofs."""
    return sm.fit(sm.task("digits_cnn"), [IBP(kappa=0.0, regular=0.5, ramp=0.5)], seed=0, device="cpu")


def test_digits_show_the_whole_curve(victim: sm.Victim) -> None:
    """Certified <= attacked <= clean at each radius, example by example; the bare net's proofs end where its own do."""
    (certificate,) = victim.certificates
    test, rng = victim.splits.test, torch.Generator().manual_seed(0)
    radii = certificate.radii(test, rng)
    clean = victim.task.output.decide(victim.served(test.inputs)) == test.target
    assert torch.equal(radii >= 0, clean)
    access, certified = WhiteBox.open(victim), []
    for radius in (0.02, 0.05, 0.1, 0.15):
        attacked = attack_batch(PGD(steps=20), access, test, sm.Linf(radius), rng)
        stands = victim.task.output.decide(victim.served(attacked.inputs)) == test.target
        proved = radii >= radius
        assert not bool((proved & ~stands).any()), "a proof was broken"
        assert int(proved.sum()) <= int((stands & clean).sum())
        certified.append(proved.double().mean().item())
    assert certified == sorted(certified, reverse=True)
    assert certified[2] > 0.7
    assert clean.double().mean() > 0.93
    (row,) = Certified().evaluate(victim, threat=None, seed=0, examples=600).rows
    assert row.value == pytest.approx(certified[2])


def test_crown_proves_what_intervals_prove_and_more(victim: sm.Victim) -> None:
    (certificate,) = victim.certificates
    assert isinstance(certificate, IntervalCertificate)
    test = victim.splits.test.take(slice(0, 100))
    both, intervals = (
        replace(certificate, bounds=bounds).radii(test, torch.Generator()) for bounds in ("crown", "ibp")
    )
    assert bool((both >= intervals).all())
    assert both.mean() > intervals.mean()


def test_examples_just_inside_their_radius_stand(victim: sm.Victim) -> None:
    """Each example at its own certified radius, corners and PGD: the tightest place at which a proof could fail."""
    (certificate,) = victim.certificates
    test = victim.splits.test.take(slice(0, 60))
    radii = certificate.radii(test, torch.Generator())
    right = radii >= 0
    assert isinstance(test.inputs, Tensor)
    box = ball(sm.Box(), test.inputs, radii.clamp(min=0))
    for point in points(box, 100):
        answers = victim.task.output.decide(victim.served(point))
        assert bool((answers == test.target)[right].all())


def test_a_proof_that_promises_too_much_is_broken(victim: sm.Victim) -> None:
    """The broken case: radii twice as large, and the same attack finds examples that fall."""
    (certificate,) = victim.certificates
    test = victim.splits.test.take(slice(0, 200))
    radii = 2 * certificate.radii(test, torch.Generator())
    rng = torch.Generator().manual_seed(0)
    attacked = attack_batch(PGD(steps=20), WhiteBox.open(victim), test, sm.Linf(0.15), rng)
    stands = victim.task.output.decide(victim.served(attacked.inputs)) == test.target
    assert bool(((radii >= 0.15) & ~stands).any())


def test_one_logit_is_certified() -> None:
    task = tiny_task("mnist_binary_dense")
    victim = sm.fit(task, [IBP.tiny()], seed=0, device="cpu")
    test, rng = victim.splits.test, torch.Generator().manual_seed(0)
    radii = victim.certificates[0].radii(test, rng)
    right = victim.task.output.decide(victim.served(test.inputs)) == test.target
    assert torch.equal(radii >= 0, right)
    attacked = attack_batch(PGD(steps=20), WhiteBox.open(victim), test, sm.Linf(0.05), rng)
    stands = victim.task.output.decide(victim.served(attacked.inputs)) == test.target
    assert not bool(((radii >= 0.05) & ~stands).any())
    assert bool((radii > 0.01).any())


def test_answers_outside_their_bounds_prove_nothing(victim: sm.Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    (certificate,) = victim.certificates
    monkeypatch.setattr(nn.ReLU, "forward", lambda _, x: x.abs())
    with pytest.raises(sm.UsageError, match="outside their own bounds, so nothing is proved"):
        certificate.radii(victim.splits.test.take(slice(0, 5)), torch.Generator())


@pytest.mark.parametrize("n", [0, 1])
def test_small_batches(n: int, victim: sm.Victim) -> None:
    radii = victim.certificates[0].radii(victim.splits.test.take(slice(0, n)), torch.Generator())
    assert radii.shape == (n,)


def test_the_claim_is_told_and_comes_back_from_disk(victim: sm.Victim, tmp_path: Path) -> None:
    victim.save(tmp_path / "model")
    loaded = sm.Victim.load(tmp_path / "model", victim.task, victim.defenses, device="cpu")
    test = victim.splits.test.take(slice(0, 20))
    first, again = (v.certificates[0].radii(test, torch.Generator()) for v in (victim, loaded))
    assert torch.equal(first, again)
    assert loaded.claims == victim.claims == (_claim(0.1),)
    assert victim.claims[0].values["alpha"] == 0
