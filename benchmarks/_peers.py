"""Nets to be attacked, and what other libraries offer to attack them with: same points, norm, radius and threads.

The peers are no dependency of the project; ``pip install -e '.[test,bench]'`` adds them. Each is handed a copy of the
net with frozen weights, in evaluation mode, so that none of them spends time on gradients that it does not need.
"""

from __future__ import annotations

import json
import platform
import random
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import secure_ml as sm
from benchmarks.record import hardware
from defenses import AdversarialTraining
from experiments._catalog import Catalog
from secure_ml.attack import Attack
from secure_ml.defense import Defense
from secure_ml.identity import digest, ground_floor, identify
from secure_ml.rows import package_version
from secure_ml.threats import Ball

PEERS = ("torchattacks", "adversarial-robustness-toolbox", "foolbox", "eagerpy")
Attacker = Callable[[nn.Module, Tensor, Tensor, Ball, int], Tensor]
"""(module, inputs, labels, threat, batch size) to changed inputs."""


@dataclass(frozen=True)
class Net:
    """A net by name: how it is trained here unless a folder holds it, and the threat that it is attacked under."""

    threat: Ball
    defenses: tuple[Defense, ...] = ()
    epochs: int = 10

    def task(self) -> sm.Task:
        """Its task, with the threat for which it is trained."""
        task = sm.task("mnist_cnn")
        return replace(task, threat=self.threat, recipe=replace(task.recipe, epochs=self.epochs))


NETS = {
    "undefended": Net(sm.Linf(0.3)),
    "linf": Net(sm.Linf(0.3), (AdversarialTraining(),), 6),
    "l2": Net(sm.L2(2.0), (AdversarialTraining(),), 5),
}


def victim(name: str, run: Path, folder: Path | None = None) -> sm.Victim:
    """A net from the folder that holds it, else from the run's, where it is trained on first use (minutes)."""
    net = NETS[name]
    if folder is None:
        folder = run / "nets" / name
        if not folder.exists():
            print(f"training {name}", flush=True)
            done = sm.fit(net.task(), net.defenses, seed=0, device="cpu", checkpoint=run / "nets" / f".{name}")
            done.save(folder)
        return sm.Victim.load(folder, net.task(), net.defenses, device="cpu")
    about = json.loads((folder / "victim.json").read_text())
    catalog = Catalog.plain()
    task, stack = catalog.task(about["task"]), catalog.stack(about["training"])
    return sm.Victim.load(folder, replace(task, threat=net.threat), stack, device="cpu")


def frozen(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose weights ask for no gradient."""
    return deepcopy(module).eval().requires_grad_(False)


def fingerprint(module: nn.Module) -> str:
    """A hash of the weights."""
    return digest(*(value.detach().cpu().numpy().tobytes().hex() for value in module.state_dict().values()))[:16]


def code(attack: Attack) -> str:
    """A hash of an attack and of the sources behind it: what ours did before it changed is run again."""
    return digest(identify(attack), ground_floor())[:16]


def seeds(seed: int = 0) -> None:
    """The peers draw from the global streams."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def is_linf(threat: Ball) -> bool:
    """Whether the threat is a cube; a Euclidean ball otherwise."""
    return isinstance(threat, sm.Linf)


# -- torchattacks ----------------------------------------------------------------------------------------------------


def torchattacks_autoattack(steps: int) -> Attacker:
    """Its AutoAttack, with a number of iterations for APGD, APGD-T and FAB-T: as it is shipped they have 10 each."""

    def run(module: nn.Module, x: Tensor, y: Tensor, threat: Ball, size: int) -> Tensor:
        import torchattacks

        norm = "Linf" if is_linf(threat) else "L2"
        attack = torchattacks.AutoAttack(module, norm=norm, eps=threat.radius, n_classes=10, seed=0)
        for part in attack._autoattack.attacks[:3]:
            part.steps = steps
        return chunked(attack, x, y, size)

    return run


def torchattacks_apgd(steps: int) -> Attacker:
    """Its APGD on cross-entropy with one start."""

    def run(module: nn.Module, x: Tensor, y: Tensor, threat: Ball, size: int) -> Tensor:
        import torchattacks

        norm = "Linf" if is_linf(threat) else "L2"
        return chunked(torchattacks.APGD(module, norm=norm, eps=threat.radius, steps=steps, seed=0), x, y, size)

    return run


def torchattacks_pgd(steps: int) -> Attacker:
    """Its PGD with our step size."""

    def run(module: nn.Module, x: Tensor, y: Tensor, threat: Ball, size: int) -> Tensor:
        import torchattacks

        kind = torchattacks.PGD if is_linf(threat) else torchattacks.PGDL2
        return chunked(kind(module, eps=threat.radius, alpha=2.5 * threat.radius / steps, steps=steps), x, y, size)

    return run


def chunked(attack: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, size: int) -> Tensor:
    """An attack without a batch size of its own, run on pieces."""
    pieces = zip(x.split(size), y.split(size), strict=True)
    return torch.cat([attack(inputs, labels).detach() for inputs, labels in pieces])


# -- the Adversarial Robustness Toolbox ------------------------------------------------------------------------------


def art_estimator(module: nn.Module) -> Any:
    """A net as ART knows it."""
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(module, nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0, 1), device_type="cpu")


