"""What a cell is, as text to be hashed: settings, data, and the source of every callable that it names.

A callable whose source cannot be read has no identity; its cell is computed but never cached.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import _lru_cache_wrapper, cache, partial
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secure_ml.plugins import outside_packages

HOUSE = ("secure_ml", "attacks", "defenses", "experiments")

VIEWS = ("costs", "direction", "gate", "interactions", "measures", "pareto", "selectors")
"""What looks at rows when they are there: it changes none."""


class Unidentifiable(Exception):  # noqa: N818
    """A value that may change without its text changing."""


def identify(value: object) -> str:
    """A hash that changes when a value, or the source behind it, changes; raises `Unidentifiable`."""
    modules: set[str] = set()
    text = _describe(value, modules, ())
    return digest(text, *(f"{name} {source}" for name, source in sorted(_sources(modules).items())))


@cache
def ground_floor() -> str:
    """A hash of every source file behind all cells: the loop, the families, the statistics. Tasks name their own."""
    files = sorted(p for p in Path(__file__).parent.rglob("*.py") if p.parent.name != "tasks" and p.stem not in VIEWS)
    return digest(*(f"{path.relative_to(Path(__file__).parent)} {path.read_text()}" for path in files))


def digest(*texts: str) -> str:
    """A short SHA-256 of some texts."""
    return hashlib.sha256("\x00".join(texts).encode()).hexdigest()[:24]


def _describe(value: object, modules: set[str], above: tuple[int, ...]) -> str:
    """Canonical text of a value; the modules that define it are collected on the way."""
    if id(value) in above:
        return "itself"
    above = (*above, id(value))

    def inner(part: object) -> str:
        return _describe(part, modules, above)

    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, Path)):
        return repr(value)
    if isinstance(value, (tuple, list, set, frozenset)):
        parts = [inner(part) for part in value]
        return f"{type(value).__name__}({', '.join(sorted(parts) if isinstance(value, (set, frozenset)) else parts)})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{inner(k)}: {inner(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (Tensor, np.ndarray)):
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        return f"array {array.shape} {array.dtype} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"
    if isinstance(value, (torch.dtype, torch.device, np.dtype)):
        return repr(value)
    if isinstance(value, partial):
        return f"partial({inner(value.func)}, {inner(value.args)}, {inner(value.keywords)})"
    if isinstance(value, _lru_cache_wrapper):
        return f"cached({inner(value.__wrapped__)})"
    if isinstance(value, MethodType):
        return f"{inner(value.__self__)}.{inner(value.__func__)}"
    if isinstance(value, BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, type):
        modules.add(value.__module__)
        name = f"{value.__module__}.{value.__qualname__}"
        if _named_module(value.__module__):
            return name
        members = (member for _, member in sorted(vars(value).items()) if isinstance(member, FunctionType))
        return f"{name} {_text(value)} {' '.join(map(inner, members))}"
    if isinstance(value, FunctionType):
        return _describe_function(value, modules, inner)
    if isinstance(value, ModuleType):
        modules.add(value.__name__)
        return value.__name__
    if isinstance(value, nn.Module):
        return f"{inner(type(value))} {value!r} {inner(value.state_dict())}"
    if is_dataclass(value) and not isinstance(value, type):
        parts = [f"{field.name}={inner(getattr(value, field.name))}" for field in fields(value)]
        return f"{inner(type(value))}({', '.join(parts)})"
    raise Unidentifiable(f"a {type(value).__module__}.{type(value).__qualname__}")


def _describe_function(function: FunctionType, modules: set[str], inner: Callable[[object], str]) -> str:
    """Its source, what it closes over, its defaults, and in a notebook or script the global values that it reads."""
    modules.add(function.__module__)
    try:
        held = inspect.getclosurevars(function)
    except ValueError:  # a cell that is still empty
        raise Unidentifiable(f"the function {function.__qualname__}") from None
    parts = [inner(v) for _, v in sorted(held.nonlocals.items())]
    if not _named_module(function.__module__):  # no file to hash: follow every global name that it reads
        space = function.__globals__
        parts += [f"{name}={inner(space[name])}" for name in sorted(_names(function.__code__)) if name in space]
    defaults = inner((function.__defaults__, function.__kwdefaults__))
    return f"{function.__module__}.{function.__qualname__} {_text(function)} {defaults} {' '.join(parts)}"


def _names(code: CodeType) -> set[str]:
    """The names that a function and the functions inside it read."""
    inside = (_names(part) for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*inside)


def _text(value: Any) -> str:
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):
        raise Unidentifiable(f"{value.__qualname__}, whose source cannot be read") from None


def _named_module(name: str) -> bool:
    """Whether a module can be found by its name, so that hashing its file, or its version, covers its contents."""
    return name != "__main__" and _findable(name)


def _sources(modules: Iterable[str]) -> dict[str, str]:
    """Source hash of every module that these reach by imports, third-party and standard ones left out."""
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in found or not _followed(name):
            continue
        origin = _origin(name)
        assert origin is not None
        source, imports = _read(origin, origin.stat().st_mtime_ns, name)
        found[name] = source
        waiting += imports
    return found


@cache
def _read(origin: Path, changed: int, name: str) -> tuple[str, tuple[str, ...]]:
    """Hash and imports of a file, read again when it was changed."""
    text = origin.read_text()
    package = name if origin.name == "__init__.py" else name.rpartition(".")[0]
    return hashlib.sha256(text.encode()).hexdigest(), tuple(_imports(ast.parse(text), package))


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


@cache
def _followed(name: str) -> bool:
    """Whether a module belongs to this project, to a package that adds to it, or to the user, not to another."""
    top = name.partition(".")[0]
    if top in HOUSE or top in outside_packages():
        return _origin(name) is not None
    origin = None if top in sys.stdlib_module_names else _origin(top)
    installed = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    return origin is not None and not any(str(origin).startswith(place) for place in installed) and bool(_origin(name))


@cache
def _findable(name: str) -> bool:
    """Whether an import of this name would find a module, built-in ones included."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, AttributeError, ValueError):
        return False


@cache
def _origin(name: str) -> Path | None:
    """The file of a module, found without running it."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, AttributeError, ValueError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)
