"""Exact extraction against closed forms: weights, units and widths that are known because the test wrote them down."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

import secure_ml as sm
from attacks import EquationSolving, HeadExtraction, ReluExtraction
from attacks.extraction._exact import Asked, Spent, solve
from attacks.extraction._kinks import search
from attacks.extraction.equation_solving import cosines
from attacks.extraction.head_extraction import found, rank, shown, whole
from benchmarks.exact_extraction import digits, doubled, stolen, worst_answer
from defenses import Rounding
from secure_ml.access import BlackBox
from secure_ml.alignment import worst_weight
from secure_ml.families.extraction import WORST
from secure_ml.projection import EXACT, MISSED, WIDTH, Projection
from secure_ml.randomness import seeded
from secure_ml.victim import Plain


def victim(task: sm.Task, seed: int = 0) -> sm.Victim:
    """A model of random weights that is not trained: what is exact is exact for any."""
    with seeded(seed, "test"):
        module = task.build().eval()
    parts = task.draw(0)
    return sm.Victim(task=task, module=module, served=Plain(module, task.chunk), splits=parts)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# -- equation solving -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "queries"), [("linear_regression", 11), ("logistic_regression", 31), ("softmax", 65)])
@pytest.mark.parametrize("reveal", ["logits", "probabilities"])
def test_as_many_answers_as_weights_give_them_exactly(name: str, queries: int, reveal: str) -> None:
    plain = digits() if name == "softmax" else sm.task(name)
    for task, bar in ((doubled(plain), 1e-12), (plain, 2e-5)):
        target = victim(task)
        thief, count, _ = stolen(EquationSolving(reveal=reveal), target)
        assert count == queries
        assert worst_weight(thief, target.module, shift=reveal != "logits") < bar
        assert worst_answer(thief, target, reveal != "logits") < bar


def test_one_answer_fewer_is_not_enough_and_gives_the_shortest_weights() -> None:
    target = victim(doubled(digits()))
    thief, count, _ = stolen(EquationSolving(reveal="logits", queries=64), target)
    assert count == 64
    assert worst_weight(thief, target.module) > 1e-4
    sizes = [sum(float(p.detach().square().sum()) for p in module.parameters()) for module in (thief, target.module)]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("d", [1, 7, 30])
def test_the_points_are_orthogonal_and_in_the_box(d: int) -> None:
    area = sm.Box(-1.0, 3.0)
    points = cosines(3 * (d + 1), d, area, 1.0, rng())
    area.check(points)
    for part in points.split(d + 1):
        table = torch.cat([torch.ones(d + 1, 1), (part - 1) / 2], 1).double()
        gram = table.T @ table
        assert torch.allclose(gram, torch.diag(torch.tensor([d + 1.0] + [(d + 1) / 2] * d)).double(), atol=1e-5)


def test_fewer_digits_cost_precision_and_more_answers_bring_some_back() -> None:
    target = victim(doubled(digits()))
    errors = []
    for decimals in (3, 6, 9):
        served = Rounding(decimals=decimals).serve(target)
        errors.append(worst_answer(stolen(EquationSolving(reach=0.5), served)[0], target, True))
    assert errors[0] > 30 * errors[1] > 900 * errors[2] > 0
    served = Rounding(decimals=3).serve(target)
    assert worst_answer(stolen(EquationSolving(reach=0.5, rounds=20), served)[0], target, True) < errors[0] / 2


def test_labels_alone_still_give_a_direction() -> None:
    target = victim(digits())
    thief, _, _ = stolen(EquationSolving(reveal="label", rounds=5), target)
    inputs = target.splits.test.inputs
    agree = target.task.output.fidelity(thief(inputs).detach(), target.module(inputs).detach())
    assert agree.value > 0.3


def test_least_squares_is_exact_and_shortest() -> None:
    x = torch.randn(9, 3, generator=rng(), dtype=torch.float64)
    truth = torch.randn(4, 2, generator=rng(), dtype=torch.float64)
    assert torch.allclose(solve(x, x @ truth[:3] + truth[3]), truth)
    assert torch.allclose(solve(x[:1] * 0, torch.ones(1, 1).double())[:, 0], torch.tensor([0, 0, 0, 1.0]).double())


# -- ReLU networks ----------------------------------------------------------------------------------------------------


def test_a_network_of_32_units_is_found_unit_by_unit() -> None:
    target = victim(doubled(digits(32)))
    with torch.no_grad():  # every unit switches near the middle of the box
        target.module[1].bias -= target.module[1].weight.sum(1) / 2
    thief, queries, _ = stolen(ReluExtraction(), target)
    assert queries < 50_000
    assert worst_answer(thief, target, False) < 1e-8
    assert worst_weight(thief, target.module) < 1e-7


def test_log_probabilities_are_as_good_as_logits() -> None:
    target = victim(doubled(digits(8)))
    with torch.no_grad():
        target.module[1].bias -= target.module[1].weight.sum(1) / 2
    thief, _, _ = stolen(ReluExtraction(reveal="probabilities"), target)
    assert worst_answer(thief, target, True) < 1e-8
    assert worst_weight(thief, target.module, shift=True) < 1e-7


def test_units_that_never_switch_are_copied_as_a_linear_map() -> None:
    target = victim(doubled(digits(12)))
    with torch.no_grad():
        target.module[1].bias[:3] = 50.0  # always active
        target.module[1].bias[3:5] = -50.0  # never
    thief, _, _ = stolen(ReluExtraction(lines=60), target)
    assert worst_answer(thief, target, False) < 1e-8


def test_float32_gives_what_its_digits_allow() -> None:
    target = victim(digits(8))
    thief, _, _ = stolen(ReluExtraction(queries=20_000), target)
    scale = float(target.module(target.splits.test.inputs).detach().abs().max())
    assert 1e-8 * scale < worst_answer(thief, target, False) < 0.1 * scale


def test_the_bends_of_a_line_are_where_they_were_put() -> None:
    places = torch.tensor([0.1, 0.25, 0.2500001, 0.7], dtype=torch.float64)
    task = dataclasses.replace(doubled(digits(4)), surfaces=(sm.Box(),))
    module = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        module[0].weight.fill_(1.0)
        module[0].bias.copy_(-places)
        module[2].weight.copy_(torch.tensor([[1.0, -2, 3, 1], [2.0, 1, 1, -1]]))
    ask = Asked(BlackBox(task, Plain(module, 1000)), torch.Size([1]), torch.float64)
    ask.start(10_000)
    line = search(ask, torch.zeros(1).double(), torch.ones(1).double())
    bends = [float(kink.point) for kink in line.kinks]
    for place in (0.1, 0.7):
        assert min(abs(bend - place) for bend in bends) < 1e-10
    assert len(line.pieces) == len(line.kinks) + 1
    assert torch.allclose(line.kinks[-1].jump, torch.tensor([1.0, -1.0]).double())


def test_questions_are_paid_for_once_and_end_with_the_budget() -> None:
    target = victim(doubled(digits(4)))
    access = BlackBox(target.task, target.served, "logits", 10)
    ask = Asked(access, torch.Size([1, 8, 8]), torch.float64)
    points = torch.rand(12, 64, generator=rng(), dtype=torch.float64)
    ask.start(4)
    first = ask(points[:4])
    ask.start(10)
    assert torch.equal(ask(points[:4]), first)
    assert access.queries == 4
    with pytest.raises(Spent):
        ask(points[4:])
    assert access.queries == 10
    assert len(ask.values) == 10


def test_stages_are_prefixes_of_one_search() -> None:
    target = victim(doubled(digits(6)))
    with torch.no_grad():
        target.module[1].bias -= target.module[1].weight.sum(1) / 2
    attack = ReluExtraction(queries=6000, budgets=(300, 1000))
    rows = attack.evaluate(target, threat=None, seed=0, examples=50).rows
    apart = [row for row in rows if row.measure.startswith("copy's divergence")]
    assert [row.queries for row in apart][:2] == [300, 1000]
    assert apart[-1].value is not None
    assert abs(apart[-1].value) < 1e-9 < (apart[0].value or 0.0)
    worst = [row.value or 0.0 for row in rows if row.measure.startswith(WORST)]
    assert len(worst) == 6
    assert max(worst[-2:]) < 1e-6 < 1e-3 < min(worst[:2]), "both numbers must tell a rough copy from an exact one"


# -- alignment --------------------------------------------------------------------------------------------------------


def test_order_and_scale_of_units_do_not_count_and_anything_else_does() -> None:
    model = digits(8).build().double()
    other = copy.deepcopy(model)
    order, size = torch.randperm(8, generator=rng()), torch.rand(8, generator=rng(), dtype=torch.float64) + 0.5
    with torch.no_grad():
        other[1].weight.copy_(model[1].weight[order] * size[:, None])
        other[1].bias.copy_(model[1].bias[order] * size)
        other[3].weight.copy_(model[3].weight[:, order] / size)
    assert worst_weight(other, model) < 1e-14
    unaligned = max(
        float((a - b).detach().abs().max()) for a, b in zip(other.parameters(), model.parameters(), strict=True)
    )
    assert unaligned > 0.1, "without alignment the same function would seem another"
    with torch.no_grad():
        other[1].weight[2, 5] += 0.01
    assert worst_weight(other, model) > 1e-3, "a wrong weight must show"
    with torch.no_grad():
        other[1].weight[2, 5] -= 0.01
        other[1].weight[3] *= -1
    assert worst_weight(other, model) > 1e-2, "a turned unit is another function"
    with pytest.raises(sm.UsageError, match="equal sizes"):
        worst_weight(digits(4).build(), model)


def test_probabilities_do_not_show_what_classes_share() -> None:
    model = digits().build().double()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[1].weight += torch.rand(64, generator=rng())
    assert worst_weight(other, model) > 0.1
    assert worst_weight(other, model, shift=True) < 1e-14


# -- the output layer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("reveal", ["logits", "probabilities"])
def test_width_and_projection_of_known_vectors(normed: bool, reveal: str) -> None:
    h, classes = 6, 20
    weight = torch.randn(classes, h, generator=rng(), dtype=torch.float64)
    hidden = torch.randn(200, h, generator=rng(), dtype=torch.float64)
    if normed:
        hidden = nn.functional.layer_norm(hidden, (h,)) * torch.linspace(0.5, 2, h) + torch.linspace(-1, 2, h)
    logits = hidden.double() @ weight.T
    bias = torch.zeros(classes) if normed else torch.randn(classes, generator=rng())
    answers = (logits + bias).float().double()  # as served
    taken = found(answers if reveal == "logits" else answers.log_softmax(1), normed, reveal)
    assert taken.width == h
    target = victim(sm.task("digits_mlp"))
    target = dataclasses.replace(target, module=nn.Sequential(nn.Linear(h, classes)))
    with torch.no_grad():
        target.module[0].weight.copy_(weight)
    names = {name: estimate.value for name, estimate, _ in taken.judge(target, reveal)}
    assert names[EXACT] == 1.0
    assert names[MISSED] < 1e-5
    random = Projection(h, torch.randn(classes, h, generator=rng().manual_seed(1), dtype=torch.float64))
    missed = {name: estimate.value for name, estimate, _ in random.judge(target, "logits")}[MISSED]
    assert missed == pytest.approx(math.sqrt(1 - h / classes), abs=0.15), "a random matrix must miss most of it"
    wrong = Projection(h - 1, taken.matrix[:, : h - 1])
    assert {n: e.value for n, e, _ in wrong.judge(target, reveal)}[EXACT] == 0.0


@pytest.mark.parametrize("attack", [HeadExtraction(), HeadExtraction(top=5, queries=8000, reveal="probabilities")])
@pytest.mark.parametrize("name", ["char_rnn", "gpt2"])
def test_the_width_of_a_language_model_is_exact(name: str, attack: HeadExtraction) -> None:
    pytest.importorskip("transformers")
    target = victim(sm.task(name, tiny=True))
    if name == "gpt2":
        with torch.no_grad():  # as training would leave it: the bias of the last normalisation is not 0
            target.module.model.transformer.ln_f.bias.normal_(std=0.1, generator=rng())
    rows = attack.evaluate(target, threat=None, seed=0, examples=4).rows
    values = {row.measure.split(" at ")[0]: row.value for row in rows}
    assert values[WIDTH] == {"char_rnn": 8.0, "gpt2": 32.0}[name]
    assert values[EXACT] == 1.0
    assert (values[MISSED] or 0.0) < 0.02


def test_no_width_without_more_classes_than_units() -> None:
    with pytest.raises(sm.NotApplicable, match="no more than its hidden width"):
        HeadExtraction().check(sm.task("digits_mlp"), None)
    HeadExtraction().check(sm.task("digits_mlp", hidden=4), None)


def test_the_pooled_verdict_names_the_closest_projection() -> None:
    target = victim(sm.task("digits_mlp", hidden=4))
    attacks = HeadExtraction(), HeadExtraction(queries=3)
    results = [(attack, attack.evaluate(target, threat=None, seed=0, examples=20)) for attack in attacks]
    best = HeadExtraction.pool(target.task, results)
    assert [row.measure.split(" at ")[0] for row in best[:3]] == [MISSED, WIDTH, EXACT]


def test_sets_of_classes_cover_all_and_vectors_need_all_of_them() -> None:
    sets = shown(11, 4)
    assert sets[:, 0].all()
    assert sets.any(0).all()
    assert int(sets.sum(1).max()) == 4
    table = torch.where(sets, torch.arange(11.0), torch.nan).double()
    assert torch.equal(whole(table, len(sets)), torch.arange(11.0).double()[None])
    assert len(whole(table[:-1], len(sets))) == 0
    assert rank(torch.tensor([5.0, 3, 2, 1e-7, 1e-8])) == 3


# -- a bias on logits -------------------------------------------------------------------------------------------------


def test_biased_answers_are_counted_and_closed_form() -> None:
    target = victim(sm.task("digits_mlp", hidden=4))
    inputs = target.splits.test.take(slice(0, 3)).inputs
    bias = torch.zeros(3, 10)
    bias[:, [2, 7]] = 20.0
    access = BlackBox(target.task, target.served, "probabilities", 4)
    classes, shares = access.biased(inputs, bias, 2)
    assert access.queries == 3
    assert torch.equal(classes.sort(1).values, torch.tensor([[2, 7]] * 3))
    expected = (target.module(inputs) + bias).log_softmax(1).gather(1, classes)
    assert torch.allclose(shares, expected.detach(), atol=1e-5)
    with pytest.raises(sm.BudgetExceeded):
        access.biased(inputs, bias, 2)
    assert access.queries == 3, "nothing was answered, nothing is counted"


def test_a_bias_needs_probabilities_of_classes() -> None:
    target = victim(sm.task("digits_mlp", hidden=4))
    inputs = target.splits.test.take(slice(0, 1)).inputs
    with pytest.raises(sm.NotApplicable, match="needs probabilities"):
        BlackBox(target.task, target.served, "label").biased(inputs, torch.zeros(1, 10), 2)
    real = victim(sm.task("linear_regression"))
    with pytest.raises(sm.NotApplicable, match="needs probabilities"):
        BlackBox(real.task, real.served).biased(real.splits.test.inputs, torch.zeros(1, 1), 2)


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "settings", "words"),
    [
        (EquationSolving, {"queries": 0}, "at least 1 query"),
        (EquationSolving, {"rounds": 0}, "at least 1 round"),
        (EquationSolving, {"reach": 1.5}, "given 1.5"),
        (ReluExtraction, {"queries": 0}, "at least 1 query"),
        (ReluExtraction, {"lines": 0}, "at least 1 line"),
        (HeadExtraction, {"top": 1}, "2 classes or more"),
        (HeadExtraction, {"bias": 0.0}, "above 0"),
        (HeadExtraction, {"reveal": "everything"}, "way of answering"),
    ],
)
def test_bad_settings_are_refused(cls: type, settings: dict[str, object], words: str) -> None:
    with pytest.raises(sm.UsageError, match=words):
        cls(**settings)


@pytest.mark.parametrize("cls", [EquationSolving, ReluExtraction])
def test_what_is_no_such_model_is_not_applicable(cls: type[sm.Attack]) -> None:
    for name in ("digits_mlp", "digits_cnn", "char_rnn", "adult_mlp"):
        with pytest.raises(sm.NotApplicable):
            cls().check(sm.task(name, tiny=True), None)
