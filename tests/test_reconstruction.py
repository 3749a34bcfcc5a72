"""Reconstruction: closed forms, naive loops, and adversaries who cheat or know nothing."""

from dataclasses import dataclass, replace
from functools import cache
from math import exp

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secure_ml as sm
from attacks import AttributeInference, CanaryExposure, GradientInversion, ModelInversion, PropertyInference
from attacks.reconstruction.gradient_inversion import infer_labels, read_off
from defenses.dp_sgd import DPSGD
from secure_ml.access import BlackBox
from secure_ml.batch import Batch
from secure_ml.families.reconstruction import Reconstruction
from secure_ml.images import psnr, ssim, variation
from secure_ml.secrets.one_step import OneStep, Release
from secure_ml.secrets.prototypes import class_means
from secure_ml.victim import build
from tests.laws import tiny_task, tiny_victim

CNN, MLP = "digits_cnn", "digits_mlp"


@cache
def digits() -> sm.Victim:
    """The small network on all digits, which few epochs teach enough."""
    task = sm.task(CNN)
    return sm.fit(replace(task, recipe=replace(task.recipe, epochs=10)), seed=0, device="cpu")


def values(attack: sm.Attack, victim: sm.Victim, examples: int = 100) -> dict[str, float | None]:
    """Each measure of an attack on a victim."""
    rows = attack.evaluate(victim, threat=None, seed=0, examples=examples).rows
    return {row.measure: row.value for row in rows}


# -- how alike images are ---------------------------------------------------------------------------------------------


def test_psnr_by_hand() -> None:
    one, other = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    other[0, 0, 0, 0] = 0.2  # mean squared error 0.01
    assert psnr(one, other).tolist() == pytest.approx([20.0, 100.0], abs=1e-5)
    assert psnr(one, other, span=10.0)[0].item() == pytest.approx(40.0, abs=1e-5)


