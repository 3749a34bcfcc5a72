"""Reconstruction of what is not an input: an attribute, a canary, a property of the training set."""

from dataclasses import replace
from math import log2

import numpy as np
import pytest
import torch
from scipy.stats import skewnorm
from torch import Tensor, nn

import secure_ml as sm
from attacks import AttributeInference, CanaryExposure, PropertyInference
from defenses.dp_sgd import DPSGD
from secure_ml.batch import Batch, Splits, Tree
from secure_ml.imputation import impute
from secure_ml.secrets.attribute import find_attribute
from secure_ml.secrets.canaries import _fillings, _skew_normal, exposure, extrapolated
from secure_ml.secrets.skew import Skew
from secure_ml.victim import Served
from tests.laws import tiny_task, tiny_victim
from tests.test_reconstruction import values

CNN = "digits_cnn"


# -- an attribute ------------------------------------------------------------------------------------------------------


class Memory(Served):
    """Is sure of the right answer for rows that it has seen, and says nothing about others."""

    def __init__(self, rows: Tensor, target: Tensor) -> None:
        self.known = {row.numpy().tobytes(): int(y) for row, y in zip(rows, target, strict=True)}

    def __call__(self, inputs: Tree) -> Tensor:
        answers = [self.known.get(row.numpy().tobytes()) for row in inputs]
        return torch.tensor([0.0 if y is None else 8.0 * (2 * y - 1) for y in answers])


def people(rng: torch.Generator) -> Splits:
    """Rows of two numbers and a bit; the target is the bit in nine of ten rows."""
    numbers, bit = torch.rand(600, 2, generator=rng), (torch.rand(600, generator=rng) < 0.5).float()
    flipped = torch.rand(600, generator=rng) < 0.1
    data = Batch(torch.cat([numbers, bit[:, None]], 1), torch.where(flipped, 1 - bit, bit).long())
    parts = [data.take(slice(i, i + 150)) for i in range(0, 600, 150)]
    return Splits(*parts)


def person_victim(served: Served) -> sm.Victim:
    def line() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))

    task = sm.Task(name="people", build=line, data=people, recipe=sm.Recipe(epochs=1))
    return replace(sm.fit(task, seed=0, device="cpu"), served=served)


def test_imputation_beats_an_attack_on_a_constant() -> None:
    """Who may not use the label, as imputation does, is left with the prior."""
    found = values(AttributeInference(column=2), person_victim(Memory(torch.zeros(0, 3), torch.zeros(0))), 150)
    assert found["attribute accuracy by imputation"] > 0.85
    assert found["attribute gain"] < -0.2
    assert found["attribute gain on non-members"] < -0.2
    assert found["attribute AUC by imputation"] > 0.85 > 0.65 > found["attribute AUC"]


def test_a_memory_gives_members_away_and_nobody_else() -> None:
    members = person_victim(Memory(torch.zeros(0, 3), torch.zeros(0))).splits.train
    victim = person_victim(Memory(members.inputs, members.target))
    found = values(AttributeInference(column=2, prior="marginal"), victim, 150)
    assert found["attribute accuracy"] > 0.97
    assert found["attribute gain"] > 0.05
    assert found["attribute gain on non-members"] < -0.2


def test_attributes_are_found_in_their_columns() -> None:
    table = sm.Table(groups=((1, 2, 3), (4, 5)))
    rows = torch.tensor([[0.1, 1, 0, 0, 0, 1], [0.9, 0, 0, 1, 1, 0], [0.4, 0, 1, 0, 0, 1]])
    assert find_attribute(table, rows, None).columns == (4, 5), "the fewest categories"
    category = find_attribute(table, rows, 2)
    assert category.columns == (1, 2, 3)
    assert category.of(rows).tolist() == [0, 2, 1]
    assert category.put(rows, torch.tensor([0.0, 1, 0]))[:, 1:4].tolist() == [[0, 1, 0]] * 3
    few = find_attribute(sm.Box(), rows, 0)
    assert few.of(rows).tolist() == [0, 2, 1]
    many = torch.linspace(0, 1, 101)[:, None]
    halves = find_attribute(sm.Box(), many, 0)
    assert halves.of(many).sum() == 50
    assert halves.kinds.tolist() == [0] * 5 + [1] * 5
    with pytest.raises(sm.UsageError, match="no column 6"):
        find_attribute(table, rows, 6)
    with pytest.raises(sm.UsageError, match="nothing to infer"):
        find_attribute(sm.Box(), torch.zeros(5, 2), 0)


def test_imputation_knows_missing_kinds() -> None:
    rows = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    chances = impute(rows, (rows[:, 0] > 0.5).long() * 2, 4, rows)
    assert chances.shape == (40, 4)
    assert (chances.argmax(1) == (rows[:, 0] > 0.5).long() * 2).double().mean() > 0.9
    assert chances[:, [1, 3]].abs().max() == 0
    assert impute(rows, torch.ones(40).long(), 3, rows[:2]).tolist() == [[0, 1, 0], [0, 1, 0]]


# -- canaries ----------------------------------------------------------------------------------------------------------


def test_exposure_of_a_perfect_memory_and_of_none() -> None:
    place = torch.tensor([3, 0, 7])
    scores = torch.zeros(3, 16)
    assert exposure(scores, place).tolist() == pytest.approx([4 - log2(8.5)] * 3), "ties count half"
    scores[torch.arange(3), place] = 1.0
    assert exposure(scores, place).tolist() == [4.0, 4.0, 4.0]
    assert exposure(-scores, place).tolist() == [0.0, 0.0, 0.0]


