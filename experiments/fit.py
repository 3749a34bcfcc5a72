"""Train one task under one stack of defenses, print its card, and keep the model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.progress import Progress

from experiments._catalog import parse, set_data_directory
from secure_ml.report import card, with_usage
from secure_ml.rows import table
from secure_ml.training import Observer, Step, fit
from secure_ml.vault import key_from
from secure_ml.victim import MODEL_FILES, vacate, writable


@dataclass(frozen=True)
class Fit:
    """Train one task under one stack of defenses, print its card, and keep the model (safetensors and JSON).

    A killed call goes on from the last epoch that was kept (at most every 20 seconds) when it is repeated; with a key
    nothing is kept on the way, since that would not be encrypted.
    """

    task: tyro.conf.Positional[str]
    """The task: digits_cnn, or digits_cnn(width=8)."""
    defense: str = "none"
    """The stack: none, dp_sgd, dp_sgd(epsilon=1), adversarial_training+dp_sgd."""
    seed: int = 0
    """Of the split, the weights, the order of the batches and the noise."""
    epochs: int | None = None
    """Passes over the training data; the recipe's unless given."""
    patience: int | None = None
    """Epochs without a better validation score after which training stops at the best; the recipe's unless given."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    out: Path | None = None
    """Folder for the model; runs/fit/TASK unless given."""
    key_file: Path | None = None
    """File with the key by which the weights are encrypted; or else SECURE_ML_KEY, where that is set."""
    data_dir: Path | None = None
    """Where data sets lie; SECURE_ML_DATA or ~/.cache/secure_ml unless given."""


def main(argv: Sequence[str]) -> int:
    """Train, print, keep."""
    options, catalog = parse(Fit, argv, "secure-ml fit")
    set_data_directory(options.data_dir)
    task, stack = catalog.task(options.task), catalog.stack(options.defense)
    asked = {name: getattr(options, name) for name in ("epochs", "patience") if getattr(options, name) is not None}
    task = replace(task, recipe=replace(task.recipe, **asked))
    key = key_from(options.key_file)
    folder = options.out or Path("runs") / "fit" / task.name
    vacate(folder, MODEL_FILES, remove=False)
    writable(folder.parent)
    with Progress(console=Console(stderr=True), transient=not sys.stderr.isatty()) as progress:
        observers = (_watch(progress),)
        unfinished = None if key else folder.parent / f".{folder.name}.unfinished"  # which is not encrypted
        victim = fit(task, stack, seed=options.seed, device=options.device, observers=observers, checkpoint=unfinished)
    victim.save(folder, key)
    result = with_usage(victim, card(victim))
    print(table([*result.rows, *result.usage]))
    for claim in victim.claims:
        print(f"claim: {claim.statement}")
    print(f"kept in {folder}")
    return 0


def _watch(progress: Progress) -> Observer:
    bar = progress.add_task("training", total=None)

    def observe(step: Step) -> None:
        steps = step.plan.loader.steps
        progress.update(
            bar,
            total=step.plan.epochs * steps,
            completed=step.epoch * steps + step.index + 1,
            description=f"epoch {step.epoch + 1}/{step.plan.epochs}",
        )

    return observe
