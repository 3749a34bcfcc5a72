"""Audits of real training: bounds lie under what is claimed, near it where they can, and above it where it is false."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import secure_ml as sm
from attacks.audit._compose import composed_epsilon
from attacks.audit._marks import SLOPE, marked, marks_of, with_marks
from attacks.audit._planting import mislabelled
from attacks.audit.many_run import ManyRun
from attacks.audit.one_run import OneRun
from attacks.audit.step_audit import StepAudit, observed_rate
from defenses.dp_sgd import DPSGD
from defenses.dp_sgd.accounting import epsilon_of
from secure_ml.auditing import gaussian_epsilon
from secure_ml.families.audit import MEASURE, Bound, Laboratory, claimed, judge, privacy_claim
from secure_ml.families.scrutiny import VERDICTS
from secure_ml.training import make_plan
from tests import broken, laws
from tests.laws import tiny_task, tiny_victim

CPU = torch.device("cpu")
AUDITS = (OneRun(canaries=500), StepAudit(observations=4000), ManyRun(runs=12), OneRun(canary="mislabelled"))


def private(**settings: float) -> sm.Victim:
    return sm.fit(tiny_task("digits_mlp"), [DPSGD(batch_size=20, epochs=8, **settings)], seed=0, device="cpu")


def bounds(attack: sm.Audit, victim: sm.Victim) -> list[sm.Row]:
    rows = attack.evaluate(victim, threat=None, seed=0, examples=1).rows
    return [row for row in rows if row.unit == "epsilon"]


@pytest.mark.parametrize("attack", AUDITS)
def test_at_epsilon_1_every_bound_lies_under_1(attack: sm.Audit) -> None:
    victim = private(epsilon=1.0)
    rows = attack.evaluate(victim, threat=None, seed=0, examples=1).rows
    assert all(row.value < 0.8 for row in rows if row.measure.startswith(MEASURE))
    assert rows[-1].value == VERDICTS.index("PASS"), rows[-1].note


def test_one_step_shows_four_fifths_of_what_it_spends() -> None:
    """At noise 1 the accountant says 4.38 for one step; and all steps together show most of what they spend."""
    victim = private(noise=1.0)
    any_step, step, every = bounds(StepAudit(), victim)
    truth = gaussian_epsilon(1.0, 1e-5)
    assert epsilon_of([(1.0, 1.0, 1)], 1e-5)[0] == pytest.approx(truth, rel=0.01)
    assert 0.8 * truth < step.value < step.high == pytest.approx(truth)
    assert 1.0 < any_step.value < step.value
    spent = privacy_claim(victim).values["epsilon"]
    assert 0.75 * spent < every.value < every.high == pytest.approx(spent)


def test_every_step_in_full_shows_the_same() -> None:
    """Noise drawn several times from one sum is the noise of as many steps."""
    victim = private(noise=1.0)
    whole = bounds(StepAudit(observations=2000, draws=1), victim)[1].value
    drawn = bounds(StepAudit(observations=2000), victim)[1].value
    assert whole == pytest.approx(drawn, rel=0.2)
    assert whole > 0.6 * gaussian_epsilon(1.0, 1e-5)


def test_one_run_grows_with_epsilon() -> None:
    """Without noise all is known; the f-DP bound is above the other; a small budget shows little."""
    found = {}
    for name, victim in (("bare", tiny_victim("digits_mlp")), ("20", private(noise=0.4)), ("1", private(epsilon=1.0))):
        found[name] = [row.value for row in bounds(OneRun(), victim)]
    assert found["bare"][0] > 4.5 > found["20"][0] > 1 > found["1"][0]
    assert all(gaussian >= steinke for steinke, gaussian in found.values())
    assert found["bare"][1] > 8


def test_mislabelled_canaries_are_found_in_an_overfit_model() -> None:
    task = replace(sm.task("digits_mlp", hidden=64), recipe=sm.Recipe(epochs=40, batch_size=32, learning_rate=0.3))
    victim = sm.fit(task, seed=0, device="cpu")
    for source in ("aux", "train"):
        found = bounds(OneRun(canary="mislabelled", canaries=200, source=source), victim)
        assert found[0].value > 1, source


def test_many_runs_with_and_without_a_canary() -> None:
    bare = bounds(ManyRun(runs=30), tiny_victim("digits_mlp"))
    assert bare[0].value > 1.5
    assert bare[1].measure.startswith("epsilon estimate")
    weak = bounds(ManyRun(runs=20, examples=10), private(noise=0.5))
    assert weak[0].value < weak[0].high
    loss = bounds(ManyRun(runs=8, canary="mislabelled"), tiny_victim("digits_mlp"))
    assert 0 <= loss[0].value < 3


def test_a_claim_is_withdrawn_by_an_audit() -> None:
    """The same victim under a claim that is too good fails, and the row says what was claimed."""
    victim = private(noise=0.5)
    claim = privacy_claim(victim)
    better = replace(claim, values={**claim.values, "epsilon": 0.1 * claim.values["epsilon"]})
    rows = (
        StepAudit(observations=4000).evaluate(replace(victim, claims=(better,)), threat=None, seed=0, examples=1).rows
    )
    assert rows[-1].value == VERDICTS.index("FAIL")
    assert "above the claim" in rows[-1].note
    assert f"claimed at most {better.values['epsilon']:.4g}" in rows[2].note


def test_judgement() -> None:
    sound = Bound(name="a", epsilon=1.0, delta=1e-5, method="m", n=1, upper=2.0)
    assert judge("x", [sound]).verdict == "PASS"
    assert judge("x", [sound, replace(sound, epsilon=2.5)]).verdict == "FAIL"
    assert judge("x", [sound, replace(sound, epsilon=2.5, estimate=True)]).verdict == "PASS", "an estimate accuses"
    assert judge("x", [replace(sound, upper=float("inf"))]).verdict == "SKIP"


def test_the_least_of_several_victims_is_pooled() -> None:
    victims = [replace(private(noise=1.0), seed=seed) for seed in (0, 1)]
    attack = StepAudit(observations=400)
    results = [attack.evaluate(victim, threat=None, seed=seed, examples=1) for seed, victim in enumerate(victims)]
    rows = attack.pool(victims[0].task, [(attack, result) for result in results])
    for i, row in enumerate(rows[:3]):
        assert row.value == min(result.rows[i].value for result in results)
        assert "least of 2 victims" in row.interval
    assert rows[-1].unit == "verdict"


def test_a_canary_is_clipped_to_the_clip_along_its_own_direction() -> None:
    """By the naive gradient: its whole length is in its own number, and others have nothing there."""
    task = tiny_task("digits_mlp")
    splits = task.draw(0)
    marks = torch.zeros(len(splits.train))
    marks[5] = 2
    splits = with_marks(splits, marks)
    room = marked(task, 3)
    module = room.build()
    batch = splits.train.take(slice(4, 6))
    losses = room.loss(module, batch)
    own, plain = (torch.autograd.grad(losses[i], list(module.parameters()), retain_graph=True) for i in (1, 0))
    names = [name for name, _ in module.named_parameters()]
    total = torch.cat([g.flatten() for g in own]).norm()
    assert total == SLOPE == own[names.index("marks.weight")][2, 0]
    assert not plain[names.index("marks.weight")].any()
    first = sm.Batch(batch.inputs["example"][:1], batch.target[:1])
    assert torch.allclose(losses[:1], task.loss(module.base, first))


def test_room_for_canaries_changes_no_other_weight() -> None:
    """Without a canary, the module inside trains as it does alone."""
    task = tiny_task("digits_mlp")
    splits = with_marks(task.draw(0), torch.zeros(len(task.draw(0).train)))
    alone = sm.fit(task, seed=0, device="cpu")
    inside = sm.fit(replace(marked(task, 3), data=lambda _: splits), seed=0, device="cpu")
    for one, other in zip(alone.module.parameters(), inside.module.base.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert not marks_of(inside.module).weight.any()


def test_mislabelled_examples_have_another_class() -> None:
    """Each is an example of the pool, once, with the class of another one."""
    pool = sm.Batch(torch.arange(40.0)[:, None], torch.arange(40) % 3)
    found = mislabelled(pool, 30, torch.Generator().manual_seed(0))
    places = found.inputs[:, 0].long()
    assert len(places.unique()) == len(found) == 30
    assert (pool.target[places] != found.target).all()
    alike = sm.Batch(pool.inputs, torch.zeros(40))  # values: another one's, whichever that is
    assert len(mislabelled(alike, 30, torch.Generator())) == 30


def test_composition_against_the_accountant() -> None:
    """The composed bound of a Gaussian's own mu is the accountant's epsilon, less the width of its interval."""
    for noise, rate, steps in ((1.0, 0.01, 500), (2.0, 0.1, 100), (1.0, 1.0, 3)):
        above = epsilon_of([(noise, rate, steps)], 1e-5)[0]
        assert above - 0.06 < composed_epsilon(1 / noise, rate, steps, 1e-5) < above
    assert composed_epsilon(0.0, 0.5, 10, 1e-5) == 0.0
    assert composed_epsilon(30.0, 0.5, 1000, 1e-5) > 20


def test_the_observed_rate_is_that_of_the_sampler() -> None:
    task = sm.task("digits_mlp")
    plan = make_plan(task, [DPSGD(noise=1.0, batch_size=60)], 0, CPU)
    rate = 60 / len(plan.loader.data)
    assert 0.95 * rate < observed_rate(plan) < rate
    whole = make_plan(task, [DPSGD(noise=1.0, batch_size=10**6)], 0, CPU)
    assert observed_rate(whole) > 0.999


def test_persons_are_audited_as_persons() -> None:
    """A person's records are one canary; planted examples are new persons'."""
    task = tiny_task("digits_mlp")
    parts = task.draw(0)
    owned = replace(parts, owner=torch.arange(len(parts.train)) // 3)
    stack = [DPSGD(noise=1.0, persons=True, records=2, batch_size=8, epochs=3)]
    victim = sm.fit(replace(task, data=lambda _: owned), stack, seed=0, device="cpu")
    step = bounds(StepAudit(observations=2000), victim)[1]
    assert 0.6 * step.high < step.value < step.high
    lab = Laboratory(victim, 0)
    planted = lab.splits_on(parts.train.take(slice(0, 6)), torch.tensor([0, 1, 2, 3])).owner
    assert planted.tolist() == [0, 0, 0, 1, owned.owner.max() + 1, owned.owner.max() + 2]


def test_claims_are_those_of_the_audited_run() -> None:
    assert claimed(tiny_victim("digits_mlp"), 1e-6) == (float("inf"), 1e-6)
    victim = private(noise=1.0)
    assert claimed(victim, 0.1) == (privacy_claim(victim).values["epsilon"], 1e-5)


def test_no_fixed_examples_no_audit() -> None:
    for attack in AUDITS:
        with pytest.raises(sm.NotApplicable, match="drawn anew"):
            attack.evaluate(tiny_victim("policy_game"), threat=None, seed=0, examples=1)


def test_the_law_fires() -> None:
    victim = sm.fit(tiny_task("digits_mlp"), seed=0, device="cpu")
    laws.law_bounds_from_below(StepAudit.tiny(), victim)
    with pytest.raises(AssertionError, match="changed in place"):
        laws.law_bounds_from_below(broken.AuditsInPlace(), victim)


def test_a_family_does_not_believe_an_impossible_bound() -> None:
    for attack in (broken.ImpossibleBound(), broken.NoBound()):
        with pytest.raises(sm.UsageError, match="gave no"):
            attack.evaluate(tiny_victim("digits_mlp"), threat=None, seed=0, examples=1)


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (OneRun, {"canaries": 1}, "at least 2 canaries"),
        (OneRun, {"canary": "blank"}, "a canary is one of"),
        (OneRun, {"source": "test"}, "aux or train"),
        (OneRun, {"choice": "best"}, "chooses by one of"),
        (OneRun, {"delta": 1.0}, "delta in"),
        (StepAudit, {"observations": 3}, "at least 20 observations"),
        (StepAudit, {"draws": 0}, "at least 1 draw"),
        (ManyRun, {"runs": 2}, "at least 3 runs"),
        (ManyRun, {"examples": 0}, "at least 3 examples"),
    ],
)
def test_settings_out_of_range(cls: type[sm.Audit], settings: dict, message: str) -> None:
    with pytest.raises(sm.UsageError, match=message):
        cls(**settings)


def test_a_replaced_module_loses_its_canaries_and_says_so() -> None:
    with pytest.raises(sm.UsageError, match="canaries are lost"):
        marks_of(nn.Linear(1, 1))
