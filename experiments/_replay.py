"""Running a case: the victim is trained again, every attack repeated, and each measurement compared."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments._case import CARD, NOTHING, Case, Expected
from experiments._catalog import Catalog, threat_of
from experiments._provenance import hardware
from secure_ml.cells import PACKAGES
from secure_ml.errors import NotApplicable, UsageError, require
from secure_ml.families.scrutiny import VERDICTS
from secure_ml.modes import threaded
from secure_ml.report import card
from secure_ml.rows import TIMES, Row, make_row, package_version
from secure_ml.task import Task
from secure_ml.training import fit
from secure_ml.victim import resolve_device

Found = dict[tuple[str, str], Row]
"""What was measured, by the attack as the case writes it and the measure."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One measurement beside what was expected."""

    expected: Expected
    got: float | str | None
    """None where nothing of that name was measured."""
    interval: str = ""

    @property
    def within(self) -> bool:
        """Whether it is where it was expected."""
        return self.expected.meets(self.got)

    def __str__(self) -> str:
        """One line: within or moved, the measurement, both numbers."""
        one = self.expected
        by = "" if one.attack == CARD else f" by {one.attack}"
        got = f"{self.got:.4g}" if isinstance(self.got, float) else self.got
        said = "was not measured" if got is None else f"got {got}{self.interval}"
        return f"{'within' if self.within else 'MOVED '}  {one.measure}{by}: expected {one}, {said}"


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """A case that was run again, and in what the machine is another than the one where it was recorded."""

    compared: tuple[Compared, ...]
    differs: tuple[str, ...]
    seconds: float

    @property
    def moved(self) -> int:
        """How many measurements are not where they were expected."""
        return sum(not one.within for one in self.compared)

    def __str__(self) -> str:
        """A line for each measurement, and one for each difference."""
        return "\n".join([*(f"  {one}" for one in self.compared), *(f"  other  {one}" for one in self.differs)])


def task_named(text: str, folder: Path = Path()) -> Task:
    """The task of an expression, ``digits_cnn(width=8)``, or of a Python file in a folder, ``my_model.py:task``."""
    if ".py" not in text:
        return Catalog.plain().task(text)
    from experiments.assess import arguments

    given = arguments(str(folder / text))["model"]
    if not isinstance(given, Task):
        raise UsageError(f"{text} gives a {type(given).__name__}: a case trains its model again, so it needs a Task")
    return given


def replay(case: Case, *, folder: Path = Path(), other_data: bool = False) -> Replayed:
    """Run a case again and compare; Python files that it names are looked for in a folder, that of the case.

    Raises `UsageError` where it cannot be run, and where its data are not those that were recorded, unless they may
    be others.
    """
    start = time.perf_counter()
    task = task_named(case.task, folder)
    data, recorded = task.draw(case.seed).fingerprint(), case.recorded
    require(
        data == recorded.data or other_data,
        f"the data of {case.task} are not those of the case (fingerprint {data[:12]}, recorded {recorded.data[:12]}): "
        "find out what changed them, or replay with --other-data",
    )
    found = run(case, task)
    differs = [f"{name}: {now}, recorded with {then}" for name, now, then in _others(case, data) if now != then]
    compared = tuple(_compare(one, found.get((one.attack, one.measure))) for one in case.expect)
    return Replayed(compared=compared, differs=tuple(differs), seconds=time.perf_counter() - start)


def run(case: Case, task: Task) -> Found:
    """Every row of a case but seconds and counts; what has no meaning is a row without a value.

    The same numbers as those of the cells with these settings.
    """
    catalog = Catalog.plain()
    stack = catalog.stack(case.defenses)
    threat = threat_of(case.threat) if case.threat else None
    attacks = {name: None if name == CARD else catalog.attack(name) for name in case.attacks}
    device = resolve_device(case.device)
    found: Found = {}
    with threaded(case.threads):
        victim = fit(task, stack, seed=case.seed, device=device)
        for name, attack in attacks.items():
            try:
                rows = (
                    card(victim).rows
                    if attack is None
                    else attack.evaluate(victim, threat=threat, seed=case.seed, examples=case.examples).rows
                )
            except NotApplicable as why:
                assert attack is not None
                rows = (make_row(victim, attack.family, attack=repr(attack), note=str(why)),)
            found |= {(name, row.measure): row for row in rows if row.unit not in (*TIMES, "count")}
    return found


def value_of(row: Row) -> float | str:
    """A row's number, the word of its verdict, or ``n/a``."""
    if row.value is None:
        return NOTHING
    return VERDICTS[round(row.value)] if row.unit == "verdict" else float(row.value)


def machine() -> Mapping[str, str]:
    """The versions of what may change a number."""
    return {package: package_version(package) for package in PACKAGES} | {"python": platform.python_version()}


def processor(case: Case) -> str:
    """What a case is run on."""
    known = hardware()
    return str(known["cpu"] if case.device == "cpu" else known["gpu"])


def _others(case: Case, data: str) -> Iterator[tuple[str, str, str]]:
    """Name, present and recorded value of everything that may explain a move."""
    recorded, now = case.recorded, machine()
    yield "data", data[:12], recorded.data[:12]
    yield "hardware", processor(case), recorded.hardware or "nothing"
    yield from ((name, now.get(name, "not known"), then) for name, then in recorded.versions.items())


def _compare(expected: Expected, row: Row | None) -> Compared:
    if row is None:
        return Compared(expected=expected, got=None)
    known = row.value is not None and row.low is not None and row.high is not None
    why = f" ({row.note})" if row.value is None and row.note else ""
    return Compared(
        expected=expected, got=value_of(row), interval=f" [{row.low:.4g}, {row.high:.4g}]" if known else why
    )