def art_pgd(steps: int) -> Attacker:
    """Its PGD that stays in torch within a batch, with our step size and one random start."""

    def run(module: nn.Module, x: Tensor, y: Tensor, threat: Ball, size: int) -> Tensor:
        from art.attacks.evasion import ProjectedGradientDescentPyTorch

        attack = ProjectedGradientDescentPyTorch(
            art_estimator(module),
            norm=np.inf if is_linf(threat) else 2,
            eps=threat.radius,
            eps_step=2.5 * threat.radius / steps,
            max_iter=steps,
            num_random_init=1,
            batch_size=size,
            verbose=False,
        )
        return torch.from_numpy(attack.generate(x.numpy(), y=y.numpy()))

    return run


def art_apgd(module: nn.Module, threat: Ball, size: int, loss: str, restarts: int) -> Any:
    """Its APGD of 100 iterations, with the first step of the paper, twice the radius."""
    from art.attacks.evasion import AutoProjectedGradientDescent

    return AutoProjectedGradientDescent(
        art_estimator(module),
        norm=np.inf if is_linf(threat) else 2,
        eps=threat.radius,
        eps_step=2 * threat.radius,
        max_iter=100,
        nb_random_init=restarts,
        batch_size=size,
        loss_type=loss,
        verbose=False,
    )


def art_apgd_ce(module: nn.Module, x: Tensor, y: Tensor, threat: Ball, size: int) -> Tensor:
    """Its APGD on cross-entropy with one start."""
    attack = art_apgd(module, threat, size, "cross_entropy", 1)
    return torch.from_numpy(attack.generate(x.numpy(), y=y.numpy()))


def art_ensemble(module: nn.Module, x: Tensor, y: Tensor, threat: Ball, size: int) -> Tensor:
    """Its AutoAttack with both of its APGDs, 5 starts each as it is shipped."""
    from art.attacks.evasion import AutoAttack

    losses = ("cross_entropy", "difference_logits_ratio")
    attack = AutoAttack(
        art_estimator(module),
        norm=np.inf if is_linf(threat) else 2,
        eps=threat.radius,
        attacks=[art_apgd(module, threat, size, loss, 5) for loss in losses],
        batch_size=size,
    )
    return torch.from_numpy(attack.generate(x.numpy(), y=y.numpy()))


# -- Foolbox ---------------------------------------------------------------------------------------------------------


def foolbox_pgd(steps: int | None = None, restarts: int = 1) -> Attacker:
    """Its PGD: with its own steps and step size, or with ours for a number of steps."""

    def run(module: nn.Module, x: Tensor, y: Tensor, threat: Ball, size: int) -> Tensor:
        import foolbox

        kind = foolbox.attacks.LinfPGD if is_linf(threat) else foolbox.attacks.L2PGD
        attack = kind() if steps is None else kind(steps=steps, abs_stepsize=2.5 * threat.radius / steps)
        repeated = attack.repeat(restarts) if restarts > 1 else attack
        model = foolbox.PyTorchModel(module, bounds=(0, 1), device="cpu")
        return chunked(lambda a, b: repeated(model, a, b, epsilons=threat.radius)[1], x, y, size)

    return run


# -- judging and recording -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """What an attack left right, ``(B,)``, its processor seconds, and how many of its answers left the threat."""

    right: Tensor
    seconds: float
    outside: int


def judged(attacker: Attacker, net: sm.Victim, threat: Ball, examples: int, size: int) -> Judged:
    """Run a peer, move what it returns into the threat as ours is, and ask the net again."""
    batch, module = net.tested(examples), frozen(net.module)
    x, y = batch.inputs, batch.target
    assert isinstance(x, Tensor)
    assert isinstance(y, Tensor)
    seeds()
    start = time.process_time()
    changed = attacker(module, x, y, threat, size).to(x.dtype)
    seconds = time.process_time() - start
    outside = (threat.size(x, changed) > threat.radius * (1 + 1e-5)) | ((changed - 0.5).flatten(1).abs().amax(1) > 0.5)
    right = correct(module, x, y) & correct(module, threat.project(net.task.surface(threat), x, changed), y)
    return Judged(right, seconds, int(outside.sum()))


def correct(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which labels a net names, ``(B,)``."""
    with torch.no_grad():
        return torch.cat([module(piece).argmax(1) for piece in x.split(1000)]) == y


@cache
def versions() -> dict[str, str]:
    """Of everything that was compared."""
    packages = ("secure-ml", "torch", "numpy", *PEERS)
    return {name: package_version(name) for name in packages} | {"python": platform.python_version()}


def surroundings() -> dict[str, Any]:
    """Where it ran: versions, processor, threads."""
    return {"versions": versions(), "hardware": hardware() | {"threads": torch.get_num_threads()}}
