"""Shadows against what they are said to see; membership attacks on overfit nets and on nets that know nothing."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from torch import Tensor

import secure_ml as sm
from attacks.membership import _signals as signals
from attacks.membership.blind import Blind, columns
from attacks.membership.boundary_distance import BoundaryDistance
from attacks.membership.calibrated_loss import CalibratedLoss
from attacks.membership.entropy import Entropy
from attacks.membership.lira import LiRA
from attacks.membership.loss_threshold import LossThreshold
from attacks.membership.merlin import Merlin
from attacks.membership.rmia import RMIA
from attacks.membership.shadow_classifier import ShadowClassifier
from secure_ml import shadows as shadow_models
from secure_ml.batch import Batch, join
from secure_ml.families.membership import Membership, Questioned
from secure_ml.outputs import Reveal
from secure_ml.roc import roc, true_positives
from secure_ml.shadows import Shadows, shadows_of, train_shadows
from secure_ml.stats import tpr_at
from tests.laws import tiny_victim

# -- shadows -------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_shadows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow_models, "_LAST", type(shadow_models._LAST)())


def _rows(batch: Batch) -> set[bytes]:
    assert isinstance(batch.inputs, Tensor)
    return {row.numpy().tobytes() for row in batch.inputs}


def test_shadows_are_trained_on_what_they_are_said_to_have_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tiny_victim("digits_mlp")
    few = [part.take(slice(0, 30)) for part in (victim.splits.train, victim.splits.test)]
    batch = Batch(join([part.inputs for part in few]), join([part.target for part in few]))
    taught: list[Batch] = []
    fit_many = shadow_models.fit_many

    def watched(tasks: list[sm.Task], *args: Any, **kwargs: Any) -> list[sm.Victim]:
        taught.extend(task.draw(0).train for task in tasks)
        return fit_many(tasks, *args, **kwargs)

    monkeypatch.setattr(shadow_models, "fit_many", watched)
    for online in (True, False):
        taught.clear()
        shadows = train_shadows(victim, batch, 10, online=online)
        aux, members = victim.splits.aux, len(victim.splits.train)
        for given, saw, more in zip(taught, shadows.saw, shadows.saw_aux, strict=True):
            assert _rows(given) == _rows(batch.take(saw)) | _rows(aux.take(more))
            assert len(given) == int(saw.sum() + more.sum()) <= members
        assert bool((shadows.saw.sum(0) == (5 if online else 0)).all())
        assert bool((shadows.saw[0::2] ^ shadows.saw[1::2]).all()) is online
        assert bool((~shadows.saw_aux[:5]).any(0).all()), "no shadow leaves out some auxiliary example"
        assert all(len(shadow.splits.train) == 0 for shadow in shadows.victims)
        assert len({tuple(row.tolist()) for row in shadows.saw_aux}) == 10


def test_shadows_are_shared_and_grow(no_shadows: None, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tiny_victim("digits_mlp")
    trained: list[int] = []
    fit_many = shadow_models.fit_many
    monkeypatch.setattr(
        shadow_models, "fit_many", lambda tasks, *a, **k: trained.append(len(tasks)) or fit_many(tasks, *a, **k)
    )
    batch, other = (victim.splits.test.take(part) for part in (slice(0, 20), slice(20, 40)))

    def weights(shadows: Shadows) -> list[Tensor]:
        return [next(shadow.module.parameters()) for shadow in shadows.victims]

    few, many = shadows_of(victim, batch, 2), shadows_of(victim, batch, 6)
    assert trained == [2, 4]
    assert all(map(torch.equal, weights(few), weights(many)[:2]))
    assert torch.equal(many.saw[:2], few.saw)
    alone = train_shadows(victim, batch, 6)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(weights(alone), weights(many), strict=True))
    trained.clear()
    shadows_of(victim, batch, 4)
    assert not trained
    shadows_of(victim, batch, 2, online=False)
    again = shadows_of(victim, other, 2, online=False)
    assert trained == [2]
    assert again.saw.shape == (2, 20)
    shadows_of(victim, other, 2)
    shadows_of(replace(victim, task=replace(victim.task)), other, 2)  # the same by name, perhaps not in deed
    assert trained == [2, 2, 2]


def test_attacks_meet_the_same_examples_and_shadows(no_shadows: None) -> None:
    victim = tiny_victim("digits_mlp")
    seen: list[Tensor] = []

    @dataclass(frozen=True, kw_only=True)
    class Looks(Membership):
        reveal: Reveal = "logits"
        name: str = ""

        def score(self, access: Questioned, batch: Batch, aux: Batch, rng: torch.Generator) -> Tensor:
            assert isinstance(batch.inputs, Tensor)
            seen.append(batch.inputs)
            return batch.inputs.flatten(1).sum(1)

    for name in ("one", "two"):
        result = Looks(name=name).evaluate(victim, threat=None, seed=0, examples=20)
    assert torch.equal(*seen)
    members, others = (
        part.inputs[:20].flatten(1).sum(1).double() for part in (victim.splits.train, victim.splits.nonmembers)
    )
    assert torch.allclose(result.evidence["members"], members)
    assert torch.allclose(result.evidence["others"], others)


def test_shadows_are_asked_behind_the_victims_defenses() -> None:
    from defenses.label_only import LabelOnly

    victim = sm.fit(tiny_victim("digits_mlp").task, [LabelOnly()], seed=0, device="cpu")
    batch = victim.splits.test.take(slice(0, 10))
    access = Questioned(victim, "probabilities", batch)
    shadow = access.shadows(2).victims[0]
    assert all(len(row.unique()) == 2 for row in access.like(shadow)(batch.inputs))
    assert access.queries == 0


@pytest.mark.parametrize("count", [0, 1, 3])
def test_shadows_come_in_pairs(count: int) -> None:
    victim = tiny_victim("digits_mlp")
    with pytest.raises(sm.UsageError, match="come in pairs"):
        shadows_of(victim, victim.splits.test, count)
    without = replace(victim, splits=replace(victim.splits, aux=victim.splits.aux.take(slice(0, 0))))
    with pytest.raises(sm.UsageError, match="need auxiliary data"):
        shadows_of(without, victim.splits.test, 2, online=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LiRA(queries=0), "1 to 25 queries"),
        (lambda: LiRA(variance="none"), "no variance is called 'none'"),  # type: ignore[arg-type]
        (lambda: LiRA(variance="shrunk", combine="multivariate"), "no joint distribution"),
        (lambda: LiRA(reveal="all"), "no way of answering"),  # type: ignore[arg-type]
        (lambda: RMIA(gamma=0.0), "gamma above 0"),
        (lambda: RMIA(a=1.5), r"a in \[0, 1\]"),
        (lambda: RMIA(population=0), "population of at least 1"),
        (lambda: Merlin(noise=0.0), "noise above 0"),
        (lambda: Merlin(queries=0), "at least 1 query"),
        (lambda: BoundaryDistance(queries=3), "at least 10 queries"),
        (lambda: BoundaryDistance(search="far"), "no search"),  # type: ignore[arg-type]
        (lambda: ShadowClassifier(rounds=0), "at least 1 round"),
        (lambda: Blind(trees=0), "at least 1 tree"),
    ],
)
def test_settings_out_of_range(make: Callable[[], object], message: str) -> None:
    with pytest.raises(sm.UsageError, match=message):
        make()


# -- end to end ----------------------------------------------------------------------------------------------------


def mislabelled(rng: torch.Generator) -> sm.Splits:
    """Digits, half of them with a label drawn by lot: what cannot be learned can only be remembered."""
    parts = sm.task("digits_mlp").data(rng)
    made = {}
    for name, part in parts.parts().items():
        assert isinstance(part.target, Tensor)
        drawn = torch.randint(10, part.target.shape, generator=rng)
        lot = torch.rand(part.target.shape, generator=rng) < 0.5
        made[name] = Batch(part.inputs, torch.where(lot, drawn, part.target)).take(slice(0, 300))
    return replace(parts, **made)


@cache
def overfit() -> sm.Victim:
    recipe = sm.Recipe(epochs=150, batch_size=100, learning_rate=0.02, optimizer="Adam")
    task = replace(sm.task("digits_mlp", hidden=64), data=mislabelled, recipe=recipe)
    return sm.fit(task, seed=0, device="cpu")


@cache
def untrained() -> sm.Victim:
    return sm.fit(replace(sm.task("digits_mlp"), recipe=sm.Recipe(epochs=1, learning_rate=1e-9)), seed=0, device="cpu")


ALL: list[Membership] = [
    LossThreshold(),
    Entropy(),
    Merlin(noise=0.05, queries=40),
    BoundaryDistance(queries=100),
    BoundaryDistance(search="noise", queries=100),
    CalibratedLoss(shadows=8),
    ShadowClassifier(shadows=8, rounds=30),
    LiRA(shadows=8),
    LiRA(shadows=8, online=False),
    LiRA(shadows=8, queries=3, combine="multivariate"),
    LiRA(shadows=8, variance="shrunk"),
    RMIA(shadows=8),
    RMIA(shadows=8, online=True),
]


@cache
def leak(attack: Membership) -> tuple[sm.Row, ...]:
    return attack.evaluate(overfit(), threat=None, seed=0, examples=300).rows


@pytest.mark.parametrize("attack", ALL, ids=repr)
def test_an_overfit_model_leaks(attack: Membership) -> None:
    row = leak(attack)[0]
    assert row.low is not None
    assert row.low > 0.54, row


def test_shadows_find_more_than_the_loss_alone() -> None:
    alone = leak(LossThreshold())[0].value
    for attack in (LiRA(shadows=8), RMIA(shadows=8), RMIA(shadows=8, online=True)):
        found = leak(attack)[0].value
        assert found is not None
        assert alone is not None
        assert found > alone + 0.03


@pytest.mark.parametrize("attack", [*ALL, Blind(trees=20)], ids=repr)
def test_an_untrained_model_leaks_nothing(attack: sm.Attack) -> None:
    row = attack.evaluate(untrained(), threat=None, seed=0, examples=500).rows[0]
    assert row.low is not None
    assert row.high is not None
    assert row.low <= 0.5 <= row.high, row


@pytest.mark.parametrize("attack", [LiRA(shadows=8), RMIA(shadows=8, online=True)], ids=repr)
def test_a_sign_error_shows_end_to_end(attack: Membership, monkeypatch: pytest.MonkeyPatch) -> None:
    right = signals.log_odds
    monkeypatch.setattr(signals, "log_odds", lambda outputs, target: -right(outputs, target))
    found = attack.evaluate(overfit(), threat=None, seed=0, examples=300).rows[0].high
    assert found is not None
    assert found < 0.5 or isinstance(attack, LiRA)  # a ratio of densities does not mind which way is up


def test_swapped_shadows_show_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Questioned.shadows

    def swapped(self: Questioned, count: int, *, online: bool = True) -> Shadows:
        given = right(self, count, online=online)
        return replace(given, saw=~given.saw)

    monkeypatch.setattr(Questioned, "shadows", swapped)
    found = LiRA(shadows=8).evaluate(overfit(), threat=None, seed=0, examples=300).rows[0].high
    assert found is not None
    assert found < 0.4


# -- rows, curves, and whether the split is fair -------------------------------------------------------------------


def test_rates_are_reported_where_ten_false_positives_are_allowed() -> None:
    victim = tiny_victim("digits_mlp")
    rng = torch.Generator().manual_seed(0)
    for n, known in ((900, 0), (1000, 1), (10_000, 2)):
        pile = Batch(torch.rand(n, 1, 8, 8, generator=rng), torch.randint(10, (n,), generator=rng))
        large = replace(victim, splits=replace(victim.splits, train=pile, others=pile))
        rows = LossThreshold().evaluate(large, threat=None, seed=0, examples=n).rows
        assert [row.measure for row in rows] == ["membership AUC", "TPR at 1 % FPR", "TPR at 0.1 % FPR"]
        assert sum(row.value is not None for row in rows[1:]) == known
        for row, rate in zip(rows[1:], (0.01, 0.001), strict=True):
            if row.value is not None:
                assert row.value == pytest.approx(rate, rel=0.01)  # the same examples on both sides
                assert row.low is not None
                assert row.high is not None
                assert row.low <= row.value <= row.high


def test_the_best_of_several_attacks_says_that_it_was_chosen() -> None:
    victim = tiny_victim("digits_mlp")
    attacks = [LossThreshold(), Entropy(), Merlin.tiny()]
    attempts = [(attack, attack.evaluate(victim, threat=None, seed=0, examples=40)) for attack in attacks]
    rows = LossThreshold.pool(victim.task, attempts)
    assert "best of 3 attacks" in rows[0].note
    assert rows[0].value == max(result.rows[0].value or 0 for _, result in attempts)
    assert not LossThreshold.pool(victim.task, attempts[:1])[0].note


def test_a_roc_is_the_rate_at_each_of_its_points() -> None:
    rng = np.random.default_rng(0)
    for decimals in (10, 1, 0):
        members, others = rng.normal(1, 1, 300).round(decimals), rng.normal(0, 1, 1000).round(decimals)
        rates = np.geomspace(0.001, 1, 40)
        assert true_positives(members, others, rates) == pytest.approx([tpr_at(members, others, r) for r in rates])


def test_the_roc_of_two_normals_lies_in_its_interval() -> None:
    rng = np.random.default_rng(1)
    victims = [(rng.normal(1, 1, 1000), rng.normal(0, 1, 1000)) for _ in range(5)]
    found = roc(victims, points=20)
    assert found.fpr[0] == pytest.approx(10 / 5000)
    expected = scipy_stats.norm.sf(scipy_stats.norm.isf(found.fpr) - 1)
    assert bool(((found.low <= expected) & (expected <= found.high)).mean() > 0.8)
    assert bool((found.tpr == np.maximum.accumulate(found.tpr)).all())
    assert found.tpr == pytest.approx(expected, abs=0.04)
    with pytest.raises(sm.UsageError, match="needs more non-members than 10"):
        roc([(np.zeros(10), np.zeros(10))])


def test_rocs_are_drawn_on_logarithmic_axes(tmp_path: Path) -> None:
    from experiments._roc import draw_rocs

    rng = np.random.default_rng(1)
    found = roc([(rng.normal(1, 1, 200), rng.normal(0, 1, 200))], points=10, rounds=20)
    draw_rocs({"none": {"LiRA": found}, "DPSGD()": {"LiRA": found}}, tmp_path / "roc.png", "digits")
    assert (tmp_path / "roc.png").stat().st_size > 10_000
    with pytest.raises(sm.UsageError, match="no ROC"):
        draw_rocs({}, tmp_path / "roc.png", "digits")


def test_a_split_that_needs_no_model_is_found() -> None:
    """Members that are a little brighter than others: every attack's AUC on them would be worth nothing."""
    victim = untrained()
    train = victim.splits.train
    assert isinstance(train.inputs, Tensor)
    bright = Batch((train.inputs + 0.1).clamp(max=1), train.target)
    skewed = replace(victim, splits=replace(victim.splits, train=bright))
    attack = Blind(trees=20)
    result = attack.evaluate(skewed, threat=None, seed=0, examples=300)
    assert result.rows[0].low is not None
    assert result.rows[0].low > 0.9
    assert "is no leak" in Blind.pool(victim.task, [(attack, result)])[0].note
    fair = attack.evaluate(victim, threat=None, seed=0, examples=300)
    assert not Blind.pool(victim.task, [(attack, fair)])[0].note


