"""Randomized smoothing against closed forms, the paper's own numbers, ART, and certificates that are broken."""

import math
import sys
import types
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
import torch
from scipy.stats import beta, binomtest
from torch import Tensor, nn

import secure_ml as sm
from attacks.certification.certified import Certified
from attacks.evasion.pgd import PGD
from defenses import DPSGD, LabelOnly, RandomizedSmoothing
from defenses._smoothing import SmoothedTwin, Smoothing, Votes, noisy
from secure_ml.batch import Batch
from secure_ml.randomness import generator
from secure_ml.training import make_plan
from secure_ml.victim import Victim
from tests.laws import CPU, tiny_task, tiny_victim

SIGMA, PHI = 0.5, NormalDist()
WEIGHT = torch.tensor([0.6, -0.8, 0.0])


class Halfspace(nn.Module):
    """Class 1 where ``w.x > 0``, ``|w| = 1``: smoothing it changes nothing, and radii are distances."""

    def __init__(self, two: bool = True) -> None:
        super().__init__()
        self.weight, self.two, self.rows = nn.Parameter(WEIGHT.clone()), two, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows = max(self.rows, len(x))
        logit = x @ self.weight
        return torch.stack([-logit, logit], 1) if self.two else logit


def proof(module: nn.Module | None = None, kind: type[Smoothing] = Smoothing, **settings: float) -> Smoothing:
    """A certificate of a half-space, quick unless told."""
    known = {"sigma": SIGMA, "n0": 20, "n": 200, "rows": 64, "alpha": 0.05, **settings}
    return kind(module=module or Halfspace(), surface=sm.Box(-10, 10), **known)


def points(distance: Tensor) -> Tensor:
    """Points ``(n, 3)`` at these distances from the hyperplane, on the side of class 1."""
    aside = torch.randn(len(distance), 3, generator=torch.Generator().manual_seed(1))
    aside = aside - (aside @ WEIGHT)[:, None] * WEIGHT
    return aside + distance[:, None] * WEIGHT


def too_many_wrong(certificate: Smoothing, distance: Tensor) -> bool:
    """Whether more radii exceed the exact ones than Binomial(n, alpha) allows, at one in a thousand."""
    classes, radii = certificate.certify(points(distance), torch.Generator().manual_seed(0))
    wrong = (radii > 0) & (((classes == 1) & (radii > distance)) | ((classes == 0) & (radii > 0)))
    return binomtest(int(wrong.sum()), len(wrong), certificate.alpha, alternative="greater").pvalue < 1e-3


NEAR = torch.full((600,), 0.0)
FAR = torch.linspace(0.05, 1.2, 600)


# -- the certificate --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.12, 0.25, 0.5, 1.0])
def test_radius_of_a_unanimous_vote(sigma: float) -> None:
    """The paper's ceiling: sigma * Phi^-1(alpha^(1/n)), 3.81 sigma at n = 100,000 and alpha = 0.001."""
    certificate = proof(sigma=sigma, n=100_000, alpha=0.001)
    assert certificate.radius(100_000) == pytest.approx(sigma * PHI.inv_cdf(0.001 ** (1 / 100_000)), rel=1e-9)
    assert certificate.radius(100_000) == pytest.approx(3.811 * sigma, rel=1e-3)


@pytest.mark.parametrize("count", [0, 50, 100, 112, 113, 150, 199, 200])
def test_radius_of_a_count(count: int) -> None:
    """The bound inverts the binomial's tail: at it, so many or more are met with probability alpha."""
    certificate = proof()
    bound = certificate.lower(count)
    if count:
        tail = binomtest(count, 200, bound, alternative="greater").pvalue
        assert tail == pytest.approx(0.05, rel=1e-6)
        assert bound == pytest.approx(float(beta.ppf(0.05, count, 200 - count + 1)))
    expected = SIGMA * PHI.inv_cdf(bound) if bound > 0.5 else -1
    assert certificate.radius(count) == expected
    assert (count >= certificate.needed) == (expected > 0)


@pytest.mark.parametrize("two", [True, False])
def test_radii_of_a_halfspace_are_below_its_distances_and_near_them(two: bool) -> None:
    certificate = proof(Halfspace(two), n=20_000, n0=100, rows=10_000, alpha=0.001)
    distance = torch.tensor([0.2, 0.5, 1.0])
    classes, radii = certificate.certify(points(distance), torch.Generator().manual_seed(0))
    assert torch.equal(classes, torch.ones(3, dtype=torch.long))
    assert bool((radii <= distance).all())
    assert bool((radii > distance - 0.06).all())


@pytest.mark.parametrize("distance", [NEAR, FAR], ids=["at the boundary", "away from it"])
def test_radii_are_wrong_no_more_often_than_alpha(distance: Tensor) -> None:
    assert not too_many_wrong(proof(), distance)


