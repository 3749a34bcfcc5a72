"""Weak baselines do what their papers say, against other implementations, and are as weak as they say themselves."""

import io
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import secure_ml as sm
from attacks.evasion.pgd import PGD
from defenses import (
    DPSGD,
    TRADES,
    DefensiveDistillation,
    FeatureSqueezing,
    GradientMasking,
    Homomorphic,
    JPEGCompression,
    LabelSmoothing,
    PredictionSmoothing,
    RandomizedSmoothing,
)
from defenses._jpeg import RoundTrip
from defenses.feature_squeezing import Squeeze
from secure_ml.adaptive import BPDA
from secure_ml.checkpoint import Checkpoint
from secure_ml.randomness import seeded
from secure_ml.training import make_plan
from secure_ml.victim import Victim
from tests.laws import CPU, same, tiny_task, tiny_victim
from tests.test_checkpoint import interrupted


def photographs(channels: int, height: int, width: int) -> Tensor:
    """Smooth images ``(12, C, H, W)`` in [0, 1] with some texture."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(12, channels, 4, 5, generator=rng)
    images = nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (images + 0.05 * torch.randn(images.shape, generator=rng)).clamp(0, 1)


# -- squeezing and JPEG -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("smoothing", ["median", "mean"])
def test_smoothing_is_that_of_scipy(window: int, smoothing: str) -> None:
    """The paper's own squeezer is SciPy's filter."""
    from scipy.ndimage import median_filter, uniform_filter

    images = photographs(1, 9, 12)
    found = Squeeze(None, window, smoothing)(images)
    kind = median_filter if smoothing == "median" else uniform_filter
    expected = np.stack([kind(image[0].numpy(), size=window, mode="reflect") for image in images])[:, None]
    assert np.allclose(found.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 3, 5, 8])
def test_bits_are_those_of_art(bits: int) -> None:
    from art.defences.preprocessor import FeatureSqueezing as Theirs

    x = photographs(1, 8, 8)
    expected, _ = Theirs(clip_values=(0, 1), bit_depth=bits)(x.numpy())
    assert np.allclose(Squeeze(bits, 1, "median")(x).numpy(), expected, atol=1e-6)
    assert len(Squeeze(bits, 1, "median")(x).unique()) <= 2**bits


@pytest.mark.parametrize("quality", [10, 49, 50, 75, 95, 100])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (1, 28, 28), (3, 32, 20), (3, 22, 22)])
def test_jpeg_is_that_of_a_file(quality: int, channels: int, height: int, width: int) -> None:
    """As libjpeg's file, decoded, but where its integers round a coefficient, half way between two, to the other."""
    images = (photographs(channels, height, width) * 255).round() / 255
    theirs = []
    for image in images:
        levels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(levels if channels == 3 else levels[:, :, 0]).save(file, "JPEG", quality=quality, subsampling=0)
        decoded = torch.from_numpy(np.asarray(Image.open(file)).copy()).reshape(height, width, channels)
        theirs.append(decoded.permute(2, 0, 1) / 255)
    expected = torch.stack(theirs)

    def apart(quality: int) -> float:
        return float((RoundTrip(quality)(images) - expected).abs().mean() * 255)

    lost = float((images - expected).abs().mean() * 255)
    assert apart(quality) < 0.3 + 0.25 * lost
    assert float(((RoundTrip(quality)(images) - expected).abs() < 2.5 / 255).float().mean()) > 0.8
    assert apart(quality) < apart(quality - 8)


@pytest.mark.parametrize("transform", [Squeeze(3, 2, "median"), RoundTrip(75)])
def test_they_take_any_batch_and_give_no_gradient_to_inputs_but_all_to_weights(transform: object) -> None:
    with seeded(0, "model"):
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    x = photographs(1, 8, 8).requires_grad_()
    assert transform(x[:0]).shape == (0, 1, 8, 8)
    assert torch.equal(transform(x[1:2]), transform(x)[1:2])
    weights = list(module.parameters())
    nothing, *all_of_them = torch.autograd.grad(module(transform(x)).square().sum(), [x, *weights])
    assert torch.equal(nothing, torch.zeros_like(x))
    assert all(bool((gradient != 0).any()) for gradient in all_of_them)


@cache
def trained(*defenses: sm.Defense) -> Victim:
    """A digits model that is good enough to be attacked."""
    task = replace(sm.task("digits_cnn"), recipe=sm.Recipe(epochs=15, batch_size=32, schedule="cosine"))
    return sm.fit(task, defenses, seed=0, device="cpu")


def robust(victim: Victim, module: nn.Module | None = None) -> float:
    """Accuracy under PGD on a module, scored on what is served."""
    target = victim if module is None else replace(victim, module=module.eval())
    value = PGD(steps=20).evaluate(target, threat=sm.Linf(0.1), seed=0, examples=150).rows[0].value
    assert value is not None
    return value


