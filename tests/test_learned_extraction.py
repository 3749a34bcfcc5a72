"""Attacks that learn a copy: their parts against closed forms and loops, and each on a case that is made for it."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

import secure_ml as sm
from attacks import (
    ActiveLearning,
    AdaptiveKnockoff,
    ArtExtraction,
    Copycat,
    DataFree,
    JacobianAugmentation,
    Knockoff,
    Laundering,
    Recovery,
    SemiSupervised,
)
from attacks.extraction._bandit import Bandit, rewards
from attacks.extraction._choice import farthest, flips, grouped
from attacks.extraction._generation import Moments, Source, slope
from attacks.extraction._inverse import Pairs
from attacks.extraction._learned import Asked, marks, mean_answer
from attacks.extraction._variation import nudged
from defenses import AdaptiveMisinformation, RateLimit, ReverseSigmoid
from secure_ml.access import BlackBox
from secure_ml.batch import Batch
from secure_ml.families.extraction import Extraction
from secure_ml.imitation import Imitation
from secure_ml.outputs import Classes, Values
from secure_ml.victim import Plain, Served, Victim
from tests.laws import tiny_victim

ALL = [
    Knockoff(queries=9, budgets=(3, 6), repeats=3),
    Copycat.tiny(),
    ActiveLearning.tiny(),
    ActiveLearning(queries=8, budgets=(4,), strategy="deepfool_k_center", rounds=2, epochs=2),
    AdaptiveKnockoff.tiny(),
    JacobianAugmentation.tiny(),
    JacobianAugmentation(queries=9, budgets=(4,), seeds=2, targeted=True, epochs=2),
    SemiSupervised.tiny(),
    DataFree.tiny(),
    Recovery.tiny(),
    Laundering.tiny(),
    ArtExtraction.tiny(),
]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def steal(attack: Extraction, victim: Victim, pool: Batch, seed: int = 0) -> tuple[list[nn.Module], list[int]]:
    """The copies, and how many queries had been made at each."""
    access = BlackBox(victim.task, victim.served, attack.reveal, attack.queries)
    copies, spent = [], []
    for copy in attack.steal(access, pool, Imitation(victim, seed), rng(seed)):
        copies.append(copy)
        spent.append(access.queries)
    return copies, spent


def fidelity(attack: Extraction, victim: Victim, pool: Batch, test: Batch | None = None) -> float:
    """Of the last copy, on the victim's test split unless others are given; the truth is the module's own answer."""
    test = victim.splits.test if test is None else test
    copy = steal(attack, victim, pool)[0][-1]
    truth = Plain(victim.module, 1000)(test.inputs)
    return victim.task.output.fidelity(Plain(copy, 1000)(test.inputs), truth).value


# -- what all of them share -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ALL, ids=repr)
def test_each_budget_is_met_and_none_is_exceeded(attack: Extraction) -> None:
    victim = tiny_victim("digits_mlp")
    copies, spent = steal(attack, victim, victim.splits.aux)
    assert spent == list(attack.stages)
    assert len({id(copy) for copy in copies}) == len(spent)


@pytest.mark.parametrize("attack", ALL, ids=repr)
def test_a_refused_client_makes_do_with_less(attack: Extraction) -> None:
    victim = tiny_victim("digits_mlp", RateLimit(queries=6))
    if isinstance(attack, ArtExtraction):  # what ART has begun is lost, the smaller budget is not
        attack = replace(attack, budgets=(6,))
    rows = attack.evaluate(victim, threat=None, seed=0, examples=20).rows
    told = [row for row in rows if row.measure.startswith("fidelity at")]
    assert len(told) == len(attack.stages)
    assert max(row.queries for row in told) <= 6


@pytest.mark.parametrize("attack", [a for a in ALL if not isinstance(a, (DataFree, JacobianAugmentation))], ids=repr)
def test_a_small_pool_is_asked_once(attack: Extraction) -> None:
    victim = tiny_victim("digits_mlp")
    spent = steal(replace(attack, queries=40), victim, victim.splits.aux.take(slice(0, 10)))[1]
    assert spent[-1] == 10 * (attack.repeats if isinstance(attack, Knockoff) else 1)


def test_rounds_end_at_every_stage() -> None:
    assert marks((4, 10), 2, 4) == [2, 4, 6, 8, 10]
    assert marks((7, 10), 2, 2) == [2, 6, 7, 10]
    assert marks((1,), 5, 3) == [1]


@pytest.mark.parametrize(
    ("attack", "name", "why"),
    [
        (ActiveLearning(strategy="entropy"), "linear_regression", "how sure"),
        (ActiveLearning(strategy="deepfool"), "text_embedding", "DeepFool"),
        (AdaptiveKnockoff(), "recommender_mf", "use by='copy'"),
        (JacobianAugmentation(), "text_embedding", "real numbers"),
        (JacobianAugmentation(), "linear_regression", "understands Classes"),
        (DataFree(), "adult_mlp", "other inputs"),
        (DataFree(), "wavenet", "answers NextToken"),
        (Recovery(), "recommender_mf", "lists"),
        (Recovery(), "policy_game", "actions"),
        (Recovery(), "char_rnn", "understands Classes"),
        (ArtExtraction(), "fusion", "one tensor"),
        (Knockoff(jitter=0.1), "text_embedding", "real numbers"),
    ],
)
def test_no_meaning_is_told(attack: Extraction, name: str, why: str) -> None:
    with pytest.raises(sm.NotApplicable, match=why):
        attack.check(tiny_victim(name).task, None)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Copycat(queries=0), "at least 1 query"),
        (lambda: ActiveLearning(strategy="entropie"), "did you mean entropy"),
        (lambda: ActiveLearning(seed=0.0), r"in \(0, 1\]"),
        (lambda: AdaptiveKnockoff(arms=1), "at least 2 arms"),
        (lambda: JacobianAugmentation(step=0.0), "a step in"),
        (lambda: SemiSupervised(confidence=1.0), "confidence"),
        (lambda: DataFree(width=0.0), "width"),
        (lambda: Recovery(practices=0), "at least 1 model"),
        (lambda: Laundering(folds=1), "at least 2 folds"),
        (lambda: Laundering(confidence=1.0), "confidence"),
        (lambda: Knockoff(queries=2, repeats=3), "pay for 3 repeats"),
        (lambda: ArtExtraction(attack="KnockofNets"), "did you mean KnockoffNets"),
        (lambda: ArtExtraction(settings=(("nb_stolen", 3),)), "leave it out"),
        (lambda: ArtExtraction(settings=(("rewad", "cert"),)), "did you mean reward"),
    ],
)
def test_bad_settings_are_told(make: object, why: str) -> None:
    with pytest.raises(sm.UsageError, match=why):
        make()  # type: ignore[operator]


# -- parts against references -----------------------------------------------------------------------------------------


def test_k_center_is_greedy_and_within_twice_the_best() -> None:
    rows, known = torch.randn(9, 2, generator=rng()), torch.randn(2, 2, generator=rng(1))

    def radius(chosen: tuple[int, ...]) -> float:
        centres = torch.cat([known, rows[list(chosen)]])
        return float(torch.cdist(rows, centres).amin(1).max())

    chosen: list[int] = []
    for place in farthest(rows, known, 3).tolist():
        centres = torch.cat([known, rows[chosen]])
        away = [min(float((row - centre).norm()) for centre in centres) for row in rows]
        assert away[place] == pytest.approx(max(away), rel=1e-6)
        chosen.append(place)
    best = min(radius(some) for some in combinations(range(9), 3))
    assert radius(tuple(chosen)) <= 2 * best
    assert len(farthest(rows, known[:0], 20).unique()) == 9


def test_deepfool_distance_is_that_of_a_linear_model() -> None:
    """The nearest of the planes ``(w_i - w_j) x + b_i - b_j = 0``, two per cent farther."""
    task = tiny_victim("digits_mlp").task
    copy = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        copy[1].weight.copy_(torch.randn(10, 64, generator=rng()))
        copy[1].bias.zero_()
    inputs = 0.5 + 0.05 * torch.randn(6, 1, 8, 8, generator=rng(1))
    answers = copy.eval()(inputs).detach()
    found = flips(task, copy, Batch(inputs, ()), answers, rng())
    weight = copy[1].weight.detach()
    for i in range(6):
        first = int(answers[i].argmax())
        gaps = [
            float((answers[i, first] - answers[i, k]) / (weight[first] - weight[k]).norm())
            for k in range(10)
            if k != first
        ]
        assert min(gaps) < float(found[i]) < 1.03 * min(gaps)


def test_groups_are_found() -> None:
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    truth = torch.arange(3).repeat(20)
    group = grouped(centres[truth] + 0.1 * torch.randn(60, 2, generator=rng()), 3, rng(1))
    assert all(len(group[truth == k].unique()) == 1 for k in range(3))
    assert len(group.unique()) == 3
    assert grouped(centres[:1].repeat(4, 1), 3, rng()).shape == (4,)


def test_a_bandit_comes_to_prefer_the_better_arm() -> None:
    bandit, arms, draws = Bandit(3), torch.arange(300) % 3, rng()
    left = torch.ones(300, dtype=torch.bool)
    for _ in range(20):
        chosen = bandit.draw(arms, left, 5, draws)
        left[chosen] = False
        bandit.learn(arms[chosen], (arms[chosen] == 1).double()[:, None])
    assert float(bandit.policy[1]) > 0.8
    wrong = Bandit(3)
    wrong.learn(torch.tensor([0, 1, 0, 1]), -torch.tensor([[0.0], [1.0], [0.0], [1.0]]))
    assert float(wrong.policy[1]) < 1 / 3, "who mistakes the sign is seen"
    left[:] = False
    left[6] = True
    assert bandit.draw(arms, left, 1, draws).tolist() == [6], "an empty arm is not drawn"


def test_rewards_by_hand() -> None:
    sure, unsure = torch.tensor([[0.98, 0.01, 0.01], [0.4, 0.3, 0.3]]).log()
    new, before = Batch((), torch.stack([sure, unsure])), unsure[None]
    parts = rewards(Classes(), new, before, torch.zeros(2, 3))
    assert parts[0].tolist() == pytest.approx([0.97, 0.58, torch.log(torch.tensor(3.0)).item()], abs=1e-5)
    assert parts[1].tolist() == pytest.approx([0.1, 0.0, torch.log(torch.tensor(3.0)).item()], abs=1e-5)
    values = rewards(Values(), Batch((), torch.tensor([3.0])), torch.tensor([1.0, 1.0]), torch.tensor([1.0]))
    assert values.tolist() == [[2.0, 4.0]]


class Fresh(Served):
    """A predictor whose every answer has noise of its own."""

    def __init__(self, inner: Served) -> None:
        self.inner, self.rng = inner, rng(5)

    def __call__(self, inputs: Tensor) -> Tensor:
        shares = self.inner(inputs).softmax(1)
        return (shares + 0.02 * torch.rand(shares.shape, generator=self.rng)).log()


@pytest.mark.parametrize("jitter", [0.0, 1e-6])
def test_repeats_recover_the_mean_under_fresh_noise(jitter: float) -> None:
    victim = tiny_victim("digits_mlp")
    inputs = victim.splits.aux.inputs[:5]
    mean = victim.served(inputs).softmax(1) + 0.01
    errors = {}
    for repeats in (1, 400):
        access = BlackBox(victim.task, Fresh(victim.served), "probabilities")
        attack = Knockoff(queries=5 * repeats, repeats=repeats, jitter=jitter)
        got, refused = attack._ask(access, inputs, rng())
        assert access.queries == 5 * repeats
        assert not refused
        errors[repeats] = float((got.softmax(1) - mean / mean.sum(1, keepdim=True)).abs().max())
    assert errors[400] < 0.0015 < errors[1]


def test_the_mean_is_of_probabilities() -> None:
    answers = [torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.3, 0.7]]).log()]
    assert mean_answer(Classes(), answers).exp().tolist()[0] == pytest.approx([0.6, 0.4])
    assert mean_answer(Classes(), [torch.tensor([2.0]), torch.tensor([2.0])]).tolist() == pytest.approx([2.0])
    assert mean_answer(Values(), [torch.tensor([1.0]), torch.tensor([4.0])]).tolist() == [2.5]


def test_zeroth_order_slopes_are_gradients() -> None:
    bend = torch.randn(6, 6, generator=rng(), dtype=torch.double)
    point = torch.randn(3, 6, generator=rng(1), dtype=torch.double).requires_grad_()

    def function(x: Tensor) -> Tensor:
        return (x @ bend).square().sum(1)

    (exact,) = torch.autograd.grad(function(point).sum(), point)
    found = slope(function, point.detach(), 20_000, 1e-5, rng(2))
    assert float((found - exact).norm() / exact.norm()) < 0.05
    assert float((found / 6 - exact).norm() / exact.norm()) > 0.5, "without the dimension the slope is another"


def test_moments_are_adams() -> None:
    start, gradients = torch.tensor([1.0, -2.0]), [torch.tensor([0.3, -1.0]), torch.tensor([-0.2, 0.5])]
    parameter = nn.Parameter(start.clone())
    optimizer, mine, value = torch.optim.Adam([parameter], 0.1), Moments(0.1), {"w": start}
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        value = mine.step(value, {"w": gradient})
    assert torch.allclose(value["w"], parameter.detach(), atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 8, 8), (5,)])
def test_a_source_begins_uniform_and_climbs(shape: tuple[int, ...]) -> None:
    source = Source(shape, sm.Box(-1.0, 3.0), 8, 0.05, rng())

    def made() -> Tensor:
        return source.inputs(source.raw(2000))

    first = made()
    assert first.shape == (2000, *shape)
    assert -1 <= float(first.min()) < -0.95
    assert 2.95 < float(first.max()) <= 3
    assert float(first.mean()) == pytest.approx(1.0, abs=0.1)
    for _ in range(30):
        source.climb(50, lambda raw: source.inputs(raw).flatten(1).mean(1), 4, 1e-2)
    assert float(made().mean()) > 1.5


def test_a_known_bend_is_undone() -> None:
    """Ten classes share the map: it is learnt on some and holds for others, whatever their order."""
    bend, victim = ReverseSigmoid(beta=1.0, gamma=0.1), tiny_victim("digits_mlp")

    def served(clean: Tensor) -> Tensor:
        return bend.change(clean.softmax(1).double(), ()).clamp_min(1e-9).log().float()

    clean = 3 * torch.randn(1500, 10, generator=rng())
    pairs = Pairs()
    pairs.add(served(clean), clean)
    other = 3 * torch.randn(300, 10, generator=rng(1))
    guessed = pairs.inverse(Imitation(victim, 0))(served(other)).softmax(1)
    naive, left = ((given - other.softmax(1)).abs().sum(1).mean() for given in (served(other).softmax(1), guessed))
    assert float(left) < 0.35 * float(naive)
    same = Pairs()
    same.add(clean, clean)
    assert same.inverse(Imitation(victim, 0))(other) is other, "where nothing was altered, nothing is repaired"


# -- each on a case made for it ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> Victim:
    return sm.fit(sm.task("digits_cnn"), seed=0, device="cpu")


def lopsided(victim: Victim) -> Batch:
    """A pool in which nearly all inputs are of two classes."""
    aux = victim.splits.aux
    assert isinstance(aux.target, Tensor)
    many = (aux.target < 2).nonzero()[:, 0]
    few = torch.cat([(aux.target == k).nonzero()[:4, 0] for k in range(2, 10)])
    return aux.take(torch.cat([many, many, many, few]))


@pytest.mark.parametrize("strategy", ["margin", "k_center", "deepfool_k_center"])
def test_choosing_beats_chance_where_most_of_the_pool_is_alike(digits: Victim, strategy: str) -> None:
    pool = lopsided(digits)
    chosen = fidelity(ActiveLearning(strategy=strategy, queries=40, rounds=3, epochs=100), digits, pool)
    assert chosen > fidelity(Knockoff(queries=40, epochs=100), digits, pool) + 0.08


def test_a_bandit_beats_chance_where_most_of_the_pool_is_alike(digits: Victim) -> None:
    pool = lopsided(digits)
    adaptive = fidelity(AdaptiveKnockoff(queries=60, epochs=100), digits, pool)
    assert adaptive > fidelity(Knockoff(queries=60, epochs=100), digits, pool) + 0.05


def test_copycat_is_knockoff_on_labels_but_for_variation(digits: Victim) -> None:
    aux, test = digits.splits.aux, digits.splits.test
    plain, varied, random = (
        Copycat(queries=60, augment=False),
        Copycat(queries=60),
        Knockoff(queries=60, reveal="label"),
    )
    copies = [steal(attack, digits, aux)[0][-1].state_dict().values() for attack in (plain, random)]
    assert all(torch.equal(one, other) for one, other in zip(*copies, strict=True))
    moved = nudged(test, rng())
    assert fidelity(varied, digits, aux, moved) > fidelity(plain, digits, aux, moved) + 0.02


@pytest.mark.parametrize("targeted", [False, True])
def test_jacobian_augmentation_makes_much_of_few_inputs(digits: Victim, targeted: bool) -> None:
    pool = digits.splits.aux.take(slice(0, 20))
    made = JacobianAugmentation(queries=160, seeds=20, step=0.2, targeted=targeted, epochs=60)
    assert fidelity(made, digits, pool) > fidelity(Knockoff(queries=160), digits, pool) + 0.05


def test_a_generator_needs_no_data(digits: Victim) -> None:
    black = digits.splits.aux.map(torch.zeros_like)
    free = fidelity(DataFree(queries=1500, batch=32), digits, black)
    assert free > fidelity(Knockoff(queries=300), digits, black) + 0.4


def test_guessed_answers_help_more_than_they_harm(digits: Victim) -> None:
    pool, attack = digits.splits.aux, SemiSupervised(queries=30, reveal="label", members=2, epochs=60)
    random = fidelity(Knockoff(queries=30, reveal="label", epochs=60), digits, pool)
    assert fidelity(attack, digits, pool) > random - 0.01
    asked, rest = pool.take(slice(0, 30)), Batch(pool.inputs[30:], ())
    data = Batch(asked.inputs, digits.served(asked.inputs))
    wrong = attack.distil(Imitation(digits, 0), Batch(data.inputs, data.target.roll(3, 1)), rest, rng())
    agreed = digits.task.output.fidelity(Plain(wrong, 1000)(rest.inputs), digits.served(rest.inputs)).value
    assert agreed < 0.3, "a teacher who is wrong is copied"


def test_recovery_undoes_what_deceives_naive_copies(digits: Victim) -> None:
    defense, pool = ReverseSigmoid(beta=1.8, gamma=0.3), digits.splits.aux
    bent = replace(defense.serve(digits), defenses=(defense,))
    recovery, naive = Recovery(queries=100, practices=1, epochs=100), Knockoff(queries=100, epochs=100)
    assert fidelity(recovery, bent, pool) > 0.8 > 0.3 > fidelity(naive, bent, pool)
    unaware = replace(bent, defenses=())
    assert fidelity(recovery, unaware, pool) < 0.3, "who practises without the defense repairs nothing"


def test_art_is_metered_and_learns(digits: Victim) -> None:
    pool = digits.splits.aux
    for name, reveal in (("KnockoffNets", "probabilities"), ("CopycatCNN", "label")):
        attack = ArtExtraction(attack=name, reveal=reveal, queries=60, budgets=(30,), epochs=60)
        assert steal(attack, digits, pool)[1] == [30, 60]
        assert fidelity(attack, digits, pool) > 0.5
    adaptive = ArtExtraction(queries=20, settings=(("sampling_strategy", "adaptive"),), epochs=2)
    assert steal(adaptive, digits, pool)[1][0] <= 20
    with pytest.raises(sm.NotApplicable, match="a class for each input"):
        steal(adaptive, digits, Batch(pool.inputs, ()))


def test_who_asks_beyond_the_budget_is_stopped() -> None:
    """The broken variant: an attack that forgets what it has asked."""
    victim = tiny_victim("digits_mlp")
    asked = Asked(BlackBox(victim.task, victim.served, "probabilities", 8))
    asked.ask(victim.splits.aux.inputs[:8])
    with pytest.raises(sm.BudgetExceeded):
        asked.ask(victim.splits.aux.inputs[:8])


def test_defenses_that_set_a_threshold_are_practised_on_what_was_held_out() -> None:
    task = replace(sm.task("digits_mlp"), recipe=replace(sm.task("digits_mlp").recipe, epochs=2))
    victim = sm.fit(task, [AdaptiveMisinformation(epochs=1)], seed=0, device="cpu")
    rows = Recovery(queries=40, practices=1, epochs=2).evaluate(victim, threat=None, seed=0, examples=20).rows
    assert rows[0].value is not None
    data = victim.splits.aux.take(slice(0, 20))
    with pytest.raises(sm.UsageError, match="validation split, of which digits_mlp_practice has none"):
        Imitation(victim, seed=0).practice(data)
