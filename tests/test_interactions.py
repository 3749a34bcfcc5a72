"""What a defense changes: intervals, corrections and fronts, each against another way to compute it."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from secure_ml.direction import DOWN, UP, attacked, direction, is_score
from secure_ml.interactions import (
    Effect,
    adjust,
    by_seed,
    compared,
    corrected,
    difference,
    effects,
    split,
    stacked,
)
from secure_ml.pareto import Axis, Stack, front, on_front, trades
from secure_ml.rows import Row
from secure_ml.victim import Claim


def row(defenses: str, seed: int, value: float | None, measure: str = "accuracy", **more: object) -> Row:
    given: dict[str, object] = {"task": "t()", "attack": "", "unit": "share", **more}
    return Row(defenses=defenses, seeds=(seed,), measure=measure, value=value, **given)  # type: ignore[arg-type]


def rows(defenses: str, values: list[float], **more: object) -> list[Row]:
    return [row(defenses, seed, value, **more) for seed, value in enumerate(values)]


RNG = np.random.default_rng(0)


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_paired_difference_is_scipys(n: int) -> None:
    a, b = RNG.normal(1, 1, n), RNG.normal(0, 2, n)
    found = difference(dict(enumerate(a)), dict(enumerate(b)))
    known = stats.ttest_rel(a, b)
    interval = known.confidence_interval(0.95)
    assert found.paired
    assert found.n == n
    assert [found.value, found.low, found.high, found.p] == pytest.approx(
        [(a - b).mean(), interval.low, interval.high, known.pvalue], rel=1e-9
    )


def test_only_common_seeds_are_paired() -> None:
    found = difference({0: 1.0, 1: 2.0, 2: 9.0}, {0: 0.5, 1: 1.0, 7: 0.0})
    assert found.n == 2
    assert found.value == pytest.approx(0.75)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 5), (20, 4)])
def test_unpaired_difference_is_welchs(n: int, m: int) -> None:
    a, b = RNG.normal(1, 1, n), RNG.normal(0, 2, m)
    found = difference(dict(enumerate(a)), dict(enumerate(b, 100)))
    known = stats.ttest_ind(a, b, equal_var=False)
    interval = known.confidence_interval(0.95)
    assert not found.paired
    assert [found.low, found.high, found.p] == pytest.approx([interval.low, interval.high, known.pvalue], rel=1e-9)


def test_one_seed_tells_nothing() -> None:
    found = difference({0: 0.9}, {0: 0.5})
    assert found.value == pytest.approx(0.4)
    assert (found.low, found.p) == (None, None)
    assert found.why == "cannot tell: 1 seed"
    assert difference({0: 0.9}, {1: 0.5}).why == "cannot tell: 1 seed"
    assert difference({}, {}).why == "cannot tell: no seed was measured on both"


def test_equal_differences_are_no_proof() -> None:
    """Two seeds that both moved by one example of 100: without the step, p would be 0."""
    a, b = {0: 0.91, 1: 0.81}, {0: 0.90, 1: 0.80}
    stepped = difference(a, b, step=0.01)
    assert stepped.p is not None
    assert stepped.p > 0.2
    assert difference({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}).why == "cannot tell: no spread"
    assert difference({0: 2.0, 1: 3.0}, {0: 2.0, 1: 3.0}).p == 1.0


def naive_holm(p: list[float]) -> list[float]:
    """For each hypothesis the least level at which the step-down procedure rejects it."""
    order = sorted(range(len(p)), key=p.__getitem__)
    worst, out = 0.0, [0.0] * len(p)
    for place, i in enumerate(order):
        worst = max(worst, (len(p) - place) * p[i])
        out[i] = min(worst, 1.0)
    return out


@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_holm_against_a_loop(n: int) -> None:
    p = [float(x) for x in RNG.uniform(size=n) ** 3]
    assert adjust(p) == pytest.approx(naive_holm(p))


@pytest.mark.parametrize(("correction", "theirs"), [("holm", "holm"), ("bh", "fdr_bh")])
def test_corrections_against_statsmodels(correction: str, theirs: str) -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    for n in (1, 3, 40):
        p = [float(x) for x in RNG.uniform(size=n) ** 4]
        known = multitest.multipletests(p, method=theirs)[1]
        assert adjust(p, correction) == pytest.approx(list(known))  # type: ignore[arg-type]
    assert adjust([]) == []
    assert adjust([0.3, 0.1], "none") == [0.3, 0.1]


def test_holm_keeps_its_word() -> None:
    """Of 400 matrices without any effect, about 5 % have a finding; without correction most have one."""
    tables = RNG.normal(size=(400, 20, 4))
    p = stats.ttest_1samp(tables, 0, axis=2).pvalue
    false = np.mean([min(adjust(list(one))) < 0.05 for one in p])
    uncorrected = np.mean(p.min(1) < 0.05)
    assert false < 0.09
    assert uncorrected > 0.5


def test_effects_name_the_better_side() -> None:
    everything = [
        *rows("none", [0.50, 0.52, 0.51]),
        *rows("A()", [0.90, 0.93, 0.91]),
        *rows("none", [0.80, 0.81, 0.79], measure="membership AUC", attack="L()"),
        *rows("A()", [0.95, 0.97, 0.95], measure="membership AUC", attack="L()"),
    ]
    found = {effect.measure: effect for effect in effects(everything)}
    assert found["accuracy"].verdict == "better"
    assert found["membership AUC"].verdict == "worse"
    assert found["accuracy"].before == pytest.approx(0.51)
    assert found["accuracy"].after == pytest.approx(0.9133, abs=1e-3)


def test_perhaps_is_what_correction_takes_away() -> None:
    weak = [*rows("none", [0.50, 0.50, 0.50]), *rows("A()", [0.60, 0.62, 0.65])]
    noise = [
        r
        for i in range(20)
        for r in (
            *rows("none", [0.5, 0.5, 0.5], measure=f"fidelity at {i} queries"),
            *rows("A()", [0.5, 0.6, 0.4], measure=f"fidelity at {i} queries"),
        )
    ]
    (alone,) = effects(weak)
    assert alone.verdict == "better"
    among = next(e for e in effects([*weak, *noise]) if e.measure == "accuracy")
    assert among.verdict == "perhaps better"
    assert {e.verdict for e in effects([*weak, *noise]) if e.measure != "accuracy"} == {"within noise"}


def test_seconds_and_counts_cost_the_risks_nothing() -> None:
    risk = [*rows("none", [0.50, 0.50, 0.50]), *rows("A()", [0.60, 0.62, 0.65])]
    cost = [
        r
        for stack, v in (("none", 1.0), ("A()", 2.0))
        for r in rows(stack, [v, v + 0.1, v], measure="training seconds", unit="seconds")
    ]
    counts = [r for s in ("none", "A()") for r in rows(s, [1, 2, 3], measure="queries served", unit="count")]
    found = effects([*risk, *cost, *counts])
    assert [e.measure for e in found] == ["accuracy", "training seconds"]
    assert found[0].difference.adjusted == found[0].difference.p
    assert "queries served" not in {measure for _, _, measure in by_seed(counts)}


def test_one_seed_effects_say_so() -> None:
    (effect,) = effects([row("none", 0, 0.5), row("A()", 0, 0.9)])
    assert effect.verdict == "cannot tell: 1 seed"
    assert effects([row("A()", 0, 0.9)]) == []
    assert effects([row("none", 0, None), row("A()", 0, 0.9)]) == []


def test_stacks_that_add_up_and_stacks_that_do_not() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(0.5, 0.01, 6)
    noise = lambda: rng.normal(0, 0.002, 6)  # noqa: E731
    everything = [
        *rows("none", list(base)),
        *rows("A(x=(1, 2))", list(base + 0.10 + noise())),
        *rows("B(inner=C() + D())", list(base + 0.05 + noise())),
        *rows("E()", list(base + 0.20 + noise())),
        *rows("A(x=(1, 2)) + B(inner=C() + D())", list(base + 0.15 + noise())),
        *rows("A(x=(1, 2)) + E()", list(base + 0.10 + noise())),
    ]
    found = {effect.defenses: effect for effect in stacked(everything)}
    adds = found["A(x=(1, 2)) + B(inner=C() + D())"]
    assert adds.verdict == "within noise"
    assert adds.parts == ("A(x=(1, 2))", "B(inner=C() + D())")
    assert adds.difference.low is not None
    assert adds.difference.high is not None
    assert adds.difference.low < 0 < adds.difference.high
    costs = found["A(x=(1, 2)) + E()"]
    assert costs.verdict == "worse"
    assert costs.difference.value == pytest.approx(-0.2, abs=0.01)
    assert costs.before == pytest.approx(0.3, abs=0.01)


def test_split_reads_nested_settings() -> None:
    assert split("none") == ("none",)
    assert split("A(p=PGD(steps=4)) + B() + C(q='x + y')") == ("A(p=PGD(steps=4))", "B()", "C(q='x + y')")


def test_runs_are_compared_stack_by_stack() -> None:
    before = [*rows("none", [0.5, 0.51, 0.52]), *rows("A()", [0.7, 0.71, 0.72])]
    after = [*rows("none", [0.5, 0.51, 0.52]), *rows("A()", [0.8, 0.812, 0.82]), *rows("B()", [1.0, 1.0, 1.0])]
    found = {effect.defenses: effect for effect in compared(after, before)}
    assert set(found) == {"none", "A()"}
    assert found["none"].verdict == "within noise"
    assert found["A()"].verdict == "better"


def test_a_worse_way_is_never_called_better() -> None:
    """The broken case: with the side turned, the verdict turns."""
    (effect,) = effects([*rows("none", [0.50, 0.52, 0.51]), *rows("A()", [0.90, 0.93, 0.91])])
    turned = Effect(**{**vars(effect), "better": -effect.better})
    assert (effect.verdict, turned.verdict) == ("better", "worse")
    (again,) = corrected([effect], "none")
    assert again.difference.adjusted == again.difference.p


@pytest.mark.parametrize(
    ("measure", "unit", "side"),
    [
        ("accuracy", "share", UP),
        ("RMSE", "target", DOWN),
        ("accuracy under Linf(0.1)", "share", UP),
        ("nats per character under Edits(2)", "nats", DOWN),
        ("certified accuracy under L2(0.5)", "share", UP),
        ("copy's accuracy at 300 queries", "share", DOWN),
        ("copy's RMSE", "target", UP),
        ("copy's divergence at 50 queries", "nats", UP),
        ("fidelity at 300 queries", "share", DOWN),
        ("membership AUC", "share", DOWN),
        ("membership AUC without the model", "share", 0),
        ("epsilon lower bound (95 %), one run", "epsilon", DOWN),
        ("PSNR gain", "dB", DOWN),
        ("PSNR without access", "dB", 0),
        ("backdoor success, 5 % poisoned", "share", DOWN),
        ("accuracy, 5 % poisoned", "share", UP),
        ("accuracy, worse sex", "share", UP),
        ("power at level 0.05, DatasetInference()", "share", UP),
        ("false accusations at level 0.05, DatasetInference()", "share", DOWN),
        ("key recovered (answers shown: 1)", "share", DOWN),
        ("queries served", "count", 0),
        ("no such thing", "share", 0),
        ("determinism", "verdict", DOWN),
    ],
)
def test_directions(measure: str, unit: str, side: int) -> None:
    assert direction(measure, unit) == side


def test_scores_and_scores_under_attack() -> None:
    assert is_score("accuracy")
    assert not is_score("copy's accuracy")
    assert attacked("accuracy under Linf(0.1)") == "accuracy"
    assert attacked("certified accuracy under Linf(0.1)") is None


def naive_front(points: list[tuple[float, ...]], better: tuple[int, ...]) -> list[bool]:
    def beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        pairs = [(x * s, y * s) for x, y, s in zip(a, b, better, strict=True)]
        return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)

    known = [not any(math.isnan(x) for x in point) for point in points]
    return [
        ok and not any(other_ok and beats(other, point) for other, other_ok in zip(points, known, strict=True))
        for point, ok in zip(points, known, strict=True)
    ]


@pytest.mark.parametrize(("n", "axes"), [(0, 2), (1, 1), (12, 2), (60, 3), (60, 5)])
def test_fronts_against_a_loop(n: int, axes: int) -> None:
    for signs in itertools.islice(itertools.product((1, -1), repeat=axes), 4):
        points = [tuple(float(x) for x in p) for p in RNG.integers(0, 6, (n, axes))]  # integers: many ties
        points = [tuple(math.nan if RNG.random() < 0.05 else x for x in point) for point in points]
        assert front(points, signs) == naive_front(points, signs)


def test_no_claim_is_the_worst_claim() -> None:
    assert front([(0.9, math.inf), (0.8, 3.0), (0.7, 8.0)], (1, -1)) == [True, True, False]


def test_trades_of_a_matrix() -> None:
    claim = Claim(kind="differential privacy", short="", statement="", values={"epsilon": 3.0, "delta": 1e-5})
    everything = [
        row("none", 0, 0.97),
        row("none", 0, 0.4, "accuracy under Linf(0.1)", attack="PGD()"),
        row("none", 0, 0.90, "fidelity at 50 queries", attack="K()"),
        row("none", 0, 0.96, "fidelity at 300 queries", attack="K()"),
        row("DPSGD()", 0, 0.90, claims=(claim,)),
        row("DPSGD()", 0, 0.3, "accuracy under Linf(0.1)", attack="PGD()", claims=(claim,)),
        row("DPSGD()", 0, 0.85, "fidelity at 300 queries", attack="K()", claims=(claim,)),
        row("none", 0, 0.1, "accuracy under Linf(0.0)", attack="PGD()"),
        row("AT()", 0, 0.96),
        row("AT()", 0, None, "fidelity at 300 queries", attack="K()", note="n/a"),
    ]
    axes, stacks = trades(everything)
    assert [axis.name for axis in axes] == ["score", "robustness", "fidelity", "epsilon claimed"]
    by_name = {stack.defenses: stack for stack in stacks}
    assert by_name["none"].value("fidelity") == 0.96
    assert by_name["none"].value("epsilon claimed") == math.inf
    assert math.isnan(by_name["AT()"].value("fidelity"))
    assert on_front(stacks, axes[:1]) == [True, False, False]
    assert on_front(stacks, [axes[0], axes[3]]) == [True, True, False]
    assert on_front([Stack("none")], [Axis(name="score", measure="accuracy", better=1)]) == [False]
