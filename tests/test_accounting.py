"""Accountants against golden values, each other and naive sums; selections against exact divergences."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.analysis.rdp import compute_rdp
from scipy.special import logsumexp

import secure_ml as sm
from defenses.dp_sgd import accounting
from defenses.dp_sgd.accounting import (
    APPROXIMATION,
    cross_check,
    disagreements,
    epsilon_of,
    noise_for,
    pld,
    smallest_epsilon,
)
from defenses.dp_sgd.prv import prv_bounds
from defenses.dp_sgd.renyi import ORDERS, composed, to_delta, to_epsilon
from defenses.dp_sgd.selection import SHAPES, Selection, mixed

DELTA = 1e-5
GOLDEN = [
    ((1.23, 512 / 6e4, 4680), 2.5788, (2.3512, 2.3613, 2.3715), 2.3614, 2.2852),
    ((2.15, 2048 / 6e4, 1160), 2.5910, (2.3660, 2.3761, 2.3862), 2.3761, 2.3140),
    ((1.54, 1024 / 5e4, 1440), 2.5854, (2.3549, 2.3651, 2.3752), 2.3651, 2.2754),
    ((10.0, 4096 / 5e4, 875), 0.9877, (0.8927, 0.9028, 0.9128), 0.9028, 0.8977),
    ((1.0, 512 / 5e4, 1940), 2.8973, (2.6011, 2.6113, 2.6215), 2.6113, 2.4047),
    ((1.1, 0.01, 6000), 4.2466, (3.8895, 3.8997, 3.9100), 3.8998, 3.7682),
    ((1.0, 64 / 6e4, 9370), 0.8034, (0.4833, 0.4934, 0.5034), 0.4936, 0.4737),
    ((0.5, 0.05, 100), 20.909, (18.1825, 18.1938, 18.2050), 18.1938, 21.651),
]
"""(noise, rate, steps): RDP, PRV's bounds at error 0.01, PLD, GDP, computed elsewhere."""
RECIPES = [
    (512 / 6e4, 4680, (2.330, 1.375, 1.070, 0.698)),
    (1024 / 6e4, 2320, (3.208, 1.818, 1.363, 0.812)),
    (4096 / 6e4, 560, (6.190, 3.374, 2.418, 1.217)),
    (2048 / 6e4, 1160, (4.481, 2.476, 1.805, 0.980)),
    (8192 / 6e4, 280, (8.718, 4.711, 3.340, 1.583)),
    (1024 / 5e4, 1440, (3.053, 1.744, 1.317, 0.797)),
    (4096 / 5e4, 875, (9.204, 4.955, 3.500, 1.642)),
    (8192 / 5e4, 360, (11.799, 6.338, 4.459, 2.036)),
]
"""Rate, steps: the noise for epsilon 1, 2, 3 and 8 when PRV's error is 0.01, to three decimals."""
BUDGETS = (1.0, 2.0, 3.0, 8.0)


@pytest.mark.parametrize(("step", "rdp", "prv", "by_pld", "gdp"), GOLDEN)
def test_golden_table(
    step: tuple[float, float, int], rdp: float, prv: tuple[float, float, float], by_pld: float, gdp: float
) -> None:
    bounds = prv_bounds((step,), DELTA, 0.01)
    assert (bounds.lower, bounds.estimate, bounds.upper) == pytest.approx(prv, abs=2e-4)
    found = cross_check(*step, DELTA)
    wanted = {**dict(zip(("PRV lower", "PRV estimate", "PRV upper"), prv, strict=True)), "RDP": rdp, APPROXIMATION: gdp}
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=0.01)
    if found["PLD"] is not None:
        assert found["PLD"] == pytest.approx(by_pld, abs=1e-3)
    assert found["PRV upper"] == epsilon_of([step], DELTA)[0]
    assert not disagreements(found)


@pytest.mark.parametrize(("rate", "steps", "noises"), RECIPES)
def test_golden_noise(rate: float, steps: int, noises: tuple[float, ...]) -> None:
    """Three decimals of noise are what the last digit of epsilon hangs on: both sides of it enclose the budget."""
    for epsilon, noise in zip(BUDGETS, noises, strict=True):
        less, more = (prv_bounds(((noise + d, rate, steps),), DELTA, 0.01).upper for d in (-6e-4, 6e-4))
        assert more * (1 - 1e-3) <= epsilon <= less * (1 + 1e-3)


