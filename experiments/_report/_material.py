"""What a report is drawn from: rows, and of the evidence what is shown."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from experiments._report._png import png
from secure_ml.attack import Result
from secure_ml.errors import UsageError
from secure_ml.roc import roc
from secure_ml.rows import Row
from secure_ml.stats import clopper_pearson

BYTES = 900_000
"""Of images in a report, at most."""


@dataclass(frozen=True)
class Rates:
    """A membership attack's ROC: false- and true-positive rates with their interval."""

    task: str
    defenses: str
    attack: str
    others: int
    fpr: list[float]
    tpr: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Image:
    """One example before and after, as PNG in base64, with the target and the classes answered."""

    before: str
    after: str
    difference: str
    target: int | None
    decided: tuple[int, int] | None


@dataclass(frozen=True)
class Exhibit:
    """A few adversarial examples of one attack on one stack."""

    task: str
    defenses: str
    attack: str
    measure: str
    images: tuple[Image, ...]


@dataclass(frozen=True)
class Run:
    """Everything that is drawn."""

    name: str
    rows: tuple[Row, ...]
    rates: tuple[Rates, ...] = ()
    exhibits: tuple[Exhibit, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def single(self) -> list[Row]:
        """The rows of single victims."""
        return [row for row in self.rows if len(row.seeds) == 1]


def gather(rows: Sequence[Row], results: Sequence[Result], name: str, provenance: dict[str, Any]) -> Run:
    """The material of a run: its rows, those of its results that are not among them, curves and images."""
    known = set(map(identity, rows))
    more = [row for result in results for row in (*result.rows, *result.usage) if identity(row) not in known]
    return Run(
        name,
        (*rows, *more, *_worst_cases(results)),
        tuple(_rates(results)),
        tuple(_exhibits(results)),
        provenance,
    )


def identity(row: Row) -> tuple[object, ...]:
    """What tells a row from any other of its run."""
    return row.task, row.defenses, row.attack, row.measure, row.seeds, row.value, row.note, row.pooled


def _worst_cases(results: Sequence[Result]) -> list[Row]:
    """Of each victim the score on the worst that any of several attacks did, where the mean over examples is it."""
    groups: dict[tuple[str, str, str, int], list[tuple[Row, Tensor]]] = {}
    for result in results:
        if "worst" in result.evidence and result.evidence["worst"].ndim == 1:
            row = result.rows[0]
            of = groups.setdefault((row.task, row.defenses, row.measure, row.seeds[0]), [])
            of.append((row, result.evidence["worst"].double()))
    found = []
    for tried in groups.values():
        right = [row.value is not None and abs(float(kept.mean()) - row.value) < 1e-9 for row, kept in tried]
        whole = all(bool(((kept == 0) | (kept == 1)).all()) for _, kept in tried)
        if len(tried) > 1 and all(right) and whole and len({len(kept) for _, kept in tried}) == 1:
            kept = reduce(torch.minimum, (values for _, values in tried))
            share = clopper_pearson(int(kept.sum()), len(kept))
            names = " | ".join(dict.fromkeys(row.attack for row, _ in tried))
            row = replace(tried[0][0], attack=names, value=share.value, low=share.low, high=share.high)
            spent = {k: sum(getattr(r, k) for r, _ in tried) for k in ("queries", "gradients", "seconds")}
            row = replace(row, n=share.n, interval=share.method, **spent)
            found.append(row)
    return found


def _rates(results: Sequence[Result]) -> list[Rates]:
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        if {"members", "others"} <= set(result.evidence) and result.rows:
            row = result.rows[0]
            groups.setdefault((row.task, row.defenses, row.attack), []).append(result)
    found = []
    for key, of in groups.items():
        pairs = [(r.evidence["members"].double().numpy(), r.evidence["others"].double().numpy()) for r in of]
        try:
            drawn = roc(pairs, points=40, rounds=100)
        except UsageError:  # too few non-members for a curve
            continue
        columns = ([round(float(x), 5) for x in getattr(drawn, part)] for part in ("fpr", "tpr", "low", "high"))
        found.append(Rates(*key, drawn.others, *columns))
    return found


def _exhibits(results: Sequence[Result]) -> list[Exhibit]:
    """Of each stack, attack and threat the first victim's images; those without room are left out."""
    found: dict[tuple[str, str, str, str], Exhibit] = {}
    room = BYTES
    for result in results:
        if not {"clean", "changed"} <= set(result.evidence) or not result.rows:
            continue
        row = result.rows[0]
        key = row.task, row.defenses, row.attack, row.measure
        images = () if key in found else _images(result)
        size = sum(len(image.before) + len(image.after) + len(image.difference) for image in images)
        if images and size <= room:
            found[key] = Exhibit(*key, images)
            room -= size
    return list(found.values())


def _images(result: Result) -> tuple[Image, ...]:
    clean, changed = result.evidence["clean"], result.evidence["changed"]
    moved = changed.int() - clean.int()
    shown = (128 + moved * 127 / moved.abs().max().clamp(min=1)).round().clamp(0, 255).to(torch.uint8)
    targets, decided = (result.evidence.get(name) for name in ("target", "decided"))
    drawn = [[base64.b64encode(png(image)).decode() for image in images.numpy()] for images in (clean, changed, shown)]
    named = [None] * len(clean) if targets is None else [int(target) for target in targets]
    answered = [None] * len(clean) if decided is None else [(int(a), int(b)) for a, b in decided]
    return tuple(Image(*parts) for parts in zip(*drawn, named, answered, strict=True))
