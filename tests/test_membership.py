"""Membership attacks against closed forms and naive loops, shadows against what they are said to see, overfit nets.

Every reference meets a version of the formula that is wrong in one way, and must tell it from the right one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from math import erf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from torch import Tensor

import secure_ml as sm
from attacks.membership import _signals as signals
from attacks.membership._gaussian import Normals, fit_normals, log_ratio, log_tail
from attacks.membership.blind import Blind, columns
from attacks.membership.boundary_distance import BoundaryDistance
from attacks.membership.calibrated_loss import CalibratedLoss
from attacks.membership.entropy import Entropy, modified_entropy
from attacks.membership.lira import LiRA
from attacks.membership.loss_threshold import LossThreshold
from attacks.membership.merlin import Merlin
from attacks.membership.rmia import RMIA, balanced, beaten, from_outside
from attacks.membership.shadow_classifier import ShadowClassifier
from secure_ml import shadows as shadow_models
from secure_ml.batch import Batch, join
from secure_ml.families.membership import Membership, Questioned
from secure_ml.outputs import Reveal
from secure_ml.roc import roc, true_positives
from secure_ml.shadows import Shadows, shadows_of, train_shadows
from secure_ml.stats import auc, together, tpr_at
from tests.laws import tiny_victim

# -- what is read off an answer ------------------------------------------------------------------------------------


def test_log_odds_are_those_of_the_softmax_and_do_not_round() -> None:
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    target = torch.arange(50) % 7
    p = logits.softmax(1)[torch.arange(50), target]
    expected = (p / (1 - p)).log()
    assert torch.allclose(signals.log_odds(logits, target), expected)
    assert torch.allclose(signals.log_odds(logits.log_softmax(1), target), expected)
    one = logits[:, 0]
    assert torch.allclose(signals.log_odds(one, torch.ones(50)), one)
    assert torch.allclose(signals.log_odds(one, torch.zeros(50)), -one)
    sure = torch.tensor([[60.0, 0.0], [70.0, 0.0]])
    assert signals.log_odds(sure, torch.zeros(2).long()).tolist() == [60.0, 70.0]


def test_modified_entropy_is_that_of_the_paper_and_does_not_round() -> None:
    logits = 3 * torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    target = torch.arange(40) % 5
    for row, y, found in zip(logits, target, modified_entropy(logits, target), strict=True):
        p = row.double().softmax(0)
        expected = -(1 - p[y]) * p[y].log() - sum(p[i] * (1 - p[i]).log() for i in range(5) if i != y)
        assert found == pytest.approx(float(expected), rel=1e-6)
    one = torch.tensor([0.3, -2.0, 5.0])
    two = torch.stack([torch.zeros(3), one], 1)
    assert torch.allclose(
        modified_entropy(one, torch.tensor([1, 0, 1])), modified_entropy(two, torch.tensor([1, 0, 1]))
    )
    wrong = modified_entropy(torch.tensor([[80.0, 0.0]]), torch.tensor([1]))
    assert float(wrong) == pytest.approx(160.0)  # (1 - p_y)(-log p_y) + p_0 (-log (1 - p_0)), both certain
    right = modified_entropy(torch.tensor([[50.0, 0.0], [60.0, 0.0]]), torch.tensor([0, 0]))
    assert 0 < right[1] < right[0] < 1e-18


def test_images_are_shifted_by_whole_pixels_the_original_first() -> None:
    images = torch.arange(9.0).reshape(1, 1, 3, 3)
    task = tiny_victim("digits_cnn").task
    seen = [look.inputs for look in signals.looks(task, Batch(images, torch.zeros(1)), 25, torch.Generator())]
    assert torch.equal(seen[0], images)
    assert len({tuple(look.flatten().tolist()) for look in seen}) == 25
    right = images.roll(1, 3)
    right[..., 0] = 0
    assert torch.equal(signals.shifted(images, 0, 1), right)
    assert any(torch.equal(look, right) for look in seen[1:5])


# -- the likelihood ratio ------------------------------------------------------------------------------------------


def two_sided(values: Tensor, outside: Normals) -> Tensor:
    """The published code's offline score: minus the density of the out-scores, on either side."""
    return -outside.log_density(values)


def below(values: Tensor, outside: Normals) -> Tensor:
    """The other side's tail."""
    return -torch.special.log_ndtr(outside.standard(values)[:, 0])


