"""Attacks on texts against exhaustive search, naive loops, and what is known of words and keys."""

from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
from torch import Tensor, nn

import secure_ml as sm
from attacks.evasion import _search
from attacks.evasion._substitution import Offers, importance
from attacks.evasion.token_swap import TokenSwap
from attacks.evasion.typos import NEIGHBOURS, Typos, misspelled, mistyped
from attacks.evasion.universal_trigger import UniversalTrigger
from attacks.evasion.word_queries import WordQueries
from attacks.evasion.word_substitution import WordSubstitution
from secure_ml.access import BlackBox, WhiteBox
from secure_ml.batch import Batch
from secure_ml.families.evasion import Evasion, attack_batch
from secure_ml.modes import evaluating
from secure_ml.surfaces import SpelledTokens
from secure_ml.tasks import _texts
from tests.laws import tiny_victim

MODELS = ["text_embedding", "text_rnn", "text_transformer"]
WORDS = 8
LENGTH = 4


class Order(nn.Module):
    """A gated recurrent layer of torch over a tiny vocabulary, 0 for none: tokens ``(B, L)`` to logits ``(B, 3)``."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 4)
        nn.init.normal_(self.embedding.weight, std=3)
        self.layers = nn.GRU(4, 6, num_layers=2, dropout=0.5, batch_first=True)
        self.output = nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(self.layers(self.embedding(tokens))[0][:, -1]) * 8


def order_access() -> tuple[WhiteBox, Batch]:
    """An untrained model that reads order, and 12 texts, some of whose labels are its own answers."""
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, WORDS, (12, LENGTH), generator=rng)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        module = Order().eval()
    with torch.no_grad():
        target = module(tokens).argmax(1)
    target[:3] = (target[:3] + 1) % 3
    task = sm.Task(
        name="order",
        build=Order,
        data=lambda _: sm.Splits(*[Batch(tokens, target)] * 4),
        surfaces=(sm.Tokens(WORDS),),
        threat=sm.Edits(2),
    )
    return WhiteBox(task, module), Batch(tokens, target)


def worst(access: WhiteBox, batch: Batch, edits: int) -> tuple[Tensor, Tensor]:
    """Of every example, the highest loss within a number of edits, and whether an answer can be wrong."""
    losses, wrong = [], []
    for i in range(len(batch)):
        tokens = batch.inputs[i]
        texts = [tokens]
        for places in combinations(range(LENGTH), edits):
            for words in product(range(1, WORDS), repeat=edits):
                texts.append(tokens.clone())
                texts[-1][list(places)] = torch.tensor(words)
        many = Batch(torch.stack(texts), batch.target[i].expand(len(texts)))
        losses.append(access.task.loss(access, many).max())
        wrong.append((access(many.inputs).argmax(1) != many.target).any())
    return torch.stack(losses), torch.stack(wrong)


def changed(attack: Evasion, access: WhiteBox | BlackBox, batch: Batch, edits: int) -> Batch:
    return attack_batch(attack, access, batch, sm.Edits(edits), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("edits", [1, 2])
def test_a_wide_beam_is_exhaustive_search(edits: int) -> None:
    """With every candidate and every text kept, the worst of all replacements of one or two tokens is found."""
    access, batch = order_access()
    losses, wrong = worst(access, batch, edits)
    wide = TokenSwap(candidates=10_000, beam=10_000, early=False)
    found = changed(wide, access, batch, edits)
    assert torch.allclose(access.task.loss(access, found), losses, atol=1e-5)
    early = changed(replace(wide, early=True), access, batch, edits)
    assert torch.equal(access(early.inputs).argmax(1) != batch.target, wrong)
    assert int(wrong.sum()) > 3, "the models of this test are not all robust"


def test_whoever_asks_about_every_word_finds_the_worst() -> None:
    """With queries for all words in all places, asking finds the worst single replacement."""
    access, batch = order_access()
    losses, wrong = worst(access, batch, 1)
    every = 1 + LENGTH + LENGTH * (WORDS - 1)
    reached = []
    for queries in (2, every):
        asked = BlackBox(access.task, access, "probabilities", queries * len(batch))
        found = changed(WordQueries(queries=queries, positions=LENGTH, again=0), asked, batch, 1)
        assert asked.queries <= queries * len(batch)
        reached.append(access(found.inputs).argmax(1) != batch.target)
    assert torch.equal(reached[-1], wrong)
    assert int(reached[0].sum()) < int(wrong.sum())
    assert bool((access.task.loss(access, found) <= losses + 1e-5).all())


def test_questions_go_to_the_words_that_matter() -> None:
    """Of a long text in which one word decides, that word's place is found among forty and taken first."""

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(30, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            wrong = ((tokens[:, 17] < 4) | (tokens[:, 17] >= 20)).float()
            return torch.stack([1 - 2 * wrong, torch.zeros_like(wrong)], 1)

    tokens = torch.randint(4, 20, (5, 40), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens, torch.zeros(5, dtype=torch.long))
    surface = sm.Tokens(30)
    task = sm.Task(name="one", build=One, data=lambda _: sm.Splits(*[batch] * 4), surfaces=(surface,))
    access = BlackBox(task, One(), "probabilities")
    found = changed(WordQueries(queries=100, positions=1, again=0), access, batch, 1).inputs
    assert bool((One()(found)[:, 0] < 0).all())
    assert access.queries <= 500


def test_a_wider_beam_is_never_weaker_and_greedy_falls_short() -> None:
    access, batch = order_access()
    losses, _ = worst(access, batch, 2)
    reached = [
        access.task.loss(access, changed(TokenSwap(candidates=64, beam=beam, early=False), access, batch, 2))
        for beam in (1, 4, 28)
    ]
    assert bool((reached[0] < losses - 1e-4).any()), "greedy search finds everything: no test of a beam"
    sums = [float(values.sum()) for values in (*reached, losses)]
    assert sums == sorted(sums)


def test_a_beam_holds_no_text_twice() -> None:
    """Two edits in either sequence make one text: it takes one place."""
    texts = torch.tensor([[1, 2, 3], [1, 5, 3], [4, 2, 3]])
    trials = _search.Trials(torch.tensor([1, 2, 2]), torch.tensor([0, 1, 1]), torch.tensor([4, 5, 6]))
    owner, worth = torch.zeros(3, dtype=torch.long), torch.tensor([0.0, 2.0, 1.0]).double()
    kept, _, values = _search._select(texts, owner, worth, trials, torch.tensor([5.0, 5.0, 3.0]).double(), 3)
    assert kept.tolist() == [[4, 5, 3], [4, 6, 3], [1, 5, 3]]
    assert values.tolist() == [5, 3, 2]


def test_examples_that_are_lost_cost_nothing_more() -> None:
    """One query tells that a wrong answer is wrong; the examples of one batch do not wait for each other."""
    access, batch = order_access()
    lost = batch.take(slice(0, 3))
    found = changed(TokenSwap(), access, lost, 2)
    assert torch.equal(found.inputs, lost.inputs)
    assert (access.queries, access.gradients) == (3, 0)
    together = changed(TokenSwap(), access, batch, 2).inputs
    alone = [changed(TokenSwap(), access, batch.take(slice(i, i + 1)), 2).inputs for i in range(len(batch))]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("attack", [TokenSwap(), WordSubstitution(similarity=-1), Typos(shortest=3)])
@pytest.mark.parametrize("name", MODELS)
def test_leaving_early_breaks_as_many(attack: Evasion, name: str) -> None:
    """With one edit, the choice to leave early changes how high the loss is, and not whether the answer is wrong."""
    victim = tiny_victim(name)
    results = [
        replace(attack, early=early).evaluate(victim, threat=sm.Edits(1), seed=0, examples=40)
        for early in (True, False)
    ]
    assert torch.equal(results[0].evidence["worst"], results[1].evidence["worst"])
    assert results[0].rows[0].queries <= results[1].rows[0].queries


def test_candidates_are_the_best_of_each_position_then_the_second_best() -> None:
    """Whatever the scale of a position's gradient; fixed positions and frozen tokens are left out."""
    gradient = torch.tensor([[9.0, 1.0, 3.0, 2.0], [9.0, 10.0, 30.0, 20.0], [9.0, 5.0, 5.0, 50.0]])[None]
    tokens, free = torch.tensor([[1, 1, 2]]), torch.tensor([[True, True, False]])
    found = TokenSwap(candidates=3)._candidates(gradient.clone(), sm.Tokens(4), tokens, free)
    assert list(zip(found.position.tolist(), found.token.tolist(), strict=True)) == [(1, 2), (0, 2), (1, 3)]
    every = TokenSwap(candidates=100)._candidates(gradient.clone(), sm.Tokens(4), tokens, free)
    assert len(every.row) == 4


def test_another_round_mends_what_the_first_gradient_misjudged() -> None:
    access, batch = order_access()
    few = TokenSwap(candidates=2, beam=1, again=0, early=False)
    once, more = (access.task.loss(access, changed(replace(few, again=n), access, batch, 2)) for n in (0, 3))
    assert bool((more >= once - 1e-6).all())
    assert bool((more > once + 1e-3).any())


def test_a_trigger_is_the_same_in_every_text() -> None:
    """Each place of it holds one token or what was there, and no other pair of tokens tried does more harm."""
    access, batch = order_access()
    found = changed(UniversalTrigger(candidates=100, sweeps=5), access, batch, 2)
    assert torch.equal(found.inputs[:, 2:], batch.inputs[:, 2:])
    assert all(len(found.inputs[:, place].unique()) == 1 for place in (0, 1))
    reached = access.task.loss(access, found).mean()
    for place, token in product((0, 1), range(1, WORDS)):
        text = found.inputs.clone()
        text[:, place] = token
        assert access.task.loss(access, Batch(text, batch.target)).mean() <= reached + 1e-6


# -- substitution -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_substitution_against_a_naive_loop(name: str) -> None:
    """One edit: the best of the near words at the most important positions, word by word."""
    victim = tiny_victim(name)
    access, surface = WhiteBox.open(victim), victim.task.surfaces[0]
    test = victim.splits.test.take(slice(0, 6))
    attack = WordSubstitution(neighbours=5, similarity=0.2, positions=3, early=False)
    found = changed(attack, access, test, 1)
    vectors, written = victim.module.embedding.weight.detach(), surface.read()
    for i in range(len(test)):
        tokens, target = test.inputs[i], test.target[i : i + 1]

        def loss(text: Tensor, target: Tensor = target) -> float:
            return victim.task.loss(access, Batch(text[None], target)).item()

        def near(token: int) -> list[int]:
            others = [other for other in range(1, len(vectors)) if other != token and written[other]]
            cosine = [nn.functional.cosine_similarity(vectors[token], vectors[o], dim=0).item() for o in others]
            best = sorted(zip(cosine, others, strict=True), reverse=True)[:5]
            return [other for value, other in best if value >= 0.2]

        places = [place for place, token in enumerate(tokens.tolist()) if token and near(token)]
        weight = {place: loss(tokens.where(torch.arange(len(tokens)) != place, 0)) for place in places}
        top = sorted(places, key=lambda place: -weight[place])[:3]
        tried = [loss(tokens)]
        for place in top:
            for word in near(int(tokens[place])):
                text = tokens.clone()
                text[place] = word
                tried.append(loss(text))
        assert loss(found.inputs[i]) == pytest.approx(max(tried), abs=1e-5)


def test_only_similar_words_are_written() -> None:
    """No word below the floor; none where the floor is above every cosine."""
    victim = tiny_victim("text_embedding")
    access, test = WhiteBox.open(victim), victim.splits.test
    vectors = victim.module.embedding.weight.detach()
    found = changed(WordSubstitution(similarity=0.5, early=False), access, test, 2)
    edited = found.inputs != test.inputs
    assert bool(edited.any())
    cosine = nn.functional.cosine_similarity(vectors[test.inputs[edited]], vectors[found.inputs[edited]])
    assert bool((cosine >= 0.5 - 1e-6).all())
    assert torch.equal(changed(WordSubstitution(similarity=1.0), access, test, 2).inputs, test.inputs)


def test_importance_is_the_loss_without_the_word() -> None:
    access, batch = order_access()
    surface = access.task.surfaces[0]
    everywhere = torch.ones_like(batch.inputs, dtype=torch.bool)
    everywhere[:, 1] = False
    offers = Offers(torch.arange(WORDS), torch.full((WORDS, 1), 7))
    for gap, used in ((0, surface), (7, replace(surface, frozen=()))):
        found = importance(access, used, offers, batch, everywhere)
        for place in (0, 2, 3):
            text = batch.inputs.clone()
            text[:, place] = gap
            assert torch.allclose(found[:, place], access.task.loss(access, Batch(text, batch.target)), atol=1e-5)
        assert bool((found[:, 1] == -torch.inf).all())


# -- typos ------------------------------------------------------------------------------------------------------------


def test_words_that_one_typo_makes() -> None:
    typos = misspelled("film", 4)
    assert {"flim", "flm", "fim", "folm", "fikm", "fillm", "fxilm"} <= set(typos)
    assert "film" not in typos
    for typo in typos:
        assert (typo[0], typo[-1]) == ("f", "m")
        assert abs(len(typo) - 4) <= 1
        assert _texts.words(typo) == [typo], "a typo must stay one word"
    assert misspelled("bad", 4) == misspelled("n't", 3) == misspelled("café", 3) == ()
    assert set(misspelled("bad", 3)) > {"bd", "bsd", "bzad", "baxd"}


def test_keys_touch_each_other() -> None:
    assert set(NEIGHBOURS["g"]) == set("tyfhvb")
    assert all(key in NEIGHBOURS[other] for key, others in NEIGHBOURS.items() for other in others)
    assert (mistyped("Q"), mistyped("?")) == ("WA", "")


def test_typos_are_what_the_tokeniser_makes_of_misspelled_words() -> None:
    """Every edit is a typo of the word that stood there."""
    victim = tiny_victim("text_rnn")
    surface, test = victim.task.surfaces[0], victim.splits.test
    assert isinstance(surface, SpelledTokens)
    found = changed(Typos(early=False), WhiteBox.open(victim), test, 2).inputs
    edited = found != test.inputs
    assert bool(edited.any())
    for before, after in zip(test.inputs[edited].tolist(), found[edited].tolist(), strict=True):
        typos = misspelled(surface.read()[before], 4)
        assert after in _texts.word_numbers(list(typos), surface.vocabulary, 1)[:, 0].tolist()


def test_typos_of_characters_are_keys_beside_them() -> None:
    victim = tiny_victim("char_rnn")
    surface, test = victim.task.surfaces[0], victim.splits.test
    found = changed(Typos(), WhiteBox.open(victim), test, 2).inputs
    written = surface.read()
    edited = found != test.inputs
    assert 0 < int(edited.sum()) <= 2 * len(test)
    for before, after in zip(test.inputs[edited].tolist(), found[edited].tolist(), strict=True):
        assert written[after] in mistyped(written[before])


def test_typos_need_to_know_how_tokens_are_written() -> None:
    with pytest.raises(sm.NotApplicable, match="Typos changes SpelledTokens inputs; recommender_mf has Tokens"):
        Typos().check(sm.task("recommender_mf", tiny=True), None)


def test_numbers_are_read_as_their_most_frequent_word() -> None:
    texts = ["good film", "good story", "a film"]
    written = _texts.frequent_words(texts, 8)
    assert len(written) == 8
    for word in ("good", "film"):
        number = _texts.word_number(8, word)
        shared = [other for other in ("good", "film", "a", "story") if _texts.word_number(8, other) == number]
        assert written[number] in shared
        assert word in written or "good" in shared or "film" in shared
    spread = ["isn't", "wonderful", "wonderfully", "a", "'s", "café"]
    spoken = [word for text in spread for word in _texts.words(text)]
    assert _texts.word_numbers(spoken, 4096, 1)[:, 0].tolist() == [_texts.word_number(4096, word) for word in spoken]


# -- settings and recurrent layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenSwap(candidates=0), "at least 1 candidate"),
        (lambda: TokenSwap(beam=0), "beam of at least 1"),
        (lambda: TokenSwap(again=-1), "at least 0 rounds"),
        (lambda: UniversalTrigger(candidates=0), "at least 1 candidate"),
        (lambda: UniversalTrigger(sweeps=0), "at least 1 sweep"),
        (lambda: WordSubstitution(neighbours=0), "at least 1 neighbour"),
        (lambda: WordSubstitution(similarity=2.0), "between -1 and 1"),
        (lambda: WordSubstitution(positions=0), "at least 1 position"),
        (lambda: Typos(shortest=2), "at least 3 letters"),
        (lambda: Typos(positions=0), "at least 1 position"),
    ],
)
def test_settings_out_of_range(make: object, message: str) -> None:
    with pytest.raises(sm.UsageError, match=message):
        make()


def test_recurrent_layers_answer_as_in_evaluation_but_can_be_differentiated() -> None:
    """cuDNN differentiates them in training mode only: they are in it, without dropout, and return as they were."""
    access, batch = order_access()
    module = access.module.train()
    module.output.eval()
    with evaluating(module):
        assert module.layers.training
        assert not module.training
        inside = module(batch.inputs)
        assert torch.equal(inside, module(batch.inputs)), "dropout is at work"
    assert (module.layers.training, module.layers.dropout, module.output.training) == (True, 0.5, False)
    assert torch.equal(inside, module.eval()(batch.inputs))
    access.ascend(batch, access.task.surfaces[0])
    assert (module.layers.training, module.layers.dropout) == (False, 0.5)


@pytest.mark.gpu
def test_recurrent_layers_are_differentiated_on_the_gpu() -> None:
    access, batch = order_access()
    here = access.ascend(batch, access.task.surfaces[0]).gradient
    access.module.cuda()
    there = access.ascend(batch.to(torch.device("cuda")), access.task.surfaces[0]).gradient
    assert torch.allclose(there.cpu(), here, atol=1e-3)
