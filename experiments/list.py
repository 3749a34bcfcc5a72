"""What there is: tasks, attacks and defenses, each with its options."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from experiments._catalog import ask, attacks, defenses
from secure_ml.discovery import task_builders
from secure_ml.errors import NotApplicable, UsageError
from secure_ml.task import Task
from secure_ml.training import make_plan

Entry = dict[str, Any]


@dataclass(frozen=True)
class List:
    """What there is: tasks, attacks and defenses, each with its one-line description and its options."""

    json: bool = False
    """Print JSON instead of text."""
    not_applicable: bool = False
    """Print the pairs of a task and a method that have no meaning together, with the reason."""


def main(argv: Sequence[str]) -> int:
    """Print the catalogue."""
    options = ask(List, argv, "secure-ml list")
    if options.not_applicable:
        for task, method, why in not_applicable():
            print(f"{task} / {method}: {why}")
        return 0
    known = catalogue()
    if options.json:
        print(json.dumps(known, indent=2))
        return 0
    for kind, entries in known.items():
        print(f"{kind}:")
        for entry in entries:
            print(f"  {entry['name']:<22} {entry['description']}")
            for option in entry["options"]:
                words = f"{option['name']} = {option['default']}"
                print(f"      {words:<30} {option['description']}")
    return 0


def catalogue() -> dict[str, list[Entry]]:
    """Everything that can be named on the command line."""
    return {
        "tasks": [_task_entry(name, build) for name, build in task_builders().items()],
        "attacks": [{**_entry(name, cls), "family": cls.family} for name, cls in attacks().items()],
        "defenses": [_entry(name, cls) for name, cls in defenses().items()],
    }


def not_applicable() -> list[tuple[str, str, str]]:
    """Every task, every method that has no meaning for it, and why: found on the tiny variants."""
    found = []
    for title, build in task_builders().items():
        try:
            task = build(tiny=True)
        except UsageError as missing:
            found.append((title, "all", str(missing)))
            continue
        for name, cls in attacks().items():
            try:
                cls().check(task, None)
            except NotApplicable as why:
                found.append((task.name, name, str(why)))
        for name, guard in defenses().items():
            try:
                guard.tiny().check(task)
                make_plan(task, [guard.tiny()], 0, torch.device("cpu"))
            except NotApplicable as why:
                found.append((task.name, name, str(why)))
    return found


def _entry(name: str, cls: type[Any]) -> Entry:
    texts = field_texts(cls)
    options = [
        {"name": f.name, "type": str(f.type), "default": repr(f.default), "description": texts.get(f.name, "")}
        for f in dataclasses.fields(cls)
    ]
    return {"name": name, "class": cls.__name__, "description": _first_line(cls), "options": options}


def _task_entry(name: str, build: Callable[..., Task]) -> Entry:
    _, _, section = (inspect.getdoc(build) or "").partition("Args:\n")
    texts = dict(line.strip().split(": ", 1) for line in section.splitlines() if ": " in line)
    options = [
        {"name": p.name, "type": str(p.annotation), "default": repr(p.default), "description": texts.get(p.name, "")}
        for p in inspect.signature(build).parameters.values()
    ]
    return {"name": name, "description": _first_line(build), "options": options, **_declaration(build)}


def _declaration(build: Callable[..., Task]) -> Entry:
    """What a task declares, read off its tiny variant; where a package is missing, the sentence that says so."""
    try:
        task = build(tiny=True)
    except UsageError as missing:
        return {"missing": str(missing)}
    parts = task.threat.parts() if task.threat is not None else ()
    return {
        "answers": type(task.output).__name__,
        "scores": [score.name for score in (task.score, *task.also)],
        "surfaces": [type(surface).__name__ for surface in task.surfaces],
        "threat": " and ".join(map(repr, parts)),
        "unit": task.unit,
        "samples": task.sample is not None,
    }


def field_texts(cls: type[Any]) -> dict[str, str]:
    """The docstrings that stand under the fields of a class."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            texts[field.target.id] = str(ast.literal_eval(text.value))
    return texts


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]
