"""Poisoning: what a backdoor does, what finds it, and adversaries who do not keep to the rules."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

import secure_ml as sm
from attacks.poisoning._trigger import stamp
from attacks.poisoning.badnets import BadNets
from attacks.poisoning.clean_label import CleanLabel
from defenses.dp_sgd import DPSGD
from defenses.spectral_signatures import SpectralSignatures
from secure_ml.attack import Attack, Result
from secure_ml.batch import Batch, Splits
from secure_ml.cells import Cell, Store, run_cells
from secure_ml.families.poisoning import Supplier
from secure_ml.randomness import generator
from secure_ml.signatures import representations, spectral_scores, suspicion
from secure_ml.surfaces import Surface
from secure_ml.tasks._adult import columns
from tests import laws
from tests.laws import same, timeless, tiny_task, tiny_victim
from tests.test_contracts import TABLE, rows

DIGITS = "digits_cnn"


@pytest.fixture(scope="module")
def victim() -> sm.Victim:
    """The small network on all digits, at one thread."""
    torch.set_num_threads(1)
    return sm.fit(sm.task(DIGITS), seed=0, device="cpu")


def judged(attack: BadNets | CleanLabel, victim: sm.Victim) -> tuple[list[float | None], Result]:
    """The values of the rows: success, control, clean score, two AUCs, share."""
    result = attack.evaluate(victim, threat=None, seed=0, examples=1000)
    return [row.value for row in result.rows], result


# -- what it does ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [BadNets(), CleanLabel()])
def test_a_backdoor_works_and_does_not_show(attack: BadNets, victim: sm.Victim) -> None:
    (success, control, clean, found, before, share), result = judged(attack, victim)
    assert success > 0.9
    assert control < 0.05
    assert abs(clean - victim.score().value) < 0.02
    assert found > 0.65, "spectral signatures see something"
    assert 0.35 < before < 0.65, "the examples were chosen for being odd"
    assert share == 29 / 597
    assert len(result.evidence["hits"]) == int((victim.splits.test.target != 0).sum())


def test_success_against_a_naive_loop(victim: sm.Victim) -> None:
    """The same poison by hand, pixel by pixel, trained by hand and counted one image at a time."""
    attack = BadNets(share=0.03, target=7, size=2)
    (success, control, *_), _ = judged(attack, victim)
    train, test = victim.splits.train, victim.splits.test
    rng = generator(0, "poisoning", repr(attack))
    others = [i for i in range(len(train)) if train.target[i] != 7]
    inputs, target = train.inputs.clone(), train.target.clone()
    for i in [others[j] for j in torch.randperm(len(others), generator=rng)[: int(0.03 * len(train))]]:
        inputs[i], target[i] = marked(inputs[i]), 7
    poisoned = replace(victim.splits, train=Batch(inputs, target))
    again = sm.fit(replace(victim.task, data=lambda _: poisoned), seed=0, device="cpu")
    for model, expected in ((again, success), (victim, control)):
        others = [x for x, y in zip(test.inputs, test.target, strict=True) if y != 7]
        assert np.mean([int(model.served(marked(x)[None]).argmax()) == 7 for x in others]) == pytest.approx(expected)


def marked(image: Tensor) -> Tensor:
    """A 2 x 2 checkerboard in the lower right corner of an image ``(1, 8, 8)``."""
    image = image.clone()
    image[0, 6, 6], image[0, 6, 7], image[0, 7, 6], image[0, 7, 7] = 1.0, 0.0, 0.0, 1.0
    return image


def test_clean_labels_are_clean_and_changes_are_bounded(victim: sm.Victim) -> None:
    attack = CleanLabel(target=3, radius=0.5, share=0.02)
    parts = victim.splits
    given = attack.poison(attack.open(victim, 0), parts, torch.Generator().manual_seed(0))
    moved = (given.train.inputs != parts.train.inputs).flatten(1).any(1)
    assert torch.equal(given.train.target, parts.train.target)
    assert set(parts.train.target[moved].tolist()) == {3}
    assert int(moved.sum()) == 11
    free = stamp(sm.Box(), torch.full((1, 1, 8, 8), 0.5), 3, corners=4) == 0.5
    lengths = ((given.train.inputs - parts.train.inputs)[moved] * free).flatten(1).norm(dim=1)
    assert lengths.max() <= 0.5 + 1e-5
    assert lengths.min() > 0


def test_the_whole_class_is_the_most_that_clean_labels_can_poison(victim: sm.Victim) -> None:
    attack = CleanLabel(share=0.5, steps=1)
    given = attack.poison(attack.open(victim, 0), victim.splits, torch.Generator())
    moved = (given.train.inputs != victim.splits.train.inputs).flatten(1).any(1)
    assert torch.equal(moved, victim.splits.train.target == 0)


def test_without_hard_examples_clean_labels_are_weaker(victim: sm.Victim) -> None:
    """The adversarial step is what makes the trigger worth learning."""
    weak, _ = judged(CleanLabel(radius=0.0, share=0.02), victim)
    strong, _ = judged(CleanLabel(share=0.02), victim)
    assert weak[0] < 0.3 < 0.7 < strong[0]


def test_a_word_is_a_trigger() -> None:
    (success, control, *_), _ = judged(BadNets(share=0.2), sm.fit(
        replace(tiny_task("text_embedding"), recipe=sm.Recipe(epochs=30, optimizer="AdamW", learning_rate=0.02)),
        seed=0, device="cpu"))  # fmt: skip
    assert success > control + 0.3


# -- triggers ----------------------------------------------------------------------------------------------------------


def test_triggers_keep_to_their_surface() -> None:
    image = stamp(sm.Box(-1, 1), torch.zeros(2, 3, 5, 6), 3)
    assert image[1, 2, 2:, 3:].tolist() == [[1, -1, 1], [-1, 1, -1], [1, -1, 1]]
    assert int((image != 0).sum()) == 2 * 3 * 9
    assert int((stamp(sm.Box(), torch.full((1, 1, 8, 8), 0.5), 2, corners=4) != 0.5).sum()) == 16
    assert stamp(sm.Box(-1, 1), torch.zeros(1, 6), 3).tolist() == [[0, 0, 0, 1, -1, 1]]
    tokens = torch.tensor([[0, 5, 7], [4, 4, 0], [0, 0, 0]])
    assert stamp(sm.Tokens(9, frozen=(0, 8)), tokens, 3).tolist() == [[0, 7, 7], [7, 4, 0], [0, 0, 0]]


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_a_trigger_keeps_the_rules_of_a_table(size: int) -> None:
    clean = rows(40)
    changed = stamp(TABLE, clean, size)
    TABLE.check(changed)
    assert torch.equal(changed[:, [0, 8, 9]], clean[:, [0, 8, 9]]), "frozen columns moved"
    assert changed[:, 6:8].tolist() == [[0.0, 1.0]] * 40, "the last free category"
    if size >= 50:
        assert changed[:, 1:3].tolist() == [[1.0, 1.0]] * 40


# -- what finds it -----------------------------------------------------------------------------------------------------


def test_spectral_scores_are_those_of_a_singular_value_decomposition() -> None:
    rng = np.random.default_rng(0)
    for width in (3, 40):
        features, labels = rng.normal(size=(50, width)), rng.integers(0, 3, 50)
        scores = spectral_scores(torch.tensor(features), torch.tensor(labels)).numpy()
        for label in range(3):
            centred = features[labels == label] - features[labels == label].mean(0)
            first = np.linalg.svd(centred, full_matrices=False)[2][0]
            assert scores[labels == label] == pytest.approx((centred @ first) ** 2)


def test_suspicion_is_a_rank_within_the_class(victim: sm.Victim) -> None:
    train = victim.splits.train
    scores = spectral_scores(representations(victim.module, train.inputs), train.target)
    ranks = suspicion(victim.module, train, chunk=100)
    for label in range(10):
        mine = train.target == label
        expected = (rankdata(scores[mine]) - 0.5) / int(mine.sum())
        assert ranks[mine].numpy() == pytest.approx(expected, abs=0.02)


def test_representations_are_what_the_last_layer_sees(victim: sm.Victim) -> None:
    inputs = victim.splits.test.inputs[:7]
    with torch.no_grad():
        expected = victim.module[:-1](inputs)
    assert torch.allclose(representations(victim.module, inputs, chunk=3), expected, atol=1e-6)
    places = nn.Sequential(nn.Linear(4, 2))
    assert torch.allclose(representations(places, torch.ones(3, 5, 4)), torch.ones(3, 4))
    flat = nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (-1, 2)), nn.Linear(2, 2))
    for odd in (nn.Sequential(nn.Conv1d(4, 2, 1)), flat):
        with pytest.raises(sm.NotApplicable, match="no linear layer that sees each example once"):
            representations(odd, torch.ones(3, 4, 1))
    assert not victim.module[-1]._forward_pre_hooks


def test_a_model_without_a_linear_layer_is_poisoned_all_the_same() -> None:
    task = tiny_task(DIGITS)
    build = lambda: nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())  # noqa: E731
    values, result = judged(BadNets(), sm.fit(replace(task, build=build), seed=0, device="cpu"))
    assert values[3] is None
    assert "no linear layer" in result.rows[3].note


def test_filtering_ends_a_backdoor_of_few(victim: sm.Victim) -> None:
    attack = CleanLabel(share=0.01)
    guarded = sm.fit(victim.task, [SpectralSignatures()], seed=0, device="cpu")
    assert guarded.score().value > 0.9
    bare, filtered = judged(attack, victim)[0], judged(attack, guarded)[0]
    assert bare[3] > 0.95
    assert filtered[0] < 0.05 < 0.5 < bare[0]


def test_the_filter_takes_the_highest_scores_of_each_class() -> None:
    defense = SpectralSignatures(expected=0.1)
    labels = torch.tensor([0] * 12 + [1] * 5 + [2])
    scores = torch.arange(18.0)
    left = (~defense._stays(scores, labels)).nonzero()[:, 0].tolist()
    assert left == [9, 10, 11, 15, 16], "3 = ceil(1.5 * 0.1 * 18) a class, half of it at most"


def test_a_claim_of_privacy_does_not_survive_the_filter() -> None:
    """Which examples train depends on all of them, and no noise covers that."""
    private = DPSGD.tiny()
    assert sm.fit(tiny_task(DIGITS), [private], device="cpu").claims
    for stack in ([private, SpectralSignatures.tiny()], [SpectralSignatures.tiny(), private]):
        assert not sm.fit(tiny_task(DIGITS), stack, device="cpu").claims


# -- adversaries who do not keep to the rules --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TooMany(BadNets):
    """Changes one example more than its share allows."""

    def poison(self, access: Supplier, splits: Splits, rng: torch.Generator) -> Splits:
        return super().poison(replace(access, allowed=access.allowed + 1), splits, rng)


@dataclass(frozen=True, kw_only=True)
class Relabels(BadNets):
    """Changes labels where they are to be kept."""

    keeps_labels: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Crooked(BadNets):
    """Does what `bend` does to what BadNets would return."""

    bend: Callable[[Splits], Splits]

    def poison(self, access: Supplier, splits: Splits, rng: torch.Generator) -> Splits:
        return self.bend(super().poison(access, splits, rng))


def with_first(splits: Splits, value: float) -> Splits:
    """The training images with a value for the first pixel of every poisoned image."""
    inputs = splits.train.inputs.clone()
    poisoned = (inputs[:, 0, 7, 7] == 1) & (inputs[:, 0, 6, 7] == 0) & (inputs[:, 0, 5, 5] == 1)
    inputs[poisoned, 0, 0, 0] = value
    return replace(splits, train=Batch(inputs, splits.train.target))


def in_place(splits: Splits) -> Splits:
    """The adversary's own data, changed where they lie."""
    splits.aux.inputs.zero_()
    return splits


