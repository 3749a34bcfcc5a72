"""Answers checked against one another: what is planted among them is found, and a mark stays behind."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import secure_ml as sm
from attacks import Knockoff, Laundering
from attacks.ownership.watermark_test import WatermarkTest
from defenses import DAWN
from secure_ml.access import BlackBox
from secure_ml.batch import Batch
from secure_ml.imitation import Imitation
from secure_ml.victim import Victim


@pytest.fixture(scope="module")
def digits() -> Victim:
    return sm.fit(sm.task("digits_cnn"), seed=0, device="cpu")


def answered(victim: Victim, n: int) -> Batch:
    asked = victim.splits.aux.take(slice(0, n)).inputs
    return Batch(asked, BlackBox(victim.task, victim.served, "probabilities", n)(asked))


def test_planted_answers_are_replaced_and_the_others_stay(digits: Victim) -> None:
    clean = answered(digits, 200)
    assert isinstance(clean.target, Tensor)
    planted = torch.arange(0, 200, 20)
    wrong = clean.target.clone()
    wrong[planted] = clean.target[planted].roll(3, 1)
    attack = Laundering(queries=200, folds=3, confidence=0.0)
    washed = attack.washed(Imitation(digits, 0), Batch(clean.inputs, wrong), Batch(clean.inputs[:0], ()))
    assert isinstance(washed.target, Tensor)
    named, right = washed.target.argmax(1), clean.target.argmax(1)
    assert (named[planted] == right[planted]).float().mean() >= 0.7
    others = torch.ones(200, dtype=torch.bool)
    others[planted] = False
    kept = (washed.target == wrong).all(1)
    assert kept[others].float().mean() > 0.85, "what stands the check is the victim's own answer"
    assert kept[planted].float().mean() <= 0.3, "nearly all that was planted is found"
    strict = replace(attack, confidence=0.99, folds=2)
    fewer = strict.washed(Imitation(digits, 0), Batch(clean.inputs, wrong), Batch(clean.inputs[:0], ()))
    assert len(washed) == 200
    assert 200 > len(fewer) > 120, "what is doubted without being sure is left out"


def test_the_rest_is_answered_by_the_copies(digits: Victim) -> None:
    clean, rest = answered(digits, 60), Batch(digits.splits.aux.inputs[60:90], ())  # type: ignore[index]
    washed = Laundering(queries=60, folds=2).washed(Imitation(digits, 0), clean, rest)
    assert len(washed) > 80
    assert washed.target[-30:].shape == (30, 10)  # type: ignore[index]


def test_a_watermark_stays_behind(digits: Victim) -> None:
    """The thief who copies every answer is found, and the one who checks them is not, whose copy is as good."""
    marked = sm.fit(sm.task("digits_cnn"), [DAWN(share=0.04, key=7)], seed=0, device="cpu")
    found = {}
    for thief in (Knockoff(queries=250), Laundering(queries=250, folds=3)):
        test = WatermarkTest(queries=250, copies=1, independents=2, stealing=thief)
        rows = test.evaluate(marked, threat=None, seed=0, examples=400).rows
        found[type(thief)] = {row.measure.split(",")[0].split(" at ")[0]: row.value for row in rows}
    assert found[Knockoff]["power"] == 1.0
    assert found[Laundering]["power"] == 0.0
    naive, washed = (found[thief]["fidelity of the copies"] for thief in (Knockoff, Laundering))
    assert naive is not None
    assert washed is not None
    assert washed > naive - 0.04