def test_offline_score_is_the_tail_of_a_normal() -> None:
    values = torch.linspace(-8, 45, 107, dtype=torch.double)[:, None]
    outside = Normals(torch.full_like(values, 1.5), torch.tensor([[[4.0]]], dtype=torch.double))
    expected = -scipy_stats.norm.logsf(values[:, 0].numpy(), loc=1.5, scale=2.0)

    def agrees(score: Callable[[Tensor, Normals], Tensor]) -> bool:
        return bool(np.allclose(score(values, outside).numpy(), expected, rtol=1e-6, atol=1e-12))

    assert agrees(log_tail)
    assert not agrees(two_sided)
    assert not agrees(below)
    found = log_tail(values, outside)
    assert bool((found[1:] > found[:-1]).all()), "scores far out are tied"


def test_a_two_sided_offline_score_loses_members() -> None:
    """Of N(2, 1) against N(0, 1), the tail has AUC Phi(sqrt 2); a density on both sides is less."""
    rng = torch.Generator().manual_seed(0)
    members, others = (torch.randn(20000, 1, generator=rng, dtype=torch.double) + d for d in (2.0, 0.0))
    outside = Normals(torch.zeros(20000, 1).double(), torch.ones(1, 1, 1).double())
    one, two = (auc(*(s(x, outside).numpy() for x in (members, others))) for s in (log_tail, two_sided))
    assert one == pytest.approx(0.5 * (1 + erf(2 / 2)), abs=0.006)
    assert two < one - 0.03