def naive_ssim(x: np.ndarray, y: np.ndarray, side: int, span: float) -> float:
    """One image ``(C, H, W)``, place by place."""
    line = np.array([exp(-((i - side // 2) ** 2) / (2 * 1.5**2)) for i in range(side)])
    weights = np.outer(line, line) / line.sum() ** 2
    found = []
    for channel in range(len(x)):
        for i in range(x.shape[1] - side + 1):
            for j in range(x.shape[2] - side + 1):
                a, b = (z[channel, i : i + side, j : j + side] for z in (x, y))
                ma, mb = (weights * a).sum(), (weights * b).sum()
                va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
                cov = (weights * (a - ma) * (b - mb)).sum()
                c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
                found.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return float(np.mean(found))


@pytest.mark.parametrize(("shape", "side"), [((2, 13, 12), 11), ((1, 8, 8), 7), ((1, 3, 5), 3)])
def test_ssim_against_a_naive_loop(shape: tuple[int, ...], side: int) -> None:
    x, y = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0)).unbind()
    assert ssim(x, x).tolist() == pytest.approx([1.0] * 3)
    for span in (1.0, 2.0):
        expected = [naive_ssim(a.double().numpy(), b.double().numpy(), side, span) for a, b in zip(x, y, strict=True)]
        assert ssim(x, y, span).tolist() == pytest.approx(expected, abs=1e-9)
    assert ssim(x, 1 - x).max() < 0.5


def test_variation_by_hand() -> None:
    image = torch.tensor([[[[0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]])
    assert variation(image).item() == pytest.approx(2 / 6 + 1 / 6)
    assert variation(torch.rand(2, 5)).tolist() == [0.0, 0.0]


# -- what one step releases -------------------------------------------------------------------------------------------


def step(victim: sm.Victim, batch: int = 1, steps: int = 2, trained: bool = False) -> Release:
    secret = OneStep(batch=batch, steps=steps, trained=trained, labels="known")
    return secret.hide(victim, 100, seed=1).access


def gradient(access: Release, inputs: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the mean loss, in one piece."""
    losses = access.task.loss(access.module, Batch(inputs, labels))
    return torch.cat([part.flatten() for part in torch.autograd.grad(losses.mean(), access.parameters)])


@pytest.mark.parametrize("trained", [False, True])
def test_a_bare_stack_releases_the_gradient(trained: bool) -> None:
    victim = tiny_victim(CNN)
    secret = OneStep(batch=3, steps=2, trained=trained, labels="known")
    hidden = secret.hide(victim, 100, seed=1)
    access = hidden.access
    start = victim.module if trained else build(victim.task, (), victim.seed)
    assert all(torch.equal(a, b) for a, b in zip(access.module.parameters(), start.parameters(), strict=True))
    truth = hidden.judge.args[1]  # what the judge alone knows
    for index in range(2):
        mine = truth.take(slice(3 * index, 3 * index + 3))
        assert torch.equal(access.labels[index], mine.target)
        expected = gradient(access, mine.inputs, mine.target)
        released = torch.cat([part.flatten() for part in access.released[index]])
        assert torch.allclose(released, expected, atol=1e-6, rtol=1e-4)


def test_dp_sgd_releases_what_is_clipped_and_noisy() -> None:
    """Without noise the gradient at the length of the clip over the expected batch; the noise has its own size."""
    task = tiny_task(CNN)
    for clip in (0.5, 1e-3):
        victim = sm.fit(task, [DPSGD(noise=0.0, clip=clip, epochs=1, batch_size=16)], seed=0, device="cpu")
        hidden = OneStep(batch=1, steps=2, trained=False, labels="known").hide(victim, 100, seed=1)
        truth = hidden.judge.args[1]
        released = torch.cat([part.flatten() for part in hidden.access.released[1]])
        bare = gradient(hidden.access, truth.inputs[1:2], truth.target[1:2])
        assert torch.allclose(released, bare / bare.norm() * clip / 16, rtol=1e-3, atol=1e-5 * clip + 1e-7)
    noisy = sm.fit(task, [DPSGD(noise=2.0, clip=1.0, epochs=1, batch_size=16)], seed=0, device="cpu")
    first, second = (torch.cat([p.flatten() for p in parts]) for parts in step(noisy).released)
    assert (first - second).std().item() == pytest.approx(2**0.5 * 2.0 / 16, rel=0.2)


def test_steps_start_at_the_same_weights_and_leave_the_victim() -> None:
    victim = tiny_victim(CNN)
    before = [value.clone() for value in victim.module.state_dict().values()]
    one, two = step(victim, steps=1), step(victim, steps=4)
    assert all(torch.allclose(a, b) for a, b in zip(one.released[0], two.released[0], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, victim.module.state_dict().values(), strict=True))


# -- inversion of gradients -------------------------------------------------------------------------------------------


def test_one_example_before_a_linear_layer_is_read_off() -> None:
    """The gradient of the weights over that of the bias is the example, to rounding, without a search."""
    attack = GradientInversion(batches=4)
    result = attack.evaluate(tiny_victim(MLP), threat=None, seed=0, examples=100)
    found = {row.measure: row for row in result.rows}
    assert found["PSNR"].value > 70
    assert found["SSIM"].value == pytest.approx(1.0, abs=1e-4)
    assert found["identified"].value == 1.0
    assert found["PSNR"].gradients == 4, "there was nothing to search"


def test_reading_off_is_least_squares() -> None:
    access = step(tiny_victim(MLP), steps=1)
    weight, bias = access.released[0][0], access.released[0][1]
    expected = torch.linalg.lstsq(bias[:, None], weight).solution
    assert torch.allclose(read_off(access, access.released[0]).flatten(), expected[0].clamp(0, 1), atol=1e-5)
    assert read_off(step(tiny_victim(MLP), batch=2), ()) is None, "a batch is a mixture"
    assert read_off(step(tiny_victim(CNN)), ()) is None, "the dense layer does not see the input"


def test_a_search_finds_what_a_convolution_saw_and_not_through_noise() -> None:
    attack = GradientInversion(batches=3, steps=200)
    bare = values(attack, digits())
    assert bare["PSNR gain"] > 15
    assert bare["SSIM"] > 0.9
    assert bare["identified"] == 1.0
    private = sm.fit(sm.task(CNN), [DPSGD(epsilon=1.0, delta=1e-4, epochs=2)], seed=0, device="cpu")
    rows = attack.evaluate(private, threat=None, seed=0, examples=100).rows
    assert rows[0].measure == "PSNR gain"
    assert rows[0].high < 0, "worse than the mean image"


def test_batches_are_matched_and_labels_are_counted() -> None:
    found = values(GradientInversion(batch=3, batches=1, steps=300), tiny_victim(MLP))
    assert found["PSNR gain"] > 2


def test_small_distances_do_as_well_as_small_angles() -> None:
    found = values(GradientInversion(batches=2, steps=200, match="squared"), digits())
    assert found["PSNR gain"] > 15


def test_labels_are_read_off_the_last_bias() -> None:
    for name in (CNN, MLP, "logistic_regression"):
        access = step(tiny_victim(name), batch=1, steps=10)
        inferred = torch.cat([infer_labels(access, released) for released in access.released])
        assert torch.equal(inferred, access.labels.flatten()), name
    access = step(tiny_victim(MLP), batch=4, steps=5)
    right = 0
    for released, labels in zip(access.released, access.labels, strict=True):
        mine, theirs = (torch.bincount(part, minlength=10) for part in (infer_labels(access, released), labels))
        right += int(mine.minimum(theirs).sum())
    assert right >= 16, "of 20"


def test_labels_without_a_last_bias_are_the_commonest() -> None:
    build_bare = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))  # noqa: E731
    victim = sm.fit(replace(tiny_task(CNN), build=build_bare), seed=0, device="cpu")
    access = step(victim, batch=3, steps=1)
    counts = torch.bincount(victim.splits.aux.target, minlength=10)
    assert int(counts[infer_labels(access, access.released[0])].min()) >= counts.sort().values[-3]


# -- adversaries who cheat, or know nothing ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Blind(Reconstruction[Release]):
    """Guesses by ``how``, whatever was released."""

    how: str = "mean"

    @property
    def secret(self) -> OneStep:
        return OneStep(batch=2, steps=4, trained=False, labels="inferred")

    def recover(self, access: Release, rng: torch.Generator) -> Tensor:
        if self.how == "shape":
            return access.aux.inputs[:1]
        if self.how == "peek":
            return access.task.draw(0).train.inputs[:8].reshape(4, 2, 1, 8, 8)
        mean = access.aux.inputs.mean(0)
        return (mean if self.how == "mean" else mean * torch.nan).expand(4, 2, *mean.shape)


def test_the_mean_image_is_no_discovery() -> None:
    found = values(Blind(), tiny_victim(CNN))
    assert found["PSNR gain"] <= 0
    assert found["identified"] <= 1 / 8
    assert found["SSIM"] <= found["SSIM without access"]
    assert values(Blind(how="nothing"), tiny_victim(CNN))["PSNR gain"] < 0, "no number counts as 0"


def test_peeking_and_wrong_shapes_are_refused() -> None:
    with pytest.raises(sm.UsageError, match="does not hold the data"):
        values(Blind(how="peek"), tiny_victim(CNN))
    with pytest.raises(sm.UsageError, match=r"shape \(1, 1, 8, 8\); expected \(4, 2, 1, 8, 8\)"):
        values(Blind(how="shape"), tiny_victim(CNN))


def test_the_truth_in_another_order_is_perfect() -> None:
    hidden = OneStep(batch=4, steps=2, trained=False, labels="inferred").hide(tiny_victim(CNN), 100, seed=0)
    truth = hidden.judge.args[1].inputs.reshape(hidden.shape)
    verdict = hidden.judge(truth[:, torch.tensor([2, 0, 3, 1])])
    found = {part.measure: part.estimate.value for part in verdict.measured}
    assert found["PSNR"] == 100.0
    assert found["SSIM"] == pytest.approx(1.0)
    assert found["identified"] == 1.0
    across = hidden.judge(truth.flip(0))  # right examples, in the wrong step
    assert across.measured[-1].estimate.value < 0.5


def test_the_baseline_is_the_best_guess_without_access() -> None:
    secret = OneStep(batch=1, steps=20, trained=False, labels="known")
    hidden = secret.hide(digits(), 100, seed=0)
    truth, aux = hidden.judge.args[1], digits().splits.aux
    means = class_means(aux, 10)[truth.target]
    expected = psnr(means, truth.inputs).mean().item()
    found = {part.measure: part.estimate.value for part in hidden.judge(means[:, None]).measured}
    assert found["PSNR without access"] == pytest.approx(expected)
    assert found["PSNR gain"] == 0.0, "a known label gives the class's mean away"
    assert expected > psnr(aux.inputs.mean(0).expand_as(truth.inputs), truth.inputs).mean() + 1


# -- inversion of a model ----------------------------------------------------------------------------------------------


def test_inverted_classes_are_recognised_and_nobody_is() -> None:
    found = values(ModelInversion(steps=50), digits(), examples=500)
    assert found["recognised by another model"] > 0.9
    assert abs(found["distance ratio"]) < 0.2
    assert found["member gain"] == pytest.approx(
        found["nearest is a member"] - found["nearest is a member, without access"]
    )


def test_a_member_that_is_handed_out_is_seen() -> None:
    victim = tiny_victim(CNN)
    hidden = ModelInversion(each=2).secret.hide(victim, 100, seed=0)
    train = victim.splits.train.inputs
    found = {part.measure: part.estimate.value for part in hidden.judge(train[:20].reshape(hidden.shape)).measured}
    assert found["distance ratio"] < -1
    assert found["nearest is a member"] > 0.7


# -- the family --------------------------------------------------------------------------------------------------------


def test_pooled_rows_are_those_of_the_best_attack_of_each_kind() -> None:
    victim = tiny_victim(MLP)
    weak, strong = GradientInversion(batch=2, batches=2, steps=1), GradientInversion(batches=2)
    attempts = [(a, a.evaluate(victim, threat=None, seed=s, examples=50)) for a in (weak, strong) for s in (0, 1)]
    attempts.append((skew := ModelInversion.tiny(), skew.evaluate(victim, threat=None, seed=0, examples=50)))
    rows = Reconstruction.pool(victim.task, attempts)
    assert [row.measure for row in rows if "gain" in row.measure] == ["PSNR gain", "member gain"]
    assert rows[0].attack == repr(strong)
    assert rows[0].pooled
    single = [result.rows[0] for attack, result in attempts if attack == strong]
    assert rows[0].value == pytest.approx(sum(row.value for row in single) / 2)
    assert rows[0].high - rows[0].low >= sum(row.high - row.low for row in single) / 2 - 1e-9


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (GradientInversion, {"batch": 0}),
        (GradientInversion, {"match": "cosin"}),
        (GradientInversion, {"rate": 0.0}),
        (ModelInversion, {"each": 0}),
        (ModelInversion, {"near": -1.0}),
        (AttributeInference, {"column": -1}),
        (AttributeInference, {"prior": "flat"}),
        (CanaryExposure, {"repeats": ()}),
        (CanaryExposure, {"repeats": (4, 4)}),
        (CanaryExposure, {"alphabet": 1}),
        (PropertyInference, {"low": 0.5}),
        (PropertyInference, {"shadows": 3}),
    ],
)
def test_settings_out_of_range(cls: type, settings: dict[str, object]) -> None:
    with pytest.raises(sm.UsageError):
        cls(**settings)


@pytest.mark.parametrize(
    ("attack", "name", "why"),
    [
        (GradientInversion(), "text_embedding", "one box of numbers"),
        (GradientInversion(), "fusion", "one box of numbers"),
        (GradientInversion(), "linear_regression", "one class"),
        (ModelInversion(), "policy_game", "drawn anew"),
        (CanaryExposure(), CNN, "understands NextToken"),
        (CanaryExposure(), "wavenet", "plants symbols in text"),
        (AttributeInference(), "speech_digits", "is sound"),
        (AttributeInference(), CNN, "no row of attributes"),
        (PropertyInference(), "recommender_mf", "one class"),
    ],
)
def test_where_there_is_no_such_secret(attack: sm.Attack, name: str, why: str) -> None:
    with pytest.raises(sm.NotApplicable, match=why):
        attack.evaluate(tiny_victim(name), threat=None, seed=0, examples=10)


def test_labels_alone_are_enough_to_try() -> None:
    """An adversary who sees labels only is judged like any other."""
    found = values(AttributeInference(reveal="label"), tiny_victim("adult_mlp"))
    assert 0 <= found["attribute accuracy"] <= 1
    assert isinstance(AttributeInference().secret.hide(tiny_victim("adult_mlp"), 10, 0).access, BlackBox)
