"""The formulas of audits against golden values, closed forms and simulations of the game that each bounds."""

import math

import numpy as np
import pytest

import secure_ml as sm
from secure_ml.auditing import (
    Errors,
    Guessed,
    chosen_guesses,
    chosen_threshold,
    clopper_pearson_lower,
    clopper_pearson_upper,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_mu,
    guess,
    one_run_epsilon,
    one_run_fdp_epsilon,
    one_run_mu,
    one_run_p_value,
    region_epsilon,
)

GOLDEN = [
    ((1000, 100, 90), 1.62614, 2.45641),
    ((1000, 100, 100), 3.46538, 5.54903),
    ((1000, 500, 300), 0.25121, 0.43882),
    ((5000, 1000, 700), 0.73065, 1.07608),
]
"""Canaries, guesses, right ones; then the bounds of one run, for any mechanism and f-DP, at delta 1e-5."""


@pytest.mark.parametrize(("counts", "steinke", "gaussian"), GOLDEN)
def test_one_run_golden_values(counts: tuple[int, int, int], steinke: float, gaussian: float) -> None:
    assert one_run_epsilon(*counts, 1e-5) == pytest.approx(steinke, abs=1e-5)
    assert one_run_fdp_epsilon(*counts, 1e-5) == pytest.approx(gaussian, abs=1e-5)