def simulated(shadows: int, examples: int, gap: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Confidences: each example has a level of its own; a model that saw it is ``gap`` above, with deviation 1.

    The victim's ``(B, 1)``, who is a member ``(B,)``, the shadows' ``(S, B, 1)``, and what they saw ``(S, B)``.
    """
    rng = torch.Generator().manual_seed(1)
    level = 5 * torch.randn(examples, generator=rng, dtype=torch.double)
    member = torch.arange(examples) % 2 == 0
    saw = torch.stack([torch.randperm(examples, generator=rng) < examples // 2 for _ in range(shadows // 2)])
    saw = torch.stack([saw, ~saw], 1).flatten(0, 1)
    seen = torch.cat([member[None], saw])
    values = level + gap * seen + torch.randn(seen.shape, generator=rng, dtype=torch.double)
    return values[0][:, None], member, values[1:, :, None], saw


def test_online_score_is_the_analytic_log_ratio() -> None:
    """With exact moments, log N(x; m + d, s) - log N(x; m, s) = d (x - m) / s^2 - d^2 / 2 s^2, and the sign matters."""
    mine, _, theirs, saw = simulated(512, 400)
    mean = torch.where(saw[..., None], torch.nan, theirs).nanmean(0)
    outside = Normals(mean, torch.full((1, 1, 1), 2.25, dtype=torch.double))
    inside = Normals(mean + 1.0, torch.full((1, 1, 1), 2.25, dtype=torch.double))
    expected = ((mine - mean) / 2.25 - 0.5 / 2.25)[:, 0]
    assert torch.allclose(log_ratio(mine, inside, outside), expected)
    assert not torch.allclose(log_ratio(mine, outside, inside), expected)
    narrow = Normals(mean, torch.full((1, 1, 1), 0.25, dtype=torch.double))
    each = [scipy_stats.norm.logpdf(mine.numpy(), m.mean.numpy(), s) for m, s in ((inside, 1.5), (narrow, 0.5))]
    assert np.allclose(log_ratio(mine, inside, narrow).numpy(), (each[0] - each[1])[:, 0])


@pytest.mark.parametrize("variance", ["fixed", "per_example"])
@pytest.mark.parametrize("online", [True, False])
def test_simulated_members_are_found_as_often_as_theory_says(variance: Any, online: bool) -> None:
    """The optimal AUC between N(d, 1) and N(0, 1) is Phi(d / sqrt 2), whatever each example's level; loss alone is near
    one half. Swapping in and out turns the AUC around."""
    mine, member, theirs, saw = simulated(256, 8000, gap=1.5)
    attack = LiRA(variance=variance, online=online, shadows=256)

    def found(saw: Tensor, sign: float = 1.0) -> float:
        scores = attack.compare(sign * mine, sign * theirs, saw if online else saw & False).numpy()
        return auc(scores[member.numpy()], scores[~member.numpy()])

    best = 0.5 * (1 + erf(1.5 / 2))
    if online:
        assert found(saw) == pytest.approx(best, abs=0.02)
        assert found(~saw) == pytest.approx(1 - best, abs=0.02)
    else:
        out_only = torch.where(saw[..., None], theirs - 1.5, theirs)  # as shadows that saw nothing would answer
        scores = attack.compare(mine, out_only, torch.zeros_like(saw)).numpy()
        assert auc(scores[member.numpy()], scores[~member.numpy()]) == pytest.approx(best, abs=0.02)
        scores = attack.compare(-mine, -out_only, torch.zeros_like(saw)).numpy()
        assert auc(scores[member.numpy()], scores[~member.numpy()]) < 0.2
    plain = mine[:, 0].numpy()
    assert auc(plain[member.numpy()], plain[~member.numpy()]) < best - 0.2


def test_fixed_deviation_is_that_within_examples_of_the_shadows_that_count() -> None:
    """Pooled around each example's own mean, out of the out-scores: not of all, and not of the in-scores."""
    rng = torch.Generator().manual_seed(0)
    saw = torch.arange(200)[:, None].expand(200, 300) % 2 == 0
    level = 5 * torch.randn(300, generator=rng, dtype=torch.double)
    noise = torch.randn(200, 300, generator=rng, dtype=torch.double)
    values = (level + torch.where(saw, 3.0 * noise, 0.5 * noise))[..., None]
    inside, outside = (fit_normals(values, mask, fixed=True) for mask in (saw, ~saw))
    assert float(outside.covariance) == pytest.approx(0.25, rel=0.05)
    assert float(inside.covariance) == pytest.approx(9.0, rel=0.05)
    naive = [values[~saw[:, i], i, 0].var().item() for i in range(300)]
    assert float(outside.covariance) == pytest.approx(np.mean(naive), rel=1e-4)
    own = fit_normals(values, ~saw, fixed=False)
    assert np.allclose(own.covariance[:, 0, 0].numpy(), naive, rtol=1e-4)
    assert np.allclose(own.mean[:, 0].numpy(), [values[~saw[:, i], i, 0].mean().item() for i in range(300)])


def test_several_queries_jointly_are_the_multivariate_normal() -> None:
    rng = torch.Generator().manual_seed(0)
    mix = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.3, 0.2, 0.9]], dtype=torch.double)
    values, mean = (torch.randn(20, 3, generator=rng, dtype=torch.double) for _ in range(2))
    covariance = mix @ mix.T
    inside, outside = Normals(mean + 0.5, covariance[None]), Normals(mean, covariance[None])
    density = scipy_stats.multivariate_normal.logpdf
    each = [
        density(v, m + 0.5, covariance) - density(v, m, covariance)
        for v, m in zip(values.numpy(), mean.numpy(), strict=True)
    ]
    assert np.allclose(log_ratio(values, inside, outside).numpy(), each)
    shift = torch.linalg.solve(covariance, torch.ones(3, dtype=torch.double))
    size = (shift @ covariance @ shift).sqrt()
    assert np.allclose(log_tail(values, outside), -scipy_stats.norm.logsf(((values - mean) @ shift / size).numpy()))
    drawn = torch.randn(40, 500, 3, generator=rng, dtype=torch.double) @ mix.T
    everyone = torch.ones(40, 500, dtype=torch.bool)
    assert torch.allclose(fit_normals(drawn, everyone, fixed=True).covariance[0], covariance, atol=0.03)
    own = fit_normals(drawn, everyone, fixed=False).covariance
    scale = own.diagonal(dim1=1, dim2=2).sqrt()
    assert torch.allclose(own[0, 0, 1] / scale[0, 0] / scale[0, 1], torch.tensor(0.8).double(), atol=0.03)


def test_variance_is_one_for_all_below_64_shadows() -> None:
    for shadows, same in ((62, "fixed"), (64, "per_example")):
        mine, _, theirs, saw = simulated(shadows, 50)
        found, expected = (LiRA(variance=v).compare(mine, theirs, saw) for v in ("auto", same))
        other = LiRA(variance={"fixed": "per_example", "per_example": "fixed"}[same]).compare(mine, theirs, saw)
        assert torch.equal(found, expected)
        assert not torch.allclose(found, other)


