"""Ownership: p-values against closed forms and games, and tests that accuse the innocent, which the control catches."""

import dataclasses
import hashlib
import hmac
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import binom, binomtest, kstest, t, ttest_ind
from torch import Tensor

import secure_ml as sm
from attacks.ownership.dataset_inference import DatasetInference, _ridge
from attacks.ownership.fingerprint import Fingerprint
from attacks.ownership.watermark_test import WatermarkTest
from defenses.dawn import DAWN
from defenses.entangled_watermark import EntangledWatermark, soft_nearest_neighbour
from defenses.label_only import LabelOnly
from secure_ml.access import BlackBox
from secure_ml.batch import Batch
from secure_ml.families.ownership import Evidence, Owner, Ownership, binomial_p, halves, judge, predictive_p
from tests.laws import tiny_task, tiny_victim

RNG = np.random.default_rng(0)


@cache
def bare() -> sm.Victim:
    return sm.fit(sm.task("digits_cnn"), seed=0, device="cpu")


@cache
def marked(share: float = 0.1) -> sm.Victim:
    """Digits behind a watermark that marks many answers, as there are few questions."""
    mark = DAWN(share=share, key=7)
    return dataclasses.replace(mark.serve(bare()), defenses=(mark,))


# -- p-values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("agree", "n", "chance"), [(0, 10, 0.1), (3, 10, 1 / 9), (10, 10, 0.5), (7, 400, 0.01)])
def test_the_binomial_tail_is_scipys(agree: int, n: int, chance: float) -> None:
    answers = torch.arange(n) < agree
    expected = binomtest(agree, n, chance, alternative="greater").pvalue
    by_hand = sum(binom.pmf(k, n, chance) for k in range(agree, n + 1))
    assert binomial_p(answers, torch.ones(n, dtype=torch.bool), chance) == pytest.approx(expected, rel=1e-9)
    assert expected == pytest.approx(by_hand, rel=1e-9)


def test_one_more_observation_is_students() -> None:
    """The t test for a new observation is the two-sample test with a sample of one."""
    rates = RNG.normal(0.3, 0.1, 8)
    for rate in (0.1, 0.3, 0.7):
        expected = ttest_ind([rate], rates, alternative="greater").pvalue
        assert predictive_p(rate, list(rates), 10**9) == pytest.approx(expected, rel=1e-6)
    assert predictive_p(0.9, [0.5, 0.5, 0.5], 100) == pytest.approx(t.sf(0.4 / (0.0025 * 4 / 3) ** 0.5, 2))
    with pytest.raises(sm.UsageError, match="no fewer than 2"):
        predictive_p(0.5, [0.5], 10)


@pytest.mark.parametrize("shared", [0.0, 1 / 3])
def test_p_is_uniform_for_one_more_of_the_same(shared: float) -> None:
    """Models whose data do all the difference, and share some of it: one on other data is one more of them."""
    p = []
    for _ in range(3000):
        common = RNG.normal(0, shared**0.5)
        rates = 0.5 + 0.05 * (common + RNG.normal(0, (1 - shared) ** 0.5, 12))
        p.append(predictive_p(0.5 + 0.05 * RNG.normal(), list(rates), 10**9, shared))
    assert kstest(p, "uniform").statistic < 0.035


def test_ignoring_what_is_shared_accuses_too_often() -> None:
    p = []
    for _ in range(3000):
        rates = 0.5 + 0.05 * (RNG.normal(0, 0.5**0.5) + RNG.normal(0, 0.5**0.5, 12))
        p.append(predictive_p(0.5 + 0.05 * RNG.normal(), list(rates), 10**9, 0.0))
    assert np.mean(np.array(p) < 0.01) > 0.03


def test_dawn_is_exact_whatever_the_suspect() -> None:
    """Over keys, suspects who answer truly, always alike or at random agree no more often than 1 / (K - 1)."""
    test = marked().splits.test
    truth = test.target
    suspects = {
        "true": truth,
        "constant": torch.full_like(truth, 3),
        "next": (truth + 1) % 10,
        "random": torch.tensor(RNG.integers(0, 10, len(truth))),
    }
    agreed: dict[str, list[int]] = {name: [] for name in suspects}
    for key in range(20):
        mark = DAWN(share=0.4, key=key)
        evidence = mark.marks(Owner(mark.serve(bare()), test.inputs, 0))
        assert evidence.chance == 1 / 9
        place = [i for i, digest in enumerate(mark.digests(test.inputs)) if mark.marked(digest)]
        assert len(place) == len(evidence.questions)
        for name, answers in suspects.items():
            agreed[name] += [int((answers[place] == evidence.questions.target).sum()), len(place)]
    for name, counts in agreed.items():
        hits, asked = sum(counts[::2]), sum(counts[1::2])
        assert asked > 3000
        assert binomtest(hits, asked, 1 / 9, alternative="greater").pvalue > 1e-3, name


