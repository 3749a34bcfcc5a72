"""The suite of a report card: as thorough as time and questions allow, and what is left out is said."""

from typing import Any

import pytest

import secure_ml as sm
from attacks import (
    APGD,
    PGD,
    LossThreshold,
)
from attacks.suite import ReportCard
from secure_ml.appraisal import appraise
from secure_ml.assess import assess
from secure_ml.outside.costs import Costs, Price
from secure_ml.suite import Facts, Rung, Step
from secure_ml.victim import Plain, Victim
from tests.test_assess import TEST, TRAIN, points, simple, value

# The suite


def facts(**changes: Any) -> Facts:
    usual: dict[str, Any] = {
        "task": sm.task("digits_cnn", tiny=True),
        "costs": Costs(forward=Price(1e-4, 1e-5), backward=Price(3e-4, 3e-5), chunk=1000),
        "training": 10.0,
        "trainable": True,
        "members": 1000,
        "others": 400,
        "tested": 400,
        "pool": 400,
        "shape": (1, 8, 8),
        "classes": 10,
        "blind": False,
    }
    return Facts(**{**usual, **changes})


def test_the_ladder_goes_down_and_everything_is_on_it() -> None:
    steps = ReportCard().steps(facts())
    assert [step.name for step in steps] == [
        "membership by loss", "evasion", "extraction", "checks of privacy", "checks of robustness",
        "membership by labels", "membership by shadows",
    ]  # fmt: skip
    for step in steps:
        seconds = [rung.seconds for rung in step.rungs]
        assert min(seconds) == seconds[-1] or step.name == "evasion"
        chosen = [step.within(limit, 1e9) for limit in (1e9, 1e-9)]
        assert chosen[0] == step.rungs[0]
        assert chosen[1] is None
    evasion = steps[1]
    assert repr(evasion.rungs[0].attacks[0]) == "AutoAttack()"
    assert len({(rung.attacks, rung.examples) for rung in evasion.rungs}) == len(evasion.rungs)
    assert any(rung.examples == 20 for rung in evasion.rungs)


def test_twice_the_cost_takes_twice_the_time() -> None:
    prices = [(Price(k * 1e-4, k * 1e-3), Price(k * 3e-4, k * 3e-3)) for k in (1, 2)]
    costs = [Costs(forward=forward, backward=backward, chunk=1000) for forward, backward in prices]
    once, twice = (ReportCard().steps(facts(costs=cost))[1].rungs[0].seconds for cost in costs)
    assert twice == pytest.approx(2 * once, rel=0.1)
    assert ReportCard().steps(facts(standing=0.1))[1].rungs[0].seconds < ReportCard().steps(facts())[1].rungs[0].seconds


def test_what_has_no_meaning_is_not_planned() -> None:
    names = {step.name for step in ReportCard().steps(facts(members=0, pool=5))}
    assert names == {"evasion", "checks of robustness"}
    blind = ReportCard().steps(facts(blind=True, trainable=False, training=0.0))
    assert {repr(a) for a in blind[1].rungs[0].attacks} == {"AutoAttack()", "Square()", "HopSkipJump(queries=5000)"}


def victim() -> Victim:
    splits = sm.Splits(*(sm.Batch(*points(40, i)) for i in range(4)))
    task = sm.Task(name="toy", build=simple, data=lambda _: splits, threat=sm.Linf(0.1))
    return Victim(task=task, module=simple(), served=Plain(simple(), 100), splits=splits)


def test_what_does_not_fit_is_left_out_and_said() -> None:
    steps = [
        Step(name="short", rungs=(Rung((LossThreshold(),), 10, 0.001),)),
        Step(name="long", rungs=(Rung((PGD(steps=1000),), 40, 1e6), Rung((PGD(),), 40, 1e5))),
        Step(name="either", rungs=(Rung((APGD(),), 40, 1e6), Rung((PGD(steps=2),), 40, 1e-3))),
    ]
    done = appraise([victim()], steps, 20.0, 0, lambda _: None)
    assert [line.verdict for line in done.plan] == ["PASS", "WARN", "WARN"]
    assert "APGD() on 40 would take up to 277.8 h" in str(done.plan[2])
    (left,) = [result for attack, result in done.tried if attack == PGD()]
    assert "left out: it would take up to" in left.obstacle
    assert [result.obstacle for attack, result in done.tried if attack in (LossThreshold(), PGD(steps=2))] == ["", ""]


def test_questions_that_are_counted_are_planned_with() -> None:
    steps = ReportCard().steps(facts(blind=True, trainable=False, training=0.0))
    rung = steps[1].within(1e9, 50_000)
    assert rung is not None
    assert 20 < rung.asked <= 50_000
    assert steps[1].within(1e9, 100) is None
    assert steps[1].rungs[0].asked >= 400 * 2 * 5000


def test_no_time_leaves_rows() -> None:
    card = assess(simple(), TRAIN, TEST, minutes=1e-6, defenses=())
    assert value(card, "accuracy") > 0.9
    assert any("left out" in line for line in card.missing)
    assert all(row.value is not None for row in card.card if row.measure.startswith("accuracy"))