@pytest.mark.parametrize("defense", [FeatureSqueezing(), FeatureSqueezing(bits=3, window=1), JPEGCompression()])
def test_a_naive_attack_is_fooled_and_an_adaptive_one_is_not(defense: sm.Defense) -> None:
    victim, bare = trained(defense), robust(trained())
    transform, inner = victim.module.transform, victim.module.inner
    stand_in = replace(transform, bits=None) if isinstance(transform, Squeeze) else lambda values: values
    assert robust(victim) > bare + 0.25
    assert robust(victim, BPDA(transform, inner, stand_in)) < bare + 0.05
    assert victim.score().value > 0.9


def test_masking_fools_a_naive_attack_and_distillation_nearly_does() -> None:
    """Both fall when their logits are scaled back, without a change to what is served."""

    class Cooled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) / 100

    bare = robust(trained())
    masked, student = trained(GradientMasking()), trained(DefensiveDistillation(temperature=100.0))
    assert robust(masked) > bare + 0.25
    assert robust(masked, masked.module.inner) == bare
    assert robust(student) > bare + 0.25
    assert robust(student, Cooled(student.module)) < bare + 0.1


def test_masked_weights_are_the_bare_ones_and_gradients_are_exactly_zero() -> None:
    victim, bare = trained(GradientMasking()), trained()
    assert not GradientMasking.trains()
    for name, value in bare.module.state_dict().items():
        assert torch.equal(victim.module.state_dict()[name], value)
    test = bare.splits.test
    assert torch.equal(victim.served(test.inputs), victim.module(test.inputs))
    right = test.take((bare.served(test.inputs).argmax(1) == test.target).nonzero()[:50, 0])
    gradient = sm.WhiteBox.open(victim).ascend(right, victim.task.surfaces[0]).gradient
    assert float((gradient.flatten(1).abs().amax(1) == 0).float().mean()) > 0.8


def test_prediction_smoothing_is_a_temperature() -> None:
    bare, victim = tiny_victim("digits_mlp"), tiny_victim("digits_mlp", PredictionSmoothing(temperature=4.0))
    x = bare.splits.test.inputs
    assert torch.allclose(victim.served(x), bare.served(x) / 4)
    assert torch.equal(victim.module(x), bare.module(x))
    assert not PredictionSmoothing.trains()


@pytest.mark.parametrize(
    "defense", [FeatureSqueezing(), JPEGCompression(), GradientMasking(), DefensiveDistillation(), LabelSmoothing()]
)
def test_they_return_from_disk(defense: sm.Defense, tmp_path: object) -> None:
    victim = sm.fit(tiny_task("digits_cnn"), [defense], seed=0, device="cpu")
    victim.save(f"{tmp_path}/model")
    again = Victim.load(f"{tmp_path}/model", victim.task, [defense], device="cpu")
    x = victim.splits.test.inputs
    assert torch.equal(again.served(x), victim.served(x))
    assert torch.equal(again.module(x), victim.module(x))


# -- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [0.1, 0.7])
def test_label_smoothing_is_that_of_torch(amount: float) -> None:
    plan = make_plan(tiny_task("digits_mlp"), [LabelSmoothing(amount=amount)], 0, CPU)
    batch = plan.splits.train
    expected = nn.functional.cross_entropy(
        plan.module(batch.inputs), batch.target, reduction="none", label_smoothing=amount
    )
    assert torch.allclose(plan.loss(plan.module, batch), expected, atol=1e-6)


def test_label_smoothing_of_one_logit_moves_the_target() -> None:
    plan = make_plan(tiny_task("logistic_regression"), [LabelSmoothing(amount=0.2)], 0, CPU)
    batch = plan.splits.train
    expected = nn.functional.binary_cross_entropy_with_logits(
        plan.module(batch.inputs), batch.target * 0.8 + 0.1, reduction="none"
    )
    assert torch.allclose(plan.loss(plan.module, batch), expected, atol=1e-6)


def test_a_student_learns_the_teachers_probabilities_for_clean_inputs() -> None:
    """The loss is T times the cross-entropy at temperature T to the teacher, whatever is done to the inputs later."""
    task = replace(tiny_task("digits_mlp"), augment=lambda batch, rng: replace(batch, inputs=batch.inputs * 0))
    plan = make_plan(task, [DefensiveDistillation(temperature=10.0)], 0, CPU)
    batch = plan.splits.train
    lesson = plan.loss.__self__
    changed = plan.transform(plan.module, batch)
    assert torch.equal(changed.inputs, torch.zeros_like(batch.inputs))
    soft = (lesson.teacher(batch.inputs) / 10).softmax(1)
    expected = -10 * (soft * (plan.module(changed.inputs) / 10).log_softmax(1)).sum(1)
    assert torch.allclose(plan.loss(plan.module, changed), expected, atol=1e-5)


def test_students_have_larger_logits() -> None:
    test = trained().splits.test.inputs
    bare, student = trained(), trained(DefensiveDistillation(temperature=100.0))
    assert float(student.served(test).abs().mean()) > 10 * float(bare.served(test).abs().mean())


