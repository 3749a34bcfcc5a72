"""Run test cases again and say what moved: measurement by measurement, and what is other than it was."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments._case import SUFFIX, find, read
from experiments._catalog import ask, set_data_directory
from experiments._replay import Replayed, replay
from secure_ml.errors import SecureMLError, require


@dataclass(frozen=True)
class Replay:
    """Run test cases again and say what moved.

    The exit code is 0 where all is as expected, 1 where something moved, 2 where a case cannot be read or run.
    """

    case: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files or folders of cases, names of those that are shipped, or all."""
    other_data: bool = False
    """Whether to go on where the data are others than were recorded."""
    data_dir: Path | None = None
    """Where data sets lie; SECURE_ML_DATA or ~/.cache/secure_ml unless given."""
    json: bool = False
    """Print a line of JSON for each case instead of text."""


def main(argv: Sequence[str]) -> int:
    """Read all cases, run them in turn, print what moved."""
    options = ask(Replay, argv, "secure-ml replay")
    set_data_directory(options.data_dir)
    shipped = ", ".join(path.name.removesuffix(SUFFIX) for path in find(("all",)))
    require(len(options.case) > 0, f"name a case: a file, a folder, all, or one of these: {shipped}")
    cases = {path: read(path) for path in find(options.case)}
    code = 0
    for path, case in cases.items():
        try:
            done = replay(case, folder=path.parent, other_data=options.other_data)
        except SecureMLError as error:
            print(f"secure-ml: {path}: {error}", file=sys.stderr)
            code = 2
            continue
        print(json.dumps(_told(path, done)) if options.json else _text(path, done), flush=True)
        code = max(code, int(done.moved > 0))
    return code


def _text(path: Path, done: Replayed) -> str:
    what = f"moved {done.moved} of {len(done.compared)}" if done.moved else f"all {len(done.compared)} as expected"
    return f"{path.name.removesuffix(SUFFIX)}: {what}, {done.seconds:.1f} s\n{done}"


def _told(path: Path, done: Replayed) -> dict[str, object]:
    return {
        "case": str(path),
        "moved": done.moved,
        "seconds": round(done.seconds, 1),
        "differs": done.differs,
        "measurements": [
            {
                "attack": one.expected.attack,
                "measure": one.expected.measure,
                "expected": str(one.expected),
                "got": one.got,
                "within": one.within,
            }
            for one in done.compared
        ],
    }