class Normal(Smoothing):
    """A bound from the normal approximation, whose interval is empty where all agree."""

    def lower(self, count: int) -> float:
        share = count / self.n
        return min(share - PHI.inv_cdf(1 - self.alpha) * math.sqrt(share * (1 - share) / self.n), 1 - 1e-9)


class Uncorrected(Smoothing):
    """The share itself, as if it were the probability."""

    def lower(self, count: int) -> float:
        return min(count / self.n, 1 - 1e-9)


class Reused(Smoothing):
    """The class is selected by the very copies that bound its probability."""

    def certify(self, inputs: Tensor, rng: torch.Generator, wanted: Tensor | None = None) -> tuple[Tensor, Tensor]:
        tallies = [self.tally(one, self.n, noise) for one, noise in self._examples(inputs, rng)]
        classes = torch.stack([tally.argmax() for tally in tallies])
        return classes, torch.tensor([self.radius(int(tally.max())) for tally in tallies])


@pytest.mark.parametrize(
    ("kind", "distance", "n"),
    [(Normal, FAR, 40), (Uncorrected, FAR, 200), (Reused, NEAR, 53)],  # at 53 the bound's size is 0.0492
    ids=["normal", "uncorrected", "reused"],
)
def test_a_broken_certificate_is_caught(kind: type[Smoothing], distance: Tensor, n: int) -> None:
    assert too_many_wrong(proof(kind=kind, n=n), distance)
    assert not too_many_wrong(proof(n=n), distance)


def test_certify_agrees_with_art(monkeypatch: pytest.MonkeyPatch) -> None:
    """ART's CERTIFY, given an exact binomial interval, certifies the same points at the same radii, but for noise."""
    from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing

    def interval(count: int, n: int, alpha: float, method: str) -> tuple[float, float]:
        assert method == "beta"
        return (float(beta.ppf(alpha / 2, count, n - count + 1)) if count else 0.0, 1.0)

    proportion = types.ModuleType("statsmodels.stats.proportion")
    proportion.proportion_confint = interval  # type: ignore[attr-defined]
    for name in ("statsmodels", "statsmodels.stats"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, proportion.__name__, proportion)
    victim = sm.fit(tiny_task("digits_mlp"), [RandomizedSmoothing(sigma=SIGMA)], seed=0, device="cpu")
    x, n = victim.splits.test.inputs, 2000
    certificate = replace(victim.certificates[0], n=n)
    theirs = PyTorchRandomizedSmoothing(
        certificate.module, nn.CrossEntropyLoss(), (1, 8, 8), 10, scale=SIGMA, alpha=0.001, sample_size=100,
        device_type="cpu",
    )  # fmt: skip
    np.random.seed(0)
    their_classes, their_radii = theirs.certify(x.numpy(), n=n, batch_size=1000)
    classes, radii = certificate.certify(x, torch.Generator().manual_seed(0))
    both = (radii > 0) & torch.tensor(their_classes >= 0)
    assert both.sum() >= 5
    assert ((radii > 0) == torch.tensor(their_classes >= 0)).float().mean() > 0.8
    assert torch.equal(classes[both], torch.tensor(their_classes)[both])
    spread = SIGMA * 5 * math.sqrt(0.25 * 2 / n) / PHI.pdf(PHI.inv_cdf(0.999))
    close = (radii[both] - torch.tensor(their_radii, dtype=torch.float32)[both]).abs()
    assert float(close.max()) < min(spread, 0.15)


def test_stopping_early_changes_no_outcome() -> None:
    """Neither giving up on what can no longer be certified, nor leaving out what was selected wrongly."""
    distance = torch.linspace(-0.3, 0.6, 60)
    x, target = points(distance), torch.ones(60, dtype=torch.long)
    eager = proof(rows=4)
    patient = proof(rows=4)
    patient.__dict__["needed"] = 0
    radii = eager.radii(Batch(x, target), torch.Generator().manual_seed(0))
    assert torch.equal(radii, patient.radii(Batch(x, target), torch.Generator().manual_seed(0)))
    classes, all_radii = patient.certify(x, torch.Generator().manual_seed(0))
    assert torch.equal(radii, torch.where(classes == 1, all_radii, -1.0))
    assert 10 < int((radii > 0).sum()) < 50


def test_memory_is_bounded_and_noise_is_the_examples_own() -> None:
    module = Halfspace()
    certificate = proof(module, n=150)
    x = points(torch.full((3,), 0.3))
    certificate.certify(x, torch.Generator().manual_seed(0))
    assert module.rows == 64
    drawn = [noise.initial_seed() for _, noise in certificate._examples(x, torch.Generator().manual_seed(0))]
    assert len(set(drawn)) == 3


