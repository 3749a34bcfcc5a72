"""Auto-PGD, the ensemble and goals, on models of any number of classes and inputs of any shape; and bad input."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import secure_ml as sm
from attacks.evasion._losses import dlr, margin, two_columns
from attacks.evasion.apgd import APGD
from attacks.evasion.auto_attack import AutoAttack
from attacks.evasion.fgsm import FGSM
from attacks.evasion.pgd import PGD
from attacks.evasion.square import Square
from attacks.evasion.targeted import Targeted
from secure_ml.access import WhiteBox
from secure_ml.batch import Batch
from secure_ml.families.evasion import attack_batch
from secure_ml.task import Predictor
from secure_ml.victim import Plain
from tests.laws import tiny_victim

QUICK = AutoAttack(steps=10, targets=9, queries=50)


def victim_of(module: nn.Module, inputs: Tensor, classes: int, threat: sm.Linf | sm.L2 | sm.L1) -> sm.Victim:
    """A victim whose examples are labelled as its module answers them."""
    module = module.eval()
    with torch.no_grad():
        answers = two_columns(module(inputs)).argmax(1)
    parts = sm.Splits(*(Batch(inputs, answers) for _ in range(4)))
    task = sm.Task(name="rows", build=lambda: module, data=lambda _: parts, threat=threat)
    return sm.Victim(task=task, module=module, served=Plain(module, 100), splits=parts)


def network(d: int, outputs: int, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(d, 16), nn.ReLU(), nn.Linear(16, outputs)]
        return nn.Sequential(*layers, *([nn.Flatten(0)] if outputs == 1 else []))


@pytest.mark.parametrize("outputs", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(6,), (1, 4, 4), (2, 3, 5), (3, 4)])
@pytest.mark.parametrize("threat", [sm.Linf(0.2), sm.L2(0.6), sm.L1(1.5)])
def test_any_number_of_classes_and_any_shape(outputs: int, shape: tuple[int, ...], threat: sm.Linf) -> None:
    inputs = torch.rand(12, *shape, generator=torch.Generator().manual_seed(1))
    victim = victim_of(network(inputs[0].numel(), outputs), inputs, max(outputs, 2), threat)
    (row,) = QUICK.evaluate(victim, threat=None, seed=0, examples=12).rows
    (weak,) = PGD(steps=2).evaluate(victim, threat=None, seed=0, examples=12).rows
    assert row.value <= weak.value


@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_the_ensemble_is_the_union_of_its_parts(version: str) -> None:
    victim = tiny_victim("digits_cnn")
    ensemble = replace(QUICK, version=version, samples=2)
    together = ensemble.evaluate(victim, threat=None, seed=0, examples=40).evidence["worst"]
    for part in ensemble.parts(victim.task.threat):
        alone = part.evaluate(victim, threat=None, seed=0, examples=40).evidence["worst"]
        assert int((together > alone).sum()) <= 1, f"{part} broke what the ensemble did not"


def test_logits_ratio_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.5, -2.0]])
    label = torch.tensor([0])
    assert dlr(logits, label, None).item() == pytest.approx(-(3 - 1) / (3 - 0.5))
    assert dlr(logits, label, torch.tensor([2])).item() == pytest.approx((0.5 - 3) / (3 - (0.5 - 2) / 2))
    assert dlr(logits[:, :3], label, torch.tensor([1])).item() == pytest.approx((1 - 3) / (3 - 0.5))
    assert dlr(logits[:, :2], label, None).item() == margin(logits[:, :2], label, None).item() == -2


@pytest.mark.parametrize("threat", [sm.Linf(0.3), sm.L2(0.5)])
def test_apgd_reaches_the_optimum_of_a_linear_model(threat: sm.Linf) -> None:
    """The worst logit within a ball is known: w.x - y r ||w||_dual, where no box is met."""
    weight = torch.randn(5, generator=torch.Generator().manual_seed(0))
    layer = nn.Sequential(nn.Linear(5, 1), nn.Flatten(0))
    with torch.no_grad():
        layer[0].weight.copy_(weight[None])
        layer[0].bias.zero_()
    inputs = torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    task = sm.Task(name="line", build=lambda: layer, data=lambda _: None, surfaces=(sm.Box(-10, 10),))
    batch = Batch(inputs, (inputs @ weight > 0).long())
    access = WhiteBox(task, layer)
    changed = attack_batch(APGD(steps=60, early=False), access, batch, threat, torch.Generator().manual_seed(0))
    dual = weight.norm(1 if isinstance(threat, sm.Linf) else 2)
    expected = access(inputs) - (batch.target * 2 - 1) * threat.radius * dual
    assert torch.allclose(access(changed.inputs), expected, atol=2e-3)


def test_auto_pgd_beats_gradient_descent_of_fixed_steps() -> None:
    victim = tiny_victim("digits_mlp")
    threat = sm.Linf(0.05)
    losses = []
    for attack in (FGSM(), PGD(steps=10, early=False), APGD(steps=50, early=False)):
        changed = attack_batch(
            attack, WhiteBox.open(victim), victim.splits.test, threat, torch.Generator().manual_seed(0)
        )
        losses.append(victim.task.loss(WhiteBox.open(victim), changed).mean().item())
    assert losses[2] >= losses[1] - 1e-4
    assert losses[1] >= losses[0] - 1e-3


def test_a_target_is_reached_and_its_own_examples_are_left_out() -> None:
    victim = tiny_victim("digits_mlp")
    attack = Targeted(attack=PGD(steps=30, restarts=2), target=4)
    clean, changed = attack.craft(victim, threat=sm.Linf(0.4), seed=0, examples=40)
    before, after = (victim.served(batch.inputs).argmax(1) for batch in (clean, changed))
    assert len(clean) == int((victim.splits.test.target[:40] != 4).sum())
    assert (after == 4).float().mean() > (before == 4).float().mean() + 0.3
    (row,) = attack.evaluate(victim, threat=sm.Linf(0.4), seed=0, examples=40).rows
    assert row.measure == "targeted success under Linf(0.4)"
    assert row.value == (after == 4).double().mean().item()


def test_goals_are_pooled_apart() -> None:
    victim = tiny_victim("digits_mlp")
    attempts = [(a, a.evaluate(victim, threat=None, seed=0, examples=40)) for a in (PGD.tiny(), Targeted.tiny())]
    assert [row.measure for row in PGD.pool(victim.task, attempts)] == [
        "accuracy under Linf(0.1)",
        "targeted success under Linf(0.1)",
    ]


def test_a_loss_of_the_callers_own() -> None:
    """Climbing the logit of class 7 makes class 7 win."""

    def sevens(predictor: Predictor, batch: Batch) -> Tensor:
        return predictor(batch.inputs)[:, 7]

    victim = tiny_victim("digits_mlp")
    few = victim.splits.test.take(slice(0, 10))
    access = WhiteBox.open(victim)
    attack = APGD(steps=30, loss=sevens, early=False)
    changed = attack_batch(attack, access, few, sm.Linf(0.5), torch.Generator().manual_seed(0))
    assert bool((access(changed.inputs)[:, 7] > access(few.inputs)[:, 7]).all())


def test_broken_examples_leave_and_nothing_changes() -> None:
    """The same examples are broken whether those that are broken leave or stay; leaving saves gradients."""
    victim = tiny_victim("digits_mlp")
    results = [PGD(steps=20, early=early).evaluate(victim, threat=None, seed=0, examples=40) for early in (True, False)]
    assert torch.equal(*(result.evidence["worst"] for result in results))
    assert results[0].rows[0].gradients < results[1].rows[0].gradients


def test_queries_of_square_are_limited_by_the_access() -> None:
    victim = tiny_victim("digits_mlp")
    (row,) = Square(queries=30).evaluate(victim, threat=None, seed=0, examples=20).rows
    assert row.queries <= 30 * 20
    assert row.gradients == 0


# -- bad input --------------------------------------------------------------------------------------------------------


def with_module(module: nn.Module) -> sm.Victim:
    victim = tiny_victim("digits_mlp")
    return replace(victim, module=module.eval(), served=Plain(module, 100))


class Answers(nn.Module):
    """A module whose answers are a function of another's."""

    def __init__(self, function: object, inner: nn.Module) -> None:
        super().__init__()
        self.function, self.inner = function, inner

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(self.inner(inputs))


