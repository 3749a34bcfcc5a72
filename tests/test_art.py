"""ART's attacks through the adapter: as ART runs them, but with labels, counted, repeatable and without a trace."""

import random
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import secure_ml as sm
from attacks.evasion.art_evasion import ArtEvasion, attack_classes, drawn
from secure_ml.access import WhiteBox
from secure_ml.families.evasion import attack_batch
from tests.laws import tiny_task, tiny_victim
from tests.test_evasion import linear_victim

PGD = ArtEvasion.tiny()


def fitted() -> sm.Victim:
    """A net that is right sometimes, and whose answers vary."""
    return sm.fit(replace(sm.task("digits_cnn"), recipe=sm.Recipe(epochs=5)), seed=0, device="cpu")


def test_it_is_what_art_returns() -> None:
    """Against ART called by hand with the same settings."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    victim = fitted()
    test = victim.splits.test.take(slice(0, 50))
    estimator = PyTorchClassifier(victim.module, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1))
    by_hand = ProjectedGradientDescent(estimator, norm=2, eps=0.5, eps_step=0.25, max_iter=5, verbose=False)
    expected = by_hand.generate(test.inputs.numpy(), y=test.target.numpy())
    changed = attack_batch(PGD, WhiteBox.open(victim), test, sm.L2(0.5), torch.Generator()).inputs
    assert torch.allclose(changed, torch.from_numpy(expected), atol=1e-6)


def test_labels_are_passed() -> None:
    """Without them, ART takes wrong answers for the truth and leads some of them to the right class."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    victim = fitted()
    module, test = victim.module, victim.splits.test
    wrong = test.take((module(test.inputs).argmax(1) != test.target).nonzero()[:, 0])
    assert len(wrong) > 10
    estimator = PyTorchClassifier(module, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1))
    theirs = ProjectedGradientDescent(estimator, eps=0.1, eps_step=0.05, max_iter=5, verbose=False)
    misled = torch.from_numpy(theirs.generate(wrong.inputs.numpy()))
    assert (module(misled).argmax(1) == wrong.target).sum() > len(wrong) / 10
    changed = attack_batch(PGD, WhiteBox.open(victim), wrong, sm.Linf(0.1), torch.Generator())
    assert not (module(changed.inputs).argmax(1) == wrong.target).any()


@pytest.mark.parametrize(("threat", "dual"), [(sm.Linf(0.3), 1), (sm.L2(0.5), 2)])
def test_one_logit_is_two_columns(threat: sm.Linf, dual: int) -> None:
    """The worst logit of a linear model within a ball is w.x + b - y r ||w||_dual."""
    victim = linear_victim()
    test, access = victim.splits.test, WhiteBox.open(victim)
    changed = attack_batch(PGD, access, test, threat, torch.Generator())
    sign = test.target * 2 - 1
    expected = access(test.inputs) - sign * threat.radius * victim.module[0].weight.detach()[0].norm(dual)
    assert torch.allclose(access(changed.inputs), expected, atol=2e-3)


def test_queries_and_gradients_are_counted() -> None:
    """The fast gradient method needs one gradient an example; the rest is what ART asks before and after."""
    victim = tiny_victim("digits_cnn")
    (row,) = ArtEvasion(attack="FastGradientMethod").evaluate(victim, threat=None, seed=0, examples=20).rows
    assert row.gradients == 20
    assert row.queries >= 20


@pytest.mark.parametrize(
    "attack",
    [
        ArtEvasion(attack="HopSkipJump", settings=(("max_iter", 1), ("max_eval", 20), ("init_eval", 5))),
        ArtEvasion(attack="SquareAttack", settings=(("max_iter", 3),)),
    ],
)
def test_equal_seeds_whatever_art_draws_from(attack: ArtEvasion) -> None:
    """HopSkipJump starts from a generator that the operating system seeds, Square from two global streams."""
    victim = fitted()
    test = victim.splits.test.take(slice(0, 4))
    streams = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    found = []
    for seed in (1, 1, 2):
        rng = torch.Generator().manual_seed(seed)
        found.append(attack_batch(attack, WhiteBox.open(victim), test, sm.L2(0.5), rng).inputs)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert random.getstate() == streams[0]
    assert np.array_equal(np.random.get_state()[1], streams[1])
    assert torch.equal(torch.get_rng_state(), streams[2])


def test_streams_return_after_an_error() -> None:
    fresh, before = np.random.RandomState, np.random.get_state()[1].copy()

    def stop() -> None:
        with drawn(torch.Generator()):
            assert np.random.RandomState().rand() != np.random.RandomState().rand()
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        stop()
    assert np.random.RandomState is fresh
    assert np.array_equal(np.random.get_state()[1], before)


def test_a_module_in_training_mode_stays_there() -> None:
    """ART calls backward and switches modes: on a copy."""
    victim = tiny_victim("digits_cnn")
    victim.module.train()
    attack_batch(PGD, WhiteBox.open(victim), victim.splits.test, sm.Linf(0.1), torch.Generator())
    assert victim.module.training
    assert all(p.grad is None and p.requires_grad for p in victim.module.parameters())
    victim.module.eval()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attack": "HopSkipJmp"}, "no evasion attack of ART is called 'HopSkipJmp'; did you mean HopSkipJump"),
        ({"attack": "HopSkipJump", "settings": (("max_itr", 5),)}, "did you mean max_iter"),
        ({"attack": "HopSkipJump", "settings": (("norm", 2),)}, "norm of ART's HopSkipJump follows from the victim"),
        ({"attack": "GRAPHITEBlackbox"}, "needs noise_size and net_size"),
    ],
)
def test_names_that_art_does_not_know(settings: dict[str, object], message: str) -> None:
    with pytest.raises(sm.UsageError, match=message):
        ArtEvasion(**settings)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "multiprocess", None)
    with pytest.raises(sm.UsageError, match="AutoAttack needs multiprocess, which ART does not install: pip install"):
        ArtEvasion(attack="AutoAttack").evaluate(tiny_victim("digits_cnn"), threat=None, seed=0, examples=5)


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        ("DPatch", "stopped with EstimatorError"),
        ("SquareAttack", "ValueError"),
        ("AdversarialPatchNumpy", "patch|stopped"),
    ],
)
def test_attacks_that_cannot_be_run(attack: str, reason: str) -> None:
    """An attack on detectors, one on images asked for features, and one that returns a patch."""
    victim = linear_victim() if attack == "SquareAttack" else tiny_victim("digits_cnn")
    with pytest.raises(sm.NotApplicable, match=reason):
        ArtEvasion(attack=attack).evaluate(victim, threat=sm.Linf(0.1), seed=0, examples=5)


def test_what_it_cannot_be_asked() -> None:
    with pytest.raises(sm.NotApplicable, match="inputs of one tensor"):
        PGD.check(tiny_task("fusion"), sm.Linf(0.1))
    with pytest.raises(sm.NotApplicable, match="within Linf or L2 or L1; the threat is SNR"):
        PGD.check(tiny_task("speech_digits"), None)
    assert len(attack_classes()) > 50