def test_predict_abstains_at_the_boundary_and_nowhere_else() -> None:
    x = points(torch.tensor([0.0, 0.0, 0.0, 0.8, 0.8]))
    x[4] = -x[4]
    certificate = proof(n=400, alpha=0.001)
    assert certificate.predict(x, torch.Generator().manual_seed(0)).tolist() == [-1, -1, -1, 1, 0]


# -- what is served ---------------------------------------------------------------------------------------------------


def smoothed(**settings: float) -> Victim:
    """A quick smoothed victim on digits."""
    known = {"sigma": 0.3, "votes": 25, "n0": 20, "n": 100, **settings}
    return sm.fit(tiny_task("digits_cnn"), [RandomizedSmoothing(**known)], seed=0, device="cpu")


def test_equal_inputs_get_equal_answers_in_any_company() -> None:
    victim = smoothed()
    x = victim.splits.test.inputs
    together = victim.served(x)
    assert torch.equal(victim.served(x.flip(0)).flip(0), together)
    assert torch.allclose(torch.cat([victim.served(one) for one in x.split(1)]), together)
    assert victim.served(x[:0]).shape == (0, 10)


def test_answers_are_the_shares_of_the_votes() -> None:
    victim = smoothed()
    x, served = victim.splits.test.inputs[:4], victim.served
    assert isinstance(served, Votes)
    for one, answer in zip(x, served(x), strict=True):
        with torch.no_grad():
            votes = served.module(one + served.bank).argmax(1)
        shares = (torch.bincount(votes, minlength=10) + 1) / (25 + 10)
        assert torch.allclose(answer.exp(), shares)


