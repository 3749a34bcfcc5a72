"""Checks of the victim itself: inputs, answers, state and gradients must be what attacks take them for."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from attacks.evasion.pgd import PGD
from attacks.scrutiny._scene import Scene, margin_loss
from secure_ml.access import WhiteBox
from secure_ml.batch import Batch
from secure_ml.errors import UsageError
from secure_ml.families.evasion import are_probabilities, attack_batch
from secure_ml.families.scrutiny import Finding, Verdict
from secure_ml.modes import evaluating
from secure_ml.surfaces import Box

BOUNDS = "bounds and normalisation"
DETERMINISM = "determinism"
STATE = "restored state"
GRADIENTS = "zero gradients"


def bounds(scene: Scene) -> Finding:
    """Inputs lie in the declared box and fill it; answers are logits."""
    assert isinstance(scene.surface, Box)
    try:
        scene.surface.check(scene.batch.inputs)
    except UsageError as error:
        return Finding(BOUNDS, "FAIL", str(error), "put the normalisation into the module, or declare the true box")
    if are_probabilities(scene.served(scene.batch.inputs)):
        return Finding(BOUNDS, "FAIL", "the answers are probabilities", "take the softmax out of the module")
    low, high = scene.clean.min().item(), scene.clean.max().item()
    filled = (high - low) / (scene.surface.high - scene.surface.low)
    box = f"[{scene.surface.low:g}, {scene.surface.high:g}]"
    evidence = f"inputs in [{low:.3g}, {high:.3g}] of the box {box}, answers are logits"
    if filled < 0.1:
        return Finding(BOUNDS, "WARN", evidence, "the box is far larger than the inputs: is the radius in its unit?")
    return Finding(BOUNDS, "PASS", evidence)


def determinism(scene: Scene) -> Finding:
    """Five passes give the same answers, of the module and of what is served."""
    few = scene.batch.take(slice(0, 100))
    access = WhiteBox(scene.task, scene.victim.module)
    worst = 0.0
    for ask in (access, scene.served):
        answers = torch.stack([ask(few.inputs) for _ in range(5)])
        size = answers.abs().max().clamp(min=1e-12)
        worst = max(worst, ((answers - answers[0]).abs().max() / size).item())
    evidence = f"5 passes differ by {worst:.1g} of the largest answer"
    if worst > 1e-4:
        return Finding(DETERMINISM, "FAIL", evidence, "average over its randomness: AutoAttack(version='rand') or EOT")
    return Finding(DETERMINISM, "PASS", evidence)


def restored_state(scene: Scene) -> Finding:
    """Weights, buffers, gradients and modes are after an attack as they were before it."""
    module, few = scene.victim.module, scene.batch.take(slice(0, 20))
    before = _state(scene)
    with suppress(UsageError):  # a missing gradient is another check's finding
        attack_batch(PGD(steps=2), WhiteBox(scene.task, module), few, scene.threat, scene.rng(STATE))
    changed = [name for name, value in _state(scene).items() if not torch.equal(value, before[name])]
    if changed:
        return Finding(
            STATE, "FAIL", f"an attack changed {', '.join(changed[:3])}", "answers must not write to the module's state"
        )
    return Finding(STATE, "PASS", f"{len(before)} tensors and flags are bit for bit as before an attack")


def _state(scene: Scene) -> dict[str, Tensor]:
    module = scene.victim.module
    state = {name: value.clone() for name, value in (*module.named_parameters(), *module.named_buffers())}
    state |= {f"{name}.training": torch.tensor(part.training) for name, part in module.named_modules()}
    grads = {f"{name}.grad": p.grad for name, p in module.named_parameters()}
    return state | {name: torch.empty(0) if grad is None else grad.clone() for name, grad in grads.items()}


def gradients(scene: Scene) -> Finding:
    """The gradient is there, is finite, and is the slope that is measured; the forward pass takes none of its own."""
    if _differentiates(scene):
        return Finding(
            GRADIENTS, "FAIL", "the forward pass calls autograd", "attack through its optimisation: BPDA or unrolling"
        )
    dead, dead_ce = (_dead(scene.gradient(scene.batch, loss)[1]) for loss in (margin_loss, None))
    off = _disagreement(scene)
    evidence = (
        f"no gradient at {dead:.1%} of points by the margin and {dead_ce:.1%} by the loss; "
        f"measured slopes differ by {off:.0%}"
    )
    verdict: Verdict = "PASS"
    remedy = ""
    if dead > 0.01 or off > 0.5:
        verdict, remedy = "FAIL", "give attacks a differentiable stand-in (BPDA), and use those that only ask"
    elif dead_ce > 0.01:
        verdict, remedy = "WARN", "cross-entropy is saturated: trust attacks on dlr or margin only"
    return Finding(GRADIENTS, verdict, evidence, remedy)


def _dead(gradient: Tensor) -> float:
    flat = gradient.flatten(1)
    return (~(flat.isfinite().all(1) & (flat != 0).any(1))).double().mean().item()


def _disagreement(scene: Scene) -> float:
    """Median relative difference of the margin's gradient and its slope along it, measured over a small step."""
    assert isinstance(scene.surface, Box)
    _, gradient = scene.gradient(scene.batch, margin_loss)
    step = 1e-3 * (scene.surface.high - scene.surface.low) * gradient.sign()
    predicted = 2 * (gradient * step).flatten(1).sum(1)
    access = WhiteBox(scene.task, scene.victim.module)

    def at(point: Tensor) -> Tensor:
        moved = Batch(scene.surface.put(scene.batch.inputs, point), scene.batch.target)
        return margin_loss(access, moved)

    measured = at(scene.clean + step) - at(scene.clean - step)
    size = torch.maximum(predicted.abs(), measured.abs()).clamp(min=1e-12)
    return ((measured - predicted).abs() / size).nan_to_num(1.0).median().item()


def _differentiates(scene: Scene) -> bool:
    """Whether an answer takes a gradient on its way."""
    calls: list[bool] = []
    original = torch.autograd.grad

    def counted(*args: Any, **settings: Any) -> Any:
        calls.append(True)
        return original(*args, **settings)

    few = scene.batch.take(slice(0, 2))
    with patch.object(torch.autograd, "grad", counted), evaluating(scene.victim.module):
        scene.victim.module(few.inputs)
    return bool(calls)
