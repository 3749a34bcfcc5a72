"""Checks of the mechanism: noise, sensitivity, leaks between examples, sampling, and what a resumed run repeats."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import partial
from math import ceil, sqrt
from typing import Any

import torch
from torch import Tensor

from attacks.scrutiny._trial import Trial
from secure_ml.batch import Batch, join, leaves
from secure_ml.errors import UsageError
from secure_ml.families.scrutiny import Finding
from secure_ml.task import Loss
from secure_ml.training import Plan

NOISE = "noise calibration"
SENSITIVITY = "sensitivity"
LEAKAGE = "leaks between examples"
SAMPLING = "Poisson sampling"
RESUME = "resumed noise"
SURE = 6.0
"""Standard deviations beyond which chance is no excuse."""
EXTREMES = {"1e30": 1e30, "-1e30": -1e30, "NaN": float("nan"), "Inf": float("inf"), "0": 0.0}


def zeroed(loss: Loss, predictor: Any, batch: Batch) -> Tensor:
    """A loss without a slope."""
    return loss(predictor, batch) * 0


def steep(loss: Loss, predictor: Any, batch: Batch) -> Tensor:
    """A loss so steep that every example is clipped."""
    return loss(predictor, batch) * 1e4


# -- noise ------------------------------------------------------------------------------------------------------------


def noise(trial: Trial) -> Finding:
    """Where nothing is learned, steps are Gaussian noise of the claimed size, whatever the batch, and never repeat."""
    from scipy.stats import chi2, kstest

    plan = trial.plan(zeroed)
    size = sum(p.numel() for p in plan.module.parameters() if p.requires_grad)
    wanted = max(8, min(100, ceil(5000 / size)))
    loader, short = trial.short(plan, wanted // 2)
    unit = trial.number("sigma") * trial.number("clip") / trial.optimizer(plan).expected_batch_size
    seen = torch.stack(trial.run(plan, loader, epochs=ceil(wanted / loader.steps))) / unit
    total = seen.numel()
    tails = chi2.sf(seen.square().sum(1).numpy(), size)
    everything = float(chi2.sf(seen.square().sum().item(), total))
    wrong = []
    if min(everything, 1 - everything) < 1e-8 or any(min(p, 1 - p) < 1e-8 for p in tails):
        stds = seen.square().mean(1).sqrt()
        wrong.append(f"its size is {stds.min():.3g} to {stds.max():.3g} of what is claimed")
    elif kstest(seen.flatten()[:20000].numpy(), "norm").pvalue < 1e-8:
        wrong.append("it is not Gaussian")
    if abs(seen.mean().item()) * sqrt(total) > SURE:
        wrong.append(f"its mean is {seen.mean():.3g}")
    if _repeats(seen):
        wrong.append("it comes again")
    sizes = f"batches of {min(short.sizes)} to {max(short.sizes)} rows"
    if wrong:
        return Finding(NOISE, "FAIL", f"of the noise, {', and '.join(wrong)}; {sizes}", "draw it anew in each step")
    spread = seen.std().item()
    return Finding(
        NOISE, "PASS", f"{spread:.4f} of the claimed size over {total:,} numbers in {len(seen)} steps, {sizes}"
    )


def _repeats(steps: Tensor) -> bool:
    """Whether two of the steps ``(k, P)`` are alike beyond chance."""
    centred = steps - steps.mean(1, keepdim=True)
    unit = centred / centred.norm(dim=1, keepdim=True).clamp(min=1e-300)
    alike = (unit @ unit.T).abs().fill_diagonal_(0.0)
    few = steps.shape[1] < 50
    return bool((alike > 1 - 1e-9).any() if few else (alike * sqrt(steps.shape[1]) > SURE + 2).any())


def resume(trial: Trial) -> Finding:
    """A run that is killed after an epoch and goes on repeats no noise, and has counted what was spent."""
    kept: list[dict[str, Any]] = []
    whole, fresh = (trial.plan(zeroed) for _ in range(2))
    loader, short = trial.short(whole, 3, lambda: kept.append(_state(whole)))
    full = trial.run(whole, loader, epochs=2)
    parts = {"optimizer": fresh.optimizer, **fresh.state}
    # what resumes is what both know by name: what a plan does not keep stands at its beginning
    for name, part in parts.items():
        part.load_state_dict(kept[1][name])
    second = trial.run(fresh, trial.short(fresh, 3)[0])
    again = torch.stack([*full[: len(second)], *second])
    if _repeats(again):
        return Finding(RESUME, "FAIL", "a resumed run draws the noise of the first epoch again", "keep where it stands")
    claim, taken = trial.finish(fresh), len(short.sizes)
    counted = int(claim.values["steps"]) if claim else 0
    if counted != taken:
        return Finding(RESUME, "FAIL", f"a resumed run counts {counted} of {taken} steps", "keep what was spent")
    return Finding(
        RESUME, "PASS", f"a resumed run draws other noise than its first epoch, and counts all {taken} steps"
    )


def _state(plan: Plan) -> dict[str, Any]:
    return {name: deepcopy(part.state_dict()) for name, part in {"optimizer": plan.optimizer, **plan.state}.items()}


# -- clipping ---------------------------------------------------------------------------------------------------------


def sensitivity(trial: Trial) -> Finding:
    """No example, however extreme, alone or beside others, moves the noiseless sum by more than the clip."""
    data, names = _extreme(trial)
    clip, worst = trial.number("clip"), (0.0, "")
    for how, loss in (("", None), (", steep loss", steep)):
        plan = trial.plan(loss)
        beside = _beside(trial, plan, data)
        batches = [units for i in range(len(names)) for units in ([], [i], beside, [*beside, i])]
        sums = trial.sums(plan, data, batches)
        for i, name in enumerate(names):
            for without, held in (sums[4 * i : 4 * i + 2], sums[4 * i + 2 : 4 * i + 4]):
                moved = (held - without).norm().nan_to_num(torch.inf, torch.inf).item()
                worst = max(worst, (moved, name + how))
    evidence = f"at most {worst[0] / clip:.6g} of the clip by {len(names)} examples, {worst[1]}"
    if worst[0] > clip * (1 + 1e-4):
        return Finding(
            SENSITIVITY, "FAIL", evidence, "clip each example's whole gradient, in L2, before they are summed"
        )
    return Finding(SENSITIVITY, "PASS", evidence)


def _extreme(trial: Trial) -> tuple[Batch, list[str]]:
    """A few training examples, and copies of one with extreme numbers in place of its own; their names."""
    plain = trial.victim.splits.train.take(slice(0, 8))
    names = [f"example {i}" for i in range(len(plain))]
    batches = [plain]
    for name, value in EXTREMES.items():
        one = plain.take(slice(0, 1))
        changed = one.map(partial(_filled, value))
        if any(leaf.is_floating_point() for leaf in [*leaves(one.inputs), *leaves(one.target)]):
            batches.append(changed)
            names.append(f"all numbers {name}")
    return Batch(join([b.inputs for b in batches]), join([b.target for b in batches])), names


def _filled(value: float, leaf: Tensor) -> Tensor:
    return torch.full_like(leaf, value) if leaf.is_floating_point() else leaf


def _beside(trial: Trial, plan: Plan, data: Batch) -> list[int]:
    """Examples to stand beside another; none where what they add is drawn anew each time."""
    some = list(range(min(4, len(trial.victim.splits.train))))
    one, other = trial.sums(plan, data, [some, some])
    return some if torch.allclose(one, other, atol=1e-5 * trial.number("clip"), rtol=1e-5) else []


def leakage(trial: Trial) -> Finding:
    """What an example adds to the noiseless sum depends on no other, and no buffer of the module learns from data."""
    plan = trial.plan()
    data, clip = trial.victim.splits.train.take(slice(0, 8)), trial.number("clip")
    before = {name: buffer.clone() for name, buffer in plan.module.named_buffers()}
    some = _beside(trial, plan, data)
    moved = [name for name, buffer in plan.module.named_buffers() if not torch.equal(buffer, before[name])]
    if moved:
        return Finding(
            LEAKAGE, "FAIL", f"training writes data into {', '.join(moved[:3])}", "no noise protects buffers"
        )
    if not some or len(data) < 8:
        return Finding(LEAKAGE, "SKIP", "gradients are drawn anew each time: contributions cannot be compared")
    worst = 0.0
    for i in (0, 5):
        groups = [[], [1, 2], [3, 4, 6, 7]]
        sums = trial.sums(plan, data, [units for group in groups for units in (group, [*group, i])])
        alone, *others = [held - without for without, held in zip(sums[::2], sums[1::2], strict=True)]
        worst = max(worst, *((other - alone).norm().nan_to_num(torch.inf).item() for other in others))
    evidence = f"what an example adds beside others differs by {worst / clip:.2g} of the clip"
    if worst > 1e-3 * clip:
        return Finding(LEAKAGE, "FAIL", evidence, "the loss, a layer or the clipping mixes the examples of a batch")
    return Finding(LEAKAGE, "PASS", evidence)


# -- sampling ---------------------------------------------------------------------------------------------------------


def sampling(trial: Trial) -> Finding:
    """Each example joins each batch on its own: sizes are binomial, batches independent, and an empty one is a step."""
    if _empty_steps(trial) != 1:
        return Finding(SAMPLING, "FAIL", "an empty batch takes no step", "take a step whatever was drawn")
    batches, n = trial.batches(200), trial.units
    sizes = torch.tensor([float(len(batch)) for batch in batches])
    q = sizes.mean().item() / n
    if q > 1 - 1e-9:
        return Finding(
            SAMPLING, "PASS", "every batch holds every example, as is claimed" if q else "no example is drawn"
        )
    if any(len(batch.unique()) < len(batch) for batch in batches):
        return Finding(SAMPLING, "FAIL", "a batch holds an example twice", "draw each example at most once")
    wrong = _departures(batches, sizes, n, q)
    evidence = f"{len(batches)} batches of {sizes.min():.0f} to {sizes.max():.0f} of {n}"
    if wrong:
        return Finding(SAMPLING, "FAIL", f"{evidence}: {', '.join(wrong)}", "draw by Poisson sampling, or claim less")
    return Finding(SAMPLING, "PASS", f"{evidence}: sizes, shares and overlaps are those of independent draws")


def _empty_steps(trial: Trial) -> int:
    """Steps taken on an empty batch."""
    plan = trial.plan()
    loader, _ = trial.short(plan, 1)
    try:
        trial.run(plan, replace(loader, sampler=[torch.empty(0, dtype=torch.long)], steps=1))
    except (UsageError, RuntimeError, IndexError):
        return 0
    return trial.taken


def _departures(batches: list[Tensor], sizes: Tensor, n: int, q: float) -> list[str]:
    """In what the batches differ from independent draws at rate q, beyond chance."""
    from scipy.stats import chi2

    k, one = len(batches), q * (1 - q)
    wrong = []
    tail = float(chi2.sf((k - 1) * sizes.var().item() / (n * one), k - 1))
    if min(tail, 1 - tail) < 1e-8:
        wrong.append(f"sizes vary by {sizes.std():.3g}, not {sqrt(n * one):.3g}")
    places = {unit: i for i, unit in enumerate(torch.cat(batches).unique().tolist())}
    drawn = torch.zeros(k, max(n, len(places)), dtype=torch.bool)
    for row, batch in zip(drawn, batches, strict=True):
        row[torch.tensor([places[unit] for unit in batch.tolist()], dtype=torch.long)] = True
    shares = (drawn.sum(0).double() - k * q).square().sum().item() / (k * one)
    if abs(shares - n) > SURE * sqrt(2 * n + n * (1 - 6 * one) / (k * one)):
        wrong.append("examples are drawn equally often" if shares < n else "some examples are drawn more often")
    overlap = (drawn[1:] & drawn[:-1]).sum().item()
    expected, spread = (k - 1) * n * q * q, sqrt(3 * (k - 1) * n) * q * sqrt(1 - q * q)
    if abs(overlap - expected) > SURE * spread + 1:
        wrong.append(f"batches in a row share {overlap:.0f} examples, not {expected:.0f}")
    return wrong
