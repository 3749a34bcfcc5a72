"""Trainers that are broken on purpose are caught, each by the checks that are named, and a sound one by none."""

from dataclasses import replace

import pytest
import torch

import secure_ml as sm
from attacks.audit.one_run import OneRun
from attacks.scrutiny import _books as books
from attacks.scrutiny import _mechanism as mechanism
from attacks.scrutiny.privacy_checks import CHECKS, PrivacyChecks
from defenses.dp_sgd import DPSGD
from secure_ml.families.audit import privacy_claim
from secure_ml.families.scrutiny import VERDICTS
from tests.laws import tiny_task
from tests.mutants import MUTANTS, SETTINGS, NoNoise

FAIL = VERDICTS.index("FAIL")


@pytest.fixture(autouse=True)
def _fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "OBSERVATIONS", 2000)


def examined(defense: sm.Defense | None, task: sm.Task | None = None) -> dict[str, sm.Row]:
    """The rows of all checks of a victim, by check."""
    victim = sm.fit(task or tiny_task("digits_mlp"), [defense] if defense else [], seed=0, device="cpu")
    rows = PrivacyChecks(members=40).evaluate(victim, threat=None, seed=0, examples=100).rows
    return {row.measure: row for row in rows}


def failed(rows: dict[str, sm.Row]) -> set[str]:
    return {name for name, row in rows.items() if row.value == FAIL}


def test_a_sound_trainer_passes_all() -> None:
    rows = examined(DPSGD(**SETTINGS))
    assert [row.value for row in rows.values()] == [0] * 12, [row.note for row in rows.values() if row.value]
    assert list(rows) == [*(name for name, _ in CHECKS), books.BLIND]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant(mutant: type[DPSGD]) -> None:
    rows = examined(mutant(**SETTINGS))
    assert failed(rows) == MUTANTS[mutant], [row.note for row in rows.values() if row.value]


def test_every_check_has_a_mutant_of_its_own() -> None:
    """One that makes exactly it fail: but for the books, whose mutant the audit catches too."""
    alone = {name for checks in MUTANTS.values() if len(checks) == 1 for name in checks}
    assert alone | {books.BOOKS} == {name for name, _ in CHECKS}


def test_members_that_differ_from_others() -> None:
    task = sm.task("digits_mlp")
    parts = task.draw(0)
    shifted = replace(parts, test=sm.Batch(parts.test.inputs * 0.5, parts.test.target))
    rows = examined(None, replace(task, data=lambda _: shifted, recipe=sm.Recipe(epochs=1)))
    assert failed(rows) == {books.BLIND}
    assert list(rows) == [books.BLIND], "nothing is claimed, so that nothing else is to be checked"


def test_a_plan_without_noise_that_claims_it() -> None:
    """The plan is none of DP-SGD's: only what is on paper can be checked."""
    private = sm.fit(tiny_task("digits_mlp"), [DPSGD(**SETTINGS)], seed=0, device="cpu")
    bare = replace(sm.fit(tiny_task("digits_mlp"), seed=0, device="cpu"), claims=private.claims)
    rows = {r.measure: r for r in PrivacyChecks(members=40).evaluate(bare, threat=None, seed=0, examples=100).rows}
    assert books.BOOKS in failed(rows)
    assert rows[mechanism.NOISE].value == VERDICTS.index("SKIP")


def test_persons_and_several_copies_pass() -> None:
    task = tiny_task("digits_mlp")
    parts = task.draw(0)
    owned = replace(parts, owner=torch.arange(len(parts.train)) // 3)
    for settings in ({"persons": True, "records": 2, "batch_size": 8}, {"multiplicity": 2}):
        rows = examined(DPSGD(**{**SETTINGS, **settings}), replace(task, data=lambda _: owned))
        assert not failed(rows), [row.note for row in rows.values() if row.value == FAIL]


def test_one_run_catches_what_adds_no_noise() -> None:
    """On the whole: its bound is above what a run without noise claims, and that of a sound run is not."""
    for defense, verdict in ((NoNoise, "FAIL"), (DPSGD, "PASS")):
        victim = sm.fit(tiny_task("digits_mlp"), [defense(noise=4.0, epochs=4)], seed=0, device="cpu")
        assert privacy_claim(victim) is not None
        rows = OneRun(canaries=300).evaluate(victim, threat=None, seed=0, examples=1).rows
        assert rows[-1].value == VERDICTS.index(verdict), rows[-1].note
