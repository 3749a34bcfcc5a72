"""How much of MNIST is proved to be right within Linf 0.3, and what attacks leave of the rest.

    python -m benchmarks.certified RUN [--model FOLDER] [--attacked 1000]

trains the net of `RECIPE` in the folder RUN (about 15 minutes on one free core; a killed call goes on), or loads the
one that ``secure-ml fit`` kept in FOLDER by the same recipe. Proofs are asked for on the whole test set, attacks on its
first examples, and each part is kept in RUN as it comes. The record is ``benchmarks/results/certified.json``.

The bars: at least 85 % certified at 0.3, and no certified example falls to an attack or was wrong to begin with.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import secure_ml as sm
from attacks import PGD, AutoAttack
from benchmarks._peers import fingerprint, surroundings
from benchmarks.record import RESULTS
from defenses.interval_bounds.certificate import IntervalCertificate
from experiments import fit
from experiments._catalog import Catalog
from secure_ml.batch import Batch
from secure_ml.families.evasion import Evasion
from secure_ml.randomness import generator
from secure_ml.rows import Row, make_row
from secure_ml.stats import clopper_pearson

RECIPE = (
    "mnist_cnn(net='threshold', whole=True)",
    "IBP(radius=0.32, kappa=0.0, regular=0.5, warmup=0.02, ramp=0.4)",
)
EPOCHS = 14
"""Task, defense and epochs, as on the command line; chosen without looking at the test set."""
RADIUS, BAR = 0.3, 0.85
CURVE = (0.1, 0.2, 0.3, 0.35, 0.4)
ATTACKS: tuple[Evasion, ...] = (PGD(steps=100), AutoAttack())
SLICE = 100
"""Examples attacked at a time, so that a killed call loses few."""


def main() -> int:
    """Train or load, prove, attack, write the record; 1 if a bar is missed."""
    options = _options()
    torch.set_num_threads(options.threads)
    victim = _victim(options.model or options.run / "model")
    test = victim.splits.test
    kept = Kept(options.run, fingerprint(victim.module))
    clean = kept("clean", lambda: victim.task.output.decide(victim.served(test.inputs)) == test.target)
    rows = [_row(victim, "accuracy", clean, kept.seconds)]
    proved = {radius: kept(f"certified {radius:g}", lambda r=radius: _proved(victim, r)) for radius in CURVE}
    rows += [_row(victim, f"certified accuracy under {sm.Linf(r)}", mask, kept.seconds) for r, mask in proved.items()]
    intervals = kept("intervals", lambda: _proved(victim, RADIUS, crown=False))
    note = "by interval arithmetic alone"
    rows.append(_row(victim, f"certified accuracy under {sm.Linf(RADIUS)}", intervals, kept.seconds, note=note))
    broken = int((proved[RADIUS] & ~clean).sum())
    for attack in ATTACKS:
        stands, seconds = _attacked(victim, attack, options.attacked, kept)
        broken += int((proved[RADIUS][: len(stands)] & ~stands).sum())
        measure = f"accuracy under {sm.Linf(RADIUS)}"
        rows.append(_row(victim, measure, stands & clean[: len(stands)], seconds, attack=repr(attack)))
    for row in rows:
        print(f"{row.measure:34} {row.value:.4f} of {row.n}  {row.attack} {row.note} {row.seconds:.0f} s")
    print(f"{broken} certified examples were broken; trained in {victim.seconds:.0f} s")
    command = "python -m benchmarks.certified RUN"
    record = {"command": command, "recipe": _command(), "trained in seconds": victim.seconds, "broken": broken}
    RESULTS.mkdir(exist_ok=True)
    rest = {**surroundings(), "rows": [asdict(row) for row in rows]}
    (RESULTS / "certified.json").write_text(json.dumps(record | rest, indent=1) + "\n")
    return int(broken > 0 or proved[RADIUS].double().mean().item() < BAR)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.certified")
    parser.add_argument("run", type=Path, help="folder that keeps the net and every answer")
    parser.add_argument("--model", type=Path, help="a folder that secure-ml fit made by the same recipe")
    parser.add_argument("--attacked", type=int, default=1000, help="test examples that are attacked")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _command() -> str:
    return f'secure-ml fit "{RECIPE[0]}" --defense "{RECIPE[1]}" --epochs {EPOCHS} --device cpu'


def _victim(folder: Path) -> sm.Victim:
    task, defense = RECIPE
    if not folder.exists():
        fit.main([task, "--defense", defense, "--epochs", str(EPOCHS), "--device", "cpu", "--out", str(folder)])
    catalog = Catalog.plain()
    return sm.Victim.load(folder, catalog.task(task), catalog.stack(defense), device="cpu")


class Kept:
    """Answers about one net, kept in a folder as strings of 0 and 1, and the seconds that the last ones took."""

    def __init__(self, run: Path, net: str) -> None:
        self.folder, self.seconds = run / "answers" / net, 0.0
        self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, ask: Callable[[], Tensor]) -> Tensor:
        """The answers of that name, asked for if they are not there."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            start = time.perf_counter()
            mask = ask()
            found = {"right": "".join(map(str, mask.int().tolist())), "seconds": time.perf_counter() - start}
            draft = path.with_suffix(".draft")
            draft.write_text(json.dumps(found) + "\n")
            draft.replace(path)
        held: dict[str, Any] = json.loads(path.read_text())
        self.seconds = held["seconds"]
        return torch.tensor([int(bit) for bit in held["right"]]).bool()


def _proved(victim: sm.Victim, radius: float, crown: bool = True) -> Tensor:
    """Which test examples are certified at one radius, ``(n,)``, without looking for each one's largest."""
    (certificate,) = victim.certificates
    assert isinstance(certificate, IntervalCertificate)
    certificate = replace(certificate, first=radius, steps=0, bounds="crown" if crown else "ibp")
    rng = generator(0, "certified")
    return torch.cat([certificate.radii(part, rng) >= radius for part in victim.splits.test.chunks(500)])


def _attacked(victim: sm.Victim, attack: Evasion, examples: int, kept: Kept) -> tuple[Tensor, float]:
    """Which of the first test examples stand, ``(n,)``, and the seconds it took."""
    found, seconds = [], 0.0
    for start in range(0, examples, SLICE):
        some: Batch = victim.splits.test.take(slice(start, min(start + SLICE, examples)))
        piece = replace(victim, splits=replace(victim.splits, test=some))

        def ask(piece: sm.Victim = piece, some: Batch = some) -> Tensor:
            result = attack.evaluate(piece, threat=sm.Linf(RADIUS), seed=0, examples=len(some))
            return result.evidence["worst"] > 0

        found.append(kept(f"{type(attack).__name__} {start}", ask))
        seconds += kept.seconds
    return torch.cat(found), seconds


def _row(victim: sm.Victim, measure: str, right: Tensor, seconds: float, *, attack: str = "", note: str = "") -> Row:
    estimate = clopper_pearson(int(right.sum()), len(right))
    return make_row(victim, measure, estimate, attack=attack, seconds=seconds, note=note)


if __name__ == "__main__":
    raise SystemExit(main())
