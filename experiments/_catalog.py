"""What can be asked for by name, and the options that its fields make."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import os
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from secure_ml import data, threats
from secure_ml.attack import Attack
from secure_ml.defense import Defense
from secure_ml.discovery import all_methods, construct, task, task_builders
from secure_ml.errors import UsageError, require, unknown
from secure_ml.task import Task
from secure_ml.threats import Threat

T = TypeVar("T")
THREATS: dict[str, type[Threat]] = {
    name: kind for name in threats.__all__ if not inspect.isabstract(kind := getattr(threats, name))
}


def attacks() -> dict[str, type[Attack]]:
    """Every attack by name, family by family; other packages' as well."""
    found = all_methods("attacks", Attack)  # type: ignore[type-abstract]
    return dict(sorted(found.items(), key=lambda item: item[1].family))


def defenses() -> dict[str, type[Defense]]:
    """Every defense by name; other packages' as well."""
    return all_methods("defenses", Defense)


@dataclass(frozen=True)
class Catalog:
    """Every task's options, every attack and every defense by name, as configured on the command line."""

    configured: dict[str, Any]

    @classmethod
    def plain(cls) -> Catalog:
        """Everything at its defaults."""
        return cls({name: kind() for name, kind in groups().items()})

    def task(self, text: str) -> Task:
        """The task of an expression: ``digits_cnn`` or ``digits_cnn(width=8)``."""
        name, settings = _call(_parse(text), text)
        if name not in task_builders():
            raise unknown("task", name, task_builders())
        return task(name, **{**vars(self.configured[name]), **settings})

    def stack(self, text: str) -> tuple[Defense, ...]:
        """The defenses of an expression: ``none``, ``dp_sgd(epsilon=1)``, ``adversarial_training+dp_sgd``."""
        return () if text == "none" else tuple(self._stack(_parse(text), text))

    def attack(self, text: str) -> Attack:
        """The attack of an expression: ``pgd`` or ``pgd(steps=100)``."""
        return cast("Attack", self._method("attack", _parse(text), text, attacks()))

    def _stack(self, node: ast.expr, text: str) -> list[Defense]:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self._stack(node.left, text) + self._stack(node.right, text)
        return [cast("Defense", self._method("defense", node, text, defenses()))]

    def _method(self, kind: str, node: ast.expr, text: str, known: dict[str, type[Any]]) -> object:
        """The method of that name (of its file or its class) with the settings of the command line and its own."""
        name, settings = _call(node, text)
        short = {cls.__name__: short for short, cls in known.items()}.get(name, name)
        if short not in known:
            raise unknown(kind, name, known)
        given = {f.name: getattr(self.configured[short], f.name) for f in dataclasses.fields(known[short])}
        made = construct(kind, known[short], {**given, **settings})
        if isinstance(made, Defense) and made == type(made).neutral():
            raise UsageError(f"{made!r} changes nothing: leave it out, or give it a setting that protects")
        return made


def threat_of(text: str) -> Threat:
    """The threat of an expression: ``Linf(0.1)``, ``L2(1.5)``, ``Edits(2)``; one that allows nothing is refused."""
    threat = _value(_parse(text), text)
    if not isinstance(threat, Threat):
        raise UsageError(f"{text!r} is not a threat; there are: {', '.join(THREATS)}")
    require(
        any(part.radius > 0 for part in threat.parts()), f"{text!r} allows no change at all; give it a radius above 0"
    )
    return threat


def task_of(text: str) -> Task:
    """The task of an expression, in its own defaults: ``digits_cnn``, ``digits_cnn(width=8)``."""
    name, settings = _call(_parse(text), text)
    return task(name, **settings)


def method_of(text: str) -> object:
    """The attack or defense, in its own defaults, of an expression; for a field that holds one."""
    return _value(_parse(text), text)


def parse(command: type[T], argv: Sequence[str], prog: str) -> tuple[T, Catalog]:
    """A command's options, and the catalogue as the options of every task, attack and defense configure it."""
    known = groups()
    named = {word[2:].partition(".")[0].replace("-", "_") for word in argv if word.startswith("--") and "." in word}
    few = {name: kind for name, kind in known.items() if name in named}
    if not {"-h", "--help"}.isdisjoint(argv):
        few = known
    try:
        chosen = _parse_with(command, few, argv, prog)
    except UsageError:  # with everything there is, which takes its time, the answer knows what may have been meant
        chosen, few = _parse_with(command, known, argv, prog), known
    configured = {name: getattr(chosen, name) if name in few else kind() for name, kind in known.items()}
    return cast("T", chosen.command), Catalog(configured)


