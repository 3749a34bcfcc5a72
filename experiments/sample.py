"""Let a model show what it makes: text, speech, recommendations, an episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from experiments._catalog import parse, set_data_directory
from secure_ml.errors import require
from secure_ml.randomness import generator, seeded
from secure_ml.vault import key_from
from secure_ml.victim import Victim, writable


@dataclass(frozen=True)
class Sample:
    """Let a model that ``secure-ml fit`` kept show what it makes: text, speech, recommendations, an episode."""

    task: tyro.conf.Positional[str]
    """The task: gpt2, or gpt2(layers=2), as it was fitted."""
    prompt: tyro.conf.Positional[str] = ""
    """What the model goes on from; what it may be depends on the task."""
    defense: str = "none"
    """The stack that it was fitted with."""
    model: Path | None = None
    """Folder of the model; runs/fit/TASK unless given."""
    seed: int = 0
    """Of what is random in the sample."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""
    out: Path = Path("runs/sample")
    """Folder for sound files, where there are any."""
    key_file: Path | None = None
    """File with the key by which the weights were encrypted; or else SECURE_ML_KEY, where that is set."""
    data_dir: Path | None = None
    """Where data sets lie; SECURE_ML_DATA or ~/.cache/secure_ml unless given."""


def main(argv: Sequence[str]) -> int:
    """Load, show, keep the files."""
    options, catalog = parse(Sample, argv, "secure-ml sample")
    set_data_directory(options.data_dir)
    task, stack = catalog.task(options.task), catalog.stack(options.defense)
    require(task.sample is not None, f"{task.name} makes nothing to show: it answers, and neither generates nor acts")
    assert task.sample is not None
    folder = options.model or Path("runs") / "fit" / task.name
    victim = Victim.load(folder, task, stack, device=options.device, key=key_from(options.key_file))
    with seeded(options.seed, "sample"):
        shown = task.sample(victim.served, options.prompt, generator(options.seed, "sample"))
    print(shown.text)
    for name, content in shown.files.items():
        path = writable(options.out) / name
        path.write_bytes(content)
        print(f"kept in {path}")
    return 0
