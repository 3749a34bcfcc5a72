"""What a report is drawn from, in files: kept beside a run's rows, and read again; anything else gets a sentence."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments._report._material import Exhibit, Image, Rates, Run, identity
from secure_ml.errors import UsageError, require
from secure_ml.rows import SCHEMA, Row, row_from

ROWS, KEPT, PROVENANCE = "rows.jsonl", "evidence.json", "run.json"


def keep(run: Run, folder: Path) -> None:
    """Write what is drawn and is not among the rows that the run keeps itself."""
    there = set(map(identity, _read_rows(folder / ROWS))) if (folder / ROWS).is_file() else set()
    said = {
        "schema": SCHEMA,
        "rows": [asdict(row) for row in run.rows if identity(row) not in there],
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
