"""Training for a certificate: worst answers, schedules, stages that resume, and what is refused."""

import math
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secure_ml as sm
from attacks import PGD
from defenses import DPSGD, IBP, TRADES, AdversarialTraining, Homomorphic, LabelOnly, RandomizedSmoothing
from defenses.interval_bounds.chain import chain_of
from defenses.interval_bounds.propagate import ball, boxes, margins, worst_answers
from defenses.interval_bounds.recipe import Stages, regulariser, suit_intervals
from secure_ml.batch import Batch
from secure_ml.training import make_plan
from tests.laws import same, tiny_task, trained_on
from tests.test_checkpoint import interrupted, often
from tests.test_interval_bounds import dense, examples, net, points

__all__ = ["often"]

# -- training ---------------------------------------------------------------------------------------------------------


def test_worst_answers_are_worst() -> None:
    """No answer that a point of the box gets has a larger cross-entropy than the worst answers."""
    for name in ("strided", "one logit"):
        module, (inputs, target) = net(name), examples()
        box = ball(sm.Box(), inputs, 0.1)
        reached = boxes(chain_of(module), box)
        margin = margins(chain_of(module), reached, target, "ibp")
        worst = worst_answers(margin, target, single=reached[-1].lower.ndim == 1)
        loss = sm.task("digits_cnn").loss
        most = loss(lambda _, worst=worst: worst, Batch(inputs, target))
        for point in points(box, 20):
            assert bool((loss(module, Batch(point, target)) <= most + 1e-9).all())


@pytest.mark.parametrize("settings", [{}, {"kappa": 0.0}, {"kappa": 0.0, "beta": 1.0, "ramp": 1.0}, {"regular": 0.5}])
@pytest.mark.parametrize("name", ["digits_cnn", "logistic_regression"])
def test_worst_answers_within_radius_0_train_like_answers(name: str, settings: dict[str, float]) -> None:
    """The whole way through the bounds, and the same weights to 1e-6."""
    n = len(tiny_task(name).draw(0).train)
    batches = [torch.arange(n).roll(shift)[:30] for shift in (0, 17)]
    plain, bounded = (trained_on(stack, name, batches) for stack in ([], [IBP(radius=0, **settings)]))
    for one, other in zip(plain, bounded, strict=True):
        assert torch.allclose(one, other, atol=1e-6, rtol=1e-6)


def test_weights_are_drawn_as_the_paper_says() -> None:
    module = nn.Sequential(nn.Conv2d(8, 64, 3), nn.Flatten(), nn.Linear(400, 300, bias=False))
    suit_intervals(module, torch.Generator().manual_seed(0))
    for layer, n in ((module[0], 72), (module[2], 400)):
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 * math.pi) / n, rel=0.02)
    assert not module[0].bias.any()


def test_the_regulariser_equals_a_loop() -> None:
    module, inputs = dense(), torch.rand(3, 3, generator=torch.Generator().manual_seed(3)).double()
    reached = boxes(chain_of(module), ball(sm.Box(), inputs, 0.1))
    found = regulariser(chain_of(module), reached)
    for example in range(3):
        expected, first = 0.0, float((reached[0].upper - reached[0].lower)[example].mean())
        for place in (1, 3):
            low, high = reached[place].lower[example].tolist(), reached[place].upper[example].tolist()
            middles = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
            mean = sum(middles) / 4
            on, off = [a > 0 for a in low], [b < 0 for b in high]
            expected += max(0.0, 0.5 - first / (sum(b - a for a, b in zip(low, high, strict=True)) / 4))
            for value in ([abs(m) for m in middles], [(m - mean) ** 2 for m in middles]):
                one = sum(v for v, flag in zip(value, on, strict=True) if flag)
                other = sum(v for v, flag in zip(value, off, strict=True) if flag)
                ratio = one / max(other, 1e-12)
                expected += max(0.0, 0.5 - min(ratio, 1 / max(ratio, 1e-12)))
        assert found[example].item() == pytest.approx(expected / (0.5 * 2))


@pytest.mark.parametrize(("warmup", "ramp"), [(0.25, 0.75), (0.0, 0.0), (0.5, 0.5), (0.0, 1.0)])
def test_the_radius_grows_from_none_to_all(warmup: float, ramp: float) -> None:
    task, seen = tiny_task("digits_cnn"), []
    plan = make_plan(task, [IBP(warmup=warmup, ramp=ramp)], 0, torch.device("cpu"))
    (stages,) = [part for part in plan.state.values() if isinstance(part, Stages)]
    seen.append(stages.share)
    for epoch, index in product(range(plan.epochs), range(plan.loader.steps)):
        stages(sm.training.Step(plan, epoch, index, plan.splits.test, torch.zeros(1)))
        seen.append(stages.share)
    assert seen == sorted(seen)
    assert seen[0] == (1.0 if ramp == 0 else 0.0)
    assert seen[-1] == 1.0
    if (warmup, ramp) == (0.25, 0.75):
        done = torch.linspace(0, 1, len(seen)).double()
        assert torch.allclose(torch.tensor(seen).double(), ((done - 0.25) / 0.5).clamp(0, 1), atol=1e-6)


