"""Every document model, bare and under DP-SGD at epsilon 8, under every attack that applies: one table of all of them.

    python -m benchmarks.models [TASK...]

trains and attacks one victim each (all tasks unless some are named), resumes what was begun in ``runs/models``, and
keeps the rows in ``benchmarks/results/models.json``, where those of other tasks stay as they were, unless they are of
another machine or of other versions.
"""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks.record import RESULTS, hardware
from experiments._catalog import Catalog, attacks
from experiments.matrix import judge
from secure_ml.attack import Result
from secure_ml.cells import PACKAGES, Cell, Store, run_cells
from secure_ml.discovery import task_builders
from secure_ml.errors import SecureMLError
from secure_ml.rows import package_version
from secure_ml.task import Task

EXAMPLES = 200
"""Test examples that are attacked."""
SETTINGS: dict[str, dict[str, str]] = {
    "bert_text": {"private": "dp_sgd(epsilon=8, epochs=5)"},
    "char_rnn": {"private": "dp_sgd(epsilon=8, epochs=3)"},
    "cifar10_cnn": {"private": "dp_sgd(epsilon=8, epochs=3)"},
    "cifar10_resnet18": {
        "task": "cifar10_resnet18(width=16, epochs=5, examples=10000)",
        "private": "dp_sgd(epsilon=8, epochs=1)",
    },
    "dialogue": {"private": "dp_sgd(epsilon=8, epochs=3)"},
    "fashion_mnist_cnn": {"private": "dp_sgd(epsilon=8, epochs=1)"},
    "fusion": {"private": "dp_sgd(epsilon=8, epochs=4)"},
    "gpt2": {"private": "dp_sgd(epsilon=8, epochs=1)"},
    "recommender_bert": {"private": "dp_sgd(epsilon=8, epochs=1, batch_size=256)"},
    "recommender_mf": {"private": "dp_sgd(epsilon=8, epochs=1, batch_size=256)"},
    "speech_digits": {"private": "dp_sgd(epsilon=8, epochs=3)"},
    "text_embedding": {"private": "dp_sgd(epsilon=8, epochs=5)"},
    "text_rnn": {"private": "dp_sgd(epsilon=8, epochs=5)"},
    "text_transformer": {"private": "dp_sgd(epsilon=8, epochs=5)"},
    "wavenet": {"private": "dp_sgd(epsilon=8, epochs=1)"},
}
"""What differs from a task's own defaults, so that all of it ends within hours on two cores."""
EXTRACTION = "knockoff(epochs=50)"
PRIVATE = "dp_sgd(epsilon=8)"
NAME = "models"


def main(*names: str) -> None:
    """Run, and write the record."""
    store = Store(folder=Path("runs/models"), threads=1)
    for name in names or sorted(task_builders()):
        cells = make_cells(name)
        results = run(name, cells, store)
        keep(name, [asdict(row) for row in judge(cells, results)])


def run(name: str, cells: list[Cell], store: Store) -> list[Result]:
    """The result of each cell, with a bar that shows how many are done."""
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task(name, total=len(cells))
        return run_cells(cells, store, workers=1, progress=lambda event: progress.advance(bar, event.cells))


def make_cells(name: str) -> list[Cell]:
    """A task's card and attacks, then its card under DP-SGD."""
    known = Catalog.plain()
    mine = SETTINGS.get(name, {})
    task: Task = known.task(mine.get("task", name))
    names = [mine.get(kind, EXTRACTION if kind == "knockoff" else kind) for kind in attacks()]
    plain = [Cell(task=task, defenses=(), attack=None, seed=0, examples=EXAMPLES)]
    plain += [Cell(task=task, defenses=(), attack=known.attack(n), seed=0, examples=EXAMPLES) for n in names]
    private = known.stack(mine.get("private", PRIVATE))
    return [*plain, Cell(task=task, defenses=private, attack=None, seed=0, examples=EXAMPLES)]


def keep(name: str, rows: list[dict[str, object]]) -> None:
    """Put a task's rows in the place of those it had."""
    path = RESULTS / f"{NAME}.json"
    versions = {package: package_version(package) for package in PACKAGES} | {"python": platform.python_version()}
    record = json.loads(path.read_text()) if path.exists() else {}
    alike = record.get("versions") == versions and record.get("hardware") == hardware()
    kept = [row for row in record["rows"] if row["task"].partition("(")[0] != name] if alike else []
    record = {
        "command": "python -m benchmarks.models",
        "versions": versions,
        "hardware": hardware(),
        "rows": sorted([*kept, *rows], key=lambda row: str(row["task"])),
    }
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(record, indent=1) + "\n")
    draft.replace(path)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except SecureMLError as error:
        sys.exit(f"benchmarks.models: {error}")
