"""A zoo of victims: sound ones, and one for each check of an evaluation that is broken in just that way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn

import secure_ml as sm
from attacks.evasion.pgd import PGD
from attacks.scrutiny import _contract as contract
from attacks.scrutiny import _strength as strength
from defenses.adversarial_training import AdversarialTraining
from secure_ml.batch import Batch
from secure_ml.certificate import Certificate
from secure_ml.threats import Ball, Linf
from secure_ml.victim import Plain

RADIUS = 0.15


@cache
def bare() -> sm.Victim:
    """Digits, undefended."""
    return sm.fit(sm.task("digits_cnn"), seed=0, device="cpu")


@cache
def robust() -> sm.Victim:
    """Digits, adversarially trained."""
    return sm.fit(
        sm.task("digits_cnn"),
        [AdversarialTraining(radius=RADIUS, attack=PGD(steps=20, early=False))],
        seed=0,
        device="cpu",
    )


def answering(victim: sm.Victim, module: nn.Module) -> sm.Victim:
    """A victim with another module, of which nobody knows how it was trained."""
    module = module.eval()
    return replace(victim, module=module, served=Plain(module, victim.task.chunk), defenses=())


class Before(nn.Module):
    """A module behind a function of its inputs."""

    def __init__(self, function: Callable[[Tensor], Tensor], module: nn.Module) -> None:
        super().__init__()
        self.function, self.module = function, module

    def forward(self, inputs: Tensor) -> Tensor:
        return self.module(self.function(inputs))


def backwards(inputs: Tensor, where: Tensor) -> Tensor:
    """The inputs, with the gradient turned around in the examples ``where``."""
    turned = 2 * inputs.detach() - inputs
    return torch.where(where.reshape(-1, *[1] * (inputs.ndim - 1)), turned, inputs)


def out_of_the_box() -> sm.Victim:
    splits = robust().splits
    moved = Batch(splits.test.inputs * 2 - 1, splits.test.target)
    return replace(robust(), splits=replace(splits, test=moved))


def probabilities() -> sm.Victim:
    return answering(robust(), nn.Sequential(robust().module, nn.Softmax(1)))


class Dropping(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        return self.module(nn.functional.dropout(inputs, 0.2, training=True))


class Counting(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return self.module(inputs)


class LooksAside(nn.Module):
    """Reads the negative of its inputs where fewer than eight come together, which no attack meets at this radius."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        return self.module(inputs if len(inputs) >= 8 else 1 - inputs)


class Optimises(nn.Module):
    """Takes a gradient of its own on the way."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = inputs.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.module(leaf).logsumexp(1).sum(), leaf)
        return self.module(inputs + 0.001 * gradient)


def off_grid(inputs: Tensor) -> Tensor:
    """Which examples are no longer made of sixteenths, as all clean digits are."""
    return ((inputs * 16 - (inputs * 16).round()).abs() > 0.1).flatten(1).any(1)


def far(inputs: Tensor) -> Tensor:
    """Which examples are further than 0.25 from every clean one."""
    clean = robust().splits.test.inputs.flatten(1)
    return torch.cdist(inputs.detach().flatten(1), clean, p=torch.inf).amin(1) > 0.25


def half_seen(inputs: Tensor, rows: slice = slice(3, 5)) -> Tensor:
    """Inputs whose middle rows have no gradient."""
    seen = torch.ones_like(inputs)
    seen[..., rows, :] = 0
    return inputs * seen + inputs.detach() * (1 - seen)


def lottery(inputs: Tensor) -> Tensor:
    """The same, but for examples whose corner, which is not looked at otherwise, was drawn bright at the start.

    One start in four is lucky: two starts without luck and luck among six is then likeliest.
    """
    lucky = (inputs[..., :1, :1] > 0.52 * RADIUS).to(inputs.dtype).detach()
    seen = lucky * inputs + (1 - lucky) * half_seen(inputs, slice(2, 6))
    corner = torch.zeros_like(inputs)
    corner[..., 0, 0] = 1
    return seen * (1 - corner)


class Boast(Certificate):
    """Certifies everything."""

    norm = Linf
    alpha = 0.0

    def radii(self, batch: Batch, rng: torch.Generator) -> Tensor:
        return torch.ones(len(batch))


class OnePixel(nn.Module):
    """Looks at the middle pixel alone."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.scale * (inputs[:, 0, 4, 4] - 0.5) + 0.01 * inputs.mean((1, 2, 3))