def test_two_shadows_and_equal_answers_leave_finite_scores() -> None:
    mine, _, theirs, saw = simulated(2, 10)
    for attack in (LiRA(), LiRA(online=False), LiRA(combine="multivariate"), LiRA(variance="per_example")):
        rest = saw if attack.online else torch.zeros_like(saw)
        assert bool(attack.compare(mine, theirs, rest).isfinite().all())
        assert bool(attack.compare(torch.zeros_like(mine), torch.zeros_like(theirs), rest).isfinite().all())
        assert bool(attack.compare(mine[:1], theirs[:, :1], rest[:, :1]).isfinite().all())


# -- the ratio to a population -------------------------------------------------------------------------------------


def naive_rmia(p: Tensor, out: Tensor, z: Tensor, z_out: Tensor, gamma: float, a: float) -> list[float]:
    """The share of z of which ``(p(x|t) / p(x)) / (p(z|t) / p(z))`` reaches gamma, two loops and no logarithm."""

    def general(outside: Tensor) -> float:
        return 0.5 * ((1 + a) * float(outside.mean()) + (1 - a))

    shares = []
    for i in range(len(p)):
        wins = 0
        for j in range(len(z)):
            ratio = (float(p[i]) / general(out[:, i])) / (float(z[j]) / general(z_out[:, j]))
            wins += ratio >= gamma
        shares.append(wins / len(z))
    return shares


@pytest.mark.parametrize(("gamma", "a"), [(1.0, 0.3), (2.0, 0.0), (1.3, 1.0)])
def test_rmia_is_the_naive_double_loop(gamma: float, a: float) -> None:
    rng = torch.Generator().manual_seed(0)
    p, z = (torch.rand(n, generator=rng, dtype=torch.double).clamp(0.02, 0.98) for n in (30, 40))
    out, z_out = (torch.rand(6, n, generator=rng, dtype=torch.double).clamp(0.02, 0.98) for n in (30, 40))
    nobody = torch.ones(6, 30, dtype=torch.bool), torch.ones(6, 40, dtype=torch.bool)
    x_ratio = p.log() - from_outside(out.log(), nobody[0], a)
    z_ratio = z.log() - from_outside(z_out.log(), nobody[1], a)
    expected = naive_rmia(p, out, z, z_out, gamma, a)

    def shares(x: Tensor, z: Tensor, gamma: float) -> list[float]:
        return ((beaten(x, z, gamma) * (len(z) + 1)).floor() / len(z)).tolist()

    assert shares(x_ratio, z_ratio, gamma) == pytest.approx(expected)
    assert len(set(expected)) > 5
    assert shares(-x_ratio, -z_ratio, gamma) != pytest.approx(expected)
    if gamma != 1:
        assert shares(x_ratio, z_ratio, 1 / gamma) != pytest.approx(expected)


def test_rmia_breaks_ties_by_the_ratio_and_reorders_nothing() -> None:
    x = torch.linspace(-3, 3, 101).double()
    scores = beaten(x, torch.tensor([-0.5, 0.5]).double(), 1.0)
    assert bool((scores[1:] > scores[:-1]).all())
    assert bool(((scores >= 0) & (scores < 1)).all())


def test_online_mean_weighs_those_that_saw_it_and_those_that_did_not_alike() -> None:
    p = torch.tensor([[0.9], [0.8], [0.1]]).double()
    saw = torch.tensor([[True], [True], [False]])
    assert float(balanced(p.log(), saw).exp()) == pytest.approx((0.85 + 0.1) / 2)
    assert float(from_outside(p.log(), ~saw, 0.3).exp()) == pytest.approx(0.5 * (1.3 * 0.1 + 0.7))


def test_calibrated_loss_leaves_out_the_shadows_that_saw_an_example() -> None:
    values = torch.tensor([[1.0, 10.0], [3.0, 30.0], [5.0, 50.0]])
    chosen = torch.tensor([[True, False], [True, True], [False, True]])
    assert signals.mean_where(values, chosen).tolist() == [2.0, 40.0]


# -- shadows -------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_shadows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow_models, "_LAST", type(shadow_models._LAST)())


def _rows(batch: Batch) -> set[bytes]:
    assert isinstance(batch.inputs, Tensor)
    return {row.numpy().tobytes() for row in batch.inputs}