VARIANTS = {
    "plain": IBP(kappa=0.0, regular=0.5),
    "crown": IBP(beta=1.0, ramp=0.8),
    "mixed": IBP(attack=PGD(steps=2)),
}


@pytest.mark.parametrize("defense", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.usefixtures("often")
def test_a_killed_training_ends_like_one_that_was_not(defense: IBP, tmp_path: Path) -> None:
    task, folder = tiny_task("digits_cnn"), tmp_path / "unfinished"
    whole = sm.fit(task, [defense], seed=3, device="cpu")
    interrupted(task, [defense], folder, epoch=1)
    resumed = sm.fit(task, [defense], seed=3, device="cpu", checkpoint=folder)
    assert same(list(resumed.module.state_dict().values()), list(whole.module.state_dict().values()))


def test_each_setting_changes_the_training() -> None:
    task = tiny_task("digits_cnn")
    stacks = [IBP(), IBP(kappa=0.0), IBP(radius=0.2), IBP(warmup=0.0), IBP(ramp=1.0), *VARIANTS.values()]
    weights = [sm.fit(task, [defense], seed=0, device="cpu").module[0].weight for defense in stacks]
    assert len({tuple(weight.flatten().tolist()) for weight in weights}) == len(stacks)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", [[IBP(), LabelOnly()], [LabelOnly(), IBP()], [AdversarialTraining(), IBP()]])
def test_what_leaves_the_class_as_it_is_may_stand_beside(stack: list[sm.Defense]) -> None:
    assert sm.fit(tiny_task("digits_mlp"), stack, seed=0, device="cpu").certificates


@pytest.mark.parametrize(
    ("stack", "reason"),
    [
        ([IBP(), DPSGD(noise=1.0, epochs=1)], "bounds cannot be trained by DP-SGD"),
        ([DPSGD(noise=1.0, epochs=1), IBP()], "bounds cannot be trained by DP-SGD"),
        ([Homomorphic.tiny(), IBP()], "no bounds are known for"),
        ([IBP(), Homomorphic.tiny()], "no bounds are known for|Homomorphic serves"),
        ([IBP(), TRADES.tiny()], "list IBP last"),
        ([RandomizedSmoothing.tiny(), IBP()], "not what RandomizedSmoothing serves"),
    ],
)
def test_what_serves_or_trains_something_else_is_refused(stack: list[sm.Defense], reason: str) -> None:
    with pytest.raises(sm.NotApplicable, match=reason):
        sm.fit(tiny_task("digits_mlp"), stack, seed=0, device="cpu")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("linear_regression", "does not name one class"),
        ("text_embedding", "inputs that are one box"),
        ("cifar10_resnet18", "no bounds are known for ResNet"),
        ("policy_cartpole", "does not name one class"),
        ("speech_digits", "declares no Linf threat"),
    ],
)
def test_where_it_has_no_meaning(name: str, reason: str) -> None:
    with pytest.raises(sm.NotApplicable, match=reason):
        IBP().check(tiny_task(name))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.GroupNorm(1, 2), "no bounds are known for GroupNorm, only for"),
        (nn.Conv2d(1, 1, 3, padding="same"), "a number of zeros only"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), "a number of zeros only"),
        (nn.MaxPool2d(2, dilation=2), "max pooling without"),
        (nn.AvgPool2d(2, padding=1), "average pooling without"),
        (nn.BatchNorm1d(2, track_running_stats=False), "mixes examples"),
        (nn.LeakyReLU(2.0), "slopes between 0 and 1"),
    ],
)
def test_layers_that_are_not_known(module: nn.Module, reason: str) -> None:
    with pytest.raises(sm.NotApplicable, match=reason):
        chain_of(nn.Sequential(module))


def test_what_only_looks_like_a_known_layer_is_refused() -> None:
    class Twice(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(super().forward(x))

    with pytest.raises(sm.NotApplicable, match="Twice"):
        chain_of(Twice(nn.Linear(2, 2)))
    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda _, __, out: 2 * out)
    with pytest.raises(sm.NotApplicable, match="the hooks on Linear"):
        chain_of(nn.Sequential(hooked))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"radius": -0.1}, "needs a radius >= 0"),
        ({"kappa": 1.5}, "kappa between 0 and 1"),
        ({"beta": -1.0}, "beta between 0 and 1"),
        ({"warmup": 0.5, "ramp": 0.2}, "0 <= warmup <= ramp <= 1"),
        ({"regular": -1.0}, "regular >= 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], sentence: str) -> None:
    with pytest.raises(sm.UsageError, match=sentence):
        IBP(**settings)
