"""Methods and tasks of other packages, which announce them as entry points: installed is enough."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from secure_ml.errors import UsageError

T = TypeVar("T")
GROUPS = ("secure_ml.attacks", "secure_ml.defenses", "secure_ml.tasks")
"""Entry-point groups: the name in the command line, and ``package.module:Class`` (of a task, its function)."""


def with_outside(group: str, house: Mapping[str, T], fits: Callable[[object], str]) -> dict[str, T]:
    """What this project has under these names, and what installed packages add to it in an entry-point group.

    ``fits`` says what is wrong with a thing, or nothing. What cannot be loaded or does not fit is named in a warning
    and left out; raises `UsageError` for a name that is taken, by this project or by another package.
    """
    found = dict(house)
    kind = group.rpartition(".")[2].removesuffix("s")
    owners = dict.fromkeys(house, "secure-ml")
    classes = {getattr(value, "__name__", name): name for name, value in house.items()}
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, point.value)):
        owner = point.dist.name if point.dist else "an unknown package"
        thing, wrong = _load(point)
        wrong = wrong or fits(thing)
        if wrong:
            _warn(f"{owner}: the entry point {point.name} = {point.value} of {group} is left out: {wrong}")
            continue
        called = getattr(thing, "__name__", point.name)
        for name, taken in ((point.name, point.name in found), (called, called in classes)):
            if taken:
                other = owners[name if name in owners else classes[name]]
                raise UsageError(f"{owner} and {other} both have the {kind} {name}: rename one")
        found[point.name], owners[point.name], classes[called] = thing, owner, point.name  # type: ignore[assignment]
    return found


@cache
def outside_packages() -> frozenset[str]:
    """The top-level packages that announce something: their source is part of what they compute, as the house's is."""
    points = (point for group in GROUPS for point in entry_points(group=group))
    return frozenset(point.module.partition(".")[0] for point in points)


def _load(point: EntryPoint) -> tuple[object, str]:
    try:
        return point.load(), ""
    except Exception as error:  # whatever an installed package does on being imported, the others go on
        return None, f"{type(error).__name__}: {error}".splitlines()[0]


@cache
def _warn(message: str) -> None:
    """Once in a process, however often it is looked for."""
    warnings.warn(message, stacklevel=2)
