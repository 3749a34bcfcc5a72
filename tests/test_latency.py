"""The time that an answer takes: the median and its interval, as served, by questions that are counted."""

import time
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import secure_ml as sm
from secure_ml.batch import Tree
from secure_ml.latency import ASKED, MEASURE, WARMING, latency
from secure_ml.pareto import on_front, trades
from secure_ml.report import card, verdict
from secure_ml.stats import median
from secure_ml.victim import Served, Victim, Wrapped
from tests.laws import tiny_victim


class Slow(Wrapped):
    """Waits before it answers, and remembers how often it was asked about how many inputs."""

    def __init__(self, inner: Served, wait: float) -> None:
        super().__init__(inner)
        self.wait, self.asked = wait, list[int]()

    def __call__(self, inputs: Tree) -> Tensor:
        time.sleep(self.wait)
        answers = self.inner(inputs)
        self.asked.append(len(answers))
        return answers


def slowed(seconds: float, name: str = "none") -> tuple[Victim, Slow]:
    victim = tiny_victim("digits_mlp")
    served = Slow(victim.served, seconds)
    return replace(victim, served=served), served


@pytest.mark.parametrize("n", [1, 5, 6, 11, 15, 20])
def test_the_interval_of_a_median_covers_it(n: int) -> None:
    """Against all outcomes of n coins: the true median lies outside of the interval as often as that says, at most."""
    found = median([float(i) for i in range(1, n + 1)])
    assert found.value == (n + 1) / 2
    if n < 6:
        assert not found.low > -1, "too few for an interval"
        return
    k = int(found.low)
    assert found.high == n + 1 - k, "as many below as above"
    heads = torch.tensor(list(product((0, 1), repeat=min(n, 15)))).sum(1) if n <= 15 else None
    if heads is not None:
        outside = ((heads < k) | (heads > n - k)).double().mean()
        wider = ((heads <= k) | (heads >= n - k)).double().mean()
        assert outside <= 0.05 < wider, "the narrowest that is sure enough"


def test_the_median_is_of_any_order_and_none_of_its_ends() -> None:
    found = median([5.0, 1.0, 100.0, 3.0, 2.0, 4.0])
    assert (found.value, found.low, found.high, found.n) == (3.5, 1.0, 100.0, 6)


def test_what_is_timed_is_what_is_served_one_input_at_a_time() -> None:
    victim, served = slowed(0.004)
    row = latency(victim)
    assert row.value is not None
    assert row.low is not None
    assert 4 <= row.low <= row.value < 100
    assert (row.measure, row.unit, row.n) == (MEASURE, "milliseconds", ASKED)
    assert served.asked == [1] * (ASKED + WARMING)


def test_a_slow_server_is_asked_less_and_one_that_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from secure_ml import latency as module

    monkeypatch.setattr(module, "LONG", 0.03)
    victim, served = slowed(0.01)
    row = latency(victim)
    assert WARMING < len(served.asked) <= 3
    assert row.n == len(served.asked) - WARMING
    monkeypatch.setattr(Slow, "usage", lambda self: {"queries served": len(self.asked)})
    victim, served = slowed(0.001)
    assert latency(victim).n == len(served.asked) == 1, "a count that never varies"


def test_a_card_has_it_and_it_is_traded() -> None:
    """Of two stacks that differ in speed alone the faster one is on the front."""
    rows = []
    for name, seconds in (("none", 0.0), ("slow", 0.004)):
        victim, _ = slowed(seconds)
        pooled = verdict(victim.task, [(None, card(victim)), (None, card(replace(victim, seed=1)))])
        rows += [replace(row, defenses=name) for row in pooled]
    axes, stacks = trades(rows)
    shown = [axis for axis in axes if axis.name in ("score", "latency")]
    assert [(axis.name, axis.better) for axis in shown] == [("score", 1), ("latency", -1)]
    assert on_front(stacks, shown) == [True, False]
    (slow,) = (row for row in rows if row.measure == MEASURE and row.defenses == "slow")
    assert slow.low is not None
    assert slow.low >= 0


def test_scarce_questions_are_not_spent_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from secure_ml.outside.estimator import Function

    victim = tiny_victim("digits_mlp")

    def never(inputs: Any) -> Any:
        raise AssertionError("asked")

    few = Function(never)
    monkeypatch.setattr(few, "spare", lambda: 300.0)
    row = latency(replace(victim, module=few, served=sm.victim.Plain(few, 10)))
    assert row.value is None
    assert "300 more inputs" in row.note