def test_exposure_against_a_naive_rank() -> None:
    rng = torch.Generator().manual_seed(0)
    scores, place = torch.rand(50, 1000, generator=rng), torch.randint(1000, (50,), generator=rng)
    ranks = [1 + sum(float(s) > float(row[at]) for s in row) for row, at in zip(scores, place.tolist(), strict=True)]
    found = exposure(scores, place)
    assert found.tolist() == pytest.approx([log2(1000) - log2(rank) for rank in ranks])
    assert found.mean().item() == pytest.approx(1 / np.log(2), abs=0.6), "1.44 bits by chance"


def test_extrapolation_follows_the_tail() -> None:
    draws = skewnorm(3.0, loc=-5.0, scale=2.0).rvs(4000, random_state=0)
    fitted = _skew_normal(draws)
    moments = skewnorm.stats(*fitted, moments="mvs")
    centred = draws - draws.mean()
    assert moments == pytest.approx((draws.mean(), draws.var(), (centred**3).mean() / draws.std() ** 3), rel=1e-6)
    scores = torch.tensor(np.append(draws, 3.0))[None]
    expected = -skewnorm.logsf(3.0, 3.0, loc=-5.0, scale=2.0) / np.log(2)
    assert extrapolated(scores, torch.tensor([4000]), 60.0).item() == pytest.approx(expected, rel=0.15)
    assert extrapolated(scores, torch.tensor([4000]), 9.0).item() == 9.0
    assert extrapolated(torch.tensor([[1.0, 1.0, 2.0]]), torch.tensor([2]), 9.0).item() == 9.0


@pytest.mark.parametrize("references", [27, 10])
def test_fillings_hold_the_planted_one_once(references: int) -> None:
    fillings, place = _fillings(6, torch.tensor([7, 8, 9]), 3, references, torch.Generator().manual_seed(0))
    assert fillings.shape == (6, references, 3)
    for rows, at in zip(fillings, place.tolist(), strict=True):
        assert int((rows == rows[at]).all(1).sum()) == 1
        if references == 27:
            assert len(rows.unique(dim=0)) == 27
    assert len(place.unique()) > 1


def test_a_language_model_gives_away_what_it_saw_often() -> None:
    task = tiny_task("char_rnn")
    longer = replace(task, recipe=replace(task.recipe, epochs=15))
    attack = CanaryExposure(length=3, repeats=(1, 16))
    bare = values(attack, sm.fit(longer, seed=0, device="cpu"))
    assert bare["exposure, planted 16 times"] > 7
    assert bare["exposure, never planted"] < 4
    assert bare["exposure, planted 16 times, extrapolated"] > 6
    private = values(attack, sm.fit(longer, [DPSGD(epsilon=1.0, delta=1e-3)], seed=0, device="cpu"))
    assert private["exposure, planted 16 times"] < bare["exposure, planted 16 times"] - 2


def test_canaries_are_in_the_text_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    from secure_ml.secrets import canaries

    seen: list[Batch] = []

    def fit(task: sm.Task, *args: object, **settings: object) -> sm.Victim:
        seen.append(task.draw(0).train)
        return tiny_victim("char_rnn")

    monkeypatch.setattr(canaries, "fit", fit)
    hidden = CanaryExposure(length=3, repeats=(1, 4), each=2).secret.hide(tiny_victim("char_rnn"), 100, seed=0)
    text = torch.cat([seen[0].inputs[:, :1], seen[0].target], 1)
    assert torch.equal(seen[0].inputs, text[:, :-1])
    place = hidden.judge.args[1]
    for index, times in enumerate((0, 0, 1, 1, 4, 4)):
        secret = torch.cat([hidden.access.before[index], hidden.access.fillings[index, place[index]]])
        assert int((text == secret).all(1).sum()) == times


# -- a property of the training set ------------------------------------------------------------------------------------


def test_a_skewed_training_set_is_told() -> None:
    found = values(
        PropertyInference(label=1, suspects=16, shadows=16), sm.fit(sm.task("table_mlp"), seed=0, device="cpu")
    )
    assert found["skew told"] > 0.8
    assert found["skew AUC"] > 0.9


def test_samples_have_their_shares_and_a_constant_tells_nothing() -> None:
    victim = sm.fit(sm.task("table_mlp"), seed=0, device="cpu")
    secret = Skew(label=1, shares=(0.2, 0.5), suspects=6, reveal="probabilities")
    hidden = secret.hide(victim, 100, seed=0)
    assert hidden.judge(torch.ones(6)).measured[0].estimate.value == 0.5
    assert hidden.judge(-torch.ones(6)).measured[0].estimate.value == 0.5
    high = torch.tensor([False, True])
    for model, share in zip(secret.train(victim, victim.splits.train, high, 0), (0.2, 0.5), strict=True):
        target = model.splits.train.target
        assert (target == 1).double().mean().item() == pytest.approx(share, abs=0.5 / len(target) + 1e-9)
        rows = {row.numpy().tobytes() for row in victim.splits.train.inputs}
        assert {row.numpy().tobytes() for row in model.splits.train.inputs} <= rows


def test_too_few_of_a_class_have_no_skew() -> None:
    with pytest.raises(sm.NotApplicable, match="too few"):
        PropertyInference(label=0, low=0.2, high=0.9).evaluate(tiny_victim(CNN), threat=None, seed=0, examples=10)