# -- DAWN -------------------------------------------------------------------------------------------------------------


def test_dawn_by_hand() -> None:
    """Which answers are marked, and how, by a plain loop over the standard library."""
    victim, test = marked(), marked().splits.test
    plain, served = victim.served.inner(test.inputs), victim.served(test.inputs)
    changed = 0
    for i, image in enumerate(test.inputs):
        grid = (image * 16).round().to(torch.int32).numpy().tobytes()
        digest = hmac.new(bytes([7]), grid, hashlib.sha256).digest()
        expected = plain[i].clone()
        if int.from_bytes(digest[:8], "big") / 2**64 < 0.1:
            first = int(plain[i].argmax())
            second = (first + 1 + int.from_bytes(digest[8:16], "big") % 9) % 10
            expected[first], expected[second] = plain[i, second], plain[i, first]
            assert int(served[i].argmax()) == second != first
            changed += 1
        assert torch.equal(served[i], expected)
    assert 30 < changed < 90


def test_dawn_answers_alike_alone_and_in_a_batch_and_near() -> None:
    served, inputs = marked().served, marked().splits.test.inputs[:40]
    whole = served(inputs)
    assert torch.allclose(whole, torch.cat([served(inputs[i : i + 1]) for i in range(40)]), atol=1e-5)
    assert torch.equal(served(inputs + 0.01).argmax(1) != whole.argmax(1), torch.zeros(40, dtype=torch.bool))
    assert len(served(inputs[:0])) == 0


def test_dawn_keeps_each_question_once() -> None:
    victim = marked()
    asked = torch.cat([victim.splits.aux.inputs] * 3)
    once = DAWN(share=0.1, key=7).marks(Owner(victim, victim.splits.aux.inputs, 0))
    thrice = DAWN(share=0.1, key=7).marks(Owner(victim, asked, 0))
    assert len(once.questions) == len(thrice.questions) > 20
    other = DAWN(share=0.1, key=8).marks(Owner(victim, victim.splits.aux.inputs, 0))
    assert {r.numpy().tobytes() for r in once.questions.inputs} != {r.numpy().tobytes() for r in other.questions.inputs}


def test_dawn_behind_labels_keeps_what_was_answered() -> None:
    labels = sm.fit(tiny_task("digits_cnn"), [DAWN(share=0.3), LabelOnly()], seed=0, device="cpu")
    evidence = DAWN(share=0.3).marks(Owner(labels, labels.splits.aux.inputs, 0))
    assert len(evidence.questions) > 0
    assert torch.equal(labels.served(evidence.questions.inputs).argmax(1), evidence.questions.target)


def test_dawn_refuses_two_classes() -> None:
    with pytest.raises(sm.NotApplicable, match="at least 3 classes"):
        sm.fit(tiny_task("mnist_binary_dense"), [DAWN()], device="cpu")
    with pytest.raises(sm.UsageError, match="share between 0 and 1"):
        DAWN(share=0.0)


def test_a_stolen_copy_is_accused_and_others_are_not() -> None:
    attack = WatermarkTest(queries=250, copies=2, independents=12)
    result = attack.evaluate(marked(), threat=None, seed=0, examples=300)
    power, wrong, *_, verdict = result.rows
    assert power.value == 1.0
    assert wrong.value == 0.0
    assert float(result.evidence["copies"].max()) < 1e-6
    assert verdict.note.startswith("PASS")
    pooled = Ownership.pool(marked().task, [(attack, result), (attack, result)])
    assert [row.measure for row in pooled] == [row.measure for row in result.rows]
    assert (pooled[0].n, pooled[1].n) == (4, 24)
    assert all(row.pooled for row in pooled)


# -- the entangled trigger ---------------------------------------------------------------------------------------------


