"""Answers within a budget, against brute force, linear programs and naive loops."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from defenses._deviation import climbed, deviation, head_products, mixed, poisoned, whole_products
from defenses._spreading import MARGIN, SMALL, spread
from defenses.model_guard import ModelGuard
from defenses.model_guard_s import ModelGuardS, Quoted, read
from defenses.prediction_poisoning import PredictionPoisoning
from tests.answers import digits, drawn, l1

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