def refused(victim: sm.Victim, attack: sm.Evasion, threat: sm.Linf | None = None) -> str:
    with pytest.raises(sm.SecureMLError) as caught:
        attack.evaluate(victim, threat=threat, seed=0, examples=10)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_inputs_outside_the_box() -> None:
    victim = tiny_victim("digits_mlp")
    moved = Batch(victim.splits.test.inputs + 3, victim.splits.test.target)
    assert "outside the declared Box" in refused(replace(victim, splits=replace(victim.splits, test=moved)), PGD.tiny())


def test_probabilities() -> None:
    inner = tiny_victim("digits_mlp").module
    assert "take the softmax out" in refused(with_module(nn.Sequential(inner, nn.Softmax(1))), PGD.tiny())


def test_nan() -> None:
    inner = tiny_victim("digits_mlp").module
    assert "NaN or infinite" in refused(with_module(Answers(lambda z: z * torch.nan, inner)), PGD.tiny())


def test_a_radius_beyond_the_box() -> None:
    assert "beyond the whole box, whose size is 1" in refused(tiny_victim("digits_mlp"), PGD.tiny(), sm.Linf(1.5))
    assert "beyond the whole box, whose size is 8" in refused(tiny_victim("digits_mlp"), PGD.tiny(), sm.L2(9.0))