def test_shadows_are_trained_on_what_they_are_said_to_have_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tiny_victim("digits_mlp")
    few = [part.take(slice(0, 30)) for part in (victim.splits.train, victim.splits.test)]
    batch = Batch(join([part.inputs for part in few]), join([part.target for part in few]))
    taught: list[Batch] = []
    fit_many = shadow_models.fit_many

    def watched(tasks: list[sm.Task], *args: Any, **kwargs: Any) -> list[sm.Victim]:
        taught.extend(task.draw(0).train for task in tasks)
        return fit_many(tasks, *args, **kwargs)

    monkeypatch.setattr(shadow_models, "fit_many", watched)
    for online in (True, False):
        taught.clear()
        shadows = train_shadows(victim, batch, 10, online=online)
        aux, members = victim.splits.aux, len(victim.splits.train)
        for given, saw, more in zip(taught, shadows.saw, shadows.saw_aux, strict=True):
            assert _rows(given) == _rows(batch.take(saw)) | _rows(aux.take(more))
            assert len(given) == int(saw.sum() + more.sum()) <= members
        assert bool((shadows.saw.sum(0) == (5 if online else 0)).all())
        assert bool((shadows.saw[0::2] ^ shadows.saw[1::2]).all()) is online
        assert bool((~shadows.saw_aux[:5]).any(0).all()), "no shadow leaves out some auxiliary example"
        assert all(len(shadow.splits.train) == 0 for shadow in shadows.victims)
        assert len({tuple(row.tolist()) for row in shadows.saw_aux}) == 10


def test_shadows_are_shared_and_grow(no_shadows: None, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tiny_victim("digits_mlp")
    trained: list[int] = []
    fit_many = shadow_models.fit_many
    monkeypatch.setattr(
        shadow_models, "fit_many", lambda tasks, *a, **k: trained.append(len(tasks)) or fit_many(tasks, *a, **k)
    )
    batch, other = (victim.splits.test.take(part) for part in (slice(0, 20), slice(20, 40)))

    def weights(shadows: Shadows) -> list[Tensor]:
        return [next(shadow.module.parameters()) for shadow in shadows.victims]

    few, many = shadows_of(victim, batch, 2), shadows_of(victim, batch, 6)
    assert trained == [2, 4]
    assert all(map(torch.equal, weights(few), weights(many)[:2]))
    assert torch.equal(many.saw[:2], few.saw)
    alone = train_shadows(victim, batch, 6)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(weights(alone), weights(many), strict=True))
    trained.clear()
    shadows_of(victim, batch, 4)
    assert not trained
    shadows_of(victim, batch, 2, online=False)
    again = shadows_of(victim, other, 2, online=False)
    assert trained == [2]
    assert again.saw.shape == (2, 20)
    shadows_of(victim, other, 2)
    shadows_of(replace(victim, task=replace(victim.task)), other, 2)  # the same by name, perhaps not in deed
    assert trained == [2, 2, 2]


def test_attacks_meet_the_same_examples_and_shadows(no_shadows: None) -> None:
    victim = tiny_victim("digits_mlp")
    seen: list[Tensor] = []

    @dataclass(frozen=True, kw_only=True)
    class Looks(Membership):
        reveal: Reveal = "logits"
        name: str = ""

        def score(self, access: Questioned, batch: Batch, aux: Batch, rng: torch.Generator) -> Tensor:
            assert isinstance(batch.inputs, Tensor)
            seen.append(batch.inputs)
            return batch.inputs.flatten(1).sum(1)

    for name in ("one", "two"):
        result = Looks(name=name).evaluate(victim, threat=None, seed=0, examples=20)
    assert torch.equal(*seen)
    members, others = (
        part.inputs[:20].flatten(1).sum(1).double() for part in (victim.splits.train, victim.splits.nonmembers)
    )
    assert torch.allclose(result.evidence["members"], members)
    assert torch.allclose(result.evidence["others"], others)


def test_shadows_are_asked_behind_the_victims_defenses() -> None:
    from defenses.label_only import LabelOnly

    victim = sm.fit(tiny_victim("digits_mlp").task, [LabelOnly()], seed=0, device="cpu")
    batch = victim.splits.test.take(slice(0, 10))
    access = Questioned(victim, "probabilities", batch)
    shadow = access.shadows(2).victims[0]
    assert all(len(row.unique()) == 2 for row in access.like(shadow)(batch.inputs))
    assert access.queries == 0


