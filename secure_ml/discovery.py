"""Finding what exists: a method is one new file with one class, and nothing else names it."""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, TypeVar, get_type_hints

import typeguard

from secure_ml.errors import UsageError, unknown
from secure_ml.plugins import with_outside
from secure_ml.task import Task

T = TypeVar("T")
BuildTask = Callable[..., Task]


def methods(package: str, base: type[T]) -> dict[str, type[T]]:
    """The concrete subclasses of ``base`` in a package, by the name of the file each is alone in, sorted."""
    found: dict[str, type[T]] = {}
    root = import_module(package)
    for info in pkgutil.walk_packages(root.__path__, package + "."):
        module = import_module(info.name)
        for value in vars(module).values():
            if not (inspect.isclass(value) and issubclass(value, base) and value.__module__ == info.name):
                continue
            name = info.name.rpartition(".")[2]
            if inspect.isabstract(value):
                continue
            if name in found:
                raise ImportError(f"{value} and {found[name]} are both called {name}: one file, one class")
            found[name] = value
    return dict(sorted(found.items()))


@cache
def task_builders() -> dict[str, BuildTask]:
    """The functions that make tasks: each is called as the file in ``secure_ml.tasks`` that it lies in.

    Other packages add theirs in the entry-point group ``secure_ml.tasks``.
    """
    root = import_module("secure_ml.tasks")
    names = sorted(info.name for info in pkgutil.iter_modules(root.__path__))
    house = {name: getattr(import_module(f"secure_ml.tasks.{name}"), name) for name in names if name[0] != "_"}
    return with_outside("secure_ml.tasks", house, _no_task)


def all_methods(package: str, base: type[T]) -> dict[str, type[T]]:
    """The methods of a package of this project, and those of other packages in the entry-point group of its name."""
    return with_outside(f"secure_ml.{package}", methods(package, base), lambda thing: _no_method(thing, base))


def _no_method(thing: object, base: type[Any]) -> str:
    """Why a thing of another package cannot be used as a method; empty where it can."""
    kind = base.__name__
    if not inspect.isclass(thing) or not issubclass(thing, base) or inspect.isabstract(thing):
        return f"it is no class that inherits from {kind} and says all that it must"
    if not dataclasses.is_dataclass(thing) or not thing.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return f"{thing.__name__} is no frozen dataclass"
    try:
        thing()
    except Exception as error:  # it is another package's
        return f"{thing.__name__}() fails ({type(error).__name__}: {error})"
    return ""


def _no_task(thing: object) -> str:
    """Why a thing of another package cannot be used as the function of a task; empty where it can."""
    if not inspect.isfunction(thing):
        return "it is no function that returns a Task"
    for option in inspect.signature(thing).parameters.values():
        if option.default is option.empty or option.annotation is option.empty:
            return f"its option {option.name} has no default, or no type"
    return "" if "tiny" in inspect.signature(thing).parameters else "it has no option tiny"


def task(name: str, **options: Any) -> Task:
    """The document model of that name, with its options; `UsageError` if there is none, or no such option."""
    builders = task_builders()
    if name not in builders:
        raise unknown("task", name, builders)
    known = inspect.signature(builders[name]).parameters
    for option, value in options.items():
        if option not in known:
            raise unknown(f"option of {name}", option, known)
        check_type(f"{name}: {option}", value, get_type_hints(builders[name])[option])
    return builders[name](**options)


def export(package: str, base: type[T], name: str) -> type[T]:
    """The class of that name in a package, for ``from attacks import PGD``."""
    for cls in methods(package, base).values():
        if cls.__name__ == name:
            return cls
    raise AttributeError(f"module {package!r} has no attribute {name!r}")


def construct(kind: str, cls: type[T], settings: dict[str, Any]) -> T:
    """An instance with these settings; `UsageError` for a setting that it does not have."""
    known = inspect.signature(cls).parameters
    hints = get_type_hints(cls)
    for setting, value in settings.items():
        if setting not in known:
            raise unknown(f"setting of the {kind} {cls.__name__}", setting, known)
        check_type(f"{cls.__name__}: {setting}", value, hints[setting])
    missing = [name for name, p in known.items() if p.default is p.empty and name not in settings]
    if missing:
        raise UsageError(f"{cls.__name__} needs {' and '.join(missing)}")
    return cls(**settings)


def check_type(what: str, value: object, hint: Any) -> None:
    """Raise `UsageError` for a value that is not of the type that a field or option declares."""
    try:
        typeguard.check_type(value, hint)
    except typeguard.TypeCheckError:
        wanted = hint.__name__ if inspect.isclass(hint) else str(hint).replace("typing.", "")
        raise UsageError(f"{what} must be of type {wanted}; given {value!r}") from None
