"""The report card of a model of your own, in the time that you have."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console

from experiments._catalog import ask, set_data_directory
from experiments._gate import FailIf, apply
from experiments._provenance import now
from experiments._report import publish
from experiments._run import crashed
from secure_ml.assess import assess
from secure_ml.assessment import ASSUMED
from secure_ml.errors import UsageError, require, unknown
from secure_ml.gate import conditions
from secure_ml.modes import threaded
from secure_ml.rows import save_rows
from secure_ml.task import Task
from secure_ml.victim import writable


@dataclass(frozen=True)
class Assess:
    """The report card of a model of your own: what attacks take from it, what it tells of its data, what a copy costs.

    MODEL is a Python file and a name in it, my_model.py:task: a `Task`, or what ``secure_ml.assess`` takes as a
    dictionary or dataclass (model, train, test, box, ...), or a function that returns one of these.
    """

    model: tyro.conf.Positional[str]
    """my_model.py:task; the name is task unless given."""
    minutes: float = 10.0
    """What all of it may take."""
    seeds: int = 1
    """Independent victims of a Task, which is trained first."""
    seed: int = 0
    """Of every choice that is made at random."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to attack; where the model lies unless given."""
    threads: int | None = None
    """Threads on the CPU; as many as torch takes unless given."""
    out: Path = Path("runs/assess")
    """Folder of cells, rows, card, report and gate; the same call, killed and made again, goes on there."""
    data_dir: Path | None = None
    """Where data sets lie; SECURE_ML_DATA or ~/.cache/secure_ml unless given."""
    json: bool = False
    """Print the card's rows as JSON Lines instead of text."""
    fail_if: FailIf = ()
    """A condition under which the model has failed, exit code 1: 'robust_accuracy < 0.6'; may be repeated."""


def main(argv: Sequence[str]) -> int:
    """Assess, print, keep; 1 where a condition holds, 2 where an attack went wrong."""
    options, started = ask(Assess, argv, "secure-ml assess"), now()
    conditions(options.fail_if)
    require(options.threads is None or options.threads >= 1, f"--threads must be at least 1; given {options.threads}")
    set_data_directory(options.data_dir)
    out = writable(options.out)
    given = arguments(options.model)
    with threaded(options.threads), Console(stderr=True).status("") as status:
        done = assess(
            **given,
            minutes=options.minutes,
            seeds=options.seeds,
            seed=options.seed,
            device=options.device,
            keep=out,
            tell=status.update,
        )
    save_rows([*done.rows, *done.card], out / "rows.jsonl")
    (out / "card.txt").write_text(f"{done}\n")
    publish("assess", argv, done.card, done.results, started, out)
    print("\n".join(json.dumps(asdict(row)) for row in done.card) if options.json else done)
    print(f"rows, card and report are in {out}", file=sys.stderr)
    judged = [row for row in done.card if row.attack != ASSUMED]  # what was assumed is no check
    return max(crashed(done.results), apply(judged, options.fail_if, out))


def arguments(text: str) -> dict[str, Any]:
    """What a name in a Python file gives to `assess`; `UsageError` where there is none, or it gives something else.

    The file is run, as ``python my_model.py`` would run it.
    """
    path, _, name = text.rpartition(":") if ":" in text else (text, "", "task")
    found = getattr(_module(Path(path)), name, None)
    require(found is not None, f"{path} has no {name}: give a Task, a dictionary of what assess takes, or a function")
    given = found() if callable(found) and not isinstance(found, (Task, type, torch.nn.Module)) else found
    if isinstance(given, Task):
        return {"model": given}
    if is_dataclass(given) and not isinstance(given, type):
        given = {field.name: getattr(given, field.name) for field in fields(given)}
    if not isinstance(given, Mapping):
        raise UsageError(f"{text} is a {type(given).__name__}; expected a Task, or a dictionary of what assess takes")
    known = [word for word in inspect.signature(assess).parameters if word not in OPTIONS]
    for word in given:
        if word not in known:
            raise unknown(f"argument of assess in {text}", str(word), known)
    require("model" in given, f"{text} holds no model; it holds {', '.join(map(str, given)) or 'nothing'}")
    return {"name": Path(path).stem, **given}


def _module(path: Path) -> Any:
    require(path.suffix == ".py" and path.is_file(), f"there is no Python file {path}; give my_model.py:task, say")
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_to_assess"
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise UsageError(f"{path} cannot be run: {type(error).__name__}: {first}") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module


OPTIONS = ("minutes", "seeds", "seed", "device", "keep", "tell")
"""What the command line decides."""
