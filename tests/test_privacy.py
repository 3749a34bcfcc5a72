"""DP-SGD against Opacus' own parts, golden values, naive loops; membership against closed forms."""

from dataclasses import replace
from math import erf
from typing import Any

import numpy as np
import pytest
import torch
from opacus.accountants import RDPAccountant
from sklearn.metrics import roc_auc_score, roc_curve
from torch import nn

import secure_ml as sm
from attacks.membership.loss_threshold import LossThreshold
from defenses.adversarial_training import AdversarialTraining
from defenses.dp_sgd import DPSGD
from secure_ml.stats import auc, clopper_pearson, pooled, tpr_at
from secure_ml.task import Loss
from secure_ml.training import Plan, Step, make_plan
from tests import broken
from tests.laws import tiny_task, tiny_victim


def test_claim_is_what_the_run_did() -> None:
    """Steps, rate and noise are those of the loop, and another accountant (a looser bound) agrees."""
    seen: list[Step] = []
    task = tiny_task("digits_mlp")
    victim = sm.fit(task, [DPSGD(epsilon=2.0, batch_size=24, epochs=3)], seed=0, device="cpu", observers=[seen.append])
    (claim,) = victim.claims
    values = claim.values
    n = len(victim.splits.train)
    assert values["q"] == 24 / n
    assert values["steps"] == len(seen) == 3 * -(-n // 24)
    assert seen[0].plan.optimizer.noise_multiplier == values["sigma"]
    assert seen[0].plan.optimizer.max_grad_norm == values["clip"] == 1.0
    assert values["epsilon"] <= 2.0
    rdp = RDPAccountant()
    rdp.history = [(values["sigma"], values["q"], values["steps"])]
    assert values["epsilon"] < rdp.get_epsilon(1e-5) < 2 * values["epsilon"]


def test_noiseless_or_unclipped_runs_claim_nothing() -> None:
    for settings in ({"noise": 0.0}, {"noise": 1.0, "clip": 1e20}):
        assert not sm.fit(tiny_task("digits_mlp"), [DPSGD(**settings)], device="cpu").claims


def test_poisson_batches() -> None:
    """Sizes are binomial, every example goes on its own, and an empty batch is a step like any other."""
    plan = make_plan(sm.task("digits_mlp"), [DPSGD(noise=1.0, batch_size=30)], 0, torch.device("cpu"))
    n = len(plan.loader.data)
    sizes = torch.tensor([float(len(batch)) for _ in range(60) for batch in plan.loader])
    assert sizes.mean() == pytest.approx(30, abs=1)
    assert sizes.var() == pytest.approx(30 * (1 - 30 / n), rel=0.2)
    empty = sm.fit(tiny_task("digits_mlp"), [DPSGD(noise=1.0, batch_size=1, epochs=2)], device="cpu")
    assert empty.claims[0].values["steps"] == 2 * len(empty.splits.train)


def advance(plan: Plan, batch: sm.Batch, loss: Loss | None = None) -> None:
    """One step of the training loop."""
    plan.optimizer.zero_grad()
    for piece in batch.chunks(plan.piece or max(len(batch), 1)):
        plan.objective((loss or plan.loss)(plan.module, piece), len(batch)).backward()
        plan.gather()
    plan.optimizer.step()


def test_clipped_sum_equals_the_naive_loop() -> None:
    """One noiseless step moves the weights by the rate times the mean of gradients clipped one by one."""
    task = replace(tiny_task("digits_cnn"), recipe=sm.Recipe(epochs=1, batch_size=20, learning_rate=1.0, momentum=0.0))
    plan = make_plan(task, [DPSGD(noise=0.0, clip=0.05, batch_size=80)], 0, torch.device("cpu"))
    batch = next(iter(plan.loader))
    before = [p.detach().clone() for p in plan.module.parameters()]
    module = task.build()
    module.load_state_dict({k.removeprefix("_module."): v for k, v in plan.module.state_dict().items()})
    total = [torch.zeros_like(p) for p in module.parameters()]
    for i in range(len(batch)):
        grads = torch.autograd.grad(task.loss(module, batch.take(slice(i, i + 1))).sum(), list(module.parameters()))
        norm = torch.cat([g.flatten() for g in grads]).norm()
        for mine, grad in zip(total, grads, strict=True):
            mine += grad * min(1.0, 0.05 / norm.item())
    advance(plan, batch)
    for old, new, moved in zip(before, plan.module.parameters(), total, strict=True):
        assert torch.allclose(old - new, moved / 80, atol=1e-6)


def test_noise_has_the_size_that_is_accounted_for() -> None:
    """On a loss without gradient, the weights do a random walk of noise * clip * rate / batch a step."""
    task = replace(
        tiny_task("digits_mlp"),
        loss=lambda predictor, batch: predictor(batch.inputs).sum(1) * 0,
        recipe=sm.Recipe(epochs=1, batch_size=10, learning_rate=1.0, momentum=0.0),
    )
    start = torch.cat([p.detach().flatten() for p in make_plan(task, [], 0, torch.device("cpu")).module.parameters()])
    victim = sm.fit(task, [DPSGD(noise=2.0, clip=0.5, batch_size=8, epochs=1)], seed=0, device="cpu")
    end = torch.cat([p.detach().flatten() for p in victim.module.parameters()])
    steps = victim.claims[0].values["steps"]
    assert (end - start).std().item() == pytest.approx(2.0 * 0.5 / 8 * steps**0.5, rel=0.1)


def test_a_loss_with_two_calls_is_clipped_as_one() -> None:
    """The gradient of an example's whole loss is clipped, however often the loss calls the module."""

    def twice(predictor: object, batch: sm.Batch) -> torch.Tensor:
        return sm.cross_entropy(predictor, batch) + sm.cross_entropy(
            predictor, sm.Batch(1 - batch.inputs, batch.target)
        )

    task = replace(tiny_task("digits_mlp"), loss=twice, recipe=sm.Recipe(epochs=1, learning_rate=1.0, momentum=0.0))
    plan = make_plan(task, [DPSGD(noise=0.0, clip=0.01, batch_size=80)], 0, torch.device("cpu"))
    batch = next(iter(plan.loader))
    before = torch.cat([p.detach().flatten() for p in plan.module.parameters()])
    advance(plan, batch)
    after = torch.cat([p.detach().flatten() for p in plan.module.parameters()])
    assert (before - after).norm() * 80 <= 0.01 * len(batch) * (1 + 1e-4)


def joined(predictor: Any, batch: sm.Batch) -> torch.Tensor:
    """A loss whose one call holds every example twice."""
    both = predictor(torch.cat([batch.inputs, 1 - batch.inputs]))
    target = torch.cat([batch.target, batch.target])
    return nn.functional.cross_entropy(both, target, reduction="none").reshape(2, -1).sum(0)


class Folded(nn.Module):
    """Gives each of an example's rows to a layer as an example of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.row, self.out = nn.Linear(8, 4), nn.Linear(32, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.out(self.row(images.reshape(-1, 8)).reshape(-1, 32))


@pytest.mark.parametrize(
    "change", [{"loss": joined}, {"loss": broken.mixing_loss}, {"build": Folded}, {"build": broken.Halved}]
)
def test_gradients_that_are_not_an_examples_own_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(sm.UsageError, match="is not its own"):
        sm.fit(replace(tiny_task("digits_mlp"), **change), [DPSGD(noise=1.0)], device="cpu")


def test_one_infinite_gradient_does_not_poison_the_update() -> None:
    """An example whose gradient overflows contributes no more than the clip."""

    def overflowing(predictor: Any, batch: sm.Batch) -> torch.Tensor:
        losses = sm.cross_entropy(predictor, batch)
        return losses * torch.where(batch.inputs.flatten(1).sum(1) > 20, torch.inf, 1.0).nan_to_num(posinf=3e38)

    task = tiny_task("digits_mlp")
    ends = []
    for loss, kept in ((overflowing, slice(None)), (sm.cross_entropy, None)):
        plan = make_plan(task, [DPSGD(noise=0.0, clip=1.0)], 0, torch.device("cpu"))
        dim = plan.loader.data.inputs.flatten(1).sum(1) <= 20
        assert 0 < int(dim.sum()) < len(dim)
        advance(plan, plan.loader.data.take(dim if kept is None else kept), loss)
        ends.append(torch.cat([p.detach().flatten() for p in plan.module.parameters()]))
    assert torch.allclose(*ends, atol=1e-6)


def test_adversarial_and_private_at_once() -> None:
    """Crafting leaves no trace on per-example gradients, in either order."""
    for stack in ([AdversarialTraining(), DPSGD(noise=1.0)], [DPSGD(noise=1.0), AdversarialTraining()]):
        victim = sm.fit(tiny_task("digits_cnn"), stack, seed=0, device="cpu")
        assert victim.claims[0].values["sigma"] == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": -1.0}, "epsilon above 0"),
        ({"delta": 1.5}, "delta between 0 and 1"),
        ({"clip": 0.0}, "clip above 0"),
        ({"noise": -1.0}, "noise of at least 0"),
        ({"batch_size": 0}, "batch size of at least 1"),
        ({"epochs": 0}, "epochs of at least 1"),
        ({"learning_rate": 0.0}, "learning rate above 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(sm.UsageError, match=message):
        DPSGD(**settings)


def test_refusals() -> None:
    task = tiny_task("digits_mlp")
    with pytest.raises(sm.UsageError, match="not below 1/n"):
        sm.fit(task, [DPSGD(delta=0.5)], device="cpu")
    with pytest.raises(sm.UsageError, match="out of reach"):
        sm.fit(task, [DPSGD(epsilon=1e-5)], device="cpu")
    normed = replace(task, build=lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10)))
    with pytest.raises(sm.UsageError, match="cannot train BatchNorm1d"):
        sm.fit(normed, [DPSGD()], device="cpu")
    with pytest.raises(sm.UsageError, match="stands twice"):
        sm.fit(task, [DPSGD(noise=1.0), DPSGD(noise=1.0)], device="cpu")


# -- membership ----------------------------------------------------------------------------------------------------


def test_rates_against_scikit_learn_with_and_without_ties() -> None:
    rng = np.random.default_rng(0)
    for decimals in (10, 1, 0):
        members, others = rng.normal(1, 1, 300).round(decimals), rng.normal(0, 1, 1000).round(decimals)
        truth, scores = np.repeat([1, 0], [300, 1000]), np.concatenate([members, others])
        assert auc(members, others) == pytest.approx(roc_auc_score(truth, scores))
        false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
        for rate in (0.01, 0.1, 0.5, 1.0):
            assert tpr_at(members, others, rate) == pytest.approx(np.interp(rate, false, true))


def test_auc_of_two_normals() -> None:
    """Between N(d, 1) and N(0, 1) it is Phi(d / sqrt 2), and the pooled interval holds it."""
    rng = np.random.default_rng(1)
    victims = [(rng.normal(1, 1, 500), rng.normal(0, 1, 500)) for _ in range(8)]
    expected = 0.5 * (1 + erf(1 / 2))
    estimate = pooled(auc, victims)
    assert estimate.low <= expected <= estimate.high
    assert estimate.high - estimate.low < 0.06


def test_clopper_pearson_golden_values() -> None:
    assert clopper_pearson(3, 100, 0.05).high == pytest.approx(0.08517606)
    assert (clopper_pearson(0, 10).low, clopper_pearson(10, 10).high) == (0.0, 1.0)


def test_an_untrained_model_leaks_nothing_and_an_overfit_one_does() -> None:
    def leak(task: sm.Task) -> sm.Row:
        results = [LossThreshold().evaluate(sm.fit(task, seed=s, device="cpu"), threat=None, seed=s, examples=500)
                   for s in range(3)]  # fmt: skip
        return LossThreshold.pool(task, [(LossThreshold(), result) for result in results])[0]

    quiet = replace(sm.task("digits_mlp"), recipe=sm.Recipe(epochs=1, learning_rate=1e-9))
    row = leak(quiet)
    assert row.low is not None
    assert row.high is not None
    assert row.low <= 0.5 <= row.high

    def noisy(rng: torch.Generator) -> sm.Splits:
        parts = sm.task("digits_mlp").data(rng)
        return sm.Splits(
            *(sm.Batch(part.inputs, torch.randint(10, (len(part),), generator=rng)) for part in parts.parts().values())
        )

    memorised = replace(sm.task("digits_mlp", hidden=128), data=noisy)
    row = leak(memorised)
    assert row.low is not None
    assert row.low > 0.7


def test_rates_need_enough_non_members() -> None:
    rows = LossThreshold().evaluate(tiny_victim("digits_mlp"), threat=None, seed=0, examples=100).rows
    assert rows[1].value is None
    assert "needs 1000 non-members" in rows[1].note


def test_labels_reveal_only_whether_the_answer_is_right() -> None:
    victim = tiny_victim("xor_perceptron")
    access = sm.BlackBox(victim.task, victim.served, "label")
    scores = LossThreshold(reveal="label").score(access, victim.splits.test, victim.splits.aux, torch.Generator())
    assert len(scores.unique()) <= 2
