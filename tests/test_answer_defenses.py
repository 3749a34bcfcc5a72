"""What is served instead of the module's own answers, against closed forms, brute force and other libraries."""

import itertools
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

import secure_ml as sm
from defenses._answers import FLOOR, Altered, keeping, normalised, probabilities, written
from defenses._deviation import climbed, deviation, head_products, mixed, poisoned, whole_products
from defenses._spreading import MARGIN, SMALL, spread
from defenses.adaptive_misinformation import AdaptiveMisinformation, misinformer
from defenses.label_only import LabelOnly
from defenses.model_guard import ModelGuard
from defenses.model_guard_s import ModelGuardS, Quoted, read
from defenses.noisy_answers import Noisy, NoisyAnswers
from defenses.prediction_poisoning import PredictionPoisoning
from defenses.prediction_smoothing import PredictionSmoothing
from defenses.query_detector import QueryDetector, Watch, Watched, false_alarms, normality
from defenses.rate_limit import Limited, RateLimit
from defenses.reverse_sigmoid import ReverseSigmoid
from defenses.rounding import Rounding
from defenses.top_k import TopK
from secure_ml.access import BlackBox, WhiteBox
from secure_ml.batch import Batch, Tree
from secure_ml.honest import honest_cost
from secure_ml.victim import Served
from tests.laws import tiny_task, tiny_victim

KEEPING = (
    Rounding(),
    TopK(),
    NoisyAnswers(scale=0.3),
    ReverseSigmoid(),
    PredictionPoisoning(),
    ModelGuard(),
    ModelGuardS(budget=0.3),
    QueryDetector(),
    RateLimit(),
)
ALL = (*KEEPING, AdaptiveMisinformation(epochs=1))


class Fixed(Served):
    """A served model whose answer is what it is asked."""

    def __call__(self, inputs: Tree) -> Tensor:
        assert isinstance(inputs, Tensor)
        return inputs


def served_by(defense: sm.Defense, name: str = "digits_mlp") -> sm.Victim:
    """A tiny victim, trained once, behind a defense."""
    return defense.serve(replace(tiny_victim(name), defenses=(defense,)))


def answered(defense: sm.Defense, shares: Tensor) -> Tensor:
    """What a defense serves where the module's probabilities are these ``(N, K)``."""
    victim = replace(tiny_victim("digits_mlp"), served=Fixed())
    return defense.serve(victim).served(shares.log()).softmax(1)


def drawn(n: int, classes: int, concentration: float = 0.5, seed: int = 0) -> Tensor:
    """Random probabilities ``(n, classes)``."""
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.dirichlet(np.full(classes, concentration), n)).clamp_min(1e-9)


@cache
def digits() -> sm.Victim:
    """Digits, as they are tested elsewhere."""
    return sm.fit(sm.task("digits_cnn"), seed=0, device="cpu")


# -- closed forms -----------------------------------------------------------------------------------------------------


def test_one_logit_and_two_are_the_same() -> None:
    odds = torch.tensor([-3.0, 0.0, 2.0])
    shares = probabilities(odds)
    assert torch.allclose(shares[:, 1], odds.double().sigmoid())
    assert torch.allclose(written(shares, odds), odds)
    assert written(torch.tensor([[0.0, 1.0]]).double(), odds[:1]).item() == pytest.approx(-math.log(FLOOR), rel=1e-6)


def test_rounding() -> None:
    shares = torch.tensor([[0.126, 0.874], [0.004, 0.996], [0.5, 0.5]]).double()
    expected = torch.tensor([[0.13, 0.87], [0.0, 1.0]]).double()
    assert torch.allclose(answered(Rounding(), shares)[:2], expected, atol=1e-11)
    tied = answered(Rounding(decimals=0), torch.tensor([[0.2, 0.3, 0.25, 0.25]]).double())
    assert tied.argmax() == 1, "a row of zeros lost its decision"
    assert torch.allclose(tied, torch.tensor(0.25).double(), atol=1e-3), "a row of zeros is served as equal"
    near = answered(Rounding(decimals=1), torch.tensor([[0.46, 0.48, 0.06]]).double())
    assert near[0, 1] > near[0, 0], "a tie lost its decision"
    assert torch.allclose(near, torch.tensor([[5, 5, 1]]).double() / 11, atol=1e-3)