# -- what they refuse -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", [(DPSGD.tiny(), DefensiveDistillation()), (DefensiveDistillation(), DPSGD.tiny())])
def test_a_student_of_a_public_teacher_is_not_private(stack: tuple[sm.Defense, ...]) -> None:
    with pytest.raises(sm.UsageError, match="does not go with DP-SGD"):
        sm.fit(tiny_task("digits_mlp"), stack, seed=0, device="cpu")


def test_a_student_of_a_private_teacher_is_refused_behind_other_losses_too() -> None:
    """Where a loss between the two hides the private module from the student's."""
    stack = (DefensiveDistillation(), TRADES.tiny(), DPSGD.tiny())
    with pytest.raises(sm.UsageError, match="does not go with DP-SGD"):
        sm.fit(tiny_task("digits_mlp"), stack, seed=0, device="cpu")


@pytest.mark.parametrize("defense", [LabelSmoothing(), DefensiveDistillation()])
def test_no_loss_is_lost(defense: sm.Defense) -> None:
    with pytest.raises(sm.UsageError, match=r"list .* first, or alone"):
        sm.fit(tiny_task("digits_mlp"), [TRADES.tiny(), defense], seed=0, device="cpu")
    victim = sm.fit(tiny_task("digits_mlp"), [defense, TRADES.tiny()], seed=0, device="cpu")
    alone = sm.fit(tiny_task("digits_mlp"), [defense], seed=0, device="cpu")
    x = victim.splits.test.inputs
    assert not torch.equal(victim.served(x), alone.served(x))


@pytest.mark.parametrize("defense", [GradientMasking(), PredictionSmoothing()])
def test_nothing_stands_behind_encryption(defense: sm.Defense) -> None:
    with pytest.raises(sm.NotApplicable, match="behind encryption"):
        sm.fit(tiny_task("logistic_regression"), [Homomorphic.tiny(), defense], seed=0, device="cpu")


@pytest.mark.parametrize(
    ("defense", "name", "why"),
    [
        (JPEGCompression(), "logistic_regression", r"has shape \(30,\)"),
        (JPEGCompression(), "policy_game", r"has shape \(4, 4, 4\)"),
        (JPEGCompression(), "text_rnn", r"text_rnn has \w*Tokens"),
        (FeatureSqueezing(), "text_rnn", r"text_rnn has \w*Tokens"),
        (FeatureSqueezing(), "dialogue", "runs parts of its module"),
        (GradientMasking(), "linear_regression", "which hold none"),
        (GradientMasking(), "dialogue", "cannot be scaled"),
        (PredictionSmoothing(), "linear_regression", "answers Values"),
        (LabelSmoothing(), "linear_regression", "answers Values"),
        (LabelSmoothing(), "policy_game", "no labels to smooth"),
        (DefensiveDistillation(), "linear_regression", "one class an example"),
    ],
)
def test_tasks_they_refuse(defense: sm.Defense, name: str, why: str) -> None:
    with pytest.raises(sm.NotApplicable, match=why):
        defense.check(tiny_task(name))


@pytest.mark.parametrize(
    "make",
    [
        lambda: FeatureSqueezing(bits=0),
        lambda: FeatureSqueezing(window=4),
        lambda: FeatureSqueezing(smoothing="mode"),
        lambda: JPEGCompression(quality=0),
        lambda: GradientMasking(factor=0.5),
        lambda: PredictionSmoothing(temperature=0.0),
        lambda: LabelSmoothing(amount=1.0),
        lambda: DefensiveDistillation(temperature=0.5),
    ],
)
def test_settings_out_of_range(make: object) -> None:
    with pytest.raises(sm.UsageError, match=r"given|smoothing is called"):
        make()


@pytest.mark.parametrize(
    "stack",
    [
        (RandomizedSmoothing.tiny(),),
        (DefensiveDistillation(),),
        (FeatureSqueezing(), LabelSmoothing(), RandomizedSmoothing.tiny()),
    ],
)
def test_a_killed_training_goes_on_to_the_same_weights(
    stack: tuple[sm.Defense, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint.__init__, "__defaults__", (0.0,))
    whole = sm.fit(tiny_task("digits_cnn"), stack, seed=3, device="cpu")
    interrupted(tiny_task("digits_cnn"), list(stack), tmp_path / "unfinished", epoch=2)
    resumed = sm.fit(tiny_task("digits_cnn"), stack, seed=3, device="cpu", checkpoint=tmp_path / "unfinished")
    assert same(list(resumed.module.state_dict().values()), list(whole.module.state_dict().values()))


def test_a_task_of_ones_own_need_not_be_hashable() -> None:
    task = replace(tiny_task("digits_mlp"), also=[])
    with pytest.raises(TypeError, match="unhashable"):
        hash(task)
    sm.fit(task, [FeatureSqueezing()], seed=0, device="cpu")