@pytest.mark.parametrize(("rate", "steps", "noises"), [RECIPES[0], RECIPES[3]])
def test_noise_for_golden_budgets(rate: float, steps: int, noises: tuple[float, ...]) -> None:
    """As golden, or below it by what a smaller error of the accountant is worth at a small budget."""
    for epsilon, noise in zip(BUDGETS, noises, strict=True):
        assert -0.007 < noise_for(epsilon, DELTA, rate, steps) / noise - 1 < 0.001


@pytest.mark.parametrize(
    ("epsilon", "delta", "rate", "steps"),
    [
        (0.1, 1e-5, 0.05, 400),
        (20.0, 1e-5, 0.05, 400),
        (0.3, 1e-6, 0.01, 100),
        (90.0, 1e-5, 0.1, 100),
        (1.0, 1e-5, 1.0, 1),
        (3.0, 1e-5, 0.99, 10),
        (50.0, 1e-3, 0.3, 5),
        (1.0, 0.1, 0.2, 100),
        (1.0, 1e-9, 0.01, 1000),
        (2000.0, 1e-5, 0.1, 100),
    ],
)
def test_noise_spends_the_budget_and_no_more(epsilon: float, delta: float, rate: float, steps: int) -> None:
    spent, _ = epsilon_of([(noise_for(epsilon, delta, rate, steps), rate, steps)], delta)
    assert 0.999 * epsilon <= spent <= epsilon