def test_soft_nearest_neighbour_by_a_loop() -> None:
    points, group = torch.tensor(RNG.normal(size=(7, 3))), torch.tensor([0, 0, 1, 1, 1, 0, 0]).bool()
    far = torch.cdist(points, points).square()
    weights = (-far / far.mean()).exp()
    expected = []
    for i in range(7):
        others = [j for j in range(7) if j != i]
        own = sum(weights[i, j] for j in others if group[j] == group[i])
        surprise = -torch.log(own / sum(weights[i, j] for j in others))
        mixed = np.log(6 / sum(bool(group[j] == group[i]) for j in others))
        expected.append(min(float(surprise), mixed))
    assert soft_nearest_neighbour(points, group).numpy() == pytest.approx(np.array(expected), rel=1e-9)
    assert torch.equal(soft_nearest_neighbour(points, torch.zeros(7).bool()), torch.zeros(7).double())
    assert len(soft_nearest_neighbour(points[:1], group[:1])) == 1
    scaled = soft_nearest_neighbour(100 * points, group)
    assert torch.allclose(scaled, soft_nearest_neighbour(points, group)), "it could be lowered by growing"


def test_the_victim_follows_its_trigger_and_costs_little() -> None:
    mark = EntangledWatermark(references=8)
    victim = sm.fit(sm.task("digits_cnn"), [mark], seed=0, device="cpu")
    evidence = mark.marks(Owner(victim, victim.splits.aux.inputs, 0))
    answers = victim.served(evidence.questions.inputs).argmax(1)
    assert float((answers == 7).float().mean()) > 0.9
    assert max(evidence.rates) < 0.4
    suspect = BlackBox(victim.task, victim.served, "label")
    assert WatermarkTest().accuse(evidence, suspect, torch.Generator()) < 1e-5, "the very weights"
    assert victim.score().value > 0.9


def test_the_trigger_does_not_meet_privacy() -> None:
    from defenses.dp_sgd import DPSGD

    for stack in ([EntangledWatermark.tiny(), DPSGD.tiny()], [DPSGD.tiny(), EntangledWatermark.tiny()]):
        with pytest.raises(sm.UsageError, match="does not go with DP-SGD"):
            sm.fit(tiny_task("digits_mlp"), stack, device="cpu")


# -- fingerprints and data sets ----------------------------------------------------------------------------------------


def test_a_fingerprint_knows_the_victim_itself() -> None:
    task, victim = bare().task, bare()
    attack = Fingerprint(models=12)
    rng = torch.Generator().manual_seed(0)
    evidence = attack.collect(Owner(victim, victim.splits.aux.inputs, 0), rng)
    assert len(evidence.questions) > 50
    assert len(evidence.rates) == 8
    assert attack.accuse(evidence, BlackBox(task, victim.served, "label"), rng) < 0.02
    assert attack.accuse(evidence, BlackBox(task, lambda x: torch.eye(10)[[3] * len(x)], "label"), rng) > 0.1
    members = victim.splits.train.inputs.flatten(1)
    reach = torch.cdist(evidence.questions.inputs.flatten(1), members, p=torch.inf).amin(1)
    assert float(reach.max()) <= 0.25 + 1e-5