@pytest.mark.parametrize("count", [0, 1, 3])
def test_shadows_come_in_pairs(count: int) -> None:
    victim = tiny_victim("digits_mlp")
    with pytest.raises(sm.UsageError, match="come in pairs"):
        shadows_of(victim, victim.splits.test, count)
    without = replace(victim, splits=replace(victim.splits, aux=victim.splits.aux.take(slice(0, 0))))
    with pytest.raises(sm.UsageError, match="need auxiliary data"):
        shadows_of(without, victim.splits.test, 2, online=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LiRA(queries=0), "1 to 25 queries"),
        (lambda: LiRA(variance="none"), "no variance is called 'none'"),  # type: ignore[arg-type]
        (lambda: LiRA(reveal="all"), "no way of answering"),  # type: ignore[arg-type]
        (lambda: RMIA(gamma=0.0), "gamma above 0"),
        (lambda: RMIA(a=1.5), r"a in \[0, 1\]"),
        (lambda: RMIA(population=0), "population of at least 1"),
        (lambda: Merlin(noise=0.0), "noise above 0"),
        (lambda: Merlin(queries=0), "at least 1 query"),
        (lambda: BoundaryDistance(queries=3), "at least 10 queries"),
        (lambda: BoundaryDistance(search="far"), "no search"),  # type: ignore[arg-type]
        (lambda: ShadowClassifier(rounds=0), "at least 1 round"),
        (lambda: Blind(trees=0), "at least 1 tree"),
    ],
)
def test_settings_out_of_range(make: Callable[[], object], message: str) -> None:
    with pytest.raises(sm.UsageError, match=message):
        make()


# -- end to end ----------------------------------------------------------------------------------------------------


def mislabelled(rng: torch.Generator) -> sm.Splits:
    """Digits, half of them with a label drawn by lot: what cannot be learned can only be remembered."""
    parts = sm.task("digits_mlp").data(rng)
    made = {}
    for name, part in parts.parts().items():
        assert isinstance(part.target, Tensor)
        drawn = torch.randint(10, part.target.shape, generator=rng)
        lot = torch.rand(part.target.shape, generator=rng) < 0.5
        made[name] = Batch(part.inputs, torch.where(lot, drawn, part.target)).take(slice(0, 300))
    return replace(parts, **made)


@cache
def overfit() -> sm.Victim:
    recipe = sm.Recipe(epochs=150, batch_size=100, learning_rate=0.02, optimizer="Adam")
    task = replace(sm.task("digits_mlp", hidden=64), data=mislabelled, recipe=recipe)
    return sm.fit(task, seed=0, device="cpu")


@cache
def untrained() -> sm.Victim:
    return sm.fit(replace(sm.task("digits_mlp"), recipe=sm.Recipe(epochs=1, learning_rate=1e-9)), seed=0, device="cpu")


ALL: list[Membership] = [
    LossThreshold(),
    Entropy(),
    Merlin(noise=0.05, queries=40),
    BoundaryDistance(queries=100),
    BoundaryDistance(search="noise", queries=100),
    CalibratedLoss(shadows=8),
    ShadowClassifier(shadows=8, rounds=30),
    LiRA(shadows=8),
    LiRA(shadows=8, online=False),
    LiRA(shadows=8, queries=3, combine="multivariate"),
    RMIA(shadows=8),
    RMIA(shadows=8, online=True),
]


@cache
def leak(attack: Membership) -> tuple[sm.Row, ...]:
    return attack.evaluate(overfit(), threat=None, seed=0, examples=300).rows


@pytest.mark.parametrize("attack", ALL, ids=repr)
def test_an_overfit_model_leaks(attack: Membership) -> None:
    row = leak(attack)[0]
    assert row.low is not None
    assert row.low > 0.54, row


def test_shadows_find_more_than_the_loss_alone() -> None:
    alone = leak(LossThreshold())[0].value
    for attack in (LiRA(shadows=8), RMIA(shadows=8), RMIA(shadows=8, online=True)):
        found = leak(attack)[0].value
        assert found is not None
        assert alone is not None
        assert found > alone + 0.03


@pytest.mark.parametrize("attack", [*ALL, Blind(trees=20)], ids=repr)
def test_an_untrained_model_leaks_nothing(attack: sm.Attack) -> None:
    row = attack.evaluate(untrained(), threat=None, seed=0, examples=500).rows[0]
    assert row.low is not None
    assert row.high is not None
    assert row.low <= 0.5 <= row.high, row