def _parse_with(command: type[Any], known: dict[str, type[Any]], argv: Sequence[str], prog: str) -> Any:
    fields = [(name, kind, dataclasses.field(default=kind())) for name, kind in known.items()]
    whole = make_dataclass("Options", [("command", tyro.conf.OmitArgPrefixes[command]), *fields])  # type: ignore[misc, valid-type]
    whole.__doc__ = command.__doc__
    return ask(whole, argv, prog)


def ask(options: type[T], argv: Sequence[str], prog: str) -> T:
    """The options that a command line gives; `UsageError`, in one sentence, where it cannot be read."""
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            return tyro.cli(options, args=list(argv), prog=prog, registry=_registry())
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(_sentence(complaint.getvalue(), prog)) from None
    except ValueError as error:
        raise UsageError(str(error)) from None


def _sentence(box: str, prog: str) -> str:
    """What tyro says in several lines, in a box or under a title, as one sentence."""
    parts: list[list[str]] = [[]]
    for line in (line.strip("│| ") for line in box.splitlines() if line.strip() and line[0] not in "╭╰"):
        if line.strip("─-"):
            parts[-1].append(line)
        else:
            parts.append([])
    said, *rest = parts if "╭" in box else parts[1:] or [[]]
    near = [line.split()[0] for part in rest if "Perhaps you meant:" in part for line in part if line.startswith("--")]
    hint = f"did you mean {' or '.join(dict.fromkeys(near))}? " if near else ""
    return f"{' '.join(said) or 'the options cannot be read'}; {hint}{prog} --help lists the options"


def set_data_directory(path: Path | None) -> None:
    """Make a directory the one that data sets are looked for in, here and in worker processes."""
    if path is not None:
        if not path.is_dir():
            raise UsageError(f"there is no data directory {path}")
        os.environ[data.VARIABLE] = str(path.resolve())


def groups() -> dict[str, type[Any]]:
    """Everything that has options of its own."""
    tasks = {name: _options_of(name, build) for name, build in task_builders().items()}
    return {**attacks(), **defenses(), **tasks}


def _options_of(name: str, build: Callable[..., Task]) -> type[Any]:
    """The options of a task's function as a dataclass, described as in its docstring."""
    hints = get_type_hints(build)
    defaults = [(p.name, hints[p.name], p.default) for p in inspect.signature(build).parameters.values()]
    options = make_dataclass(
        name, [(n, kind, dataclasses.field(default=value)) for n, kind, value in defaults], frozen=True
    )
    options.__doc__ = inspect.getdoc(build)
    return options


def _registry() -> ConstructorRegistry:
    """Fields that hold an attack, a defense or a threat are written as expressions: ``'PGD(steps=20)'``."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def expression(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        kind = info.type
        if not (inspect.isclass(kind) and inspect.isabstract(kind) and issubclass(kind, (Attack, Threat))):
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=kind.__name__.upper(),
            instance_from_str=lambda words: method_of(words[0]),
            is_instance=lambda value: isinstance(value, kind),
            str_from_instance=lambda value: [repr(value)],
        )

    return registry


def _parse(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError:
        raise UsageError(f"{text!r} is not of the form NAME, NAME(setting=value) or NAME+NAME") from None


def _call(node: ast.expr, text: str) -> tuple[str, dict[str, Any]]:
    """Name and settings of ``name`` or ``name(setting=value, ...)``."""
    if isinstance(node, ast.Name):
        return node.id, {}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
        return node.func.id, {word.arg: _value(word.value, text) for word in node.keywords if word.arg}
    raise UsageError(f"{text!r} is not of the form NAME, NAME(setting=value) or NAME+NAME")


def _value(node: ast.expr, text: str) -> object:
    """A literal, or an attack, defense or threat by the name of its class."""
    known: dict[str, type[Any]] = {**THREATS}
    known |= {cls.__name__: cls for cls in (*attacks().values(), *defenses().values())}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id not in known:
            raise unknown("attack, defense or threat", node.func.id, known)
        cls = known[node.func.id]
        settings = {word.arg: _value(word.value, text) for word in node.keywords if word.arg}
        names = [field.name for field in dataclasses.fields(cls)]
        settings |= {name: _value(arg, text) for name, arg in zip(names, node.args, strict=False)}
        return construct("method", cls, settings)
    if isinstance(node, ast.Tuple):
        return tuple(_value(part, text) for part in node.elts)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise UsageError(f"{text!r} holds something that is neither a number, a text nor a known name") from None
