"""The state of a training that is not finished, kept on disk, so that a killed run goes on from there."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from secure_ml.errors import UsageError
from secure_ml.victim import atomic_folder

FILES = frozenset({"state.json", "tensors.safetensors"})


class Stateful(Protocol):
    """Whatever changes while a model is trained."""

    def state_dict(self) -> Any:
        """What it would need to go on."""

    def load_state_dict(self, state: Any) -> Any:
        """Go on from there."""


class Randomness:
    """The global random stream, or a generator, as a part that has a state."""

    def __init__(self, rng: torch.Generator | None = None) -> None:
        self.rng = rng

    def state_dict(self) -> dict[str, Tensor]:
        """Where the stream stands."""
        if self.rng is not None:
            return {"cpu": self.rng.get_state()}
        there = {"cpu": torch.get_rng_state()}
        return there | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Stand there again."""
        if self.rng is not None:
            self.rng.set_state(state["cpu"])
            return
        torch.set_rng_state(state["cpu"])
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"])


class Checkpoint:
    """A folder for the state of one training, written after an epoch if the last time is ``every`` seconds ago.

    ``about`` says which training it is; the state of another is not read but overwritten. Raises `UsageError` for a
    state that says it is this training's and does not fit it.
    """

    def __init__(self, folder: Path, about: Mapping[str, str], every: float = 20.0) -> None:
        self.folder, self.about, self.every = folder, dict(about), every
        self.seconds = 0.0
        """Spent on the training before this call."""
        self._start = self._last = time.monotonic()

    def save(self, parts: Mapping[str, Stateful], epoch: int) -> None:
        """Write the state after an epoch, all or nothing."""
        if time.monotonic() - self._last < self.every:
            return
        tensors: dict[str, Tensor] = {}
        spent = time.monotonic() - self._start
        state = {name: _encode(part.state_dict(), tensors) for name, part in parts.items()}
        with atomic_folder(self.folder) as draft:
            (draft / "state.json").write_text(
                json.dumps({"about": self.about, "epoch": epoch, "seconds": self.seconds + spent, "state": state})
            )
            save_file(tensors, draft / "tensors.safetensors")
        self._last = time.monotonic()

    def restore(self, parts: Mapping[str, Stateful]) -> int:
        """Put the kept state into the parts; how many epochs are done, 0 where nothing fitting is kept."""
        try:
            kept = json.loads((self.folder / "state.json").read_text())
            if kept["about"] != self.about or set(kept["state"]) != set(parts):
                return 0
            tensors = load_file(self.folder / "tensors.safetensors")
        except (OSError, ValueError, KeyError, SafetensorError):
            return 0
        for name, part in parts.items():
            try:
                part.load_state_dict(_decode(kept["state"][name], tensors))
            except (RuntimeError, ValueError, KeyError, TypeError):
                raise UsageError(
                    f"{self.folder} holds an unfinished training that does not fit this one: delete that folder"
                ) from None
        self.seconds = float(kept["seconds"])
        return int(kept["epoch"]) + 1

    def remove(self) -> None:
        """The training is finished."""
        if self.folder.exists() and {path.name for path in self.folder.iterdir()} <= FILES:
            shutil.rmtree(self.folder)


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON for nested dictionaries, lists, tuples, numbers and texts; tensors are put aside by number."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[_encode(k, tensors), _encode(v, tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_encode(v, tensors) for v in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "tensor":
        return tensors[held]
    if kind == "dict":
        return {_decode(k, tensors): _decode(v, tensors) for k, v in held}
    items = [_decode(v, tensors) for v in held]
    return tuple(items) if kind == "tuple" else items
