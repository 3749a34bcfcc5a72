"""A trained model: its weights, what it serves, what it promises, and how it is kept on disk."""

from __future__ import annotations

import json
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass, field
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor, nn

from secure_ml.batch import Batch, Splits, Tree, join, tree_map
from secure_ml.certificate import Certificate
from secure_ml.defense import Defense, stack_name
from secure_ml.errors import UsageError, require
from secure_ml.modes import evaluating
from secure_ml.randomness import seeded
from secure_ml.stats import Estimate
from secure_ml.task import Task
from secure_ml.vault import VARIABLE, Key, seal, unseal

if TYPE_CHECKING:
    from secure_ml.families.scrutiny import Finding


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A guarantee as data: what is promised, under which assumptions. Never a measurement."""

    kind: str
    short: str
    statement: str
    values: Mapping[str, float | int | str] = field(default_factory=dict)
    stage: Literal["training", "serving"] = "training"


class Served(ABC):
    """What everybody without the weights can ask: inputs to outputs of the task's kind."""

    decrypted_by_client: ClassVar[bool] = False
    """Whether whoever asks sees the answer as the module gives it, so that nothing behind it can be held back."""

    @abstractmethod
    def __call__(self, inputs: Tree) -> Tensor:
        """Answer ``(B, *shape)`` inputs."""

    def stand_in(self) -> Served:
        """What an adversary may query in its place because the answers are the same, if that is cheaper."""
        return self

    def session(self) -> Served:
        """The view of one client who has not asked yet: itself, where nothing is remembered of a client.

        A view may answer only the first of the inputs, or none, where its client is to learn no more. Who measures
        what is served asks without a session: nothing is counted then, and nothing refused.
        """
        return self

    def usage(self) -> Mapping[str, int]:
        """What answering has cost so far, by name, beyond the number of queries."""
        return {}

    def findings(self, inputs: Tree) -> Iterable[Finding]:
        """What a look at how it answers ``(B, *shape)`` inputs finds, where that can be looked at."""
        return ()


class Wrapped(Served):
    """The answers of another predictor, changed; a client's view of it wraps that client's view of the other."""

    def __init__(self, inner: Served) -> None:
        self.inner = inner

    def session(self) -> Served:
        """The same change of what a new client is answered."""
        view = copy(self)
        view.inner = self.inner.session()
        return view

    def usage(self) -> Mapping[str, int]:
        """What the inner predictor has used."""
        return self.inner.usage()

    def findings(self, inputs: Tree) -> Iterable[Finding]:
        """What a look at the inner predictor finds."""
        return self.inner.findings(inputs)


class Plain(Served):
    """The module's own answers, in evaluation mode."""

    def __init__(self, module: nn.Module, chunk: int) -> None:
        self.module, self.chunk = module, chunk

    def __call__(self, inputs: Tree) -> Tensor:
        """Outputs of the module, on its device."""
        device = next(self.module.parameters()).device
        with evaluating(self.module), torch.no_grad():
            pieces = [self.module(_on(device, piece.inputs)) for piece in Batch(inputs, ()).chunks(self.chunk)]
            return cast("Tensor", join(pieces))


def _on(device: torch.device, inputs: Tree) -> Tree:
    return tree_map(lambda tensor: tensor.to(device), inputs)


