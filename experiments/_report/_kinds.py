"""To which risk a row belongs: read off the attack that its label names, or else its measure."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from experiments._catalog import attacks, defenses
from experiments._report._taxonomy import OTHER, RISKS, UTILITY
from secure_ml.direction import is_score
from secure_ml.rows import TIMES, Row

_CALLS = re.compile(r"\b([A-Z]\w*)\(")


@dataclass(frozen=True)
class Method:
    """What an attack or defense is, for who reads of it."""

    name: str
    kind: str
    summary: str
    links: tuple[str, ...]
    settings: tuple[str, ...]
    """The configurations that the report's rows name."""


def family(row: Row) -> str:
    """The risk that a row tells of."""
    return kind_of(row.attack, row.measure, row.unit)


def kind_of(attack: str, measure: str, unit: str) -> str:
    """The risk of a measurement."""
    if not attack:
        return UTILITY if is_score(measure) or unit in TIMES else _by_measure(measure)
    known = _families()
    of = (known[name] for name in _CALLS.findall(attack) if known.get(name) in RISKS)
    return next(of, _by_measure(measure))


def _by_measure(measure: str) -> str:
    """Of a measure without an attack that is known here."""
    starts = {
        "answers ": "extraction",
        "fidelity": "extraction",
        "copy's": "extraction",
        "membership": "membership",
        "TPR at": "membership",
        "epsilon": "audit",
        "certified": "certification",
    }
    found = next((kind for start, kind in starts.items() if measure.startswith(start)), OTHER)
    return "evasion" if found == OTHER and " under " in measure else found


def risk_order(kind: str) -> int:
    """Where a risk stands in a report."""
    return list(RISKS).index(kind)


@cache
def _families() -> dict[str, str]:
    return {cls.__name__: cls.family for cls in attacks().values()}


def methods(rows: Iterable[Row]) -> list[Method]:
    """Every attack, check and defense that rows name, with what its docstring says and cites."""
    found: dict[str, set[str]] = {}
    for row in rows:
        for label, between in ((row.attack, " | "), (row.defenses, " + ")):
            for name in _CALLS.findall(label):
                own = [part for part in label.split(between) if part.startswith(f"{name}(")]
                found.setdefault(name, set()).update(own)
    known: dict[str, tuple[str, type]] = {cls.__name__: (cls.family, cls) for cls in attacks().values()}
    known |= {cls.__name__: ("defense", cls) for cls in defenses().values()}
    ordered = sorted((known[name][0], name) for name in found if name in known)
    return [_method(name, *known[name], tuple(sorted(found[name]))) for _, name in ordered]


def _method(name: str, kind: str, cls: type, settings: tuple[str, ...]) -> Method:
    text = inspect.getdoc(cls) or ""
    links = tuple(dict.fromkeys(link.rstrip(".,;:)") for link in re.findall(r"https://[^\s)>]+", text)))
    summary = re.sub(r",?\s*https://[^\s)]+", "", text.partition("\n\n")[0].replace("\n", " "))
    return Method(name, kind, summary.replace("()", "").replace(" .", ".").replace("`", "").strip(), links, settings)