def test_rounding_is_arts() -> None:
    from art.defences.postprocessor import Rounded

    shares = drawn(200, 5, 1.0)
    theirs = Rounded(decimals=3)(shares.numpy())
    clear = torch.tensor(np.sort(theirs, 1)[:, -1] > np.sort(theirs, 1)[:, -2])
    theirs = torch.tensor(theirs / theirs.sum(1, keepdims=True))
    assert int(clear.sum()) > 150
    assert torch.allclose(answered(Rounding(decimals=3), shares)[clear], theirs[clear], atol=1e-9)


def test_values_are_rounded_and_moved_as_they_are() -> None:
    victim = tiny_victim("linear_regression")
    x = victim.splits.test.inputs
    bare = victim.served(x)
    assert torch.equal(served_by(Rounding(), "linear_regression").served(x), bare.round(decimals=2))
    noise = served_by(NoisyAnswers(scale=0.1), "linear_regression").served(x) - bare
    assert 0.05 < float(noise.std()) < 0.2


def test_top_k() -> None:
    shares = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.3, 0.3, 0.2, 0.2]]).double()
    assert torch.allclose(answered(TopK(k=2), shares[:1]), torch.tensor([[0.125, 0.5, 0.125, 0.25]]).double())
    assert torch.allclose(answered(TopK(k=4), shares[:1]), shares[:1])
    other = shares[:1].clone()
    other[0, 0], other[0, 2] = 0.2, 0.05
    assert torch.allclose(answered(TopK(k=2), shares[:1]), answered(TopK(k=2), other)), "it tells more than k numbers"


def test_top_k_keeps_a_list() -> None:
    victim = tiny_victim("recommender_mf")
    with pytest.raises(sm.NotApplicable, match="lists of 10 items, which TopK\\(k=3\\) would cut short"):
        TopK(k=3).check(victim.task)
    cost = honest_cost(served_by(TopK(k=10), "recommender_mf"), victim)
    assert cost.kept.value == 1
    assert cost.moved.value > 0.01


@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 0.1), (0.5, 0.3), (0.2, 1.0)])
def test_reverse_sigmoid_is_arts(beta: float, gamma: float) -> None:
    from art.defences.postprocessor import ReverseSigmoid as Arts

    for shares in (drawn(300, 10), torch.stack([1 - drawn(50, 2)[:, 0], drawn(50, 2)[:, 0]], 1)):
        theirs = torch.tensor(Arts(beta=beta, gamma=gamma)(shares.numpy()))
        ours = answered(ReverseSigmoid(beta=beta, gamma=gamma, keep=False), shares)
        assert torch.allclose(ours, theirs, atol=1e-6)
        kept = theirs.argmax(1) == shares.argmax(1)
        ours = answered(ReverseSigmoid(beta=beta, gamma=gamma), shares)
        assert torch.allclose(ours[kept], theirs[kept], atol=1e-6)
        assert torch.equal(ours.argmax(1), shares.argmax(1))


def test_reverse_sigmoid_is_arts_for_one_logit() -> None:
    from art.defences.postprocessor import ReverseSigmoid as Arts

    odds = torch.linspace(-6, 6, 31).double()
    theirs = Arts(beta=0.4, gamma=0.2)(odds.sigmoid().numpy()[:, None])[:, 0]
    victim = replace(tiny_victim("mnist_binary_dense"), served=Fixed())
    ours = ReverseSigmoid(beta=0.4, gamma=0.2, keep=False).serve(victim).served(odds).sigmoid()
    assert ours.numpy() == pytest.approx(theirs, abs=1e-6)


# -- noise ------------------------------------------------------------------------------------------------------------