@cache
def one_pixel() -> sm.Victim:
    """Robust in Linf, since its pixel is 0.22 from the threshold; in L2 all of the change goes into that pixel."""
    rng = torch.Generator().manual_seed(0)
    target = torch.arange(400) % 2
    inputs = torch.rand(400, 1, 8, 8, generator=rng) * 0.2 + 0.4
    inputs[:, 0, 4, 4] = 0.28 + 0.44 * target
    inputs[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    parts = sm.Splits(*(Batch(inputs, target).take(slice(i, i + 100)) for i in range(0, 400, 100)))
    task = sm.Task(
        name="one_pixel",
        build=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0)),
        data=lambda _: parts,
        threat=Linf(RADIUS),
    )
    victim = sm.fit(task, seed=0, device="cpu")
    return answering(victim, OnePixel())


def behind(function: Callable[[Tensor], Tensor]) -> sm.Victim:
    """The robust module behind a function of its inputs."""
    return answering(robust(), Before(function, robust().module))


THREAT = Linf(RADIUS)
BROKEN: dict[str, Callable[[], tuple[sm.Victim, Ball, str]]] = {
    "outside the box": lambda: (out_of_the_box(), THREAT, contract.BOUNDS),
    "probabilities": lambda: (probabilities(), THREAT, contract.BOUNDS),
    "dropout": lambda: (answering(robust(), Dropping(robust().module)), THREAT, contract.DETERMINISM),
    "counter": lambda: (answering(robust(), Counting(robust().module)), THREAT, contract.STATE),
    "quantiser": lambda: (behind(lambda x: (x * 8).round() / 8 + (x - x)), THREAT, contract.GRADIENTS),
    "no gradient": lambda: (behind(lambda x: x.detach()), THREAT, contract.GRADIENTS),
    "straight through": lambda: (behind(lambda x: x + ((x * 8).round() / 8 - x).detach()), THREAT, contract.GRADIENTS),
    "optimises": lambda: (answering(robust(), Optimises(robust().module)), THREAT, contract.GRADIENTS),
    "logits times 1000": lambda: (behind_logits(1000.0), THREAT, contract.GRADIENTS),
    "backwards off the grid": lambda: (behind(lambda x: backwards(x, off_grid(x))), THREAT, strength.ORDER),
    "lottery": lambda: (behind(lottery), THREAT, strength.CONVERGENCE),
    "backwards far away": lambda: (behind(lambda x: backwards(x, far(x))), THREAT, strength.CURVE),
    "half seen": lambda: (behind(half_seen), THREAT, strength.BLACK_BOX),
    "rehearsed a weak attack": lambda: (rehearsed_weakly(), THREAT, strength.REHEARSED),
    "one pixel": lambda: (one_pixel(), THREAT, strength.SECOND),
    "looks aside": lambda: (answering(robust(), LooksAside(robust().module)), THREAT, strength.POINTWISE),
    "boasts": lambda: (replace(robust(), certificates=(Boast(),)), THREAT, strength.SANDWICH),
    "hardly attacked": lambda: (robust(), Linf(0.02), strength.CONTROLS),
}
"""Victims that are broken in one way each, and the check that must say so."""

SOUND: dict[str, Callable[[], tuple[sm.Victim, Ball]]] = {
    "robust": lambda: (robust(), THREAT),
    "bare": lambda: (bare(), THREAT),
}


def behind_logits(scale: float) -> sm.Victim:
    """The robust module with logits so large that cross-entropy is flat."""
    layer = nn.Linear(10, 10, bias=False)
    with torch.no_grad():
        layer.weight.copy_(scale * torch.eye(10))
    return answering(robust(), nn.Sequential(robust().module, layer))


def rehearsed_weakly() -> sm.Victim:
    """A victim whose training met an attack that hardly moves."""
    return replace(robust(), defenses=(AdversarialTraining(attack=PGD(steps=1, step_size=0.001)),))