@pytest.mark.parametrize("attack", [LiRA(shadows=8), RMIA(shadows=8, online=True)], ids=repr)
def test_a_sign_error_shows_end_to_end(attack: Membership, monkeypatch: pytest.MonkeyPatch) -> None:
    right = signals.log_odds
    monkeypatch.setattr(signals, "log_odds", lambda outputs, target: -right(outputs, target))
    found = attack.evaluate(overfit(), threat=None, seed=0, examples=300).rows[0].high
    assert found is not None
    assert found < 0.5 or isinstance(attack, LiRA)  # a ratio of densities does not mind which way is up


def test_swapped_shadows_show_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Questioned.shadows

    def swapped(self: Questioned, count: int, *, online: bool = True) -> Shadows:
        given = right(self, count, online=online)
        return replace(given, saw=~given.saw)

    monkeypatch.setattr(Questioned, "shadows", swapped)
    found = LiRA(shadows=8).evaluate(overfit(), threat=None, seed=0, examples=300).rows[0].high
    assert found is not None
    assert found < 0.4


# -- rows, curves, and whether the split is fair -------------------------------------------------------------------


def test_rates_are_reported_where_ten_false_positives_are_allowed() -> None:
    victim = tiny_victim("digits_mlp")
    rng = torch.Generator().manual_seed(0)
    for n, known in ((900, 0), (1000, 1), (10_000, 2)):
        pile = Batch(torch.rand(n, 1, 8, 8, generator=rng), torch.randint(10, (n,), generator=rng))
        large = replace(victim, splits=replace(victim.splits, train=pile, others=pile))
        rows = LossThreshold().evaluate(large, threat=None, seed=0, examples=n).rows
        assert [row.measure for row in rows] == ["membership AUC", "TPR at 1 % FPR", "TPR at 0.1 % FPR"]
        assert sum(row.value is not None for row in rows[1:]) == known
        for row, rate in zip(rows[1:], (0.01, 0.001), strict=True):
            if row.value is not None:
                assert row.value == pytest.approx(rate, rel=0.01)  # the same examples on both sides
                assert row.low is not None
                assert row.high is not None
                assert row.low <= row.value <= row.high


def test_the_best_of_several_attacks_says_that_it_was_chosen() -> None:
    victim = tiny_victim("digits_mlp")
    attacks = [LossThreshold(), Entropy(), Merlin.tiny()]
    attempts = [(attack, attack.evaluate(victim, threat=None, seed=0, examples=40)) for attack in attacks]
    rows = LossThreshold.pool(victim.task, attempts)
    assert "best of 3 attacks" in rows[0].note
    assert rows[0].value == max(result.rows[0].value or 0 for _, result in attempts)
    assert not LossThreshold.pool(victim.task, attempts[:1])[0].note


def test_a_roc_is_the_rate_at_each_of_its_points() -> None:
    rng = np.random.default_rng(0)
    for decimals in (10, 1, 0):
        members, others = rng.normal(1, 1, 300).round(decimals), rng.normal(0, 1, 1000).round(decimals)
        rates = np.geomspace(0.001, 1, 40)
        assert true_positives(members, others, rates) == pytest.approx([tpr_at(members, others, r) for r in rates])


def test_the_roc_of_two_normals_lies_in_its_interval() -> None:
    rng = np.random.default_rng(1)
    victims = [(rng.normal(1, 1, 1000), rng.normal(0, 1, 1000)) for _ in range(5)]
    found = roc(victims, points=20)
    assert found.fpr[0] == pytest.approx(10 / 5000)
    expected = scipy_stats.norm.sf(scipy_stats.norm.isf(found.fpr) - 1)
    assert bool(((found.low <= expected) & (expected <= found.high)).mean() > 0.8)
    assert bool((found.tpr == np.maximum.accumulate(found.tpr)).all())
    assert found.tpr == pytest.approx(expected, abs=0.04)
    with pytest.raises(sm.UsageError, match="needs more non-members than 10"):
        roc([(np.zeros(10), np.zeros(10))])


