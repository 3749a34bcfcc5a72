"""What ownership tests find, and whom they accuse wrongly: digits, three victims, twenty independent models each.

    python -m benchmarks.ownership

takes six minutes on one core and writes ``benchmarks/results/ownership.json``. Thieves ask 250 questions; DAWN marks
more than it would in earnest (2 % of all answers), since so few are asked.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import secure_ml as sm
from attacks.extraction.laundering import Laundering
from attacks.ownership.dataset_inference import DatasetInference
from attacks.ownership.fingerprint import Fingerprint
from attacks.ownership.watermark_test import WatermarkTest
from benchmarks.record import RESULTS, hardware
from defenses.dawn import DAWN
from defenses.entangled_watermark import EntangledWatermark
from secure_ml.cells import PACKAGES
from secure_ml.families.ownership import Ownership
from secure_ml.rows import Row, package_version, table
from secure_ml.stats import over_seeds

SEEDS = (0, 1, 2)
QUERIES, INDEPENDENTS = 250, 20
WASHED = Laundering(queries=QUERIES)
"""The thief who knows that answers may be marked."""
CASES: tuple[tuple[tuple[sm.Defense, ...], Ownership], ...] = (
    ((DAWN(share=0.02, key=7),), WatermarkTest(queries=QUERIES, independents=INDEPENDENTS)),
    ((DAWN(share=0.02, key=7),), WatermarkTest(queries=QUERIES, independents=INDEPENDENTS, stealing=WASHED)),
    ((EntangledWatermark(),), WatermarkTest(queries=QUERIES, independents=INDEPENDENTS)),
    ((EntangledWatermark(),), WatermarkTest(queries=QUERIES, independents=INDEPENDENTS, stealing=WASHED)),
    ((EntangledWatermark(share=0.1, entangle=2.0),), WatermarkTest(queries=QUERIES, independents=INDEPENDENTS)),
    ((), Fingerprint(queries=QUERIES, independents=INDEPENDENTS)),
    ((), DatasetInference(queries=QUERIES, independents=INDEPENDENTS)),
)


def main() -> None:
    """Fit, accuse, print, record."""
    rows: list[Row] = []
    for defenses, attack in CASES:
        task = sm.task("digits_cnn")
        attempts, scores = [], []
        for seed in SEEDS:
            victim = sm.fit(task, defenses, seed=seed, device="cpu")
            scores.append(victim.score().value)
            result = attack.evaluate(victim, threat=None, seed=seed, examples=600)
            attempts.append((attack, result))
        found = Ownership.pool(task, attempts)
        found.append(replace(found[0], measure="accuracy", unit="share", note="", **_mean(scores)))
        print(table(found), flush=True)
        rows += found
    record = {
        "command": "python -m benchmarks.ownership",
        "versions": {name: package_version(name) for name in PACKAGES},
        "hardware": hardware(),
        "rows": [asdict(row) for row in rows],
    }
    (RESULTS / "ownership.json").write_text(json.dumps(record, indent=1) + "\n")


def _mean(scores: list[float]) -> dict[str, Any]:
    mean = over_seeds(scores)
    return {"value": mean.value, "low": mean.low, "high": mean.high, "interval": mean.method, "n": mean.n}


if __name__ == "__main__":
    main()