def repeated(defense: sm.Defense, times: int) -> tuple[Tensor, Tensor]:
    """One client's answers ``(times, K)`` to one input, and the bare one ``(K,)``, as probabilities."""
    victim = served_by(defense)
    one = victim.splits.test.take(slice(0, 1)).inputs
    assert isinstance(one, Tensor)
    access = BlackBox(victim.task, victim.served)
    answers = torch.cat(
        [access(one) for _ in range(times // 2)] + [access(one.repeat(times // 2, *[1] * (one.ndim - 1)))]
    )
    return probabilities(answers), probabilities(tiny_victim("digits_mlp").served(one))[0]


def test_repeats_average_fresh_noise_away_and_keyed_noise_not() -> None:
    keyed, bare = repeated(NoisyAnswers(scale=0.02, keep=False), 40)
    assert bool((keyed == keyed[0]).all()), "the noise changes between repeats"
    assert 0.005 < float((keyed[0] - bare).abs().mean()) < 0.05
    fresh, _ = repeated(NoisyAnswers(scale=0.02, keep=False, fresh=True), 400)
    single = float((fresh - bare).abs().mean())
    assert float((fresh.mean(0) - bare).abs().mean()) < single / 5
    assert float((keyed.mean(0) - bare).abs().mean()) > single / 3


def test_a_noise_that_changes_between_repeats_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin: somebody counts where nothing should be counted."""

    def counting(self: Noisy) -> Served:
        view = Noisy(self.inner, self.settings, self.values)
        view.asked = 0
        return view

    monkeypatch.setattr(Noisy, "session", counting)
    keyed, _ = repeated(NoisyAnswers(scale=0.02, keep=False), 4)
    assert not bool((keyed == keyed[0]).all())


def test_noise_has_its_scale_and_its_key() -> None:
    shares = torch.full((400, 4), 0.25).double() + torch.linspace(-1e-3, 1e-3, 400)[:, None] * torch.tensor(
        [1, -1, 0, 0]
    )
    noisy = answered(NoisyAnswers(scale=0.01, keep=False), shares)
    centred = torch.eye(4).double() - 0.25  # normalising takes the mean away
    assert float((noisy - shares).std()) == pytest.approx(0.01 * math.sqrt(float((centred**2).sum()) / 4), rel=0.1)
    assert not torch.allclose(noisy, answered(NoisyAnswers(scale=0.01, keep=False, secret=1), shares))
    assert torch.equal(noisy[7:9], answered(NoisyAnswers(scale=0.01, keep=False), shares[7:9])), "company changes it"
    assert torch.equal(answered(NoisyAnswers(scale=0.5), shares).argmax(1), shares.argmax(1))


# -- poisoning --------------------------------------------------------------------------------------------------------


def gradient_products(n: int, classes: int, seed: int = 1) -> Tensor:
    """Inner products ``(n, classes, classes)`` of the log-probabilities' gradients of a random softmax regression."""
    rng = np.random.default_rng(seed)
    shares = torch.tensor(rng.dirichlet(np.ones(classes), n))
    rows = torch.eye(classes).double() - shares[:, None, :]
    return rows @ rows.transpose(1, 2)


def angle(answer: Tensor, bare: Tensor, products: Tensor) -> float:
    """The squared distance between two unit gradients, by a square root of their products: a naive second opinion."""
    values, vectors = torch.linalg.eigh(products)
    root = vectors * values.clamp_min(0).sqrt()  # (K, r), whose rows are the gradients
    one, other = root.T @ answer, root.T @ bare
    return float((one / one.norm() - other / other.norm()).square().sum())


def candidates(bare: Tensor, keep: bool) -> list[Tensor]:
    """Every vertex of the simplex, or of the part of it that keeps the decision, by a loop."""
    classes, first = len(bare), int(bare.argmax())
    if not keep:
        return list(torch.eye(classes).double())
    found = []
    for size in range(classes):
        for others in itertools.combinations([c for c in range(classes) if c != first], size):
            vertex = torch.zeros(classes).double()
            vertex[[first, *others]] = 1
            vertex[first] += 1e-3
            found.append(vertex / vertex.sum())
    return found


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("budget", [0.1, 0.5, 1.5])
def test_poisoning_is_the_best_of_all_vertices(keep: bool, budget: float) -> None:
    bare, products = drawn(30, 4, 1.0), gradient_products(30, 4)
    found = poisoned(bare, products, budget, keep)
    assert float((found - bare).abs().sum(1).max()) <= budget
    assert torch.allclose(found.sum(1), torch.ones(30).double())
    assert float(found.min()) >= 0
    if keep:
        assert torch.equal(found.argmax(1), bare.argmax(1))
    for row, one, product in zip(found, bare, products, strict=True):
        best = 0.0
        for vertex in candidates(one, keep):
            step = vertex - one
            answer = one + min(1.0, budget * (1 - 1e-6) / float(step.abs().sum())) * step
            best = max(best, angle(answer, one, product))
        assert angle(row, one, product) == pytest.approx(best, abs=1e-7)


@pytest.mark.parametrize("keep", [True, False])
def test_poisoning_comes_near_what_no_budgeted_answer_exceeds(keep: bool) -> None:
    """Against a fine grid of everything that the budget allows, not only of mixtures with vertices."""
    bare, products, budget = drawn(12, 3, 1.0, seed=3), gradient_products(12, 3, seed=4), 0.4
    grid = torch.tensor([(a, b, 100 - a - b) for a in range(101) for b in range(101 - a)]).double() / 100
    start = poisoned(bare, products, budget, keep)
    found = climbed(start, bare, products, budget, keep, 5)
    assert bool((deviation(found[:, None], bare, products) >= deviation(start[:, None], bare, products)).all())
    assert float((found - bare).abs().sum(1).max()) <= budget
    reached = []
    for row, one, product in zip(found, bare, products, strict=True):
        allowed = grid[(grid - one).abs().sum(1) <= budget]
        allowed = allowed[allowed.argmax(1) == one.argmax()] if keep else allowed
        reached.append(angle(row, one, product) / float(deviation(allowed[None], one[None], product[None]).max()))
    assert np.mean(reached) > (0.9 if keep else 0.97)
    assert min(reached) > 0.5


def test_many_classes_grow_their_vertex() -> None:
    bare, products = drawn(20, 12, 1.0), gradient_products(20, 12)
    grown = poisoned(bare, products, 0.5, keep=True)
    assert torch.equal(grown.argmax(1), bare.argmax(1))
    assert float((grown - bare).abs().sum(1).max()) <= 0.5
    alone = mixed(bare, torch.nn.functional.one_hot(bare.argmax(1), 12).double()[:, None], 0.5)
    assert bool((deviation(grown[:, None], bare, products) >= deviation(alone, bare, products) - 1e-9).all())
    everything = torch.eye(12).double()[None]  # one class for certain: what the decision does not allow
    most = deviation(mixed(bare, everything, 0.5), bare, products).amax(1)
    assert float((deviation(grown[:, None], bare, products)[:, 0] / most).mean()) > 0.3


def test_products_are_those_of_gradients() -> None:
    """In the last layer by their closed form, to a factor; in all of them by autograd, against finite differences."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
    x = torch.randn(4, 5).double()
    head = head_products(module, x, torch.device("cpu"))
    whole = whole_products(module, x, torch.device("cpu"))
    last = list(module[2].parameters())
    for i in range(4):
        logs = module(x[i : i + 1]).log_softmax(1)[0]
        rows = [torch.cat([g.flatten() for g in torch.autograd.grad(z, last, retain_graph=True)]) for z in logs]
        exact = torch.stack(rows) @ torch.stack(rows).T
        assert torch.allclose(head[i] * (exact.trace() / head[i].trace()), exact, atol=1e-10)
    weights = torch.nn.utils.parameters_to_vector(module.parameters()).detach()

    def logs_at(vector: Tensor) -> Tensor:
        torch.nn.utils.vector_to_parameters(vector, module.parameters())
        with torch.no_grad():
            return module(x[:1]).log_softmax(1)[0]

    steps = 1e-6 * torch.eye(len(weights)).double()
    jacobian = torch.stack([(logs_at(weights + s) - logs_at(weights - s)) / 2e-6 for s in steps], 1)
    assert torch.allclose(jacobian @ jacobian.T, whole[0], rtol=1e-5, atol=1e-7)


def test_poison_within_its_budget_as_it_is_served() -> None:
    for defense in (
        PredictionPoisoning(budget=0.3),
        PredictionPoisoning(budget=1.0, keep=False),
        ModelGuard(budget=0.7),
    ):
        cost = l1(defense)
        assert float(cost.max()) <= defense.budget + 1e-6
        assert float(cost.mean()) > defense.budget / 2
    whole = PredictionPoisoning(budget=0.3, whole=True)
    assert float(l1(whole).max()) <= 0.3 + 1e-6


def test_a_poison_beyond_its_budget_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defenses.prediction_poisoning.poisoned", lambda bare, *_: bare.flip(1))
    assert float(l1(PredictionPoisoning(budget=0.1)).max()) > 0.1 + 1e-6


def l1(defense: sm.Defense) -> Tensor:
    """How far each answer ``(B,)`` to the test split is from the bare one, as probabilities."""
    x = tiny_victim("digits_mlp").splits.test.inputs
    return (
        (probabilities(served_by(defense).served(x)) - probabilities(tiny_victim("digits_mlp").served(x))).abs().sum(1)
    )


@pytest.mark.parametrize("classes", [2, 3, 6, 10])
@pytest.mark.parametrize("budget", [0.01, 0.5, 1.9])
def test_spreading_solves_the_linear_program(classes: int, budget: float) -> None:
    from scipy.optimize import linprog

    for concentration in (0.1, 1.0, 5.0):
        for bare in drawn(3, classes, concentration).numpy():
            bare = bare / bare.sum()
            price, first = np.log(bare + SMALL), int(bare.argmax())
            eye, rest = np.eye(classes), [c for c in range(classes) if c != first]
            limits = np.vstack(
                [
                    np.hstack([eye, -eye]),
                    np.hstack([-eye, -eye]),
                    np.hstack([eye[rest] - eye[first], np.zeros((classes - 1, classes))]),
                    np.hstack([np.zeros((1, classes)), np.ones((1, classes))]),
                ]
            )
            margin = min(MARGIN, budget / (4 * classes))
            bounds = np.concatenate([bare, -bare, np.full(classes - 1, -margin), [budget * (1 - 1e-6)]])
            whole = np.hstack([np.ones((1, classes)), np.zeros((1, classes))])
            best = linprog(np.concatenate([price, np.zeros(classes)]), limits, bounds, whole, [1.0], bounds=(0, None))
            ours = spread(torch.tensor(bare)[None], budget)[0].numpy()
            assert ours @ price == pytest.approx(best.fun, abs=1e-6)
            assert np.abs(ours - bare).sum() <= budget
            assert ours.argmax() == first
            assert ours.min() >= -1e-12
            assert ours.sum() == pytest.approx(1)


def test_spreading_has_a_closed_form_while_nothing_is_in_its_way() -> None:
    bare = torch.tensor([[0.7, 0.2, 0.09, 0.01]]).double()
    expected = torch.tensor([[0.6, 0.2, 0.09, 0.11]]).double()  # half of the budget from the first to the last
    assert torch.allclose(spread(bare, 0.2), expected, atol=1e-6)


# -- the book ----------------------------------------------------------------------------------------------------------


def naive_book(shares: Tensor, budget: float) -> tuple[list[Tensor], list[Tensor]]:
    """What is quoted for each answer, and the book, by two loops."""
    book: list[Tensor] = []
    quoted = []
    for one in shares:
        for entry in book:
            if entry.argmax() == one.argmax() and float((entry - one).abs().sum()) <= budget * (1 - 1e-6):
                quoted.append(entry)
                break
        else:
            book.append(one)
            quoted.append(one)
    return quoted, book


@pytest.mark.parametrize("budget", [0.05, 0.4, 1.5])
def test_the_book_is_read_in_its_order(budget: float) -> None:
    shares = drawn(200, 4, 1.0)
    quoted, book = naive_book(shares, budget)
    ours, entries = read(shares[:0], shares, budget)
    assert torch.equal(ours, torch.stack(quoted))
    assert torch.equal(entries, torch.stack(book))
    assert len(entries) < len(shares)
    some, half = read(shares[:0], shares[:70], budget)
    rest, whole = read(half, shares[70:], budget)
    assert torch.equal(torch.cat([some, rest]), ours), "the size of a batch changes answers"
    assert torch.equal(whole, entries)


def test_each_client_has_its_own_book() -> None:
    victim = ModelGuardS(budget=0.1).serve(digits())
    x = victim.splits.test.inputs
    assert isinstance(victim.served, Quoted)
    before, answers = len(victim.served.book), victim.served(x)
    first, second = victim.served.session(), victim.served.session()
    assert torch.equal(first(x), first(x)), "repeats differ"
    assert torch.equal(second(x), victim.served.session()(x))
    assert isinstance(first, Quoted)
    assert len(first.book) > before == len(victim.served.book)
    assert torch.equal(victim.served(x), answers)
    assert len(second(x).round(decimals=5).unique(dim=0)) < len(x)
    assert float(l1(ModelGuardS(budget=0.1)).max()) <= 0.1


# -- misinformation ---------------------------------------------------------------------------------------------------


def test_misinformation_leaves_alone_what_it_says() -> None:
    victim, defense = digits(), AdaptiveMisinformation(untouched=0.9, epochs=3)
    misled = defense.serve(victim)
    for split, least in ((victim.splits.validation, 0.9), (victim.splits.test, 0.8)):
        bare, served = (probabilities(v.served(split.inputs)) for v in (victim, misled))
        moved = (bare - served).abs().sum(1) > 1e-5
        assert least <= float((~moved).double().mean()) < 1
        assert float(bare[moved].amax(1).max()) < float(bare[~moved].amax(1).min()), "not the unsure are misled"
    noise = torch.rand(300, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    wrong = served_label(victim, noise) != served_label(misled, noise)
    assert float(wrong.double().mean()) > 0.2, "unusual inputs are answered as before"


def served_label(victim: sm.Victim, inputs: Tensor) -> Tensor:
    return victim.served(inputs).argmax(1)


def test_the_switch() -> None:
    defense = AdaptiveMisinformation(sharpness=100)
    sure = torch.tensor([0.0, 0.5, 0.85, 0.8999, 0.9, 0.95], dtype=torch.double)
    threshold = 0.9 - math.log(99) / 100
    share = defense.switch(sure, 0.9)
    assert share[:4].numpy() == pytest.approx([1 / (1 + math.exp(100 * (s - threshold))) for s in sure[:4].tolist()])
    assert share[4:].tolist() == [0, 0]
    assert float(share[3]) == pytest.approx(0.01, rel=0.02)


def test_the_misinformer_is_wrong() -> None:
    victim = digits()
    other = misinformer(victim, 3)
    test = victim.splits.test
    assert float((other(test.inputs).argmax(1) == served_label(victim, test.inputs)).double().mean()) < 0.05


def test_misinformation_would_void_a_promise() -> None:
    claim = sm.Claim(kind="DP", short="(1, 1e-5)-DP", statement="", values={})
    with pytest.raises(sm.NotApplicable, match="voids \\(1, 1e-5\\)-DP"):
        AdaptiveMisinformation.tiny().serve(replace(tiny_victim("digits_mlp"), claims=(claim,)))


# -- clients ----------------------------------------------------------------------------------------------------------


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


# -- what it costs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("defense", KEEPING, ids=lambda defense: type(defense).__name__)
@pytest.mark.parametrize("name", ["digits_mlp", "mnist_binary_dense", "adult_mlp"])
def test_decisions_and_scores_are_kept(defense: sm.Defense, name: str) -> None:
    cost = honest_cost(served_by(defense, name), tiny_victim(name))
    assert cost.kept.value == 1
    if name != "digits_mlp":  # whose scores look at more than decisions, and some defenses cannot touch two classes
        return
    assert cost.score.value == cost.bare.value
    assert (cost.moved.value > 0) == (not isinstance(defense, (QueryDetector, RateLimit)))


@pytest.mark.parametrize("defense", [Rounding(decimals=1), TopK(k=2), NoisyAnswers(), ReverseSigmoid(), ModelGuard()])
def test_generators_keep_the_symbol_at_each_place(defense: sm.Defense) -> None:
    cost = honest_cost(served_by(defense, "char_rnn"), tiny_victim("char_rnn"))
    assert cost.kept.value == 1
    assert cost.moved.value > 0


def test_the_cost_is_what_it_says() -> None:
    bare = digits()
    cost = honest_cost(LabelOnly().serve(bare), bare)
    shares = probabilities(bare.served(bare.splits.test.inputs))
    assert cost.moved.value == pytest.approx(float((2 - 2 * shares.amax(1)).mean()), abs=1e-4)
    assert cost.kept.value == 1
    values = tiny_victim("linear_regression")
    assert honest_cost(values, values).moved.value == 0
    with pytest.raises(sm.UsageError, match="different splits"):
        honest_cost(bare, tiny_victim("digits_mlp"))


# -- stacks, other ways in, bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("defense", ALL, ids=lambda defense: type(defense).__name__)
def test_every_order_serves_answers(defense: sm.Defense) -> None:
    test = tiny_victim("digits_mlp").splits.test
    for other in (LabelOnly(), PredictionSmoothing(), RateLimit(queries=7), NoisyAnswers(fresh=True)):
        for stack in ((defense, other), (other, defense)):
            victim = tiny_victim("digits_mlp")
            for part in stack:
                victim = part.serve(victim)
            victim.task.output.check(victim.served(test.inputs), len(test))
            view = victim.served.session()
            assert len(view(test.inputs[:0])) == 0
            assert len(view(test.inputs)) <= len(test)
            assert victim.served.stand_in() is victim.served
            assert victim.module is tiny_victim("digits_mlp").module, "the weights are nobody's business here"


@pytest.mark.parametrize("defense", ALL, ids=lambda defense: type(defense).__name__)
def test_equal_questions_have_equal_answers(defense: sm.Defense) -> None:
    victim = served_by(defense)
    x = victim.splits.test.inputs
    together = victim.served(x)
    assert torch.equal(together, victim.served(x))
    alone = torch.cat([victim.served(x[i : i + 1]) for i in range(10)])
    assert torch.allclose(probabilities(together[:10]), probabilities(alone), atol=2e-5)


@pytest.mark.parametrize("defense", ALL, ids=lambda defense: type(defense).__name__)
def test_behind_encryption(defense: sm.Defense) -> None:
    class Sealed(Fixed):
        decrypted_by_client = True

    with pytest.raises(sm.NotApplicable, match="cannot stand behind encryption"):
        defense.serve(replace(tiny_victim("digits_mlp"), served=Sealed()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rounding(decimals=-1), "0 digits after the point or more; given -1"),
        (lambda: TopK(k=0), "at least 1 probability; given k=0"),
        (lambda: NoisyAnswers(scale=0.0), "finite scale above 0; given 0.0"),
        (lambda: ReverseSigmoid(beta=0.0), "finite beta above 0; given 0.0"),
        (lambda: ReverseSigmoid(gamma=math.inf), "finite gamma above 0; given inf"),
        (lambda: PredictionPoisoning(budget=2.5), "lies in \\(0, 2\\]; given 2.5"),
        (lambda: ModelGuardS(budget=3.0), "lies in \\(0, 2\\]; given 3.0"),
        (lambda: PredictionPoisoning(rounds=-1), "0 rounds or more; given -1"),
        (lambda: ModelGuard(budget=0.0), "lies in \\(0, 2\\]; given 0.0"),
        (lambda: AdaptiveMisinformation(untouched=0.0), "lies in \\(0, 1\\]; given 0.0"),
        (lambda: AdaptiveMisinformation(sharpness=-1.0), "finite sharpness above 0; given -1.0"),
        (lambda: AdaptiveMisinformation(epochs=0), "at least 1 epoch; given 0"),
        (lambda: QueryDetector(threshold=1.0), "lies in \\(0, 1\\); given 1.0"),
        (lambda: QueryDetector(least=2), "at least 3 distances; given least=2"),
        (lambda: RateLimit(queries=0), "at least 1 query; given 0"),
    ],
)
def test_settings_that_mean_nothing(make: Callable[[], sm.Defense], message: str) -> None:
    with pytest.raises(sm.UsageError, match=message):
        make()


@pytest.mark.parametrize(
    ("defense", "task", "message"),
    [
        (Rounding(), "recommender_mf", "answers Ranking"),
        (NoisyAnswers(), "recommender_mf", "answers Ranking"),
        (TopK(), "linear_regression", "answers Values"),
        (ReverseSigmoid(), "linear_regression", "answers Values"),
        (ModelGuard(), "recommender_mf", "answers Ranking"),
        (ModelGuardS(), "char_rnn", "answers NextToken"),
        (PredictionPoisoning(), "char_rnn", "answers NextToken"),
        (AdaptiveMisinformation(), "char_rnn", "answers NextToken"),
        (QueryDetector(), "linear_regression", "answers Values"),
        (QueryDetector(), "text_embedding", "distances between real inputs; text_embedding has SpelledTokens"),
    ],
)
def test_where_it_has_no_meaning(defense: sm.Defense, task: str, message: str) -> None:
    with pytest.raises(sm.NotApplicable, match=message):
        defense.check(tiny_task(task))


def test_misinformation_needs_somebody_to_set_its_threshold_by() -> None:
    victim = tiny_victim("digits_mlp")
    none = victim.splits.validation.take(slice(0, 0))
    with pytest.raises(sm.UsageError, match="on the validation split, of which digits_mlp has none"):
        AdaptiveMisinformation.tiny().serve(replace(victim, splits=replace(victim.splits, validation=none)))


def test_the_decision_is_lifted_where_it_was_lost() -> None:
    bare = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.4, 0.6]]).double()
    shares = torch.tensor([[0.2, 0.8], [0.5, 0.5], [0.1, 0.9]]).double()
    kept = keeping(shares, bare)
    assert torch.equal(kept.argmax(1), bare.argmax(1))
    assert bool((kept.max(1).values > kept.min(1).values).all())
    assert torch.allclose(kept[2], shares[2]), "what was first is left alone"
    assert torch.allclose(normalised(torch.zeros(1, 4).double()), torch.tensor(0.25).double())


def test_who_forgets_the_decision_is_caught() -> None:
    """The law on served answers fires where a change turns the decision and nothing puts it back."""
    victim = tiny_victim("digits_mlp")
    x = victim.splits.test.inputs
    turned = Altered(victim.served, lambda shares, _: shares.flip(1), keep=False)(x)
    kept = Altered(victim.served, lambda shares, _: shares.flip(1))(x)
    assert victim.task.output.fidelity(turned, victim.served(x)).value < 0.5
    assert victim.task.output.fidelity(kept, victim.served(x)).value == 1


def test_a_surrogate_learns_from_what_is_served() -> None:
    """The whole way: an attack by queries, on a victim that answers otherwise."""
    from attacks import Knockoff

    for defense in (ModelGuard(), NoisyAnswers(fresh=True), QueryDetector()):
        rows = Knockoff.tiny().evaluate(served_by(defense), threat=None, seed=0, examples=20).rows
        assert rows[0].value is not None
    with suppress(sm.Refused):  # before there is a copy
        limited = Knockoff.tiny().evaluate(served_by(RateLimit(queries=5)), threat=None, seed=0, examples=20)
        assert all(row.queries <= 5 for row in limited.rows)


def test_batches_of_none() -> None:
    for defense in ALL:
        victim = served_by(defense)
        none = Batch(victim.splits.test.inputs, ()).take(slice(0, 0)).inputs
        assert victim.served(none).shape == (0, 10)
        assert victim.served.session()(none).shape == (0, 10)