def test_the_twin_is_the_mean_over_the_same_bank_and_so_is_its_gradient() -> None:
    victim = smoothed()
    batch, twin = victim.splits.test.take(slice(0, 3)), victim.module
    assert isinstance(twin, SmoothedTwin)
    found = sm.WhiteBox.open(victim).ascend(batch, victim.task.surfaces[0])
    x = batch.inputs.clone().requires_grad_()
    mean = torch.stack([twin.inner(x + noise).softmax(1) for noise in twin.bank]).mean(0)
    losses = nn.functional.nll_loss(mean.log(), batch.target, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    assert torch.allclose(found.losses, losses, atol=1e-5)
    assert torch.allclose(found.gradient, gradient, atol=1e-5)
    assert torch.allclose(found.outputs.exp(), mean, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_pieces_change_no_answer(rows: int) -> None:
    victim = smoothed()
    served, twin, x = victim.served, victim.module, victim.splits.test.inputs[:6]
    assert torch.allclose(Votes(served.module, served.surface, served.bank, rows)(x), served(x))
    in_pieces = SmoothedTwin(twin.inner, twin.surface, twin.bank, rows)
    assert torch.allclose(in_pieces(x), twin(x), atol=1e-5)


def test_one_logit() -> None:
    victim = sm.fit(tiny_task("logistic_regression"), [RandomizedSmoothing(sigma=0.1, votes=31)], seed=0, device="cpu")
    x = victim.splits.test.inputs
    assert victim.served(x).shape == victim.module(x).shape == (len(x),)
    with torch.no_grad():
        shares = torch.stack([victim.served.module(x + noise) > 0 for noise in victim.served.bank]).float().mean(0)
    assert torch.equal(victim.served(x) > 0, shares > 0.5)


def test_noise_lies_on_the_surface_alone() -> None:
    surface = sm.Box(path=("wave",))
    inputs = {"wave": torch.zeros(2, 3), "place": torch.ones(2)}
    copies = noisy(surface, inputs, torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    assert copies["wave"].tolist() == [[1, 2, 3], [4, 5, 6], [1, 2, 3], [4, 5, 6]]
    assert torch.equal(copies["place"], torch.ones(4))


def test_training_adds_noise_of_that_size_after_augmentation() -> None:
    task = replace(
        tiny_task("digits_cnn"), augment=lambda batch, rng: Batch(torch.ones_like(batch.inputs), batch.target)
    )
    plan = make_plan(task, [RandomizedSmoothing(sigma=0.5)], 0, CPU)
    noise = plan.transform(plan.module, plan.splits.train).inputs - 1
    assert abs(float(noise.std()) - 0.5) < 0.02
    assert abs(float(noise.mean())) < 0.02
    assert any(name.startswith("smoothing") for name in plan.state)


def test_a_victim_returns_from_disk_as_it_was(tmp_path: object) -> None:
    victim = smoothed()
    victim.save(f"{tmp_path}/model")
    again = Victim.load(f"{tmp_path}/model", victim.task, victim.defenses, device="cpu")
    x = victim.splits.test.inputs
    assert torch.equal(again.served(x), victim.served(x))
    assert torch.equal(again.module(x), victim.module(x))
    assert again.claims == victim.claims
    assert list(again.module.state_dict()) == list(tiny_victim("digits_cnn").module.state_dict())
    radii = [v.certificates[0].radii(v.splits.test, generator(0)) for v in (victim, again)]
    assert torch.equal(*radii)


def test_claim_and_certificate() -> None:
    victim = smoothed(alpha=0.01)
    (claim,), (certificate,) = victim.claims, victim.certificates
    assert (certificate.norm, certificate.alpha) == (sm.L2, 0.01)
    assert claim.stage == "serving"
    assert claim.values["norm"] == "L2"
    row = Certified().evaluate(victim, threat=sm.L2(0.1), seed=0, examples=20).rows[0]
    assert "at most 0.01" in row.note
    with pytest.raises(sm.NotApplicable, match="Linf"):
        Certified().evaluate(victim, threat=sm.Linf(0.1), seed=0, examples=20)


def test_without_noise_nothing_is_promised_and_nothing_changes() -> None:
    victim, bare = smoothed(sigma=0.0), tiny_victim("digits_cnn")
    assert not victim.certificates
    assert not victim.claims
    x = bare.splits.test.inputs
    assert torch.equal(victim.served(x).argmax(1), bare.served(x).argmax(1))


def test_sandwich_no_certified_class_is_refuted() -> None:
    """What PGD finds inside a certified radius is not, by PREDICT, of another class: at most Binomial(n, alpha) are."""
    task = replace(sm.task("digits_cnn"), recipe=sm.Recipe(epochs=8, batch_size=32))
    defense = RandomizedSmoothing(sigma=0.25, votes=15, n0=50, n=1000)
    victim = sm.fit(task, [defense], seed=0, device="cpu")
    certificate, test, threat = victim.certificates[0], victim.splits.test.take(slice(0, 60)), sm.L2(0.3)
    held = certificate.radii(test, torch.Generator().manual_seed(0)) >= threat.radius
    access = sm.WhiteBox.open(victim)
    changed = sm.families.evasion.attack_batch(PGD(steps=10), access, test, threat, torch.Generator().manual_seed(0))
    found = certificate.predict(changed.inputs, torch.Generator().manual_seed(1))
    refuted = held & (found >= 0) & (found != test.target)
    assert int(held.sum()) > 10
    assert binomtest(int(refuted.sum()), int(held.sum()), 2 * defense.alpha, alternative="greater").pvalue > 1e-3


# -- what it refuses --------------------------------------------------------------------------------------------------


def fit_tiny(name: str, *defenses: sm.Defense) -> Victim:
    return sm.fit(tiny_task(name), defenses, seed=0, device="cpu")


def test_stacks_it_refuses() -> None:
    tiny = RandomizedSmoothing.tiny()
    with pytest.raises(sm.UsageError, match="stands twice"):
        fit_tiny("digits_mlp", tiny, tiny)
    with pytest.raises(sm.UsageError, match="list it before defenses that change them"):
        fit_tiny("digits_mlp", LabelOnly(), tiny)
    victim = fit_tiny("digits_mlp", tiny, LabelOnly(), DPSGD.tiny())
    assert {claim.kind for claim in victim.claims} == {"certified robustness", "differential privacy"}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("fusion", r"may change \w*Tokens too"),
        ("text_rnn", r"text_rnn has \w*Tokens"),
        ("linear_regression", "one class an example"),
        ("dialogue", "runs parts of its module"),
        ("policy_game", "one class an example"),
    ],
)
def test_tasks_it_refuses(name: str, why: str) -> None:
    with pytest.raises(sm.NotApplicable, match=why):
        RandomizedSmoothing().check(tiny_task(name))


@pytest.mark.parametrize(
    "settings",
    [{"sigma": -1.0}, {"sigma": math.inf}, {"alpha": 0.0}, {"alpha": 0.5}, {"votes": 0}, {"n": 0}, {"n0": 0}],
)
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(sm.UsageError, match="smoothing needs"):
        RandomizedSmoothing(**settings)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    """The certificate's noise is drawn there; radii stay below the distances."""
    module = Halfspace().cuda()
    certificate = proof(module, n=20_000, n0=100, rows=10_000, alpha=0.001)
    distance = torch.tensor([0.2, 0.5, 1.0])
    classes, radii = certificate.certify(points(distance).cuda(), torch.Generator().manual_seed(0))
    assert classes.tolist() == [1, 1, 1]
    assert bool((radii.cpu() <= distance).all())
    assert bool((radii.cpu() > distance - 0.06).all())
