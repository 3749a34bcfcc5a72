"""What a server that lies learns from its client's decisions: the share of its key, and of its inputs.

    python -m benchmarks.false_answers RUN

fits ``digits_mlp`` for encryption, or takes it from RUN, and answers a full batch with ciphertexts of another program,
or of none. The client checks every answer's marks, level, size, scale and range, and acts on the class. Beside each
share stands that of a guess without any answer. Written to ``benchmarks/results/false_answers.json``.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

from attacks import FalseCiphertexts, FalsePrograms
from benchmarks.encrypted_attacks import model
from benchmarks.record import RESULTS, hardware
from defenses import Homomorphic
from secure_ml.families.deceit import Deceit
from secure_ml.rows import package_version

ATTACKS: tuple[Deceit, ...] = (
    FalseCiphertexts(rounds=1, answers=2),
    FalseCiphertexts(),
    FalsePrograms(rounds=1, answers=64),
    FalsePrograms(rounds=2, answers=128),
)


def main(run: str) -> int:
    """Lie, compare, write, print."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    Path(run).mkdir(parents=True, exist_ok=True)
    victim = model(Path(run) / "model", Homomorphic(mode="simulate", encrypt=0))
    rows = [row for a in ATTACKS for row in a.evaluate(victim, threat=None, seed=0, examples=500).rows]
    record = {
        "command": "python -m benchmarks.false_answers RUN",
        "versions": {package: package_version(package) for package in ("secure-ml", "tenseal", "torch")},
        "hardware": {**hardware(), "threads": 1},
        "rows": [asdict(replace(row, claims=())) for row in rows],
    }
    (RESULTS / "false_answers.json").write_text(json.dumps(record, indent=1) + "\n")
    for row in rows:
        print(row.measure, row.attack, row.value, row.low, row.high, row.n, row.queries, round(row.seconds, 1))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
