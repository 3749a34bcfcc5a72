"""A test case as a file: a cell or several of one victim, and what was measured there, in TOML."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from secure_ml.discovery import check_type
from secure_ml.errors import UsageError, require, unknown

T = TypeVar("T")
SUFFIX = ".case.toml"
SHIPPED = Path(__file__).parent / "cases"
CARD = "card"
"""In the place of an attack: the plain report on the victim."""
NOTHING = "n/a"
"""In the place of a value: there is none."""
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What one measurement is expected to be.

    With ``at_least`` or ``at_most`` these decide, and the value is only what was once measured; else the value, give or
    take the tolerance. A verdict (PASS, SKIP, WARN, FAIL) and ``n/a`` must be the same.
    """

    attack: str = CARD
    measure: str
    value: float | int | str
    tolerance: float | int = 0.0
    at_least: float | int | None = None
    at_most: float | int | None = None
    why: str = ""
    """Why so, and why the tolerance is what it is."""

    def __str__(self) -> str:
        """``0.97 ± 0.02``, ``at most 0.3``, ``PASS``."""
        ends = [f"at least {self.at_least:.4g}"] if self.at_least is not None else []
        ends += [f"at most {self.at_most:.4g}"] if self.at_most is not None else []
        if ends:
            return " and ".join(ends)
        return self.value if isinstance(self.value, str) else f"{self.value:.4g} ± {self.tolerance:.3g}"

    def meets(self, got: float | str | None) -> bool:
        """Whether what was measured now is what was expected; None where it was not measured at all."""
        if isinstance(got, str) or got is None:
            return got == self.value
        if self.at_least is not None or self.at_most is not None:
            return (self.at_least is None or got >= self.at_least) and (self.at_most is None or got <= self.at_most)
        return not isinstance(self.value, str) and abs(got - self.value) <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Which published result the case reproduces."""

    citation: str
    link: str
    reports: str
    """What the paper reports."""
    here: str
    """What is expected at this size, and why."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Where the expected numbers come from."""

    data: str
    """The fingerprint of the data, of every split."""
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: str = ""
    seconds: float | int = 0.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One victim, the attacks on it, and what they are expected to find. Attacks and defenses are as in the matrix."""

    schema: int = SCHEMA
    description: str = ""
    task: str
    defenses: str = "none"
    attacks: tuple[str, ...] = (CARD,)
    threat: str = ""
    """The task's own unless given."""
    seed: int = 0
    examples: int = 1000
    device: str = "cpu"
    threads: int = 1
    slow: bool = False
    """Marks its test ``slow``."""
    data: bool = False
    """Marks its test ``data``: it needs data sets in the data directory."""
    paper: Paper | None = None
    recorded: Recorded
    expect: tuple[Expected, ...]


def read(path: Path) -> Case:
    """The case in a file; `UsageError` in one sentence where it cannot be read."""
    require(path.name.endswith(SUFFIX), f"{path} is no case: its name must end in {SUFFIX}")
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the case {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the case {path} is no TOML: {error}") from None
    case = _made(Case, told, str(path))
    require(case.schema == SCHEMA, f"{path} is of schema {case.schema}; this version reads {SCHEMA}")
    for name in ("examples", "threads"):
        require(getattr(case, name) >= 1, f"{path}: {name} must be at least 1; given {getattr(case, name)}")
    require(len(case.expect) > 0, f"{path} expects nothing: add an [[expect]] with a measure and a value")
    strange = [one.attack for one in case.expect if one.attack not in case.attacks]
    require(not strange, f"{path} expects something of {strange and strange[0]!r}, which is not among its attacks")
    return case


def write(case: Case, path: Path) -> None:
    """Write a case; `UsageError` where the name or the folder does not allow it."""
    require(path.name.endswith(SUFFIX), f"a case must be called NAME{SUFFIX}; given {path}")
    try:
        path.write_text("\n".join(_lines(case)).strip() + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; choose another place") from None


def find(names: tuple[str, ...]) -> list[Path]:
    """The files of cases by path, folder or the name of a case that is shipped; ``all`` are those that are shipped."""
    shipped = {path.name.removesuffix(SUFFIX): path for path in sorted(SHIPPED.glob(f"*{SUFFIX}"))}
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if name == "all":
            found += shipped.values()
        elif path.is_dir():
            inside = sorted(path.rglob(f"*{SUFFIX}"))
            require(len(inside) > 0, f"there is no {SUFFIX} file in {path}")
            found += inside
        elif path.exists():
            found.append(path)
        elif name in shipped:
            found.append(shipped[name])
        elif path.suffix or path.parent != Path():
            raise UsageError(f"there is no case {path}")
        else:
            raise unknown("case", name, shipped)
    return list(dict.fromkeys(found))


def _made(kind: type[T], told: Mapping[str, Any], where: str) -> T:
    """A dataclass from a table of TOML; `UsageError` for keys that it does not have, lacks, or of another type."""
    hints = get_type_hints(kind)
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for key, value in told.items():
        if key not in known:
            raise UsageError(f"{where}: {unknown('key', key, known)}")
        given[key] = _value(key, value, where)
        check_type(f"{where}: {key}", given[key], hints[key])
    needed = [name for name, f in known.items() if f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in needed if name not in given]
    require(not missing, f"{where} lacks {' and '.join(missing)}")
    return kind(**given)


def _value(key: str, value: Any, where: str) -> Any:
    parts = {"expect": Expected, "paper": Paper, "recorded": Recorded}
    if key not in parts:
        return tuple(value) if isinstance(value, list) else value
    require(
        all(isinstance(one, dict) for one in (value if key == "expect" and isinstance(value, list) else [value])),
        f"{where}: {key} must be a table; given {value!r}",
    )
    inside = f"{where}, {key}"
    if key == "expect":
        require(isinstance(value, list), f"{where}: write [[expect]] with two brackets")
        return tuple(_made(Expected, one, inside) for one in value)
    return _made(parts[key], value, inside)


def _lines(case: Case) -> Iterator[str]:
    yield from _table(case, ("paper", "recorded", "expect"))
    for name in ("paper", "recorded"):
        part = getattr(case, name)
        if part is not None:
            yield f"\n[{name}]"
            yield from _table(part, ("versions",))
    yield "\n[recorded.versions]"
    yield from (f"{json.dumps(key)} = {_text(value)}" for key, value in case.recorded.versions.items())
    for one in case.expect:
        yield "\n[[expect]]"
        yield from _table(one, ())


def _table(value: Any, without: tuple[str, ...]) -> Iterator[str]:
    """The fields of a dataclass that differ from their defaults, and the schema."""
    for one in dataclasses.fields(value):
        held = getattr(value, one.name)
        if one.name not in without and (held != one.default or one.name == "schema"):
            yield f"{one.name} = {_text(held)}"


def _text(value: Any) -> str:
    if isinstance(value, str):
        return _long(value) if len(value) > 100 else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)


def _long(text: str) -> str:
    """A long text in several lines of at most 110 characters, which TOML joins again."""
    quoted = json.dumps(text, ensure_ascii=False)[1:-1].replace("\x7f", "\\u007f")
    lines, line = [], ""
    for word in quoted.split(" "):
        if line and len(line) + len(word) > 110:
            lines.append(line)
            line = ""
        line += word + " "
    return '"""\\\n' + "\\\n".join([*lines, line[:-1]]) + '\\\n"""'