def test_words_are_counted_where_inputs_are_symbols() -> None:
    table = columns(Batch(torch.tensor([[3, 3, 5], [5, 1, 0]]), torch.tensor([1, 0])))
    assert table[0, 3 + 3] == 2
    assert table[:, 3 + 5].tolist() == [1, 1]
    assert table[:, -1].tolist() == [1, 0]


def test_what_has_no_classes_is_judged_by_its_loss() -> None:
    victim = tiny_victim("linear_regression")
    batch = victim.splits.test.take(slice(0, 5))
    access = sm.BlackBox(victim.task, victim.served)
    assert torch.allclose(signals.confidence(access, batch), -victim.task.loss(victim.served, batch).double())
    for attack in (Entropy(), BoundaryDistance()):
        with pytest.raises(sm.NotApplicable):
            attack.check(victim.task, None)
    with pytest.raises(sm.NotApplicable, match="changes Box inputs"):
        Merlin().check(tiny_victim("text_embedding").task, None)


def test_noise_stays_in_the_box() -> None:
    victim = untrained()
    access = Questioned(victim, "label", victim.splits.test.take(slice(0, 5)))
    batch = victim.splits.test.take(slice(0, 200))
    moved = signals.noisy(access.task, batch, 0.5, torch.Generator().manual_seed(0))
    victim.task.surfaces[0].check(moved.inputs)


def test_a_subset_of_mnist_is_one_or_the_whole() -> None:
    assert repr(sm.task("mnist_cnn", examples=100)) == "mnist_cnn(examples=100)"
    for wrong in ({"examples": 0}, {"examples": 28_001}, {"examples": 100, "whole": True}):
        with pytest.raises(sm.UsageError, match="mnist_cnn"):
            sm.task("mnist_cnn", **wrong)


@pytest.mark.data
def test_a_subset_of_mnist_has_as_many_members_as_others() -> None:
    parts = sm.task("mnist_cnn", examples=10_000).draw(0)
    sizes = {name: len(part) for name, part in parts.parts().items()}
    assert sizes == {"train": 10_000, "validation": 3000, "test": 10_000, "aux": 37_000, "others": 10_000}
