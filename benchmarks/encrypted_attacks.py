"""Extraction and membership inference through the encrypted endpoint: what they find there, and in the clear.

    python -m benchmarks.encrypted_attacks RUN

fits ``digits_mlp`` for encryption, or takes it from RUN; serves it with ``secure-ml serve``, many queries at a time;
attacks it twice with the same seeds: as served over HTTP, where every single answer is computed on ciphertexts in
another process, and as the same weights answer in the clear. The bars: fidelity, accuracy of the copy and AUC within
half a point of each other. Written to ``benchmarks/results/encrypted_attacks.json``; 1 if one is missed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from attacks import Knockoff, LossThreshold
from benchmarks.encryption_load import serving
from benchmarks.record import RESULTS, hardware
from defenses import Homomorphic
from defenses.homomorphic.client import Client
from defenses.homomorphic.service.endpoint import Endpoint
from defenses.homomorphic.service.remote import Remote
from secure_ml.attack import Attack
from secure_ml.discovery import task
from secure_ml.rows import package_version
from secure_ml.training import fit
from secure_ml.victim import Plain, Victim

ATTACKS: tuple[Attack, ...] = (Knockoff(queries=300), LossThreshold())
POINTS = 0.005
JUDGED = ("fidelity", "copy's accuracy", "membership AUC", "TPR at 1 % FPR")


def model(folder: Path, defense: Homomorphic) -> Victim:
    """The victim, trained once and kept in the folder."""
    digits = task("digits_mlp")
    if folder.exists():
        return Victim.load(folder, digits, [defense], device="cpu")
    victim = fit(digits, [defense], device="cpu")
    victim.save(folder)
    return victim


def measured(victim: Victim, where: str) -> list[dict[str, Any]]:
    """The rows of both attacks on what the victim serves."""
    found = []
    for attack in ATTACKS:
        start = time.perf_counter()
        rows = attack.evaluate(victim, threat=None, seed=0, examples=500).rows
        seconds = round(time.perf_counter() - start, 1)
        found += [
            {"where": where, "attack": repr(attack), "measure": row.measure, "value": row.value, "low": row.low}
            | {"high": row.high, "n": row.n, "queries": row.queries, "seconds": seconds}
            for row in rows
            if row.value is not None
        ]
    return found


def main(run: str) -> int:
    """Measure, compare, write, print."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    defense = Homomorphic(mode="simulate", encrypt=0)
    Path(run).mkdir(parents=True, exist_ok=True)
    victim, path = model(Path(run) / "model", defense), Path(run) / "program"
    path.write_bytes(defense.program(victim).to_bytes())
    rows = measured(replace(victim, served=Plain(victim.module, victim.task.chunk)), "in the clear")
    with serving(path, 1) as (url, _), closing(Remote(url)) as remote:
        endpoint = Endpoint(remote, Client(remote.about()[0]))
        rows += measured(replace(victim, served=endpoint), "encrypted, over HTTP")
        usage = dict(endpoint.usage())
    pairs = {name: [r["value"] for r in rows if (r["attack"], r["measure"]) == name] for name in _names(rows)}
    judged = {name: pair for name, pair in pairs.items() if name[1].startswith(JUDGED)}
    gaps = {", ".join(name): abs(a - b) for name, (a, b) in judged.items()}
    record = {
        "command": "python -m benchmarks.encrypted_attacks RUN",
        "versions": {package: package_version(package) for package in ("secure-ml", "tenseal", "torch", "uvicorn")},
        "hardware": {**hardware(), "threads": 1},
        "rows": rows,
        "usage": usage,
        "gaps": gaps,
        "passed": bool(gaps) and max(gaps.values()) <= POINTS,
    }
    (RESULTS / "encrypted_attacks.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    return 0 if record["passed"] else 1


def _names(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["attack"], row["measure"]) for row in rows))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
