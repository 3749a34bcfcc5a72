"""The formulas of membership attacks against closed forms and naive loops.

Every reference meets a version of the formula that is wrong in one way, and must tell it from the right one.
"""

from collections.abc import Callable
from math import erf, log
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from torch import Tensor

from attacks.membership import _signals as signals
from attacks.membership._gaussian import Normals, fit_normals, log_ratio, log_tail
from attacks.membership.entropy import modified_entropy
from attacks.membership.lira import LiRA
from attacks.membership.rmia import balanced, beaten, from_outside
from secure_ml.batch import Batch
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


@pytest.mark.parametrize("variance", ["fixed", "per_example", "shrunk"])
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


def test_shrunk_variances_are_the_predictive_t_distribution() -> None:
    """Scale and freedom by the posterior of a normal with a prior worth four shadows; the values by scipy."""
    mine, _, theirs, saw = simulated(12, 40)
    found = LiRA(variance="shrunk").compare(mine, theirs, saw).numpy()
    tail = LiRA(variance="shrunk", online=False).compare(mine, theirs, saw).numpy()
    logs = {}
    for kind, mask in (("in", saw), ("out", ~saw)):
        groups = [theirs[mask[:, i], i, 0].numpy() for i in range(40)]
        pooled = sum(((g - g.mean()) ** 2).sum() for g in groups) / sum(len(g) - 1 for g in groups)
        for i, g in enumerate(groups):
            free = 4 + len(g) - 1
            square = (4 * pooled + ((g - g.mean()) ** 2).sum()) / free * (1 + 1 / len(g))
            logs[kind, i] = scipy_stats.t(free, g.mean(), square**0.5)
    x = mine[:, 0].numpy()
    assert found == pytest.approx(
        [logs["in", i].logpdf(x[i]) - logs["out", i].logpdf(x[i]) for i in range(40)], rel=1e-4
    )
    assert tail == pytest.approx([-logs["out", i].logsf(x[i]) for i in range(40)], rel=1e-4)
    swapped = LiRA(variance="shrunk").compare(mine, theirs, ~saw).numpy()
    assert swapped == pytest.approx(-found)
    assert found != pytest.approx(swapped, rel=0.1)


def test_shrunk_variances_find_more_with_few_shadows_than_variances_of_their_own() -> None:
    mine, member, theirs, saw = simulated(8, 4000, gap=1.5)

    def found(variance: Any) -> float:
        scores = LiRA(variance=variance).compare(mine, theirs, saw).numpy()
        return tpr_at(scores[member.numpy()], scores[~member.numpy()], 0.01)

    assert found("shrunk") > found("per_example") + 0.03


def test_variance_is_one_for_all_below_64_shadows() -> None:
    for shadows, same in ((62, "fixed"), (64, "per_example")):
        mine, _, theirs, saw = simulated(shadows, 50)
        found, expected = (LiRA(variance=v).compare(mine, theirs, saw) for v in ("auto", same))
        other = LiRA(variance={"fixed": "per_example", "per_example": "fixed"}[same]).compare(mine, theirs, saw)
        assert torch.equal(found, expected)
        assert not torch.allclose(found, other)


def test_two_shadows_and_equal_answers_leave_finite_scores() -> None:
    mine, _, theirs, saw = simulated(2, 10)
    for attack in (LiRA(), LiRA(online=False), LiRA(combine="multivariate"), LiRA(variance="shrunk")):
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


def test_what_privacy_allows_at_a_rate() -> None:
    """The two lines of the privacy region, which randomised response attains."""
    from benchmarks.membership import most

    assert most(0.01, 0.0, 0.0) == pytest.approx(0.01)
    assert most(0.01, log(8), 0.0) == pytest.approx(0.08)
    assert most(0.5, log(8), 0.0) == pytest.approx(1 - 0.5 / 8)
    rates = np.linspace(0, 1, 11)
    response = [min(8 * r, 1 - (1 - r) / 8) for r in rates]  # randomised response, right eight times of nine
    assert [most(r, log(8), 0.0) for r in rates] == pytest.approx(response)
    assert most(0.01, 1.0, 1e-5) < most(0.01, 3.0, 1e-5) < most(0.01, 8.0, 1e-5) <= 1