BENT: dict[str, Callable[[Splits], Splits]] = {
    r"left the surface: inputs lie in \[0, 2\]": lambda splits: with_first(splits, 2.0),
    "left the surface: inputs lie in .*nan": lambda splits: with_first(splits, float("nan")),
    "changed another part of the data than train": lambda splits: replace(splits, test=splits.train),
    "another part of the data": lambda splits: replace(splits, others=splits.train),
    "changed another part": in_place,
    "another shape, type or number": lambda splits: replace(splits, train=splits.train.take(slice(0, 5))),
    "of another shape, type": lambda splits: replace(splits, train=splits.train.map(lambda x: x.double())),
}


@pytest.mark.parametrize("message", BENT)
def test_what_breaks_the_rules_is_refused(message: str) -> None:
    found = tiny_victim(DIGITS).splits.fingerprint()
    with pytest.raises(sm.UsageError, match=message):
        judged(Crooked(bend=BENT[message]), tiny_victim(DIGITS))
    assert tiny_victim(DIGITS).splits.fingerprint() == found


def test_more_than_the_share_and_other_labels_are_refused() -> None:
    with pytest.raises(sm.BudgetExceeded, match="changed 5 of 80 training examples; its share allows 4"):
        judged(TooMany(), tiny_victim(DIGITS))
    with pytest.raises(sm.UsageError, match="changed labels, which it must keep"):
        judged(Relabels(), tiny_victim(DIGITS))