def test_a_module_without_gradients() -> None:
    inner = tiny_victim("digits_mlp").module
    text = refused(with_module(Answers(lambda z: z.detach(), inner)), PGD.tiny())
    assert "no gradient in its inputs" in text
    assert "Square" in text
    Square.tiny().evaluate(with_module(Answers(lambda z: z.detach(), inner)), threat=None, seed=0, examples=10)


def test_an_unknown_surface_and_an_unknown_threat() -> None:
    assert "changes Box inputs; text_embedding has SpelledTokens" in refused(tiny_victim("text_embedding"), APGD.tiny())
    assert "Square changes inputs within" in refused(tiny_victim("speech_digits"), Square.tiny())


def test_classes_where_there_are_none() -> None:
    assert "looks for another class" in refused(tiny_victim("linear_regression"), AutoAttack.tiny())
    assert "is one of classes" in refused(tiny_victim("linear_regression"), PGD(steps=2, loss="dlr"))


def test_batch_normalisation_in_training_mode_is_attacked_in_evaluation_mode() -> None:
    module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
    victim = replace(with_module(module), module=module.train())
    before = module[1].running_mean.clone()
    PGD.tiny().evaluate(victim, threat=None, seed=0, examples=3)
    assert torch.equal(module[1].running_mean, before)
    assert module[1].training


def test_settings_out_of_range() -> None:
    for wrong, word in (
        (lambda: APGD(steps=0), "steps of at least 1"),
        (lambda: APGD(loss="cw"), "loss"),
        (lambda: APGD(targets=3), "with targets climbs"),
        (lambda: AutoAttack(version="fast"), "version of AutoAttack"),
        (lambda: Targeted(target=-1), "class of at least 0"),
    ):
        with pytest.raises(sm.UsageError, match=word):
            wrong()


def test_a_target_that_is_no_class() -> None:
    assert "targets lie in [12, 12]" in refused(tiny_victim("digits_mlp"), Targeted(target=12))
