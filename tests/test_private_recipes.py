"""What DP-SGD offers beside the plain step: persons, augmented copies, optimizers, secrecy, kills and resumes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secure_ml as sm
from defenses import DPSGD, WeightAveraging
from defenses.dp_sgd.accounting import epsilon_of
from defenses.dp_sgd.optimizer import PoissonPersons
from defenses.low_rank import LowRank, trained_share
from secure_ml.training import Plan, make_plan
from tests.laws import tiny_task

CPU = torch.device("cpu")


def weights(victim: sm.Victim) -> Tensor:
    return torch.cat([p.detach().flatten() for p in victim.module.parameters()])


def test_persons_are_the_unit_of_the_claim() -> None:
    """The rate is that of persons, whatever they rated, and the claim names them."""
    task = tiny_task("recommender_mf")
    victim = sm.fit(task, [DPSGD(noise=2.0, delta=1e-3, persons=True, records=4, batch_size=6)], seed=0, device="cpu")
    owner = victim.splits.owner
    assert owner is not None
    assert len(owner) == len(victim.splits.train)
    values = victim.claims[0].values
    persons = len(owner.unique())
    assert persons < len(owner)
    assert values["q"] == 6 / persons
    assert values["unit"] == "person"
    assert "of persons" in victim.claims[0].short
    sigma, steps = values["sigma"], values["steps"]
    assert values["epsilon"] == epsilon_of([(sigma, 6 / persons, steps)], 1e-3)[0]


def test_a_person_moves_the_sum_by_no_more_than_the_clip() -> None:
    """However many records are theirs: with and without one person, noise off, the sums are a clip apart at most."""
    task = replace(tiny_task("recommender_mf"), recipe=sm.Recipe(epochs=1, learning_rate=1.0, momentum=0.0))
    plan = make_plan(task, [DPSGD(noise=0.0, clip=0.01, delta=1e-3, persons=True, records=4, batch_size=20)], 0, CPU)
    plan.module.eval()  # without dropout; gradients are noted as in training
    batch = next(batch for batch in plan.loader if len(batch))
    assert len(batch) % 4 == 0
    moved = [_sum(plan, part) for part in (batch, batch.take(slice(4, None)))]
    assert (moved[0] - moved[1]).norm() <= 0.01 * (1 + 1e-4)
    assert moved[0].norm() > 0.01


def _sum(plan: Plan, batch: sm.Batch) -> Tensor:
    """The clipped sum over a batch, read off the engine."""
    plan.optimizer.zero_grad()
    plan.objective(plan.loss(plan.module, batch), len(batch)).backward()
    plan.gather()
    engine: Any = plan.optimizer
    return torch.cat([part.flatten() for part in engine.engine.take()])


def test_batches_of_persons() -> None:
    """Each brings as many records, all of them their own; those with few bring some again, those with many vary."""
    owner = torch.tensor([0] * 2 + [1] * 9 + [2] * 4).flip(0)
    sampler = PoissonPersons(owner, 4, 1.0, 3, torch.Generator().manual_seed(0))
    seen = []
    for index in sampler:
        assert (owner[index].view(3, 4) == torch.tensor([[0], [1], [2]])).all()
        assert all(len(row.unique()) == n for row, n in zip(index.view(3, 4), (2, 4, 4), strict=True))
        seen.append(index.view(3, 4)[1].sort().values)
    assert any(not torch.equal(seen[0], other) for other in seen[1:])


def test_persons_need_an_owner() -> None:
    with pytest.raises(sm.UsageError, match="does not say whose each example is"):
        sm.fit(tiny_task("digits_mlp"), [DPSGD(persons=True)], device="cpu")


def test_copies_are_averaged_before_they_are_clipped() -> None:
    """Equal copies change nothing; unequal ones are one example with the mean of their losses."""
    task = replace(tiny_task("digits_mlp"), recipe=sm.Recipe(epochs=2, batch_size=20, learning_rate=0.5))
    once, thrice = (sm.fit(task, [DPSGD(noise=0.5, multiplicity=k)], seed=0, device="cpu") for k in (1, 3))
    assert torch.allclose(weights(once), weights(thrice), atol=1e-5)
    assert once.claims == thrice.claims

    def shaken(batch: sm.Batch, rng: torch.Generator) -> sm.Batch:
        assert isinstance(batch.inputs, Tensor)
        return sm.Batch((batch.inputs + 0.3 * torch.rand(batch.inputs.shape, generator=rng)).clamp(0, 1), batch.target)

    plan = make_plan(replace(task, augment=shaken), [DPSGD(noise=0.0, clip=0.05, multiplicity=3)], 0, CPU)
    raw = plan.loader.data.take(slice(0, 5))
    batch = plan.transform(plan.module, raw)
    assert isinstance(batch.inputs, Tensor)
    assert len(batch) == 15
    assert not torch.equal(batch.inputs[0], batch.inputs[1])
    assert _sum(plan, batch).norm() <= 5 * 0.05 * (1 + 1e-4)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
def test_every_optimizer_is_kept(optimizer: Any) -> None:
    """Neutral settings train as without; the noise changes the weights and not the claim."""
    recipe = sm.Recipe(epochs=2, batch_size=20, optimizer=optimizer, learning_rate=0.01)
    task = replace(tiny_task("digits_mlp"), recipe=recipe)
    victims = [sm.fit(task, [DPSGD(noise=1.0)], seed=seed, device="cpu") for seed in (0, 1)]
    assert not torch.equal(*map(weights, victims))
    assert victims[0].claims[0].values["epsilon"] == victims[1].claims[0].values["epsilon"]


def test_averaged_weights_are_free() -> None:
    """An average of what is published costs no privacy: the claim is the same, the weights are calmer."""
    task = replace(tiny_task("digits_mlp"), recipe=sm.Recipe(epochs=8, batch_size=20, learning_rate=0.5))
    last, mean = (sm.fit(task, [DPSGD(noise=3.0), *more], seed=0, device="cpu") for more in ([], [WeightAveraging()]))
    assert last.claims == mean.claims
    assert weights(mean).norm() < weights(last).norm()


def test_secret_noise_is_never_the_same() -> None:
    task = tiny_task("digits_mlp")
    first, second = (sm.fit(task, [DPSGD(noise=1.0, epochs=1, secret=True)], seed=0, device="cpu") for _ in range(2))
    assert not torch.equal(weights(first), weights(second))
    assert "secret seed" in first.claims[0].statement


class KilledError(Exception):
    """The process ends here."""


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after any epoch and resumed: the same weights, so no noise twice, and the same epsilon."""
    from secure_ml import checkpoint

    monkeypatch.setattr(checkpoint.Checkpoint.__init__, "__defaults__", (0.0,))
    task = replace(tiny_task("digits_mlp"), recipe=sm.Recipe(epochs=4, batch_size=20, learning_rate=0.5))
    stack = [DPSGD(noise=1.0, batch_size=20)]
    whole = sm.fit(task, stack, seed=0, device="cpu")
    steps = whole.claims[0].values["steps"]
    assert isinstance(steps, int)
    for kill in range(1, steps, 3):
        seen = 0

        def observe(step: object) -> None:
            nonlocal seen
            seen += 1
            if seen == kill:  # noqa: B023
                raise KilledError

        folder = tmp_path / str(kill)
        with pytest.raises(KilledError):
            sm.fit(task, stack, seed=0, device="cpu", observers=[observe], checkpoint=folder)
        resumed = sm.fit(task, stack, seed=0, device="cpu", checkpoint=folder)
        assert torch.equal(weights(resumed), weights(whole))
        assert resumed.claims == whole.claims