def test_rocs_are_drawn_on_logarithmic_axes(tmp_path: Path) -> None:
    from experiments._roc import draw_rocs

    rng = np.random.default_rng(1)
    found = roc([(rng.normal(1, 1, 200), rng.normal(0, 1, 200))], points=10, rounds=20)
    draw_rocs({"none": {"LiRA": found}, "DPSGD()": {"LiRA": found}}, tmp_path / "roc.png", "digits")
    assert (tmp_path / "roc.png").stat().st_size > 10_000
    with pytest.raises(sm.UsageError, match="no ROC"):
        draw_rocs({}, tmp_path / "roc.png", "digits")


def test_a_split_that_needs_no_model_is_found() -> None:
    """Members that are a little brighter than others: every attack's AUC on them would be worth nothing."""
    victim = untrained()
    train = victim.splits.train
    assert isinstance(train.inputs, Tensor)
    bright = Batch((train.inputs + 0.1).clamp(max=1), train.target)
    skewed = replace(victim, splits=replace(victim.splits, train=bright))
    attack = Blind(trees=20)
    result = attack.evaluate(skewed, threat=None, seed=0, examples=300)
    assert result.rows[0].low is not None
    assert result.rows[0].low > 0.9
    assert "is no leak" in Blind.pool(victim.task, [(attack, result)])[0].note
    fair = attack.evaluate(victim, threat=None, seed=0, examples=300)
    assert not Blind.pool(victim.task, [(attack, fair)])[0].note


def test_words_are_counted_where_inputs_are_symbols() -> None:
    table = columns(Batch(torch.tensor([[3, 3, 5], [5, 1, 0]]), torch.tensor([1, 0])))
    assert table[0, 3 + 3] == 2
    assert table[:, 3 + 5].tolist() == [1, 1]
    assert table[:, -1].tolist() == [1, 0]


def test_what_has_no_classes_is_judged_by_its_loss() -> None:
    victim = tiny_victim("linear_regression")
    batch = victim.splits.test.take(slice(0, 5))
    access = sm.BlackBox(victim.task, victim.served)
    assert torch.allclose(signals.confidence(access, batch), -victim.task.loss(victim.served, batch).double())
    for attack in (Entropy(), BoundaryDistance()):
        with pytest.raises(sm.NotApplicable):
            attack.check(victim.task, None)
    with pytest.raises(sm.NotApplicable, match="changes Box inputs"):
        Merlin().check(tiny_victim("text_embedding").task, None)


def test_noise_stays_in_the_box() -> None:
    victim = untrained()
    access = Questioned(victim, "label", victim.splits.test.take(slice(0, 5)))
    batch = victim.splits.test.take(slice(0, 200))
    moved = signals.noisy(access.task, batch, 0.5, torch.Generator().manual_seed(0))
    victim.task.surfaces[0].check(moved.inputs)


def test_a_subset_of_mnist_is_one_or_the_whole() -> None:
    assert repr(sm.task("mnist_cnn", examples=100)) == "mnist_cnn(examples=100)"
    for wrong in ({"examples": 0}, {"examples": 28_001}, {"examples": 100, "whole": True}):
        with pytest.raises(sm.UsageError, match="mnist_cnn"):
            sm.task("mnist_cnn", **wrong)


@pytest.mark.data
def test_a_subset_of_mnist_has_as_many_members_as_others() -> None:
    parts = sm.task("mnist_cnn", examples=10_000).draw(0)
    sizes = {name: len(part) for name, part in parts.parts().items()}
    assert sizes == {"train": 10_000, "validation": 3000, "test": 10_000, "aux": 37_000, "others": 10_000}


def test_victims_can_be_pooled_though_their_populations_differ() -> None:
    """Three victims on which the same ratio means the same; with a large gamma the count of outliers among z is all."""
    rng = torch.Generator().manual_seed(0)
    pairs: dict[float, list[tuple[Any, Any]]] = {1.0: [], 2.0: []}
    for outliers in (5, 25, 60):
        members, others, z = (0.1 * torch.randn(500, generator=rng).double() + shift for shift in (0.1, 0.0, 0.0))
        z[:outliers] -= 3.0
        for gamma, found in pairs.items():
            found.append((beaten(members, z, gamma).numpy(), beaten(others, z, gamma).numpy()))
    for gamma, found in pairs.items():
        alone = np.mean([auc(*pair) for pair in found])
        assert (alone - auc(*together(found)) > 0.05) == (gamma == 2.0)
