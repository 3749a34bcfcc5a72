"""What tests of changed answers share: victims behind a defense, and random probabilities."""

from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

import secure_ml as sm
from defenses._answers import probabilities
from secure_ml.batch import Tree
from secure_ml.victim import Served
from tests.laws import tiny_victim


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


def l1(defense: sm.Defense) -> Tensor:
    """How far each answer ``(B,)`` to the test split is from the bare one, as probabilities."""
    x = tiny_victim("digits_mlp").splits.test.inputs
    return (
        (probabilities(served_by(defense).served(x)) - probabilities(tiny_victim("digits_mlp").served(x))).abs().sum(1)
    )