@dataclass(frozen=True, kw_only=True)
class Victim:
    """A model as its adversaries meet it. ``splits.train`` are its members."""

    task: Task
    module: nn.Module
    """What a white-box adversary differentiates."""
    served: Served
    """What everybody else sees, and what every attack is scored on."""
    splits: Splits
    defenses: tuple[Defense, ...] = ()
    seed: int = 0
    claims: tuple[Claim, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    """What is proved about single answers; a defense adds its own when it serves."""
    seconds: float = 0.0
    """Spent on training."""

    @property
    def device(self) -> torch.device:
        """Where the module lies."""
        return next(self.module.parameters()).device

    def score(self) -> Estimate:
        """The task's score of the served answers on the test split."""
        return self.task.score.measure(self.served, self.splits.test)

    def tested(self, examples: int) -> Batch:
        """At most ``examples`` examples of the test split; `UsageError` if that is none."""
        require(examples >= 1, f"at least 1 example must be attacked; given {examples}")
        require(len(self.splits.test) > 0, f"{self.task} has no test examples to attack")
        return self.splits.test.take(slice(0, examples))

    def save(self, folder: Path | str, key: Key | None = None) -> None:
        """Write weights (safetensors) and claims (JSON) into a folder of their own, all or nothing.

        With a key the weights are encrypted, and the claims stay readable but cannot be changed. Raises `UsageError`
        if the folder holds anything but a saved model.
        """
        with atomic_folder(Path(folder), MODEL_FILES) as draft:
            weights = {name: value.detach().cpu().clone() for name, value in self.module.state_dict().items()}
            about = {
                "task": repr(self.task),
                "training": stack_name(tuple(d for d in self.defenses if d.trains())),
                "data": self.splits.fingerprint(),
                "seed": self.seed,
                "seconds": self.seconds,
                "claims": [asdict(claim) for claim in self.claims if claim.stage == "training"],
            }
            said = (json.dumps(about, indent=2) + "\n").encode()
            (draft / ABOUT).write_bytes(said)
            if key is None:
                save_file(weights, draft / WEIGHTS)
            else:
                (draft / SEALED).write_bytes(seal(save(weights), said, key))

    @classmethod
    def load(
        cls,
        folder: Path | str,
        task: Task,
        defenses: Sequence[Defense] = (),
        *,
        splits: Splits | None = None,
        device: str | torch.device = "auto",
        key: Key | None = None,
    ) -> Victim:
        """The victim that was saved there, served through its defenses again; `UsageError` if it is another's.

        With a key it must have been encrypted with that key, and nothing in either file may have been changed.
        """
        folder, stack = Path(folder), tuple(defenses)
        about, weights = _read(folder, key)
        asked = {"task": repr(task), "training": stack_name(tuple(d for d in stack if d.trains()))}
        for name, value in asked.items():
            require(about[name] == value, f"{folder} holds a model of {name} {about[name]}; expected {value}")
        place, parts = resolve_device(device), task.draw(about["seed"]) if splits is None else splits
        require(
            about["data"] == parts.fingerprint(),
            f"{folder} holds a model trained on other data than {task} has now; train it again",
        )
        module = build(task, stack, about["seed"])
        try:
            module.load_state_dict(weights)
        except RuntimeError:
            raise UsageError(f"{folder}/weights.safetensors does not fit the architecture of {task}") from None
        return serve(
            cls(
                task=task,
                module=module.to(place).eval(),
                served=Plain(module, task.chunk),
                splits=parts.to(place),
                defenses=stack,
                seed=about["seed"],
                claims=tuple(Claim(**claim) for claim in about["claims"]),
                seconds=about["seconds"],
            )
        )


def build(task: Task, defenses: Sequence[Defense], seed: int) -> nn.Module:
    """The seeded, untrained module with every defense's change to the architecture."""
    with seeded(seed, "build"):
        return reduce(lambda module, defense: defense.adapt(module), defenses, task.build())


def serve(victim: Victim) -> Victim:
    """The victim as its defenses serve it."""
    return reduce(lambda served, defense: defense.serve(served), victim.defenses, victim)


def resolve_device(device: str | torch.device) -> torch.device:
    """``auto`` is the GPU where there is one; `UsageError` for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise UsageError(f"there is no device {device!r}; use auto, cpu or cuda") from None
    require(place.type != "cuda" or torch.cuda.is_available(), f"device {device} was asked for, but torch sees no GPU")
    return place


def writable(folder: Path) -> Path:
    """A folder that can be written to, made if it is not there; `UsageError` otherwise."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}; choose another folder") from None
    return folder


ABOUT, WEIGHTS, SEALED = "victim.json", "weights.safetensors", "weights.safetensors.aes"
MODEL_FILES = frozenset({ABOUT, WEIGHTS, SEALED})


def vacate(folder: Path, names: Collection[str], remove: bool = True) -> None:
    """Make room for a folder that holds these files; `UsageError` if anything else is there, which stays."""
    if not folder.exists():
        return
    if not folder.is_dir() or not {path.name for path in folder.iterdir()} <= set(names):
        raise UsageError(f"{folder} exists and holds other things; choose another folder")
    if remove:
        shutil.rmtree(folder)


@contextmanager
def atomic_folder(folder: Path, replaces: Collection[str] = ()) -> Iterator[Path]:
    """A draft that becomes ``folder`` when the block ends well, and vanishes when it does not.

    A folder that is there makes room if it holds nothing but files of the draft's names, and of those in ``replaces``.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise UsageError(f"cannot write to {folder.parent}: {error.strerror}") from None
    try:
        yield draft
        vacate(folder, {path.name for path in draft.iterdir()} | set(replaces))
        draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _read(folder: Path, key: Key | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What is said about a model, and its weights; of an encrypted one nothing is looked into before it is checked."""
    try:
        said, sealed = (folder / ABOUT).read_bytes(), (folder / SEALED).exists()
        require(not sealed or key is not None, f"{folder} is encrypted: give its key (--key-file, or {VARIABLE})")
        require(sealed or key is None, f"{folder} is not encrypted, and a key was given: leave the key out to trust it")
        content = unseal((folder / SEALED).read_bytes(), said, key, str(folder / SEALED)) if key is not None else None
        about = json.loads(said)
        _ = [about[name] for name in ("task", "training", "data", "seed", "seconds", "claims")]
        return about, load_file(folder / WEIGHTS) if content is None else load(content)
    except FileNotFoundError as error:
        raise UsageError(f"{folder} holds no saved model: {Path(error.filename).name} is missing") from None
    except UsageError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, OSError):
        raise UsageError(f"{folder} is corrupt: delete it, and the model is trained again") from None
