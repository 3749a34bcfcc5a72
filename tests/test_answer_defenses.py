"""What is served instead of the module's own answers, against closed forms, brute force and other libraries."""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import secure_ml as sm
from defenses._answers import FLOOR, Altered, keeping, normalised, probabilities, written
from defenses.adaptive_misinformation import AdaptiveMisinformation, misinformer
from defenses.dawn import DAWN
from defenses.label_only import LabelOnly
from defenses.model_guard import ModelGuard
from defenses.model_guard_s import ModelGuardS
from defenses.noisy_answers import Noisy, NoisyAnswers
from defenses.prediction_poisoning import PredictionPoisoning
from defenses.prediction_smoothing import PredictionSmoothing
from defenses.query_detector import QueryDetector
from defenses.rate_limit import RateLimit
from defenses.reverse_sigmoid import ReverseSigmoid
from defenses.rounding import Rounding
from defenses.top_k import TopK
from secure_ml.access import BlackBox
from secure_ml.batch import Batch
from secure_ml.honest import honest_cost
from secure_ml.victim import Served
from tests.answers import Fixed, answered, digits, drawn, served_by
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
    for other in (LabelOnly(), PredictionSmoothing(), RateLimit(queries=7), NoisyAnswers(fresh=True), DAWN.tiny()):
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
