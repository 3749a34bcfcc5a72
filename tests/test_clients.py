"""What is refused to whom: limits and a watch, one client at a time."""

from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import Tensor

import secure_ml as sm
from defenses.label_only import LabelOnly
from defenses.query_detector import QueryDetector, Watch, Watched, false_alarms, normality
from defenses.rate_limit import Limited, RateLimit
from secure_ml.access import BlackBox, WhiteBox
from tests.answers import digits, served_by
from tests.laws import tiny_victim


def test_a_limit_counts_one_client_and_nobody_else() -> None:
    victim = served_by(RateLimit(queries=25))
    x = victim.splits.test.inputs
    first, second = (BlackBox(victim.task, victim.served, "label") for _ in range(2))
    with pytest.raises(sm.Refused, match="refused its client after 25 queries") as refused:
        first(x)
    assert torch.equal(refused.value.answers, victim.task.output.reveal(victim.served(x)[:25], "label"))
    assert first.queries == 25
    with pytest.raises(sm.Refused) as again:
        first(x)
    assert len(again.value.answers) == 0
    assert first.queries == 25
    assert len(second(x[:25])) == 25
    assert victim.score() == tiny_victim("digits_mlp").score(), "who measures is refused"
    assert len(victim.served(x)) == len(x)


def test_no_refusal_shows_more_than_is_revealed() -> None:
    """What is around a limit applies to the answers before it, and so does what the access reveals."""
    for stack in ((RateLimit(queries=3), LabelOnly()), (LabelOnly(), RateLimit(queries=3))):
        victim = tiny_victim("digits_mlp")
        for defense in stack:
            victim = defense.serve(victim)
        with pytest.raises(sm.Refused) as refused:
            BlackBox(victim.task, victim.served)(victim.splits.test.inputs)
        assert len(refused.value.answers.round(decimals=3).unique()) == 2


def test_a_limit_that_remembers_everybody_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limited, "session", lambda self: self)
    victim = served_by(RateLimit(queries=25))
    assert isinstance(victim.served, Limited)
    victim.served.left = 25
    x = victim.splits.test.inputs[:25]
    BlackBox(victim.task, victim.served)(x)
    with pytest.raises(sm.Refused):
        BlackBox(victim.task, victim.served)(x)


def test_a_white_box_adversary_is_a_client_too() -> None:
    victim = served_by(RateLimit(queries=5))
    access = WhiteBox.open(victim)
    assert len(access(victim.splits.test.inputs)) == 40, "the weights are not limited"
    with pytest.raises(sm.Refused):
        access.ask()(victim.splits.test.inputs)


def augmented(seeds: Tensor, rounds: int) -> Tensor:
    """Seeds, and after them copies that are moved by equal steps, as an augmentation makes them."""
    rng = torch.Generator().manual_seed(0)
    moved = [(seeds + 0.1 * torch.randn(seeds.shape, generator=rng).sign()).clamp(0, 1) for _ in range(rounds)]
    return torch.cat([seeds, *moved])


def test_the_watch_tells_augmented_queries_from_honest_ones() -> None:
    victim = QueryDetector(threshold=0.85).serve(digits())
    assert false_alarms(victim, queries=400, clients=5).value == 0
    access = BlackBox(victim.task, victim.served)
    with pytest.raises(sm.Refused) as refused:
        access(augmented(victim.splits.aux.inputs[:60], 6))
    assert 100 < access.queries == len(refused.value.answers) < 420
    with pytest.raises(sm.Refused, match=f"after {access.queries} queries"):
        access(victim.splits.test.inputs[:1])
    assert victim.score() == digits().score()


def test_the_watch_counts_the_same_in_any_batches() -> None:
    victim = QueryDetector(threshold=0.85).serve(digits())
    asked = augmented(victim.splits.aux.inputs[:60], 6)
    found = []
    for size in (1, 7, 420):
        access = BlackBox(victim.task, victim.served)
        with suppress(sm.Refused):
            for piece in asked.split(size):
                access(piece)
        found.append(access.queries)
    assert found[0] < len(asked)
    assert len(set(found)) == 1


def test_the_watch_is_a_naive_loop() -> None:
    """Another reading of the same rule, written from the paper's algorithm."""
    rng = np.random.default_rng(0)
    queries, classes = rng.random((300, 4)), rng.integers(0, 3, 300)
    watch = Watch(QueryDetector(threshold=1e-6, least=20))
    known: dict[int, list[np.ndarray]] = {}
    added: dict[int, list[float]] = {}
    all_found: dict[int, list[float]] = {}
    limit: dict[int, float] = {}
    for query, name in zip(queries, classes, strict=True):
        assert watch.admits(torch.tensor(query), int(name))
        if name not in known:
            known[name], added[name], all_found[name] = [query], [0.0], []
            limit[name] = 0.0
            continue
        near = min(float(np.sqrt(((query - other) ** 2).sum())) for other in known[name])
        all_found[name].append(near)
        if near > limit[name]:
            known[name].append(query)
            added[name].append(near)
            limit[name] = max(limit[name], np.mean(added[name]) - np.std(added[name]))
    values = np.concatenate([all_found[name] for name in watch.distances])
    values = values[np.abs(values - values.mean()) < 3 * values.std()]
    assert watch.statistic() == pytest.approx(normality(values), abs=1e-9)
    assert 0 < watch.statistic() < 1


def test_normality_is_scipys_and_has_no_end() -> None:
    from scipy.stats import shapiro

    rng = np.random.default_rng(0)
    assert normality(rng.normal(size=200)) == pytest.approx(shapiro(rng.normal(size=200)).statistic, abs=0.02)
    assert normality(rng.normal(size=20_000)) > 0.99
    assert normality(rng.exponential(size=20_000)) < 0.9
    assert normality(np.full(200, 0.3)) == 0, "equal distances are as far from natural as can be"


def test_a_watch_that_never_looks_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watch, "statistic", lambda self: 1.0)
    victim = QueryDetector(threshold=0.85).serve(digits())
    assert len(BlackBox(victim.task, victim.served)(augmented(victim.splits.aux.inputs[:60], 6))) == 420
    assert isinstance(victim.served, Watched)


def test_false_alarms_are_counted() -> None:
    alarmed = QueryDetector(threshold=0.999).serve(digits())
    assert false_alarms(alarmed, queries=300, clients=4).value == 1
    assert false_alarms(digits(), queries=300, clients=4).value == 0
    with pytest.raises(sm.UsageError, match="asks 1 to 600 queries here; given 601"):
        false_alarms(alarmed, queries=601)
    with pytest.raises(sm.UsageError, match="at least 1 client"):
        false_alarms(alarmed, queries=3, clients=0)