def test_few_bounds_are_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search is fast since all but two or three of its grids are coarse."""
    errors: list[float] = []

    def counted(history: accounting.History, delta: float, error: float, reach: float | None = None) -> object:
        errors.append(error)
        return prv_bounds(history, delta, error, reach)

    monkeypatch.setattr(accounting, "prv_bounds", counted)
    noise_for(3.0, DELTA, 0.123, 77)
    assert len(errors) <= 12
    assert sum(error <= 0.01 for error in errors) <= 3


def test_a_budget_out_of_reach_is_told_the_smallest_in_reach() -> None:
    smallest = smallest_epsilon(DELTA, 0.2, 8)
    with pytest.raises(sm.UsageError, match=f"smallest that is in reach is {smallest:g}"):
        noise_for(smallest * 0.9, DELTA, 0.2, 8)
    noise = noise_for(smallest, DELTA, 0.2, 8)
    assert epsilon_of([(noise, 0.2, 8)], DELTA)[0] <= smallest


def test_bounds_are_those_of_opacus() -> None:
    history = [(1.3, 0.02, 300), (2.5, 0.1, 50), (1.3, 0.02, 100)]
    theirs = PRVAccountant()
    theirs.history = history
    for error in (0.01, 0.05):
        merged = ((1.3, 0.02, 400), (2.5, 0.1, 50))
        assert prv_bounds(merged, DELTA, error).upper == pytest.approx(
            theirs.get_epsilon(DELTA, eps_error=error), abs=1e-4
        )
    assert epsilon_of(history, DELTA)[0] == epsilon_of(reversed(history), DELTA)[0]


def test_divergences_are_those_of_opacus() -> None:
    """Theirs is a series that loses digits where a divergence is small; ours an integral, a sum at whole orders."""
    for noise, rate in ((0.5, 0.05), (1.1, 0.01), (5.0, 0.9), (0.2, 0.1), (3.0, 1.0)):
        theirs = compute_rdp(q=rate, noise_multiplier=noise, steps=7, orders=list(ORDERS[ORDERS < 64]))
        assert composed([(noise, rate, 7)])[ORDERS < 64] == pytest.approx(theirs, rel=1e-6)
    loose = RDPAccountant()
    loose.history = [(1.3, 0.02, 300), (2.5, 0.1, 50)]
    assert to_epsilon(composed(loose.history), DELTA) == pytest.approx(loose.get_epsilon(DELTA), abs=1e-6)


def test_epsilon_and_delta_of_divergences_agree() -> None:
    curve = composed([(1.1, 0.01, 6000)])
    for delta in (1e-3, 1e-5, 1e-8):
        assert to_delta(curve, to_epsilon(curve, delta)) <= delta * (1 + 1e-9)


def test_budgets_that_protect_nothing_are_bounded_by_the_other_accountant() -> None:
    epsilon, accountant = epsilon_of([(0.05, 0.1, 100)], DELTA)
    assert epsilon > 400
    assert accountant == "RDP"
    assert epsilon_of([(0.0, 0.1, 100)], DELTA) == (math.inf, "RDP")
    assert cross_check(0.01, 0.1, 100, DELTA)[APPROXIMATION] == math.inf


@pytest.mark.parametrize("failure", [RuntimeError("Discrete mean differs"), ValueError("nan"), MemoryError()])
def test_where_prv_breaks_down_rdp_is_named(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    def broken(*_: object) -> object:
        raise failure

    monkeypatch.setattr(accounting, "prv_bounds", broken)
    epsilon, accountant = epsilon_of([(1.7, 0.031, 123)], DELTA)
    assert accountant == "RDP"
    assert epsilon == to_epsilon(composed([(1.7, 0.031, 123)]), DELTA)
    found = cross_check(1.7, 0.031, 123, DELTA)
    assert found["PRV upper"] is None
    assert found["RDP"] == epsilon


def test_no_epsilon_is_negative() -> None:
    assert epsilon_of([], DELTA) == (0.0, "PRV")
    assert epsilon_of([(1.0, 0.0, 10)], DELTA)[0] == 0
    bounds = prv_bounds(((1e4, 0.001, 10),), 0.1, 0.001)
    assert 0 <= bounds.lower <= bounds.estimate <= bounds.upper


def test_a_wrong_accountant_is_told_apart() -> None:
    """Each contradiction fires on numbers that were bent by hand, and on an accountant that was fed the wrong rate."""
    sound = {**cross_check(1.1, 0.01, 600, DELTA), "PLD": None}
    assert not disagreements(sound)
    assert "RDP at most" in disagreements({**sound, "PRV lower": 9.0, "PRV upper": 9.1})[0]
    assert any("PRV" in wrong for wrong in disagreements({**sound, "PLD": 0.01}))
    fed_wrong = {**sound, "PLD": cross_check(1.1, 0.02, 600, DELTA)["PRV estimate"]}
    assert len(disagreements(fed_wrong)) == 2


def test_the_central_limit_reports_too_little() -> None:
    found = cross_check(1.1, 0.01, 6000, DELTA)
    assert found[APPROXIMATION] < found["PRV lower"]
    assert "never a headline" in APPROXIMATION


def test_pld_of_several_settings_in_turn() -> None:
    pytest.importorskip("dp_accounting")
    history = ((1.3, 0.02, 300), (2.5, 0.1, 50))
    assert pld(history, DELTA) == pytest.approx(prv_bounds(history, DELTA, 0.01).estimate, abs=1e-3)


# -- selection -----------------------------------------------------------------------------------------------------

MNIST, CIFAR = ((1.07, 512 / 6e4, 4680),), ((9.204, 4096 / 5e4, 875),)
MEANS = (5, 10, 50, 100)
PRICES = [
    (MNIST, "geometric", (5.55, 6.16, 7.34, 7.79)),
    (MNIST, "logarithmic", (4.91, 5.29, 6.03, 6.31)),
    (MNIST, "poisson", (5.25, 7.06, 19.8, 30.8)),
    (CIFAR, "geometric", (2.06, 2.29, 2.72, 2.89)),
    (CIFAR, "logarithmic", (1.76, 1.90, 2.17, 2.27)),
]


@pytest.mark.parametrize(("history", "law", "prices"), PRICES)
def test_golden_prices_of_a_choice(history: accounting.History, law: str, prices: tuple[float, ...]) -> None:
    for mean, price in zip(MEANS, prices, strict=True):
        found = Selection(shape=SHAPES[law], mean=mean).epsilon([history], DELTA)
        assert found == pytest.approx(price, abs=0.05 if price > 10 else 0.006)


@pytest.mark.parametrize("shape", [0.0, 0.5, 1.0, 2.0, math.inf])
def test_prices_by_dp_accounting(shape: float) -> None:
    pytest.importorskip("dp_accounting")
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.dp_event import RepeatAndSelectDpEvent
    from dp_accounting.rdp import RdpAccountant

    for mean in (2.0, 20.0):
        theirs = RdpAccountant()
        run = SelfComposedDpEvent(PoissonSampledDpEvent(0.02, GaussianDpEvent(1.3)), 500)
        theirs.compose(RepeatAndSelectDpEvent(run, mean, shape))
        mine = Selection(shape=shape, mean=mean).epsilon([((1.3, 0.02, 500),)], DELTA)
        assert mine == pytest.approx(theirs.get_epsilon(DELTA), abs=2e-3)


@pytest.mark.parametrize(("shape", "mean"), list(itertools.product([0.0, 0.5, 1.0, 3.0, math.inf], [1.0, 4.0, 30.0])))
def test_the_number_of_runs_has_its_mean(shape: float, mean: float) -> None:
    selection = Selection(shape=shape, mean=mean)
    runs, chances = map(np.array, zip(*itertools.islice(selection.chances(), 3000), strict=True))
    assert chances.sum() == pytest.approx(1, abs=1e-5)
    assert runs @ chances == pytest.approx(mean, rel=1e-3)
    rng = torch.Generator().manual_seed(0)
    drawn = np.array([selection.draw(rng) for _ in range(2000)])
    error = math.sqrt(max((runs - mean) ** 2 @ chances, 1e-12) / 2000)
    assert abs(drawn.mean() - mean) < 5 * error + 1e-9


def released(selection: Selection, one: np.ndarray) -> np.ndarray:
    """Exactly what the best of the runs is, from what one run is, worst outcome first; no run at all is the last."""
    below = np.cumsum(one)
    total = np.zeros_like(below)
    nothing = 0.0
    for runs, chance in itertools.islice(selection.chances(), 4000):
        total += chance * below**runs if runs else 0.0
        nothing += chance if not runs else 0.0
    return np.append(np.diff(total, prepend=0.0), nothing)


def divergence(p: np.ndarray, q: np.ndarray, order: float) -> float:
    kept = (p > 0) & (q > 0)
    return float(logsumexp(order * np.log(p[kept]) + (1 - order) * np.log(q[kept]))) / (order - 1)


def both_ways(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.array([max(divergence(p, q, order), divergence(q, p, order)) for order in ORDERS])


@pytest.mark.parametrize(("shape", "mean"), list(itertools.product([0.0, 0.5, 1.0, math.inf], [3.0, 10.0])))
def test_prices_hold_for_exact_divergences(shape: float, mean: float) -> None:
    """Of a mechanism whose best of many runs can be summed up; the price of a single run does not hold."""
    p, q = np.array([0.97, 0.02, 0.01]), np.array([0.94, 0.03, 0.03])
    selection = Selection(shape=shape, mean=mean)
    exact = both_ways(released(selection, p), released(selection, q))
    one = both_ways(p, q)
    assert np.all(exact <= selection.divergences(one) + 1e-9)
    assert np.any(exact > 1.2 * one)


def test_candidates_are_mixed_exactly() -> None:
    """A run of a candidate that is drawn and told diverges less than the worst candidate, more than the best."""
    few, many = composed(MNIST), composed([(1.07, 512 / 6e4, 9360)])
    both = mixed([few, many])
    assert np.all((few <= both + 1e-12) & (both <= many + 1e-12))
    assert mixed([few, few]) == pytest.approx(few)
    p, q = np.array([0.5, 0.5]), np.array([0.6, 0.4])
    u, v = np.array([0.3, 0.7]), np.array([0.5, 0.5])
    joint = [divergence(np.append(p, u) / 2, np.append(q, v) / 2, order) for order in ORDERS]
    each = [np.array([divergence(a, b, order) for order in ORDERS]) for a, b in ((p, q), (u, v))]
    assert mixed(each) == pytest.approx(np.array(joint), rel=1e-9)


def test_one_run_costs_what_it_costs() -> None:
    single = Selection(mean=1.0)
    assert single.epsilon([MNIST], DELTA) == to_epsilon(composed(MNIST), DELTA)
    assert single.draw(torch.Generator()) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": 0.5}, "mean of at least 1; given 0.5"),
        ({"shape": math.inf, "mean": 0.0}, "mean above 0"),
        ({"mean": math.inf}, "finite mean"),
        ({"shape": -0.5}, "shape of at least 0"),
    ],
)
def test_selections_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(sm.UsageError, match=message):
        Selection(**settings)
