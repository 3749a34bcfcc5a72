"""A check that never fires is no check: every law meets a part that breaks it."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import secure_ml as sm
from tests import broken, evasion_laws, laws
from tests.laws import tiny_task, tiny_victim

DIGITS = "digits_mlp"
fires = pytest.raises(AssertionError)


@pytest.mark.parametrize("cls", [broken.NotFrozen])
def test_settings(cls: type) -> None:
    with fires:
        laws.law_settings_are_values(cls)


def test_documentation() -> None:
    with fires:
        laws.law_documented(broken.Undocumented)


def test_global_random_stream() -> None:
    with fires:
        laws.law_same_seed_same_result(broken.GlobalNoise(), tiny_victim(DIGITS))


@pytest.mark.parametrize("attack", [broken.LeavesGradients(), broken.TrainsTheVictim()])
def test_traces(attack: sm.Evasion) -> None:
    victim = sm.fit(tiny_task(DIGITS), seed=0, device="cpu")
    with fires:
        laws.law_leaves_no_trace(attack, victim)


def test_descent() -> None:
    with fires:
        evasion_laws.law_beats_chance_perturbation(broken.Descends(), tiny_victim(DIGITS))


def test_leaky_threat() -> None:
    with fires:
        evasion_laws.law_projects(broken.Leaky(0.1), sm.Box(), torch.full((3, 4), 0.5))
    with fires:
        evasion_laws.law_stays_in_threat(broken.Cheats(), tiny_victim(DIGITS), broken.Leaky(0.1))


def test_family_does_not_believe_a_cheat() -> None:
    evasion_laws.law_stays_in_threat(broken.Cheats(), tiny_victim(DIGITS))


def test_an_attack_in_training_mode_changes_no_score() -> None:
    """Served answers stay those of evaluation mode, whatever mode the attack leaves the module in."""
    task = tiny_task(DIGITS)
    forgetful = replace(task, build=lambda: nn.Sequential(task.build(), nn.Dropout(0.9)))
    victim = sm.fit(forgetful, seed=0, device="cpu")
    for attack in (broken.TrainsTheVictim(), broken.JudgesTheModule()):  # either changes nothing
        with torch.random.fork_rng():
            torch.manual_seed(0)
            rows = attack.evaluate(victim, threat=None, seed=0, examples=50).rows
        victim.module.eval()
        accuracy = task.score.measure(victim.served, victim.tested(50)).value
        assert rows[0].value == accuracy


def test_judging_the_module_instead_of_what_is_served() -> None:
    with fires:
        evasion_laws.law_judged_on_what_is_served(broken.JudgesTheModule(), tiny_victim("linear_regression"))


def test_budget() -> None:
    with pytest.raises(sm.BudgetExceeded, match="exceed the budget of 4"):
        broken.Overspends().evaluate(tiny_victim(DIGITS), threat=None, seed=0, examples=10)


def test_one_score_for_all() -> None:
    with fires:
        laws.law_scores_each_example(broken.ScoresOnce(), tiny_victim(DIGITS))


def test_neutral() -> None:
    for cls in (broken.AlwaysNeutral, broken.NeverNeutral):
        with fires:
            laws.law_neutral_is_plain(cls, DIGITS)


@pytest.mark.parametrize("defense", [broken.LeavesHooks(), broken.ServesAnother()])
def test_serving(defense: sm.Defense) -> None:
    with fires:
        laws.law_served_well(defense, DIGITS)


def test_training() -> None:
    with fires:
        laws.law_training_leaves_no_trace(broken.Unseeded(), DIGITS)
    with fires:
        laws.law_adapts_a_copy(broken.AdaptsInPlace(), DIGITS)


def test_stack_that_refuses_in_no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def mute(self: sm.Defense, plan: sm.Plan) -> sm.Plan:
        raise sm.UsageError("no")

    monkeypatch.setattr(broken.Unseeded, "prepare", mute)
    with fires:
        laws.law_stacks(broken.Unseeded(), broken.Unseeded(), DIGITS)


def test_losses_that_mix() -> None:
    task = tiny_task(DIGITS)
    for loss in (broken.mixing_loss, broken.averaged_loss):
        with fires:
            laws.law_one_loss_per_example(replace(task, loss=loss))


def test_per_example_gradients() -> None:
    with fires:
        laws.law_per_example_gradients(replace(tiny_task(DIGITS), build=broken.Halved))


def test_splits() -> None:
    task = tiny_task(DIGITS)

    def overlapping(rng: torch.Generator) -> sm.Splits:
        parts = task.data(rng)
        return sm.Splits(parts.train, parts.validation, parts.train, parts.aux)

    def unseeded(rng: torch.Generator) -> sm.Splits:
        return task.data(broken.CLOCK)

    for data in (overlapping, unseeded, partial(lambda parts, rng: parts, task.draw(0))):
        with fires:
            laws.law_splits(replace(task, data=data))
