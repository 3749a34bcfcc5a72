"""The card claims no more than the seeds bear, and marks what is not to be believed."""

from dataclasses import replace

import pytest
import torch

from experiments._report._material import Run, gather
from experiments._report._matrix import make_columns, step
from experiments._report._page import moved, page
from experiments._report._view import Chapter, chapters
from secure_ml.attack import Result
from secure_ml.rows import Row
from tests.test_report import STACKS, material, row


def chapter(rows: list[Row]) -> Chapter:
    (only,) = chapters(Run("run", tuple(rows)))
    return only


def said(rows: list[Row], kind: str) -> str:
    return next(tile.said for tile in chapter(rows).tiles if tile.kind == kind)


def test_a_gain_is_told_where_there_is_one() -> None:
    assert said(material(), "evasion").startswith("A() is better than the bare model beyond noise: +0.300")
    assert "Worse beyond noise: DPSGD()" in said(material(), "evasion")
    assert said(material(), "utility") == "No gain beyond noise."


def test_one_seed_claims_nothing() -> None:
    assert "One seed cannot tell a difference from noise" in said(material(1), "evasion")
    assert not chapter(material(1)).told
    assert chapter(material(1)).moved("better", "worse") == 0


def test_pooled_rows_alone_claim_nothing() -> None:
    rows = [replace(r, pooled=True, seeds=(0, 1, 2)) for r in material(1)]
    assert "Differences were not told seed by seed" in said(rows, "evasion")


def test_one_stack_speaks_for_itself() -> None:
    bare = [r for r in material(1) if r.defenses == "none"]
    assert said(bare, "evasion") == "0.400 [0.350, 0.450] is left under attack."
    assert "told from others better than by chance" in said(bare, "membership")
    guess = [replace(r, value=0.5, low=0.45, high=0.55) if r.measure == "membership AUC" else r for r in bare]
    assert "told from others no better than by chance" in said(guess, "membership")


def test_a_gain_within_noise_is_no_gain() -> None:
    """The broken case: the same means, with a spread that hides them."""
    spread = {0: 0.5, 1: -0.5, 2: 0.1}
    rows = [
        replace(r, value=(r.value or 0.0) + spread[r.seeds[0]])
        if r.defenses == "A()" and r.attack == "PGD()"
        else r
        for r in material()
    ]  # fmt: skip
    assert "A() is better" not in said(rows, "evasion")
    assert "▲" not in next(line.glyph for line in chapter(rows).tiles[1].lines if line.defenses == "A()")


def test_a_stack_that_fails_a_check_is_marked_where_its_numbers_stand() -> None:
    failed = row("A()", 0, 3, "zero gradients", attack="EvasionChecks()", unit="verdict", note="FAIL  zero gradients: none -> use BPDA")  # fmt: skip  # noqa: E501
    marked = chapter([*material(), failed])
    assert marked.failed == {"A()": "zero gradients"}
    assert marked.alarms[0][0].remedy == "use BPDA"
    tiles = len(marked.tiles)
    assert page([Run("run", (*material(), failed))]).count("! check") == tiles + 1, "on each tile and in the matrix"
    assert "! check" not in page([Run("run", tuple(material()))])


def test_an_epsilon_above_the_claim_is_an_alarm() -> None:
    (held, _) = chapter(material()).promises
    assert held.verdict == "within the claim"
    rows = [replace(r, value=9.0) if r.unit == "epsilon" else r for r in material()]
    assert chapter(rows).promises[0].verdict.startswith("ABOVE the claim")


def test_the_worst_of_several_attacks_is_taken_example_by_example() -> None:
    first = row("none", 0, 0.5, "accuracy under Linf(0.1)", attack="PGD()")
    other = replace(first, attack="Square()")
    worst = [torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 1.0, 0.0])]
    results = [Result((r,), {"worst": w}) for r, w in zip((first, other), worst, strict=True)]
    (both,) = [r for r in gather([], results, "run", {}).rows if " | " in r.attack]
    assert (both.attack, both.value, both.n) == ("PGD() | Square()", 0.25, 4)
    apart = [results[0], Result((replace(other, value=0.9),), {"worst": worst[1]})]
    assert not [r for r in gather([], apart, "run", {}).rows if " | " in r.attack], "its mean is not the score"


@pytest.mark.parametrize(
    ("measure", "unit", "value", "good"),
    [
        ("accuracy", "share", 1.0, 8),
        ("accuracy", "share", 0.0, 0),
        ("membership AUC", "share", 0.5, 8),
        ("membership AUC", "share", 1.0, 0),
        ("fidelity at 3 queries", "share", 1.0, 0),
        ("TPR at 1 % FPR", "share", 0.01, 8),
        ("TPR at 1 % FPR", "share", 0.9, 0),
        ("epsilon lower bound (95 %), one run", "epsilon", 0.0, 8),
        ("epsilon lower bound (95 %), one run", "epsilon", 50.0, 0),
    ],
)
def test_colours_are_the_defenders(measure: str, unit: str, value: float, good: int) -> None:
    one = row("none", 0, value, measure, unit=unit)
    (column,) = make_columns([one], [])
    assert step(one, column, [one]) == good


def test_what_has_no_better_way_has_no_colour() -> None:
    one = row("none", 0, 3.0, "queries served", unit="count")
    (column,) = make_columns([one], [])
    assert step(one, column, [one]) is None


def test_a_comparison_names_what_the_runs_differ_in() -> None:
    before = Run("old", tuple(material()), provenance={"versions": {"torch": "2.1"}, "seconds": 3})
    after = Run("new", tuple(r for r in material() if r.defenses != "A()"), provenance={"versions": {"torch": "2.2"}, "seconds": 9})  # fmt: skip  # noqa: E501
    move = moved(after, before)
    assert move.apart == (("torch", "2.1", "2.2"),)
    assert move.gone == ("A()",)
    assert not move.told
    assert len({effect.defenses for effect in move.rest}) == len(STACKS) - 1