def test_further_golden_values() -> None:
    assert one_run_epsilon(1000, 500, 300, 0.0) == pytest.approx(0.25168, abs=1e-5)
    assert clopper_pearson_upper(3, 100, 0.025) == pytest.approx(0.08517606, abs=1e-8)
    for canaries, ceiling in ((100, 2.78), (1000, 5.09), (10000, 7.14)):  # all of half as many guesses right
        assert one_run_epsilon(canaries, canaries // 2, canaries // 2, 1e-5) == pytest.approx(ceiling, abs=0.005)
    for tries, ceiling in ((100, 2.57), (1000, 4.91), (10000, 7.21)):  # no error in half as many trials of each kind
        assert region_epsilon(Errors(0, tries // 2, 0, tries // 2), 1e-5) == pytest.approx(ceiling, abs=0.01)


def test_p_value_against_a_naive_sum() -> None:
    """Term by term with exact binomials."""
    m, r, v, delta, epsilon = 60, 20, 17, 1e-3, 0.7
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    mass = [math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(r + 1)]
    beta = sum(mass[v:])
    alpha = max(sum(mass[v - i : v]) / i for i in range(1, v + 1))
    assert one_run_p_value(epsilon, m, r, v, delta) == pytest.approx(beta + 2 * m * delta * alpha, rel=1e-9)


def test_proportions() -> None:
    assert clopper_pearson_upper(0, 50, 0.05) == pytest.approx(1 - 0.05 ** (1 / 50))
    assert clopper_pearson_lower(50, 50, 0.05) == pytest.approx(0.05 ** (1 / 50))
    assert (clopper_pearson_upper(50, 50, 0.05), clopper_pearson_lower(0, 50, 0.05)) == (1.0, 0.0)


def test_gaussian_against_integration_and_back() -> None:
    """delta is the integral of what one density has beyond e^eps times the other; epsilon inverts it."""
    x = np.linspace(-30, 30, 600_001)
    for mu, epsilon in ((0.5, 1.0), (1.0, 3.0), (2.0, 0.0)):
        one, other = (np.exp(-((x - at) ** 2) / 2) / math.sqrt(2 * math.pi) for at in (mu, 0))
        expected = np.maximum(one - math.exp(epsilon) * other, 0).sum() * (x[1] - x[0])
        assert gaussian_delta(epsilon, mu) == pytest.approx(expected, rel=1e-4)
        assert gaussian_epsilon(mu, gaussian_delta(epsilon, mu)) == pytest.approx(epsilon, abs=1e-4)
    assert gaussian_epsilon(1.0, 1e-5) == pytest.approx(4.37718, abs=1e-4)
    assert gaussian_epsilon(0.0, 1e-5) == gaussian_delta(1.0, 0.0) == 0.0


def test_mu_of_known_errors() -> None:
    """With as many trials as it takes, mu is that of the two normals."""
    n = 10**9
    errors = Errors(round(0.3085375 * n), n, round(0.3085375 * n), n)  # both normals' tails at half of mu = 1
    assert gaussian_mu(errors) == pytest.approx(1.0, abs=1e-3)
    assert gaussian_mu(Errors(50, 100, 50, 100)) == region_epsilon(Errors(50, 100, 50, 100), 1e-5) == 0.0


def test_nothing_is_shown_by_nothing() -> None:
    assert one_run_epsilon(100, 10, 0, 1e-5) == one_run_mu(100, 10, 5) == 0.0
    assert region_epsilon(Errors(10, 10, 10, 10), 0.0) == 0.0
    for bad in ((10, 11, 5), (10, 5, 6), (0, 0, 0)):
        with pytest.raises(sm.UsageError, match="right <= guesses <= canaries"):
            one_run_epsilon(*bad, 1e-5)


def test_guesses_are_the_extremes() -> None:
    scores, included = np.array([5.0, -1.0, 3.0, 0.0, 4.0]), np.array([True, True, False, False, True])
    assert guess(scores, included, 3) == Guessed(5, 3, 2, 0.05)
    assert guess(scores, included, 5).right == 3


@pytest.mark.parametrize("choice", ["fixed", "bonferroni", "split"])
def test_choices_hold_where_nothing_leaks(choice: str) -> None:
    """Of scores that say nothing, a bound above 0 is claimed in no more than 5 % of games, and some."""
    rng = np.random.default_rng(0)
    games, wrong = 120, 0
    for _ in range(games):
        scores, included = rng.normal(size=200), rng.random(200) < 0.5
        shares = (0.2,) if choice == "fixed" else (0.05, 0.2, 0.5, 0.9)
        found = chosen_guesses(
            scores, included, lambda g: one_run_epsilon(g.canaries, g.guesses, g.right, 0.0, g.alpha), choice, shares
        )
        wrong += one_run_epsilon(found.canaries, found.guesses, found.right, 0.0, found.alpha) > 0
    assert wrong <= 12  # 6 expected at most; 13 has a chance of 1 %
    wrong = 0
    grid = (0.0,) if choice == "fixed" else (-1.0, -0.5, 0.0, 0.5, 1.0)
    for _ in range(games):
        ins, outs = rng.normal(size=60), rng.normal(size=60)
        errors, alpha = chosen_threshold(ins, outs, lambda e, a: region_epsilon(e, 0.0, a), choice, grid)
        wrong += region_epsilon(errors, 0.0, alpha) > 0
    assert wrong <= 12


def test_taking_the_best_without_paying_is_wrong() -> None:
    """What the choices are for: the best of all numbers of guesses claims too much in far more than 5 % of games."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(100):
        scores, included = rng.normal(size=200), rng.random(200) < 0.5
        tried = [guess(scores, included, guesses) for guesses in range(6, 200, 4)]
        wrong += any(one_run_p_value(0.0, g.canaries, g.guesses, g.right, 0.0) <= 0.05 for g in tried)
    assert wrong > 15


def test_power_on_a_gaussian() -> None:
    """Scores of N(1, 1) against N(0, 1): epsilon 4.38 at delta 1e-5, of which each way shows its part and no more."""
    rng = np.random.default_rng(1)
    ins, outs = rng.normal(1, 1, 5000), rng.normal(0, 1, 5000)
    truth = gaussian_epsilon(1.0, 1e-5)
    for choice, grid in (("split", ()), ("fixed", (0.5,)), ("bonferroni", (0.0, 0.5, 1.0))):
        errors, alpha = chosen_threshold(ins, outs, gaussian_mu, choice, grid)
        assert 0.8 * truth < gaussian_epsilon(gaussian_mu(errors, alpha), 1e-5) < truth
        errors, alpha = chosen_threshold(ins, outs, lambda e, a: region_epsilon(e, 1e-5, a), choice, grid)
        assert 0.5 < region_epsilon(errors, 1e-5, alpha) < truth
    included = rng.random(2000) < 0.5
    found = guess(rng.normal(size=2000) + included, included, 1000)
    steinke, fdp = (f(found.canaries, found.guesses, found.right, 1e-5) for f in (one_run_epsilon, one_run_fdp_epsilon))
    assert 0.5 < steinke < fdp < truth


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"choice": "all"}, "chosen by one of"),
        ({"choice": "fixed", "thresholds": (0.0, 1.0)}, "needs one threshold"),
        ({"choice": "bonferroni"}, "needs thresholds"),
    ],
)
def test_bad_thresholds(settings: dict, message: str) -> None:
    with pytest.raises(sm.UsageError, match=message):
        chosen_threshold(np.zeros(9), np.zeros(9), gaussian_mu, **settings)


@pytest.mark.parametrize(
    ("choice", "shares", "message"),
    [("fixed", (0.1, 0.2), "one share"), ("split", (1.5,), "shares in"), ("all", (0.5,), "chosen by one of")],
)
def test_bad_shares(choice: str, shares: tuple[float, ...], message: str) -> None:
    with pytest.raises(sm.UsageError, match=message):
        chosen_guesses(np.zeros(9), np.zeros(9, dtype=bool), lambda g: 0.0, choice, shares)
    with pytest.raises(sm.UsageError, match="at least 2 canaries"):
        chosen_guesses(np.zeros(1), np.zeros(1, dtype=bool), lambda g: 0.0)
