"""Checks of the books: what is claimed is what the run does, and what follows from it."""

from __future__ import annotations

import warnings
from contextlib import suppress
from math import ceil, sqrt

import numpy as np
import torch
from torch import Tensor

from attacks.audit.step_audit import StepAudit
from attacks.scrutiny._trial import Trial
from secure_ml.batch import leaves
from secure_ml.families.audit import judge
from secure_ml.families.scrutiny import Finding
from secure_ml.randomness import generator
from secure_ml.stats import Floats, auc
from secure_ml.training import Step
from secure_ml.victim import Victim

BOOKS = "books"
DELTA = "delta"
ACCOUNTANTS = "accountants"
WITHDRAWN = "claim withdrawn without noise"
STOPPING = "early stopping"
AUDIT = "audit below claim"
BLIND = "members without the model"
OBSERVATIONS = 4000


def books(trial: Trial) -> Finding:
    """Rate, steps, noise and clip of the loop are those of the claim, at every step, and steps are counted."""
    seen: set[tuple[float, float]] = set()

    def look(step: Step) -> None:
        optimizer = trial.optimizer(step.plan)
        seen.add((float(optimizer.noise_multiplier), float(optimizer.max_grad_norm)))

    plan = trial.plan(observers=(look,))
    optimizer = trial.optimizer(plan)
    loader, short = trial.short(plan, 3)
    trial.run(plan, loader, epochs=2)
    counted = trial.finish(plan)
    sizes = [len(batch) for batch in trial.batches(100)]
    mean, q, n = float(np.mean(sizes)), trial.number("q"), trial.units
    sigma, clip = (trial.number(name) for name in ("sigma", "clip"))
    spread = sqrt(n * q * (1 - q) / len(sizes)) if 0 < q < 1 else 0.0
    steps = plan.loader.steps * plan.epochs
    pairs = [
        ("steps", trial.number("steps"), steps, 0.5),
        ("steps counted in a short run", float(counted.values["steps"]) if counted else 0.0, len(short.sizes), 0.5),
        ("rate", q, optimizer.expected_batch_size / n, 1e-6),
        ("examples in a batch", q * n, mean, 6 * spread + 1e-6),
        *(("noise", sigma, noise, 1e-6 * sigma) for noise, _ in seen),
        *(("clip", clip, norm, 1e-6 * clip) for _, norm in seen),
    ]
    off = [f"{name} is {real:.6g}, claimed {said:.6g}" for name, said, real, slack in pairs if abs(said - real) > slack]
    if off:
        return Finding(BOOKS, "FAIL", "; ".join(off), "account for the steps, the rate and the noise of the run")
    return Finding(BOOKS, "PASS", f"{steps} steps at rate {q:.4g}, noise {sigma:.4g}, clip {clip:g}, as claimed")


def delta(trial: Trial) -> Finding:
    """Publishing one example outright must not pass."""
    given, most = trial.number("delta"), 1 / trial.units
    evidence = f"delta {given:g} against 1/n = {most:.2g}"
    if not 0 <= given < most:
        return Finding(DELTA, "FAIL", evidence, "a mechanism that publishes an example would pass: lower delta")
    return Finding(DELTA, "PASS", evidence)


def accountants(trial: Trial) -> Finding:
    """Other accountants, from the claim's own numbers, come to the claimed epsilon."""
    history = [(trial.number("sigma"), trial.number("q"), int(trial.number("steps")))]
    said, at = trial.number("epsilon"), trial.number("delta")
    known = recomputed(history, at)
    evidence = f"claimed {said:.4g}; " + ", ".join(f"{name} {value:.4g}" for name, value in known.items())
    tight = {name: value for name, value in known.items() if name != "RDP"} or known
    if said < max(tight.values()) - 0.01 - 0.01 * said:
        return Finding(ACCOUNTANTS, "FAIL", evidence, "the claim is below what its own numbers cost")
    apart = max(tight.values()) - min(tight.values())
    if said > known["RDP"] + 0.01 or apart > 0.02 + 0.01 * said or min(tight.values()) > known["RDP"] + 0.01:
        return Finding(ACCOUNTANTS, "WARN", evidence, "the accountants disagree: look at their orders and grids")
    return Finding(ACCOUNTANTS, "PASS", evidence)


