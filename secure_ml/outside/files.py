"""Models in files: torch.export, TorchScript and ONNX. They are asked, and not looked into."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

from secure_ml.batch import Tree, leaves
from secure_ml.errors import UsageError, require
from secure_ml.outside.opaque import Opaque


class File(Opaque):
    """A program that was read from a file."""

    def __init__(self, what: str, run: Callable[[Tree], Any], batch: int | None = None) -> None:
        super().__init__()
        self.what, self.run, self.batch = what, run, batch

    def answer(self, inputs: Tree) -> Tensor:
        """What the program returns, the first where it returns several."""
        said = self.run(inputs)
        said = next(iter(said.values())) if isinstance(said, dict) else said
        said = said[0] if isinstance(said, (tuple, list)) else said
        return torch.as_tensor(said)


def open_file(path: Path | str) -> File:
    """The model in a ``.pt2``, ``.pt`` (TorchScript) or ``.onnx`` file, on the CPU.

    A pickle, which may run anything when it is opened, is refused with `UsageError`, as is a file that holds weights
    alone. A program of TorchScript or torch.export is still a program: open what you trust.
    """
    path = Path(path)
    require(path.is_file(), f"there is no model file {path}")
    if path.suffix == ".onnx":
        return _onnx(path)
    if path.suffix not in (".pt2", ".pt", ".pth", ".ts"):
        raise UsageError(f"{path} is no .pt2 (torch.export), .pt (TorchScript) or .onnx file; pickles are not opened")
    try:
        with ZipFile(path) as archive:
            names = archive.namelist()
    except (BadZipFile, OSError):
        raise UsageError(f"{path} is neither a torch.export nor a TorchScript archive: it may be damaged") from None
    try:
        if any(name.endswith("models/model.json") for name in names):
            return _exported(path, names)
        if any("/code/" in name for name in names):
            return _script(path)
    except (RuntimeError, ValueError, AssertionError, KeyError, OSError, UnpicklingError) as error:
        raise UsageError(f"{path} cannot be opened: {_first_line(error)}") from None
    raise UsageError(
        f"{path} is a pickle or holds weights alone: give the module itself, or write it with torch.export.save"
    )


def _exported(path: Path, names: list[str]) -> File:
    held = [name for name in names if "/constants/" in name and ("custom_obj" in name or "opaque_obj" in name)]
    require(not held, f"{path} holds pickled objects, which may run anything when they are opened: export it without")
    with _weights_only(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(path)
    inputs = set(program.graph_signature.user_inputs)
    shapes = [n.meta["val"].shape for n in program.graph.nodes if n.op == "placeholder" and n.name in inputs]
    fixed = next((int(shape[0]) for shape in shapes if len(shape) and isinstance(shape[0], int)), None)
    return File("a torch.export file", _called(program.module()), fixed)


def _script(path: Path) -> File:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is old, and so are the files
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(str(path), map_location="cpu").eval()
    return File("a TorchScript file", _called(module))


def _called(module: Callable[..., Any]) -> Callable[[Tree], Any]:
    """The program, given its inputs by name, in their order, or as the one that it takes."""

    def run(inputs: Tree) -> Any:
        if isinstance(inputs, dict):
            return module(**inputs)
        return module(*inputs) if isinstance(inputs, tuple) else module(inputs)

    return run


def _onnx(path: Path) -> File:
    if find_spec("onnxruntime") is None:
        raise UsageError(
            "an ONNX file needs onnxruntime, which is not installed: pip install onnxruntime (the extra 'onnx')"
        )
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own, without a common base
        raise UsageError(f"{path} cannot be opened: {_first_line(error)}") from None
    asked = [put.name for put in session.get_inputs()]
    first = session.get_inputs()[0].shape
    scores = [out.name for out in session.get_outputs() if out.type.startswith("tensor(float")]

    def run(inputs: Tree) -> Any:
        given = inputs if isinstance(inputs, dict) else dict(zip(asked, leaves(inputs), strict=False))
        require(set(given) >= set(asked), f"{path} takes {', '.join(asked)}; given {', '.join(map(str, given))}")
        feed = {name: leaf.numpy() for name, leaf in given.items() if name in asked and isinstance(leaf, Tensor)}
        return session.run(scores[:1] or None, feed)

    return File("an ONNX file", run, first[0] if first and isinstance(first[0], int) else None)


@contextmanager
def _weights_only() -> Iterator[None]:
    """Inside it ``torch.load`` opens tensors only, also where its callers ask for more."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
