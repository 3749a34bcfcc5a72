"""The four studies that come along, run and recorded: their tables, and which differences are more than noise.

    python -m benchmarks.studies RUN [NAME ...]

runs ``secure-ml matrix --file NAME`` in the folder RUN/NAME (a killed call goes on) and writes
``benchmarks/results/study-NAME.json``: the pooled rows, and the effects that answer the study's question. Each effect
is the mean difference between victims of the same seed, with Student's t interval and Holm's correction over all
effects of that study (`secure_ml.interactions`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, record_of
from experiments._main import main as secure_ml
from secure_ml.interactions import BARE, Effect, corrected, effects, stacked
from secure_ml.rows import Row, row_from


@dataclass(frozen=True)
class Study:
    """What is compared with what."""

    against: str = BARE
    """The stack that the others are compared with."""
    sums: bool = False
    """Whether stacks are compared with the sum of their parts' effects as well."""


STUDIES = {
    "leaks": Study(),
    "private-copies": Study(),
    "ciphertext-noise": Study(against="Homomorphic(encrypt=0)"),
    "stacking": Study(sums=True),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the studies that are named, all of them unless given, and record each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies")
    parser.add_argument("run", type=Path, help="folder that keeps the runs")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(STUDIES))
    options = parser.parse_args(argv)
    unknown = sorted(set(options.names) - set(STUDIES))
    if unknown:
        parser.error(f"no study is called {unknown[0]!r}: choose of {', '.join(STUDIES)}")
    for name in options.names or STUDIES:
        out = options.run / name
        code = secure_ml(["matrix", "--file", name, "--out", str(out)])
        if code:
            raise SystemExit(code)
        record(name, out)


def record(name: str, run: Path) -> None:
    """Write a finished study's record."""
    rows = [row_from(json.loads(line)) for line in (run / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    RESULTS.mkdir(exist_ok=True)
    kept = record_of(rows, f"secure-ml matrix --file {name}") | {"effects": answers(rows, STUDIES[name])}
    (RESULTS / f"study-{name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def answers(rows: Sequence[Row], study: Study) -> list[dict[str, Any]]:
    """The effects that bear on what the studies ask, from the rows of single victims."""
    asked = [row for row in rows if bears(row.measure)]
    seen = [replace(row, defenses=BARE) for row in asked if row.defenses == study.against]
    others = [row for row in asked if row.defenses not in (study.against, BARE)]
    single = [(effect, study.against) for effect in effects([*seen, *others])]
    sums = [(effect, "the sum of its parts") for effect in (stacked(asked) if study.sums else ())]
    found = [(effect, against) for effect, against in [*single, *sums] if effect.tested]
    corrections = corrected([effect for effect, _ in found])  # of all of them together
    return [_said(effect, against) for effect, (_, against) in zip(corrections, found, strict=True)]


def bears(measure: str) -> bool:
    """Whether a measure is one that the studies ask about: the score, clean or attacked, leakage, and the copy."""
    return measure.startswith(("accuracy", "membership AUC", "fidelity"))


def _said(effect: Effect, against: str) -> dict[str, Any]:
    found = effect.difference
    return {
        "protection": effect.defenses,
        "attack": effect.attack,
        "measure": effect.measure,
        "against": against,
        "before": effect.before,
        "after": effect.after,
        "change": found.value,
        "low": found.low,
        "high": found.high,
        "victims": found.n,
        "p, corrected": found.adjusted,
        "verdict": effect.verdict,
    }


if __name__ == "__main__":
    main()