def recomputed(history: list[tuple[float, float, int]], at: float) -> dict[str, float]:
    """Epsilon by RDP, PRV and, where dp-accounting is installed, PLD; of a useless budget by RDP alone."""
    from opacus.accountants import PRVAccountant, RDPAccountant

    with warnings.catch_warnings(), np.errstate(divide="ignore"):  # at rate 1, PRV takes a logarithm of 0
        warnings.filterwarnings("ignore", message="Optimal order is the")
        loose, tight = RDPAccountant(), PRVAccountant()
        loose.history = tight.history = history
        found = {"RDP": float(loose.get_epsilon(at))}
        if found["RDP"] <= 100:
            error = min(0.01, max(1e-4, 0.003 * found["RDP"]))
            found["PRV"] = float(tight.get_epsilon(at, eps_error=error)) - error
            with suppress(ImportError):
                found["PLD"] = _loss_distribution(history, at)
    return found


def _loss_distribution(history: list[tuple[float, float, int]], at: float) -> float:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant()
    for noise, rate, steps in history:
        event = PoissonSampledDpEvent(rate, GaussianDpEvent(noise))
        accountant.compose(SelfComposedDpEvent(event, steps))
    return float(accountant.get_epsilon(at))


def withdrawn(trial: Trial) -> Finding:
    """A run whose optimizer adds no noise claims nothing."""
    plan = trial.plan()
    trial.optimizer(plan).noise_multiplier = 0.0
    trial.run(plan, trial.short(plan, 2)[0])
    claim = trial.finish(plan)
    if claim is not None:
        return Finding(
            WITHDRAWN, "FAIL", f"a run without noise claims {claim.short}", "claim what was done, not what was asked"
        )
    return Finding(WITHDRAWN, "PASS", "a run without noise claims nothing")


def stopping(trial: Trial) -> Finding:
    """No epoch is chosen by a score on data that the claim leaves out."""
    patience = trial.plan().patience
    if patience is not None:
        return Finding(
            STOPPING, "FAIL", f"stops after {patience} epochs without a better score", "train for a fixed number"
        )
    return Finding(STOPPING, "PASS", "training takes a fixed number of steps, whatever the validation score")


def audit(trial: Trial) -> Finding:
    """Single steps, seen from inside, give away no more than is claimed."""
    tried = StepAudit(observations=OBSERVATIONS)
    finding = judge("", tried.bounds(trial.lab, trial.rng(AUDIT)))
    return Finding(AUDIT, finding.verdict, finding.evidence, finding.remedy)


def blind(victim: Victim, examples: int, seed: int) -> Finding:
    """Members cannot be told from others without the model: else membership attacks measure the data.

    Das et al. 2024, https://arxiv.org/abs/2406.16201. A ridge regression on inputs and targets, in two folds.
    """
    parts = [victim.splits.train, victim.splits.nonmembers]
    n = min(examples, *map(len, parts))
    if n < 20:
        return Finding(BLIND, "SKIP", f"{n} members and as many others are too few to tell")
    rng = generator(seed, "blind")
    chosen = [part.take(torch.randperm(len(part), generator=rng)[:n].to(victim.device)) for part in parts]
    members, others = (_features([*leaves(part.inputs), *leaves(part.target)]) for part in chosen)
    scores = _two_folds(members, others)
    area, spread = auc(*scores), sqrt((2 * n + 1) / (12 * n * n))
    evidence = f"AUC {area:.3f} of members against others by their inputs alone, {n} of each"
    if abs(area - 0.5) > 4 * spread + 0.02:
        return Finding(BLIND, "FAIL", evidence, "members and others differ in distribution: membership means nothing")
    return Finding(BLIND, "PASS", evidence)


def _features(tensors: list[Tensor]) -> Floats:
    """Numbers ``(n, d)``: everything flattened, at most some hundred columns."""
    flat = torch.cat([tensor.reshape(len(tensor), -1).double().cpu() for tensor in tensors], 1)
    thin = flat[:, :: ceil(flat.shape[1] / 300)]
    return thin.numpy().astype("float64")


def _two_folds(members: Floats, others: Floats) -> tuple[Floats, Floats]:
    """Scores of members and others, each half by a regression on the other half."""
    scores = np.zeros(len(members)), np.zeros(len(others))
    for fold in (0, 1):
        fit = np.concatenate([members[1 - fold :: 2], others[1 - fold :: 2]])
        truth = np.repeat([1.0, -1.0], [len(members[1 - fold :: 2]), len(others[1 - fold :: 2])])
        center, scale = fit.mean(0), fit.std(0) + 1e-9
        x = (fit - center) / scale
        weights = np.linalg.solve(x.T @ x + len(x) * np.eye(x.shape[1]), x.T @ truth)
        for part, found in zip((members, others), scores, strict=True):
            found[fold::2] = ((part[fold::2] - center) / scale) @ weights
    return scores
