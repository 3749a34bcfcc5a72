"""Which of ART's evasion attacks run on a classifier today, what they break, and what ours break.

    pip install -e '.[test,bench]'
    python -m benchmarks.art_attacks RUN [NAME...]

runs every class of ``art.attacks.evasion`` through `ArtEvasion` on digits_cnn, each in a process of its own with
SECONDS of processor time, keeps each outcome in the folder RUN, and writes ``benchmarks/results/art_attacks.json``.
The settings below are the smallest that let an attack find something; a class without an entry has ART's own.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import secure_ml as sm
from attacks.evasion.art_evasion import ArtEvasion, Setting, attack_classes
from benchmarks import _peers as peers
from benchmarks.record import RESULTS
from experiments._catalog import Catalog
from secure_ml.errors import NotApplicable, UsageError
from secure_ml.threats import Ball

SECONDS, EXAMPLES = 30, 50
LINF, EUCLID = sm.Linf(0.1), sm.L2(0.6)

SETTINGS: dict[str, dict[str, Setting]] = {
    "AdversarialPatch": {"patch_shape": (1, 8, 8), "max_iter": 5},
    "AdversarialPatchPyTorch": {"patch_shape": (1, 8, 8), "max_iter": 5},
    "BoundaryAttack": {"max_iter": 300},
    "CarliniL0Method": {"max_iter": 5, "binary_search_steps": 3},
    "ElasticNet": {"max_iter": 30, "binary_search_steps": 4},
    "GRAPHITEBlackbox": {"noise_size": 8, "net_size": 8},
    "GRAPHITEWhiteboxPyTorch": {"net_size": 8},
    "GeoDA": {"max_iter": 500, "sub_dim": 8},
    "HopSkipJump": {"max_iter": 5, "max_eval": 300},
    "PixelAttack": {"th": 5, "max_iter": 20},
    "SignOPTAttack": {"query_limit": 2000, "max_iter": 50},
    "SimBA": {"attack": "px", "max_iter": 500},
    "SpatialTransformation": {"max_translation": 10.0, "num_translations": 3, "max_rotation": 15.0, "num_rotations": 3},
    "SquareAttack": {"max_iter": 1000},
    "ThresholdAttack": {"th": 25, "max_iter": 20},
    "Wasserstein": {"max_iter": 10, "conjugate_sinkhorn_max_iter": 20, "projected_sinkhorn_max_iter": 20},
    "ZooAttack": {"max_iter": 50, "use_resize": False, "use_importance": False, "nb_parallel": 32},
}
"""Beside them, an attack has what ART gives it."""

IN_EUCLID = (
    *("BoundaryAttack", "CarliniL2Method", "DeepFool", "ElasticNet", "GeoDA", "HopSkipJump", "NewtonFool"),
    *("SignOPTAttack", "SimBA", "VirtualAdversarialMethod", "ZooAttack"),
)
"""Attacks that look for a change of small Euclidean length; the others are judged in the cube."""

COUNTERPARTS = {
    "AutoAttack": "auto_attack",
    "AutoProjectedGradientDescent": "apgd(restarts=5)",
    "BasicIterativeMethod": "pgd(steps=100)",
    "BoundaryAttack": "boundary",
    "CarliniL2Method": "carlini_wagner",
    "DeepFool": "deep_fool",
    "FastGradientMethod": "fgsm",
    "HopSkipJump": "hop_skip_jump",
    "ProjectedGradientDescent": "pgd(steps=100)",
    "ProjectedGradientDescentNumpy": "pgd(steps=100)",
    "ProjectedGradientDescentPyTorch": "pgd(steps=100)",
    "SquareAttack": "square(queries=1000)",
    "UniversalPerturbation": "universal",
}
"""Ours that does the same; where there is none (yet), APGD stands in."""


def main(run: Path, *names: str) -> None:
    """Run each attack in a child, and record all."""
    torch.set_num_threads(1)
    import_module("art.estimators.classification")
    known, catalog, rows = attack_classes(), Catalog.plain(), []
    _in_a_child(partial(_victim, run), 10 * SECONDS)  # trains where nothing is kept: autograd's threads survive no fork
    victim = _victim(run)
    for name in names or sorted(known):
        path = run / "art_attacks" / f"{name}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            done = _in_a_child(
                lambda name=name, path=path: path.write_text(json.dumps(one(victim, name, catalog)) + "\n"), SECONDS
            )
            if not done:
                why = f"more than {SECONDS} s of processor time"
                path.write_text(json.dumps({"attack": name, "outcome": "too slow", "why": why}) + "\n")
        rows.append(json.loads(path.read_text()))
        print(rows[-1], flush=True)
    if not names:
        record = {"command": "python -m benchmarks.art_attacks RUN", **peers.surroundings(), "rows": rows}
        (RESULTS / "art_attacks.json").write_text(json.dumps(record, indent=1) + "\n")


def _in_a_child(work: Callable[[], object], seconds: int) -> bool:
    """Whether work that is done in a process of its own, with everything imported already, ends within its time."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        work()

    child = get_context("fork").Process(target=limited)
    child.start()
    child.join()
    if (child.exitcode or 0) > 0:  # its time being over is a signal, below 0
        raise RuntimeError(f"a child ended with {child.exitcode}; its words stand above")
    return child.exitcode == 0


def _victim(run: Path) -> sm.Victim:
    task, folder = sm.task("digits_cnn"), run / "nets" / "digits_cnn"
    if not folder.exists():
        sm.fit(task, seed=0, device="cpu").save(folder)
    return sm.Victim.load(folder, task, device="cpu")


def one(victim: sm.Victim, name: str, catalog: Catalog) -> dict[str, Any]:
    """What one of ART's attacks and ours make of the net."""
    threat = EUCLID if name in IN_EUCLID else LINF
    row: dict[str, Any] = {"attack": name, "threat": repr(threat)}
    try:
        theirs = ArtEvasion(attack=name, settings=tuple(SETTINGS.get(name, {}).items()))
        accuracy, seconds = _measured(theirs, victim, threat)
    except (NotApplicable, UsageError) as error:
        other = "EstimatorError" in str(error)
        return {"attack": name, "outcome": "not for classifiers" if other else "fails", "why": str(error)}
    attack = _counterpart(name, catalog)
    our_accuracy, our_seconds = _measured(attack, victim, threat)
    clean = victim.task.score.measure(victim.served, victim.tested(EXAMPLES)).value
    return row | {
        "outcome": "works" if accuracy < clean else "finds nothing",
        "clean": clean,
        "accuracy": accuracy,
        "seconds": seconds,
        "ours": repr(attack),
        "our accuracy": our_accuracy,
        "our seconds": our_seconds,
    }


def _counterpart(name: str, catalog: Catalog) -> Any:
    try:
        return catalog.attack(COUNTERPARTS.get(name, "apgd"))
    except UsageError:
        return catalog.attack("apgd")


def _measured(attack: Any, victim: sm.Victim, threat: Ball) -> tuple[float, float]:
    """Robust accuracy, and seconds of processor time: others may be using the clock."""
    start = time.process_time()
    (row,) = attack.evaluate(victim, threat=threat, seed=0, examples=EXAMPLES).rows
    return row.value, round(time.process_time() - start, 2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
