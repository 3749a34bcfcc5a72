"""A study as a file: the options of a command in TOML, to be committed and run again to the same numbers."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secure_ml.errors import UsageError, unknown

FOLDER = Path(__file__).parent / "studies"
"""The studies that come with this project, found by name."""
NOT_IN_FILES = frozenset({"file", "save_file", "dry_run"})
Table = Mapping[str, Any]


def studies() -> dict[str, Path]:
    """The studies that come with this project."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def split_file(argv: Sequence[str], option: str = "--file") -> tuple[str | None, list[str]]:
    """The study that a command line names, with ``--file`` or as its first word, and the rest of the line."""
    rest = list(argv)
    if rest and not rest[0].startswith("-"):
        return rest[0], rest[1:]
    for i, word in enumerate(rest):
        if word == option:
            if i + 1 == len(rest):
                raise UsageError(f"{option} names no file: give a TOML file, or one of {', '.join(studies())}")
            return rest[i + 1], rest[:i] + rest[i + 2 :]
        if word.startswith(f"{option}="):
            return word.partition("=")[2], rest[:i] + rest[i + 1 :]
    return None, rest


def read_study(name: str) -> tuple[str, Table]:
    """A study's file and what it says: a file of that name, or else a study that comes with this project."""
    path = Path(name)
    if not path.is_file():
        known = studies()
        if path.suffix or "/" in name or name not in known:
            raise UsageError(f"there is no file {name}; {unknown('study', name, known)}")
        path = known[name]
    try:
        return str(path), tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None


def as_options(path: str, study: Table, command: type[Any], groups: Mapping[str, type[Any]]) -> list[str]:
    """A study as the words of a command line; `UsageError` for a key that is no option, with the nearest that is."""
    own = {field.name for field in dataclasses.fields(command)} - NOT_IN_FILES
    words: list[str] = []
    for key, value in study.items():
        name = key.replace("-", "_")
        if isinstance(value, Mapping) and name in groups:
            known = {field.name for field in dataclasses.fields(groups[name])}
            for setting, given in value.items():
                if setting.replace("-", "_") not in known:
                    raise _refused(path, unknown(f"setting of {name}", setting, known))
                words += _words(path, f"{name}.{setting}", given)
        elif name in own:
            words += _words(path, name, value)
        else:
            raise _refused(path, unknown("option", key, [*own, *groups]))
    return words


def _refused(path: str, error: UsageError) -> UsageError:
    return UsageError(f"{path}: {error}")


def _words(path: str, name: str, value: Any) -> list[str]:
    option = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        head, _, last = option.removeprefix("--").rpartition(".")
        return ["--" + ".".join(filter(None, [head, last if value else f"no-{last}"]))]
    if option == "--fail-if":
        return [word for condition in value for word in (option, _word(path, name, condition))]
    if isinstance(value, list):
        return [option, *(_word(path, name, part) for part in value)]
    return [option, _word(path, name, value)]


def _word(path: str, name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UsageError(f"{path}: {name} holds {value!r}; expected text, numbers or a list of them")
    return value if isinstance(value, str) else repr(value)


def write_study(command: Any, configured: Mapping[str, Any]) -> str:
    """The TOML that means the same as these options: all of the command's, and of methods what is not the default."""
    lines = [
        f"{field.name} = {_toml(value)}"
        for field in dataclasses.fields(command)
        if field.name not in NOT_IN_FILES and (value := getattr(command, field.name)) is not None
    ]
    for name, options in configured.items():
        changed = {
            field.name: value
            for field in dataclasses.fields(options)
            if (value := getattr(options, field.name)) != field.default and value is not None
        }
        if changed:
            lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in changed.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        parts = [_toml(part) for part in value]
        whole = f"[{', '.join(parts)}]"
        return whole if len(whole) < 100 else "[\n" + "".join(f"  {part},\n" for part in parts) + "]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{text}"'
