"""Recommenders of films beside the baselines that any of them has to beat, on the same users and films.

    python -m benchmarks.recommenders

trains recommender_mf and recommender_bert, tunes item-kNN and EASE on the validation split, and writes
``benchmarks/results/recommenders.json``. All films are ranked but those of the history. Everybody is given the last 50
films of a history, as the tasks are; the baselines also once the whole of it. A film is cold if at most two
training moments lead to it; those are counted over the users of whom nothing is trained on, and ranked twice:
among all films, and among the cold ones alone.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import product
from typing import Any, cast

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

import secure_ml as sm
from benchmarks.record import RESULTS, hardware
from secure_ml.batch import Batch
from secure_ml.cells import PACKAGES
from secure_ml.randomness import generator
from secure_ml.rows import package_version
from secure_ml.scores import NDCG, HitRate, Predict, rank
from secure_ml.stats import bootstrap
from secure_ml.tasks._films import LENGTH, MASKED, groups, movielens, unseen, viewer

Scorer = Callable[[Tensor], Tensor]
"""Histories ``(B, L)`` to scores ``(B, V + 1)``, in which those of the histories are the lowest."""
COLD = 2
LONGEST = 2400
"""More films than any user rated."""


def main() -> None:
    """Measure and write the record."""
    torch.set_num_threads(1)
    films, splits = movielens(), sm.task("recommender_mf").draw(0)
    chosen = groups(films, 70, generator(0, "data"))[-1]
    seen = bags([films.histories[user][:-2] for user in chosen], len(films))
    train, others = (cast("Tensor", part.target) for part in (splits.train, splits.nonmembers))
    counts = torch.bincount(train, minlength=len(films) + 1)
    cold = (counts <= COLD) & (torch.arange(len(films) + 1) > 0)
    moments = splits.nonmembers.take(cold[others])
    rows: list[dict[str, Any]] = []
    known = baselines(seen)
    for history, (name, (settings, seconds)) in product((LENGTH, LONGEST), known.items()):
        validation, test = (
            Batch(viewer(recent([films.histories[user][:-cut] for user in chosen], history)), part.target)
            for cut, part in ((2, splits.validation), (1, splits.test))
        )
        setting = max(settings, key=lambda setting: ndcg(settings[setting], validation))
        about = {"model": name, "history": history, "setting": setting, "seconds": seconds}
        rows += [about | found for found in measured(served(settings[setting]), test, None, "all films")]
        if history == LENGTH:
            rows += [about | found for found in cold_rows(served(settings[setting]), moments, cold)]
    for name in ("recommender_mf", "recommender_bert"):
        victim = sm.fit(sm.task(name), device="cpu")
        about = {"model": name, "history": LENGTH, "setting": repr(victim.task), "seconds": round(victim.seconds, 1)}
        rows += [about | found for found in measured(victim.served, splits.test, None, "all films")]
        rows += [about | found for found in cold_rows(victim.served, moments, cold)]
    for row in rows:
        print(*(f"{value:.4f}" if isinstance(value, float) else value for value in row.values()))
    record = {
        "command": " ".join(["python -m benchmarks.recommenders", *sys.argv[1:]]),
        "versions": {package: package_version(package) for package in PACKAGES} | {"python": platform.python_version()},
        "hardware": hardware(),
        "cold films": int(cold.sum()),
        "rows": rows,
    }
    (RESULTS / "recommenders.json").write_text(json.dumps(record, indent=1) + "\n")


def baselines(seen: Tensor) -> dict[str, tuple[dict[str, Scorer], float]]:
    """Of each baseline its settings, to be chosen between by NDCG@10 on the validation split, and seconds for each."""
    makers: dict[str, dict[str, Callable[[], Scorer]]] = {
        "popularity": {"none": partial(popularity, seen)},
        "item-kNN": {
            f"neighbours={k}, shrinkage={shrinkage}": partial(neighbours, seen, k, shrinkage)
            for k, shrinkage in product((20, 100, 500), (0, 10, 30))
        },
        "EASE": {f"penalty={penalty}": partial(ease, seen, penalty) for penalty in (30, 100, 300, 1000)},
    }
    found = {}
    for name, settings in makers.items():
        start = time.perf_counter()
        made = {setting: make() for setting, make in settings.items()}
        found[name] = made, round((time.perf_counter() - start) / len(made), 2)
    return found


def popularity(seen: Tensor) -> Scorer:
    """How many training users rated a film."""
    return lambda history: unseen(seen.sum(0).expand(len(history), -1), history)


def neighbours(seen: Tensor, k: int, shrinkage: float) -> Scorer:
    """Summed similarity to the films of the history: cosine, shrunk where few users rated, of the k nearest of each.

    As in Sarwar et al. 2001 (https://doi.org/10.1145/371920.372071).
    """
    together = seen.T @ seen
    length = together.diagonal().sqrt()
    near = together / (length[:, None] * length + shrinkage).clamp(min=1e-9)
    near.fill_diagonal_(0)
    values, indices = near.topk(min(k, len(near)), dim=0)
    kept = csr_array(torch.zeros_like(near).scatter_(0, indices, values).T.numpy())
    return lambda history: unseen(torch.from_numpy(kept @ bag(history, seen.shape[1]).T.numpy()).T, history)


def ease(seen: Tensor, penalty: float) -> Scorer:
    """Linear weights between films with a diagonal of 0, in closed form (Steck 2019, https://arxiv.org/abs/1905.03375).

    The inverse of the films' Gram matrix follows from that of the users', which is smaller.
    """
    seen = seen.double()
    inner = torch.linalg.inv(seen @ seen.T + penalty * torch.eye(len(seen), dtype=seen.dtype)) @ seen
    diagonal = (1 - (seen * inner).sum(0)) / penalty

    def score(history: Tensor) -> Tensor:
        given = bag(history, seen.shape[1]).double()
        return unseen((given - (given - given @ seen.T @ inner) / penalty / diagonal).float(), history)

    return score


def bag(history: Tensor, width: int) -> Tensor:
    """1 for every film in a history ``(B, L)``: ``(B, width)``; none for 0, which pads."""
    filled = torch.zeros(len(history), width).scatter_(1, history, 1.0)
    filled[:, 0] = 0
    return filled


def bags(histories: list[tuple[int, ...]], films: int) -> Tensor:
    """What each user has rated, ``(users, V + 1)``."""
    return bag(recent(histories, LONGEST), films + 1)


def recent(histories: list[tuple[int, ...]], length: int) -> Tensor:
    """The last films of each history, ``(users, length)``, padded in front with 0."""
    return torch.tensor([([0] * length + list(history))[-length:] for history in histories])


def served(scorer: Scorer) -> Predict:
    """A baseline that is asked like a task's module."""
    return lambda inputs: scorer(cast("dict[str, Tensor]", inputs)["history"])


def ndcg(scorer: Scorer, part: Batch) -> float:
    """NDCG@10 on a split."""
    return NDCG().measure(served(scorer), part).value


def cold_rows(predict: Predict, moments: Batch, cold: Tensor) -> list[dict[str, Any]]:
    """The measures at moments that lead to cold films, among all films and among the cold ones."""
    return measured(predict, moments, None, "cold, among all") + measured(predict, moments, cold, "cold, among cold")


def measured(predict: Predict, part: Batch, among: Tensor | None, where: str) -> list[dict[str, Any]]:
    """Hit rate, NDCG and the median place with their intervals, among some of the films ``(V + 1,)`` if not all."""
    pieces = []
    for piece in part.chunks(500):
        scores = predict(piece.inputs)
        scores = scores if among is None else scores.masked_fill(~among, 2 * MASKED)
        judged = [score.per_example(scores, piece.target) for score in (HitRate(), NDCG())]
        pieces.append(torch.stack([*judged, rank(scores, piece.target) + 1.0], 1))
    hits, gains, places = torch.cat(pieces).T
    found = {
        HitRate.name: HitRate().aggregate(hits),
        NDCG.name: NDCG().aggregate(gains),
        "median place": bootstrap(lambda v: float(np.median(v)), places.double().numpy()),
    }
    return [{"where": where, "measure": name} | asdict(estimate) for name, estimate in found.items()]


if __name__ == "__main__":
    main()
