"""What encrypting weights at rest costs: seconds for each MB, beside writing and reading them in the clear.

    python -m benchmarks.vault

takes half a minute on one core, needs the extra ``encryption``, and writes ``benchmarks/results/vault.json``.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import secure_ml as sm
from benchmarks.record import RESULTS, hardware
from secure_ml.rows import package_version
from secure_ml.vault import Key

WIDTHS = (500, 1600, 5000)
"""Of one square layer: 1, 10 and 100 MB."""
ROUNDS = 5


def main() -> None:
    """Save and load, in the clear and encrypted, in turn; print and record the medians."""
    rows = [_size(width) for width in WIDTHS]
    for row in rows:
        print({name: round(value, 4) for name, value in row.items()})
    record = {
        "command": "python -m benchmarks.vault",
        "versions": {name: package_version(name) for name in ("secure-ml", "torch", "safetensors", "cryptography")},
        "hardware": hardware(),
        "rows": rows,
    }
    (RESULTS / "vault.json").write_text(json.dumps(record, indent=1) + "\n")


def _size(width: int) -> dict[str, float]:
    victim, key = _victim(width), Key.draw()
    megabytes = sum(value.numel() * value.element_size() for value in victim.module.state_dict().values()) / 1e6
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            for kind, this in (("plain", None), ("encrypted", key)):
                for verb, seconds in zip(("save", "load"), _both(victim, Path(folder) / kind, this), strict=True):
                    found.setdefault(f"{verb} {kind}", []).append(seconds)
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    added = {
        f"{verb}: ms added for each MB": 1e3 * (medians[f"{verb} encrypted"] - medians[f"{verb} plain"]) / megabytes
        for verb in ("save", "load")
    }
    return {"MB": megabytes, **medians, **added}


def _victim(width: int) -> sm.Victim:
    inputs, target = torch.rand(8, width, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
    parts = sm.Splits(*[sm.Batch(inputs, target)] * 4)
    task = sm.Task(
        name="wide",
        build=lambda: nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)),
        data=lambda _: parts,
        recipe=sm.Recipe(epochs=1),
    )
    return sm.fit(task, device="cpu")


def _both(victim: sm.Victim, path: Path, key: Key | None) -> tuple[float, float]:
    """Seconds to save, and to load what is then the same."""
    start = time.perf_counter()
    victim.save(path, key)
    saved = time.perf_counter()
    loaded = sm.Victim.load(path, victim.task, device="cpu", key=key)
    done = time.perf_counter()
    pairs = zip(victim.module.parameters(), loaded.module.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    return saved - start, done - saved


if __name__ == "__main__":
    main()
