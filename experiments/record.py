"""Write cells as a test case: what was attacked and how, what was measured, and by how much it may move."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from experiments._case import CARD, SUFFIX, Case, Expected, Recorded, read, write
from experiments._catalog import Catalog, parse, set_data_directory, threat_of
from experiments._replay import Found, machine, processor, run, task_named, value_of
from secure_ml.defense import stack_name
from secure_ml.errors import UsageError, require
from secure_ml.rows import Row
from secure_ml.task import Task
from secure_ml.victim import resolve_device

SHARE = 0.1
"""How far a number without an interval may move, as a share of it."""


@dataclass(frozen=True)
class Record:
    """Write the attacks on one victim as a test case that ``secure-ml replay`` and pytest run again.

    A measurement may move by the longer arm of its 95 % interval, or by 10 % where it has none; a verdict may not
    change. Seconds and counts are not kept.
    """

    case: tyro.conf.Positional[Path]
    """The file to write, NAME.case.toml; one that is there already is measured anew with --update."""
    task: str = ""
    """The task: digits_cnn, digits_cnn(width=8), or a Task of your own, my_model.py:task."""
    defense: str = "none"
    """The stack: none, dp_sgd(epsilon=1), adversarial_training+dp_sgd."""
    attack: tuple[str, ...] = (CARD,)
    """Attacks and checks, and card for the plain report: card pgd, or lira(shadows=8)."""
    threat: str | None = None
    """What evasion may change: Linf(0.1), L2(1.5), Edits(2); the task's own unless given."""
    seed: int = 0
    """Of the victim and the attacks."""
    examples: int = 1000
    """Test examples that are attacked, at most."""
    tolerance: float | None = None
    """How far each measured number may move; the rule above unless given."""
    description: str = ""
    """What the case is about."""
    slow: bool = False
    """Mark its test slow."""
    data: bool = False
    """Mark its test data: it needs data sets in the data directory."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where to train and attack."""
    threads: int = 1
    """Threads on the CPU; may change results in the last digits."""
    update: bool = False
    """Measure the case that is there anew, and keep its settings, bounds, tolerances and texts."""
    data_dir: Path | None = None
    """Where data sets lie; SECURE_ML_DATA or ~/.cache/secure_ml unless given."""


def main(argv: Sequence[str]) -> int:
    """Measure and write."""
    options, catalog = parse(Record, argv, "secure-ml record")
    set_data_directory(options.data_dir)
    path = options.case
    require(path.name.endswith(SUFFIX), f"a case must be called NAME{SUFFIX}; given {path}")
    require(path.parent.is_dir(), f"there is no folder {path.parent}: make it, or choose another place")
    require(options.update or not path.exists(), f"{path} is there already: --update measures it anew")
    require(
        options.tolerance is None or options.tolerance >= 0,
        f"--tolerance must be at least 0; given {options.tolerance}",
    )
    case = read(path) if options.update else _asked(options, catalog)
    task = task_named(case.task, path.parent)
    start = time.perf_counter()
    found = run(case, task)
    case = replace(case, recorded=_recorded(case, task, time.perf_counter() - start))
    if options.update:
        expect = tuple(_again(one, found) for one in case.expect)
    else:
        expect = tuple(expected(attack, row, options.tolerance) for (attack, _), row in found.items())
    write(replace(case, expect=expect), path)
    print("\n".join(f"{one.measure}{'' if one.attack == CARD else f' by {one.attack}'}: {one}" for one in expect))
    print(f"kept in {path}; secure-ml replay {path} runs it again")
    return 0


def expected(attack: str, row: Row, tolerance: float | None = None) -> Expected:
    """What a row is expected to be when it is measured again."""
    value = value_of(row)
    if isinstance(value, str):
        return Expected(attack=attack, measure=row.measure, value=value)
    arms = [] if row.low is None or row.high is None or row.unit == "epsilon" else [value - row.low, row.high - value]
    by_rule = max(arms) if arms else SHARE * abs(value)
    allowed = by_rule if tolerance is None else tolerance
    return Expected(attack=attack, measure=row.measure, value=_digits(value), tolerance=_digits(allowed))


def _asked(options: Record, catalog: Catalog) -> Case:
    """The case that the options describe, every name checked and written with its settings."""
    require(options.task != "", "say which task to attack: --task digits_cnn")
    for name in ("examples", "threads"):
        require(getattr(options, name) >= 1, f"--{name} must be at least 1; given {getattr(options, name)}")
    names = tuple(name if name == CARD else repr(catalog.attack(name)) for name in options.attack)
    return Case(
        task=_task(options, catalog),
        defenses=stack_name(catalog.stack(options.defense)),
        attacks=tuple(dict.fromkeys(names)),
        threat=repr(threat_of(options.threat)) if options.threat else "",
        seed=options.seed,
        examples=options.examples,
        device=resolve_device(options.device).type,
        threads=options.threads,
        slow=options.slow,
        data=options.data,
        description=options.description,
        recorded=Recorded(data=""),
        expect=(),
    )


def _task(options: Record, catalog: Catalog) -> str:
    """The task as the case names it: a file is named as it is seen from the case."""
    if ".py" not in options.task:
        return repr(catalog.task(options.task))
    file, _, name = options.task.partition(".py")
    return f"{os.path.relpath(file, options.case.parent)}.py{name}"


def _recorded(case: Case, task: Task, seconds: float) -> Recorded:
    return Recorded(
        data=task.draw(case.seed).fingerprint(),
        versions=machine(),
        hardware=processor(case),
        seconds=round(seconds, 1),
    )


def _again(one: Expected, found: Found) -> Expected:
    """The same expectation with the number that was measured now."""
    row = found.get((one.attack, one.measure))
    if row is None:
        raise UsageError(f"{one.measure} of {one.attack} was not measured; there are: {', '.join(m for _, m in found)}")
    value = value_of(row)
    return replace(one, value=value if isinstance(value, str) else _digits(value))


def _digits(value: float) -> float:
    return float(f"{value:.6g}")
