"""How accurate MNIST and Fashion-MNIST become under differential privacy: nets from scratch, and fixed features.

    python -m benchmarks.private_accuracy RUN --data-dir DATA

trains every recipe below on three seeds (each is the command ``secure-ml fit`` that it prints), keeps each model's
figures in the folder RUN as they come (a killed call goes on), and records means and spreads over the whole test set.
The recipes are those of Tramer and Boneh (https://arxiv.org/abs/2011.11660) but for the noise, which is what PRV
accounting asks for, an average over the steps of the nets, and MNIST digits that are made upright before a net with
one dense layer, which was compared with three others on 9,000 held-out images. ``tried`` trainings were compared on
validation images before; what that would cost if the choice were made privately stands beside: all of them composed.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import secure_ml as sm
from benchmarks.record import RESULTS, hardware
from defenses import DPSGD, WeightAveraging
from defenses.dp_sgd.accounting import epsilon_of
from experiments._catalog import Catalog, set_data_directory
from secure_ml.rows import package_version
from secure_ml.stats import over_seeds

NET = "mnist_cnn(activation='tanh', net='upright', whole=True)"
CLOTHES = "fashion_mnist_cnn(network='shallow', activation='tanh', whole=True)"
FEATURES = "mnist_scattering(whole=True)"
CLOTHES_FEATURES = "mnist_scattering(data='FashionMNIST', groups=9, whole=True)"


@dataclass(frozen=True)
class Recipe:
    """A task, its defense, the bar, and how many settings were compared on validation images before."""

    task: str
    defense: DPSGD
    decay: float | None
    bar: float
    tried: int

    def stack(self) -> list[sm.Defense]:
        """The defenses."""
        return [self.defense, *([WeightAveraging(decay=self.decay)] if self.decay else [])]


def net(epsilon: float, **changes: Any) -> DPSGD:
    """The recipe of the nets."""
    settings: dict[str, Any] = {"batch_size": 2048, "epochs": 40, "learning_rate": 4.0} | changes
    return DPSGD(epsilon=epsilon, clip=0.1, schedule="constant", **settings)


RECIPES = (
    Recipe(NET, net(3.0), 0.98, 0.982, 6),
    Recipe(CLOTHES, net(3.0), 0.98, 0.865, 7),
    Recipe(NET, net(1.0, batch_size=4096), 0.98, 0.973, 2),
    Recipe(CLOTHES_FEATURES, net(3.0, batch_size=8192, learning_rate=16.0), 0.9, 0.897, 3),
    Recipe(FEATURES, net(3.0, batch_size=4096, learning_rate=8.0), None, 0.987, 8),
)
SEEDS = (0, 1, 2)


def main() -> int:
    """Train what is not there yet and record; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.private_accuracy")
    parser.add_argument("run", type=Path, help="folder that keeps the figures")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="+", default=list(range(len(RECIPES))), help="recipes by number")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    set_data_directory(options.data_dir)
    for seed in options.seeds:
        for recipe in (RECIPES[i] for i in options.only):
            print(json.dumps(kept(options.run, recipe, seed)), flush=True)
    rows = [_row(options.run, recipe) for recipe in RECIPES if _found(options.run, recipe)]
    versions = {package: package_version(package) for package in ("secure-ml", "torch", "torchvision", "opacus")}
    record = {
        "command": "python -m benchmarks.private_accuracy RUN --data-dir DATA",
        "versions": versions | {"python": platform.python_version()},
        "hardware": {**hardware(), "threads": options.threads},
        "rows": rows,
    }
    (RESULTS / "private_accuracy.json").write_text(json.dumps(record, indent=1) + "\n")
    return int(any(not row["passed"] for row in rows))


def kept(run: Path, recipe: Recipe, seed: int) -> dict[str, Any]:
    """The figures of one training, from its file or trained now."""
    path = _path(run, recipe, seed)
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    task = Catalog.plain().task(recipe.task)
    unfinished = path.with_suffix(".checkpoint")
    victim = sm.fit(task, recipe.stack(), seed=seed, checkpoint=unfinished)
    score, validation = victim.score(), task.score.measure(victim.served, victim.splits.validation)
    figures = {
        "task": recipe.task,
        "defenses": [repr(defense) for defense in recipe.stack()],
        "seed": seed,
        "accuracy": score.value,
        "n": score.n,
        "validation": validation.value,
        "seconds": round(victim.seconds, 1),
        "claim": dict(victim.claims[0].values),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures) + "\n")
    return figures


def _path(run: Path, recipe: Recipe, seed: int) -> Path:
    return run / f"{RECIPES.index(recipe)}-{seed}.json"


def _found(run: Path, recipe: Recipe) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for seed in SEEDS if (path := _path(run, recipe, seed)).exists()]


def _row(run: Path, recipe: Recipe) -> dict[str, Any]:
    found = _found(run, recipe)
    mean, claim = over_seeds([one["accuracy"] for one in found]), found[0]["claim"]
    composed = [(claim["sigma"], claim["q"], claim["steps"] * (recipe.tried + 1))]
    interval = None if math.isnan(mean.low) else [round(mean.low, 4), round(mean.high, 4)]
    return {
        "task": recipe.task,
        "defenses": " + ".join(found[0]["defenses"]),
        "epsilon": round(claim["epsilon"], 4),
        "noise": round(claim["sigma"], 4),
        "accuracy": round(mean.value, 4),
        "interval": interval,
        "each": [one["accuracy"] for one in found],
        "bar": recipe.bar,
        "passed": mean.value >= recipe.bar,
        "validation": round(sum(one["validation"] for one in found) / len(found), 4),
        "seconds": round(sum(one["seconds"] for one in found) / len(found)),
        "settings tried": recipe.tried,
        "epsilon with all of them": round(epsilon_of(composed, claim["delta"])[0], 2) if recipe.tried else None,
    }


if __name__ == "__main__":
    sys.exit(main())