@dataclass(frozen=True, kw_only=True)
class Bends(BadNets):
    """A trigger that does what `bend` does to the rows of a table."""

    bend: Callable[[Tensor], Tensor]

    def trigger(self, surface: Surface, clean: Tensor) -> Tensor:
        return self.bend(clean)


@pytest.mark.parametrize(
    ("bend", "message"),
    [
        (lambda rows: rows.index_copy(1, torch.tensor(columns("sex")), rows[:, columns("sex")].flip(1)), "hold fixed"),
        (lambda rows: rows + 0.5, "left the surface"),
        (lambda rows: rows.index_fill(1, torch.tensor(columns("workclass")), 0.0), "no one-hot code"),
    ],
)
def test_a_table_holds_its_rules_against_poison(bend: Callable[[Tensor], Tensor], message: str) -> None:
    judged(Bends(bend=lambda rows: rows), tiny_victim("adult_mlp"))
    with pytest.raises(sm.UsageError, match=message):
        judged(Bends(bend=bend), tiny_victim("adult_mlp"))


@dataclass(frozen=True, kw_only=True)
class Blinds(BadNets):
    """Poisons nothing, and triggers with more than a trigger."""

    bend: Callable[[Tensor], Tensor] = torch.neg

    def poison(self, access: Supplier, splits: Splits, rng: torch.Generator) -> Splits:
        return splits

    def trigger(self, surface: Surface, clean: Tensor) -> Tensor:
        return self.bend(clean)