def test_the_walk_measures_the_distance_to_a_plane() -> None:
    """A suspect that looks at the mean of its input: along a direction d it changes after (edge - mean) / mean(d)."""
    attack = DatasetInference(directions=4, steps=400, length=0.005)
    task = dataclasses.replace(tiny_task("digits_cnn"), name="plane")
    inputs = torch.full((3, 1, 8, 8), 0.5)

    def plane(x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        return torch.stack([torch.zeros_like(mean), mean - 0.502], 1)

    from attacks.ownership.dataset_inference import _directions

    walked = attack._walk(BlackBox(task, plane, "label"), Batch(inputs, torch.zeros(3)))
    ways = _directions(inputs, 4).view(12, 3, 64).mean(2).T
    assert walked.shape == (3, 12)
    for distance, way in zip(walked.flatten() * 400, ways.flatten(), strict=True):
        steps = 0.002 / (0.005 * float(way)) if way > 0 else float("inf")
        if steps < 15:  # nothing has met the box by then
            assert float(distance) == pytest.approx(np.ceil(steps), abs=1.01)


def test_the_weights_of_distances_are_sklearns_ridge() -> None:
    from sklearn.linear_model import Ridge

    members, others = torch.tensor(RNG.random((20, 5))), torch.tensor(RNG.random((20, 5)))
    both = torch.cat([members, others]).numpy()
    strength = float(((both - both.mean(0)) ** 2).sum(0).mean())
    model = Ridge(alpha=strength).fit(both, np.repeat([1.0, -1.0], 20))
    assert _ridge(members, others).numpy() == pytest.approx(model.coef_, rel=1e-6)


@cache
def shifted() -> sm.Victim:
    """A victim whose public examples are not like its private ones: they are darker, so that each is nearer an edge."""
    task = sm.task("digits_cnn")

    def data(rng: torch.Generator) -> sm.Splits:
        parts = task.data(rng)
        return dataclasses.replace(parts, others=Batch(parts.test.inputs * 0.3, parts.test.target))

    return sm.fit(dataclasses.replace(task, name="shifted", data=data), seed=0, device="cpu")


def test_dataset_inference_accuses_the_innocent_where_public_data_differ() -> None:
    """The known trap: the control fires."""
    attack = DatasetInference(points=200, directions=3, steps=20, queries=100, copies=1, independents=4)
    rows = attack.evaluate(shifted(), threat=None, seed=0, examples=100).rows
    assert rows[1].value == 1.0
    assert rows[-1].note.startswith("FAIL")
    assert "no evidence of a theft" in rows[-1].note
    fair = dataclasses.replace(attack, independents=6).evaluate(bare(), threat=None, seed=0, examples=100)
    assert fair.rows[-1].note.startswith("PASS")


# -- the family, and tests that are broken -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accused", "n", "verdict"), [(0, 10, "PASS"), (1, 10, "WARN"), (2, 10, "FAIL"), (1, 1, "FAIL"), (3, 200, "WARN")]
)
def test_the_verdict(accused: int, n: int, verdict: str) -> None:
    chance = binom.sf(accused - 1, n, 0.01) if accused else 1.0
    assert (chance < 0.05) == (verdict == "FAIL")
    assert judge("it", accused, n, 0.01).verdict == verdict


@dataclass(frozen=True, kw_only=True)
class Agreement(WatermarkTest):
    """Broken: takes the right answers to natural images for a mark."""

    def collect(self, owner: Owner, rng: torch.Generator) -> Evidence:
        few = owner.victim.splits.test.take(slice(0, 20)).inputs
        return Evidence(Batch(few, owner.victim.served(few).argmax(1)), 0.1)


@dataclass(frozen=True, kw_only=True)
class Certain(WatermarkTest):
    """Broken: gives what is no probability."""

    def accuse(self, evidence: Evidence, suspect: BlackBox, rng: torch.Generator) -> float:
        return -0.1


def test_a_watermark_that_accuses_everybody_is_caught() -> None:
    rows = Agreement(queries=100, copies=1, independents=3).evaluate(marked(), threat=None, seed=0, examples=50).rows
    assert rows[0].value == rows[1].value == 1.0
    assert rows[-1].note.startswith("FAIL")


def test_bad_input() -> None:
    with pytest.raises(sm.UsageError, match=r"gave -0.1 as a p-value"):
        Certain(queries=100, copies=1, independents=1).evaluate(marked(), threat=None, seed=0, examples=50)
    with pytest.raises(sm.NotApplicable, match="carries no watermark: protect it with DAWN"):
        WatermarkTest.tiny().evaluate(tiny_victim("digits_cnn"), threat=None, seed=0, examples=20)
    with pytest.raises(sm.UsageError, match="level between 0 and 1"):
        WatermarkTest(level=0.0)
    with pytest.raises(sm.UsageError, match="as control"):
        Fingerprint(independents=0)
    with pytest.raises(sm.UsageError, match="parts the auxiliary data"):
        halves(marked().splits.aux.take(slice(0, 3)), 0)


def test_without_evidence_nobody_is_accused() -> None:
    never = DAWN(share=1e-9)
    victim = dataclasses.replace(never.serve(bare()), defenses=(never,))
    rows = WatermarkTest(queries=50, copies=1, independents=1).evaluate(victim, threat=None, seed=0, examples=50).rows
    assert rows[0].value == 0.0
    assert rows[0].note == "0 questions"


def test_thieves_and_independent_models_share_nothing() -> None:
    aux = marked().splits.aux
    rows = [{row.numpy().tobytes() for row in half.inputs} for half in halves(aux, 0)]
    assert not rows[0] & rows[1]
    assert len(rows[0] | rows[1]) == len({row.numpy().tobytes() for row in aux.inputs})