def test_a_checkpoint_of_other_settings_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was spent under one noise is not taken for another's: the run starts anew, and its claim is its own."""
    from secure_ml import checkpoint

    monkeypatch.setattr(checkpoint.Checkpoint.__init__, "__defaults__", (0.0,))
    task = replace(tiny_task("digits_mlp"), recipe=sm.Recipe(epochs=3, batch_size=20, learning_rate=0.5))
    plain = sm.fit(task, [DPSGD(noise=2.0)], seed=0, device="cpu")

    def observe(step: Any) -> None:
        if step.epoch == 2:
            raise KilledError

    with pytest.raises(KilledError):
        sm.fit(task, [DPSGD(noise=1.0)], seed=0, device="cpu", observers=[observe], checkpoint=tmp_path / "c")
    other = sm.fit(task, [DPSGD(noise=2.0)], seed=0, device="cpu", checkpoint=tmp_path / "c")
    assert other.claims == plain.claims
    assert torch.equal(weights(other), weights(plain))


def test_partial_training_protects_what_is_trained() -> None:
    """With a frozen body the head alone is noisy, and the claim is as for all."""

    def build() -> nn.Module:
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        return module[1].requires_grad_(False) and module

    task = replace(tiny_task("digits_mlp"), build=build)
    victim = sm.fit(task, [DPSGD(noise=1.0)], seed=0, device="cpu")
    body = make_plan(task, [], 0, CPU).module[1]  # type: ignore[index]
    assert torch.equal(victim.module[1].weight, body.weight)  # type: ignore[index]
    assert victim.claims[0].values["sigma"] == 1.0


def test_low_rank_training_starts_as_the_module_and_moves_little() -> None:
    """The answers at the start are those of the module, and under DP-SGD only the narrow part and the head move."""
    task = tiny_task("text_transformer")
    plain = task.build()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = LowRank(rank=2).adapt(plain)
    tokens = task.draw(0).train.inputs[:5]  # type: ignore[index]
    assert torch.equal(plain.eval()(tokens), adapted.eval()(tokens))
    assert 0 < trained_share(adapted) < 0.5
    victim = sm.fit(task, [LowRank(rank=2), DPSGD(noise=0.5)], seed=0, device="cpu")
    start = make_plan(task, [LowRank(rank=2)], 0, CPU).module
    for (name, before), after in zip(start.named_parameters(), victim.module.parameters(), strict=True):
        assert torch.equal(before, after) != before.requires_grad, name


def test_low_rank_needs_dense_layers() -> None:
    with pytest.raises(sm.NotApplicable, match="the module has 1"):
        sm.fit(tiny_task("linear_regression"), [LowRank()], device="cpu")
