"""Every check of an evaluation fires on the victim that is broken in its way, and on no other."""

import pytest

import secure_ml as sm
from attacks.scrutiny import _strength as strength
from attacks.scrutiny.evasion_checks import CHECKS, EvasionChecks
from secure_ml.rows import table
from tests.zoo import BROKEN, SOUND


def fired(victim: sm.Victim, threat: sm.Linf) -> list[str]:
    rows = EvasionChecks(points=60).evaluate(victim, threat=threat, seed=0, examples=60).rows
    assert [row.measure for row in rows] == [name for name, _ in CHECKS]
    return [row.measure for row in rows if row.note[:4] in ("WARN", "FAIL")]


ALSO = {"lottery": [strength.BLACK_BOX]}
"""What luck finds and steps do not, an attack that only asks finds too: the one victim that sets off two checks."""


def test_there_are_thirteen() -> None:
    assert len(CHECKS) == 13


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_victim_makes_its_check_fire_and_no_other(name: str) -> None:
    victim, threat, check = BROKEN[name]()
    assert fired(victim, threat) == [check, *ALSO.get(name, [])]


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_victim_makes_none_fire(name: str) -> None:
    victim, threat = SOUND[name]()
    assert fired(victim, threat) == []


def test_every_check_has_a_victim() -> None:
    assert {check()[2] for check in BROKEN.values()} == {name for name, _ in CHECKS}


def test_findings_stand_under_the_table() -> None:
    victim, threat, check = BROKEN["counter"]()
    text = table(EvasionChecks(points=10).evaluate(victim, threat=threat, seed=0, examples=10).rows)
    assert f"FAIL  {check}" in text
    assert "PASS  determinism" in text
