"""Everything that exists, under every law."""

from itertools import product
from typing import Any

import pytest
import torch

import secure_ml as sm
from secure_ml.families.audit import Audit
from secure_ml.families.evasion import Evasion
from secure_ml.families.extraction import Extraction
from secure_ml.families.membership import Membership
from secure_ml.families.poisoning import Poisoning
from secure_ml.families.reconstruction import Reconstruction
from secure_ml.identity import identify
from tests import evasion_laws, laws
from tests.laws import ATTACKS, DEFENSES, TASKS, applies, tiny_task, tiny_victim

KINDS = (
    "adult_mlp",
    "char_rnn",
    "digits_cnn",
    "digits_mlp",
    "fusion",
    "linear_regression",
    "mnist_binary_dense",
    "policy_game",
    "recommender_mf",
    "speech_digits",
    "text_embedding",
    "wavenet",
)
"""One task or two of each kind of inputs, answers and scores; what holds for all of the others is slow to test."""


def by_kind(cases: list[tuple[Any, ...]]) -> list[Any]:
    """Cases that end with the name of a task, marked slow where another task of its kind is not."""
    return [case if case[-1] in KINDS else pytest.param(*case, marks=pytest.mark.slow) for case in cases]


METHODS = [*ATTACKS.values(), *DEFENSES.values()]
PAIRS = [(a, t) for a, t in product(ATTACKS.values(), TASKS) if applies(a.tiny(), tiny_task(t))]
EVASIONS, EXTRACTIONS, MEMBERSHIPS, POISONINGS, RECONSTRUCTIONS = (
    [(a.tiny(), t) for a, t in PAIRS if issubclass(a, family)]
    for family in (Evasion, Extraction, Membership, Poisoning, Reconstruction)
)
AUDITS = [(a.tiny(), t) for a, t in PAIRS if issubclass(a, Audit)]
MEANT = [(d, t) for d, t in product(DEFENSES.values(), TASKS) if applies(d.tiny(), tiny_task(t))]
GUARDS = [(d.tiny(), t) for d, t in MEANT]
SMALL = [(d, t) for d, t in GUARDS if not (type(d).__name__ == "Homomorphic" and "mnist" in t)]
NEUTRAL = [(type(d), t) for d, t in GUARDS if type(d).neutral() is not None]
STACKS = [
    (first, second, name)
    for name in ("digits_mlp", "linear_regression", "text_embedding")
    for first, second in product([d for d, t in MEANT if t == name], repeat=2)
]


def test_there_is_something_to_check() -> None:
    assert len(ATTACKS) >= 4
    assert len(DEFENSES) >= 4
    assert len(TASKS) >= 7
    assert min(map(len, (EVASIONS, EXTRACTIONS, MEMBERSHIPS, POISONINGS, RECONSTRUCTIONS, NEUTRAL))) >= 7


@pytest.mark.parametrize("cls", METHODS)
def test_settings_are_values(cls: type) -> None:
    laws.law_settings_are_values(cls)


@pytest.mark.parametrize("cls", METHODS)
def test_documented(cls: type) -> None:
    laws.law_documented(cls)


@pytest.mark.parametrize(("cls", "name"), by_kind(PAIRS))
def test_same_seed_same_result_without_a_trace(cls: type[sm.Attack], name: str) -> None:
    first = laws.law_leaves_no_trace(cls.tiny(), tiny_victim(name))
    laws.law_same_seed_same_result(cls.tiny(), tiny_victim(name), first)


@pytest.mark.parametrize(("attack", "name"), by_kind(EVASIONS))
def test_evasion(attack: Evasion, name: str) -> None:
    evasion_laws.law_stays_in_threat(attack, tiny_victim(name))
    evasion_laws.law_judged_on_what_is_served(attack, tiny_victim(name))
    evasion_laws.law_beats_chance_perturbation(attack, tiny_victim(name))


@pytest.mark.parametrize(("attack", "name"), by_kind(EXTRACTIONS))
def test_extraction_obeys_budget(attack: Extraction, name: str) -> None:
    laws.law_obeys_budget(attack, tiny_victim(name))


@pytest.mark.parametrize(("attack", "name"), by_kind(MEMBERSHIPS))
def test_membership_scores_each_example(attack: Membership, name: str) -> None:
    laws.law_scores_each_example(attack, tiny_victim(name))


@pytest.mark.parametrize(("attack", "name"), by_kind(POISONINGS))
def test_poisoning_obeys_its_share(attack: Poisoning, name: str) -> None:
    laws.law_obeys_its_share(attack, tiny_victim(name))


@pytest.mark.parametrize(("attack", "name"), by_kind(RECONSTRUCTIONS))
def test_reconstruction_guesses_in_the_dark(attack: Reconstruction, name: str) -> None:
    laws.law_guesses_in_the_dark(attack, tiny_victim(name))


@pytest.mark.parametrize(("attack", "name"), by_kind(AUDITS))
def test_audit_bounds_from_below(attack: Audit, name: str) -> None:
    laws.law_bounds_from_below(attack, tiny_victim(name))


@pytest.mark.parametrize(("defense", "name"), by_kind(SMALL))
def test_served_well(defense: sm.Defense, name: str) -> None:
    laws.law_served_well(defense, name)


@pytest.mark.parametrize(("defense", "name"), by_kind([pair for pair in SMALL if "mnist" not in pair[1]]))
def test_training_leaves_no_trace(defense: sm.Defense, name: str) -> None:
    laws.law_training_leaves_no_trace(defense, name)
    laws.law_adapts_a_copy(defense, name)


@pytest.mark.parametrize(("cls", "name"), by_kind(NEUTRAL))
def test_neutral_is_plain(cls: type[sm.Defense], name: str) -> None:
    laws.law_neutral_is_plain(cls, name)


def sampled(cases: list[tuple[Any, ...]]) -> list[Any]:
    """Every third stack on one task, in which each defense comes first and last several times; the others are slow."""
    places = {defense: i for i, defense in enumerate(DEFENSES.values())}
    return [
        case
        if case[-1] == "digits_mlp" and (places[case[0]] + places[case[1]]) % 3 == 0
        else pytest.param(*case, marks=pytest.mark.slow)
        for case in cases
    ]


@pytest.mark.parametrize(("first", "second", "name"), sampled(STACKS))
def test_stacks(first: type[sm.Defense], second: type[sm.Defense], name: str) -> None:
    laws.law_stacks(first.tiny(), second.tiny(), name)


@pytest.mark.parametrize("name", TASKS)
def test_task(name: str) -> None:
    task = tiny_task(name)
    laws.law_one_loss_per_example(task)
    laws.law_per_example_gradients(task)
    laws.law_splits(task)
    assert identify(task), "its cells would never be found again"


@pytest.mark.parametrize("threat", [sm.Linf(0.1), sm.L2(0.5), sm.Linf(0.0), sm.L2(0.0)])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_ball_projects(threat: sm.Linf, n: int) -> None:
    evasion_laws.law_projects(threat, sm.Box(), torch.rand(n, 3, 4, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("radius", [0, 1, 3])
def test_edits_project(radius: int) -> None:
    tokens = torch.randint(0, 20, (5, 7), generator=torch.Generator().manual_seed(0))
    evasion_laws.law_projects(sm.Edits(radius), sm.Tokens(20), tokens)
