"""What an assessment has done so far, kept in a store, so that a killed one goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secure_ml.attack import Attack, Result
from secure_ml.batch import leaves
from secure_ml.defense import Defense, stack_name
from secure_ml.identity import Unidentifiable, digest, identify
from secure_ml.outside.opaque import opaque
from secure_ml.shelf import Local, shelf_at
from secure_ml.store import Cell, Job, Store, machine_of
from secure_ml.task import Task
from secure_ml.training import fit
from secure_ml.victim import Victim, writable


@dataclass
class Keeper:
    """Victims, results and decisions by what they depend on; one without a store computes everything and keeps nothing.

    Decisions (how thorough a step is, what is left out) follow from measured times, which are others in every call:
    they are kept, so that a call that goes on takes the same ones. Raises `CorruptStore` for a file that is not whole.
    """

    store: Store | None = None
    name: str = ""
    """Of the model, its data and the machine."""
    plan: str = ""
    """The file of decisions."""
    earlier: float = 0.0
    """Seconds that earlier calls have spent."""
    taken: dict[str, Any] = field(default_factory=dict)
    since: float = field(default_factory=time.perf_counter)

    @classmethod
    def at(cls, store: Store, subject: str, question: str) -> Keeper:
        """The keeper of a subject, and of the decisions for a question about it (so many minutes, say)."""
        name = digest(subject, *(store.machine or machine_of(store.device, store.threads)))
        plan = f"plan-{digest(name, question)}.json"
        known = json.loads(store.shelf.read(plan) or "{}")
        return cls(store, name, plan, known.get("seconds", 0.0), known.get("decisions", {}))

    def decided(self, about: str, decide: Callable[[], Any]) -> Any:
        """The decision of an earlier call, or the one that is made now; a value of JSON."""
        if about not in self.taken:
            self.taken[about] = decide()
            if self.store is not None:
                said = {"seconds": self.earlier + time.perf_counter() - self.since, "decisions": self.taken}
                self.store.shelf.write(self.plan, json.dumps(said, indent=1) + "\n")
        return self.taken[about]

    def victim(self, task: Task, stack: tuple[Defense, ...], seed: int, device: str | torch.device) -> Victim:
        """A victim that is trained, unless an earlier call has trained it."""
        trained = tuple(defense for defense in stack if defense.trains())
        name = self._name("victim", (trained, task.recipe), seed)
        if self.store is None or name is None:
            return fit(task, stack, seed=seed, device=device)
        cell = Cell(task=task, defenses=stack, attack=None, seed=seed)
        return self.store.victim(Job(cell=cell, model=name, name=None))

    def result(
        self, victim: Victim, attack: Attack | None, examples: int, seed: int, work: Callable[[], Result]
    ) -> Result:
        """What an attack (none: the plain report) did to a victim; one that went wrong is tried again."""
        name = self._name("cell", (victim.defenses, attack), victim.seed, seed, examples)
        cell = Cell(task=victim.task, defenses=victim.defenses, attack=attack, seed=victim.seed)
        job = Job(cell=cell, model=None, name=name)
        if self.store is None or name is None:
            return work()
        found = self.store.read(job)
        if found is None:
            found = work()
            self.store.write(job, found)
        return found

    def _name(self, kind: str, value: object, *numbers: int) -> str | None:
        if self.store is None:
            return None
        try:
            return digest(self.name, kind, identify(value), *map(str, numbers))
        except Unidentifiable:  # a method of a notebook, say, which is then run anew
            return None


def identity(victim: Victim, build: Callable[[], nn.Module] | None) -> str:
    """What tells a trained model and its data from any other: code, weights, and its answers to the test examples.

    Answers stand for what is neither: an attribute, a hook. Raises `Unidentifiable` where code cannot be read, and for
    a model that only answers, which may be another one tomorrow.
    """
    part = opaque(victim.module)
    if part is not None:
        raise Unidentifiable(f"{part.what}, which only answers and may be another one tomorrow")
    task, module = victim.task, victim.module
    asked = (task.name, task.loss, task.output, task.score, task.surfaces, task.threat, task.recipe, build)
    kinds = frozenset(type(part) for part in module.modules())
    answers: Tensor = victim.served(victim.splits.test.inputs)
    known = identify((kinds, dict(module.state_dict()), repr(module), tuple(leaves(answers))))
    return digest(identify(asked), known, victim.splits.fingerprint())


def store_for(folder: Path | str, device: torch.device) -> Store:
    """The store in a folder, for what is done here; `UsageError` for a place that cannot be written to."""
    shelf = shelf_at(folder)
    if isinstance(shelf, Local):
        writable(shelf.folder)
    return Store(folder=folder, device=device.type, threads=torch.get_num_threads())


def about(stack: tuple[Defense, ...], what: str) -> str:
    """The name of a decision about a stack."""
    return f"{stack_name(stack)}: {what}"
