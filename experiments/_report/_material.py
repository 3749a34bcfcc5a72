"""What a report is drawn from: rows, and of the evidence what is shown; kept beside the rows, and read again."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments._report._png import png
from secure_ml.attack import Result
from secure_ml.errors import UsageError, require
from secure_ml.roc import roc
from secure_ml.rows import SCHEMA, Row, row_from
from secure_ml.stats import clopper_pearson

ROWS, KEPT, PROVENANCE = "rows.jsonl", "evidence.json", "run.json"
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
    known = set(map(_identity, rows))
    more = [row for result in results for row in (*result.rows, *result.usage) if _identity(row) not in known]
    return Run(
        name,
        (*rows, *more, *_worst_cases(results)),
        tuple(_rates(results)),
        tuple(_exhibits(results)),
        provenance,
    )


def _identity(row: Row) -> tuple[object, ...]:
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


def keep(run: Run, folder: Path) -> None:
    """Write what is drawn and is not among the rows that the run keeps itself."""
    there = set(map(_identity, _read_rows(folder / ROWS))) if (folder / ROWS).is_file() else set()
    said = {
        "schema": SCHEMA,
        "rows": [asdict(row) for row in run.rows if _identity(row) not in there],
        "rates": [asdict(one) for one in run.rates],
        "exhibits": [asdict(one) for one in run.exhibits],
    }
    (folder / KEPT).write_text(json.dumps(said) + "\n")


def read(path: Path) -> Run:
    """The material of a run's folder, of its rows.jsonl, or of a record; `UsageError` in one sentence for any other."""
    if path.is_dir():
        return _read_folder(path)
    require(path.is_file(), f"there is no run at {path}: give the folder that --out named")
    if path.suffix == ".json":
        return _read_record(path)
    return Run(path.stem, tuple(_read_rows(path)))


def _read_folder(path: Path) -> Run:
    require((path / ROWS).is_file(), f"{path} is not a run's folder, for it holds no {ROWS}: give what --out named")
    rows = tuple(_read_rows(path / ROWS))
    said, about = (_read_json(path / name) if (path / name).is_file() else {} for name in (KEPT, PROVENANCE))
    try:
        return Run(
            path.name,
            (*rows, *(_checked(row, path / KEPT) for row in said.get("rows", []))),
            tuple(Rates(**one) for one in said.get("rates", [])),
            tuple(Exhibit(**{**one, "images": tuple(map(_image, one["images"]))}) for one in said.get("exhibits", [])),
            about,
        )
    except (TypeError, KeyError, AttributeError):
        raise UsageError(f"{path / KEPT} is of another version of this library: delete it, or run again") from None


def _image(said: dict[str, Any]) -> Image:
    decided = said["decided"]
    return Image(**{**said, "decided": None if decided is None else tuple(decided)})


def _read_record(path: Path) -> Run:
    said = _read_json(path)
    rows = said.get("rows")
    require(isinstance(rows, list) and bool(rows), f"{path} holds no rows: give a run's folder or a record with rows")
    assert isinstance(rows, list)
    return Run(
        path.stem,
        tuple(_checked(row, path) for row in rows),
        provenance={k: v for k, v in said.items() if k != "rows"},
    )


def _read_rows(path: Path) -> list[Row]:
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError):
        raise UsageError(f"{path} does not hold rows as JSON Lines: give what a run wrote") from None
    require(bool(lines), f"{path} holds no rows: the run it comes from measured nothing, or did not finish")
    return [_checked(line, path) for line in lines]


def _checked(said: object, path: Path) -> Row:
    """A row of this schema; `UsageError` for anything else."""
    if not isinstance(said, dict) or "measure" not in said:
        raise UsageError(f"{path} does not hold rows of a run: give a run's folder or a record with rows")
    schema = said.get("schema")
    require(
        schema == SCHEMA, f"{path} has rows of schema {schema}; this version reads schema {SCHEMA}: run again with it"
    )
    try:
        return row_from(said)
    except (TypeError, KeyError):
        raise UsageError(f"{path} has rows with other fields than schema {SCHEMA} has: run again") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text())
    except (OSError, ValueError):
        raise UsageError(f"{path} is not JSON: delete it, or run again") from None
    require(isinstance(said, dict), f"{path} holds no JSON object: give a run's folder or a record with rows")
    assert isinstance(said, dict)
    return said