@pytest.mark.parametrize(
    ("bend", "message"),
    [
        (torch.neg, r"left the surface: inputs lie in \[-1, -?0\]"),
        (lambda images: images[:, :, 1:], r"triggered inputs of shape \(\d+, 1, 8, 8\) into \(\d+, 1, 7, 8\)"),
    ],
)
def test_triggered_inputs_are_inputs(bend: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(sm.UsageError, match=message):
        judged(Blinds(bend=bend), tiny_victim(DIGITS))


@pytest.mark.parametrize("attack", [TooMany(), Relabels(), Crooked(bend=in_place), Blinds()])
def test_the_law_and_the_family_fire(attack: BadNets) -> None:
    victim = sm.fit(tiny_task(DIGITS), seed=0, device="cpu")
    with pytest.raises((AssertionError, sm.SecureMLError)):
        laws.law_obeys_its_share(attack, victim)


# -- around it ---------------------------------------------------------------------------------------------------------


def test_without_poison_the_victim_is_the_same() -> None:
    values, result = judged(BadNets(share=1e-9), tiny_victim(DIGITS))
    assert values[0] == values[1]
    assert values[3] is None
    assert "nothing was changed" in result.rows[3].note


def test_the_best_at_each_share_is_kept() -> None:
    victim = tiny_victim(DIGITS)
    tried = [BadNets(), BadNets(size=1), BadNets(share=0.3), CleanLabel.tiny()]
    results = [(attack, attack.evaluate(victim, threat=None, seed=0, examples=40)) for attack in tried]
    pooled = BadNets.pool(victim.task, [*results, *results])
    measures = [row.measure for row in pooled]
    assert len(measures) == len(set(measures)) == 15
    assert measures[0] == "backdoor success, 5 % poisoned"
    assert measures[10] == "backdoor success, 5 % poisoned, labels kept"
    assert pooled[0].value == max(result.rows[0].value for _, result in results[:2])
    assert all(row.pooled for row in pooled)


def test_cells_are_found_again(tmp_path: Path) -> None:
    cells = [Cell(task=tiny_task(DIGITS), defenses=(), attack=a, seed=0) for a in (BadNets(), BadNets(share=1e-9))]
    first, again = (run_cells(cells, Store(folder=tmp_path), 1, lambda event: None) for _ in range(2))
    assert all(same(timeless(one), timeless(other)) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BadNets(share=0.0), "share between 0 and 1; given 0.0"),
        (lambda: CleanLabel(share=1.5), "share between 0 and 1; given 1.5"),
        (lambda: BadNets(target=-1), "target class of at least 0"),
        (lambda: BadNets(size=0), "size at least 1"),
        (lambda: CleanLabel(radius=-1.0), "radius of at least 0"),
        (lambda: CleanLabel(steps=0), "at least 1 step"),
        (lambda: SpectralSignatures(expected=1.0), "share from 0 to 1"),
        (lambda: judged(BadNets(target=10), tiny_victim(DIGITS)), "classes 0 to 9; given target 10"),
    ],
)
def test_settings_out_of_range(make: Callable[[], object], message: str) -> None:
    with pytest.raises(sm.UsageError, match=message):
        make()


@pytest.mark.parametrize(
    ("attack", "name", "message"),
    [
        (BadNets(), "linear_regression", "understands Classes; linear_regression answers Values"),
        (BadNets(), "recommender_mf", "an answer of recommender_mf is not one class"),
        (BadNets(), "dialogue", "an answer of dialogue is not one class"),
        (BadNets(), "policy_game", "drawn anew by what the model does"),
        (CleanLabel(), "text_embedding", "puts a trigger into Box inputs; text_embedding has .*Tokens"),
        (SpectralSignatures(), "policy_game", "drawn anew by what the model does"),
        (SpectralSignatures(), "dialogue", "a target of dialogue is not one class"),
    ],
)
def test_what_has_no_meaning(attack: Attack | SpectralSignatures, name: str, message: str) -> None:
    with pytest.raises(sm.NotApplicable, match=message):
        attack.check(tiny_task(name), None) if isinstance(attack, Attack) else attack.check(tiny_task(name))
