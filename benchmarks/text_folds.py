"""Five-fold accuracy of a document model of texts, for data sets without an official test split.

    python -m benchmarks.text_folds text_embedding ag_news [FOLDS]

Each fold is the test split once; of the rest, 300 texts validate and all others are trained on.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from statistics import mean

import torch

import secure_ml as sm
from secure_ml.batch import Batch, Splits, join
from secure_ml.randomness import generator

FOLDS = 5
VALIDATION = 300


def main(name: str, data: str, folds: int = FOLDS) -> None:
    """Print the accuracy of each fold and their mean."""
    task = sm.task(name, data=data)
    accuracies = []
    for fold in range(folds):
        victim = sm.fit(replace(task, data=partial(fold_splits, task, fold)), seed=0, device="cpu")
        accuracies.append(victim.score().value)
        print(f"{task} fold {fold}: {accuracies[-1]:.4f} in {victim.seconds:.0f} s", flush=True)
    print(f"{task} mean of {folds} folds: {mean(accuracies):.4f}")


def fold_splits(task: sm.Task, fold: int, rng: torch.Generator) -> Splits:
    """One fold as test split, in an order of all texts that is the same for every fold; nothing for an adversary."""
    parts = task.data(generator(0, "folds")).parts().values()
    whole = Batch(join([part.inputs for part in parts]), join([part.target for part in parts]))
    pieces = list(torch.randperm(len(whole), generator=generator(0, "order of folds")).tensor_split(FOLDS))
    test = whole.take(pieces.pop(fold))
    rest = whole.take(torch.cat(pieces))
    return Splits(
        rest.take(slice(VALIDATION, len(rest))), rest.take(slice(0, VALIDATION)), test, rest.take(slice(0, 0))
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
