"""What a run has worked out, on disk: cells and trained models by a name that changes with all that may change them."""

from __future__ import annotations

import json
import platform
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from secure_ml.attack import Attack, Result
from secure_ml.defense import Defense
from secure_ml.errors import UsageError
from secure_ml.identity import Unidentifiable, digest, ground_floor, identify
from secure_ml.rows import package_version, row_from
from secure_ml.shelf import Local, Remote, shelf_at
from secure_ml.task import Task
from secure_ml.threats import Threat
from secure_ml.training import fit
from secure_ml.victim import Victim, resolve_device

Stack = tuple[Defense, ...]
PACKAGES = (
    "secure-ml",
    "torch",
    "torchvision",
    "opacus",
    "tenseal",
    "numpy",
    "scikit-learn",
    "transformers",
    "gymnasium",
)


class CorruptStore(UsageError):  # noqa: N818
    """A file of a store is not whole; what to delete. It ends a run, as every further cell may meet it."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One attack (or, without one, the plain report) on one victim."""

    task: Task
    defenses: Stack
    attack: Attack | None
    seed: int
    threat: Threat | None = None
    examples: int = 1000

    @property
    def trained(self) -> Stack:
        """The defenses that the model's weights depend on."""
        return tuple(defense for defense in self.defenses if defense.trains())


@dataclass(frozen=True, kw_only=True)
class Job:
    """A cell with the names, in a store, of its trained model and of itself; None where it cannot be cached."""

    cell: Cell
    model: str | None
    name: str | None


@dataclass(frozen=True, kw_only=True)
class Store:
    """A run's folder, or a URL that fsspec reaches, and the settings of the machine that are part of every name."""

    folder: Path | str
    device: str = "cpu"
    threads: int = 1
    machine: tuple[str, ...] | None = None
    """What may change a number besides the settings, where the work is done; that of this process unless given."""

    @property
    def shelf(self) -> Local | Remote:
        """Where its folders lie."""
        return shelf_at(self.folder)

    def jobs(self, cells: Sequence[Cell]) -> list[Job]:
        """The cells by name. A task's data is hashed once; a name changes with anything that may change a result."""
        machine = machine_of(self.device, self.threads) if self.machine is None else self.machine
        known: dict[tuple[object, ...], str] = {}
        return [self._job(cell, known, machine) for cell in cells]

    def _job(self, cell: Cell, known: dict[tuple[object, ...], str], machine: tuple[str, ...]) -> Job:
        """``known`` holds what was hashed for an earlier cell, by the identity of the objects that this one shares."""
        task, threat = cell.task, cell.threat or cell.task.threat

        def once(text: Callable[[], str], *names: object) -> str:
            if names not in known:
                known[names] = text()
            return known[names]

        try:
            data = once(lambda: digest(identify(task), task.draw(0).fingerprint()), id(task))
            trained = once(lambda: identify(cell.trained), "trained", id(cell.defenses))
            rest = (cell.defenses, cell.attack, threat, cell.examples)
            whole = once(lambda: identify(rest), *map(id, rest[:3]), cell.examples)
            base = (*machine, data, str(cell.seed))
            return Job(cell=cell, model=digest(*base, trained), name=digest(*base, whole))
        except Unidentifiable as what:
            warnings.warn(f"{task}: {what} has no readable source, so its cells are not cached", stacklevel=2)
            return Job(cell=cell, model=None, name=None)

    def trained(self, job: Job) -> bool:
        """Whether the job's model is here."""
        return job.model is not None and self.shelf.has(f"models/{job.model}")

    def victim(self, job: Job) -> Victim:
        """The job's victim: loaded if its model is here, else trained and, where it has a name, kept."""
        cell, shelf = job.cell, self.shelf
        if self.trained(job):
            with shelf.take(f"models/{job.model}") as folder:
                try:
                    return Victim.load(folder, cell.task, cell.defenses, device=self.device)
                except UsageError as error:
                    raise CorruptStore(str(error)) from None
        unfinished = shelf.unfinished(job.model) if job.model else None
        victim = fit(cell.task, cell.defenses, seed=cell.seed, device=self.device, checkpoint=unfinished)
        if job.model:
            with shelf.draft(f"models/{job.model}") as draft:
                victim.save(draft)
        return victim

    def read(self, job: Job) -> Result | None:
        """The job's result if it is done; `CorruptStore`, a `UsageError`, if its files are corrupt."""
        shelf, name = self.shelf, f"cells/{job.name}"
        if job.name is None or not shelf.has(name):
            return None
        try:
            with shelf.take(name) as folder:
                rows = json.loads((folder / "rows.json").read_text())
                known, usage = (tuple(row_from(row) for row in rows[part]) for part in ("rows", "usage"))
                return Result(known, load_file(folder / "evidence.safetensors"), usage, rows["obstacle"])
        except (OSError, SafetensorError, ValueError, TypeError, KeyError):
            place = f"{self.folder}/{name}"
            raise CorruptStore(f"the cell {place} is corrupt: delete that folder, and it is computed again") from None

    def write(self, job: Job, result: Result) -> None:
        """Keep a result, all or nothing; one that failed is not kept, so that a later call tries again."""
        if job.name is None or result.failed:
            return
        rows: dict[str, object] = {"rows": [asdict(row) for row in result.rows]}
        rows |= {"usage": [asdict(row) for row in result.usage], "obstacle": result.obstacle}
        with self.shelf.draft(f"cells/{job.name}") as draft:
            (draft / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")
            save_file({k: v.contiguous() for k, v in result.evidence.items()}, draft / "evidence.safetensors")


def machine_of(device: str, threads: int) -> tuple[str, ...]:
    """What may change a number besides the settings, in this process."""
    place = resolve_device(device)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else platform.machine()
    return name, str(threads), *(f"{package} {package_version(package)}" for package in PACKAGES), ground_floor()
