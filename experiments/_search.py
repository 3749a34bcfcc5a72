"""Private trainings of several settings on one split of the data, and what looking at their results costs."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from defenses.dp_sgd import DPSGD
from defenses.dp_sgd.accounting import epsilon_of
from defenses.dp_sgd.optimizer import Poisson, PoissonPersons
from defenses.dp_sgd.renyi import History
from secure_ml.attack import Attack, Result
from secure_ml.batch import Splits
from secure_ml.cells import Stack
from secure_ml.defense import stack_name
from secure_ml.errors import UsageError, require
from secure_ml.randomness import derive, generator
from secure_ml.rows import Row, make_row, pool_rows
from secure_ml.task import Task
from secure_ml.threats import Threat
from secure_ml.training import Loader, make_plan
from secure_ml.victim import Victim


@dataclass(frozen=True)
class SameSplit:
    """A task's data, split by one seed whatever the seed of the training: every run learns from the same examples."""

    data: Callable[[torch.Generator], Splits]
    seed: int

    def __call__(self, rng: torch.Generator) -> Splits:
        """The one split."""
        return self.data(generator(self.seed, "data"))


@dataclass(frozen=True, kw_only=True)
class Validation(Attack):
    """No attack: the task's score of the served answers on the validation split, by which a setting is chosen."""

    family = "validation"

    def evaluate(self, victim: Victim, *, threat: Threat | None, seed: int, examples: int) -> Result:
        """One row, with the victim's claims."""
        score = victim.task.score
        found = score.measure(victim.served, victim.splits.validation)
        return Result((make_row(victim, f"{score.name} on validation", found, unit=score.unit),))

    @classmethod
    def pool(cls, task: Task, attempts: Sequence[tuple[Attack, Result]]) -> list[Row]:
        """The mean over runs."""
        return [pool_rows([result.rows[0] for _, result in attempts])]


@dataclass(frozen=True)
class Run:
    """One private training: its setting, its seed, and what its own claim says that it did to the data."""

    setting: str
    seed: int
    row: Row
    history: History | None
    """None where the run claims nothing."""
    unit: str = "record"
    """Of whose data the claim speaks."""

    @property
    def name(self) -> str:
        """What tells it from every other run in a folder."""
        return f"{self.setting}, seed {self.seed}, {self.row.device}"

    def merit(self, task: Task) -> float:
        """How good it is on validation; the worst where that is not a number."""
        if self.row.value is None:
            return -math.inf
        return self.row.value if task.score.higher_is_better else -self.row.value


def run_of(stack: Stack, seed: int, row: Row) -> Run:
    """The run behind a row, priced by the claim that its own accountant made."""
    claims = [claim.values for claim in row.claims if claim.kind == "differential privacy"]
    if len(claims) != 1:
        return Run(stack_name(stack), seed, row, None)
    (said,) = claims
    history = ((float(said["sigma"]), float(said["q"]), int(said["steps"])),)
    return Run(stack_name(stack), seed, row, history, str(said["unit"]))


def private_part(stack: Stack) -> DPSGD:
    """The DP-SGD of a stack; `UsageError` where it holds none."""
    found = [defense for defense in stack if isinstance(defense, DPSGD)]
    require(
        len(found) == 1, f"{stack_name(stack)} trains without DP-SGD: every setting needs dp_sgd, dp_sgd(clip=0.1) say"
    )
    return found[0]


def varied(stack: Stack, **fields: Any) -> Stack:
    """The stack with other values in some fields of its DP-SGD."""
    private = private_part(stack)
    return tuple(replace(defense, **fields) if defense is private else defense for defense in stack)


def planned(task: Task, stack: Stack, seed: int) -> History:
    """What one run of a stack would do to the data, found without training."""
    plan = make_plan(task, stack, seed, torch.device("cpu"))
    drawn = plan.loader.sampler if isinstance(plan.loader, Loader) else None
    poisson = drawn.persons if isinstance(drawn, PoissonPersons) else drawn
    assert isinstance(poisson, Poisson)
    noise = float(plan.optimizer.noise_multiplier)  # type: ignore[attr-defined]
    return ((noise, float(poisson.draw.sample_rate), plan.loader.steps * plan.epochs),)


def training_seed(seed: int, stack: Stack, repeat: int) -> int:
    """Noise of its own for each run: two runs with the same noise would cancel it, and nothing would be private."""
    return derive(seed, "run", stack_name(stack), repeat) % 2**48


def composed_price(runs: Sequence[Run], delta: float) -> tuple[float, str] | None:
    """Epsilon of all runs together, whoever sees the results of all.

    None where one of them claims nothing, or speaks of another unit: of persons, where others speak of records.
    Raises `UsageError` where two runs share their noise.
    """
    histories = [run.history for run in runs if run.history is not None]
    if len(histories) < len(runs) or len({run.unit for run in runs}) != 1:
        return None
    shared = [seed for seed, times in Counter(run.seed for run in runs).items() if times > 1]
    require(
        not shared,
        f"runs share the seed {shared and shared[0]}, and so their noise: no epsilon holds for them together",
    )
    return epsilon_of([step for history in histories for step in history], delta)


class Ledger:
    """What was looked at before in a folder, task by task: earlier runs are part of the price of later choices."""

    def __init__(self, folder: Path, task: Task) -> None:
        self.path, self.task = folder / "ledger.json", repr(task)
        try:
            self.all = json.loads(self.path.read_text()) if self.path.exists() else {}
            mine = self.all.setdefault(self.task, {"runs": {}, "secret": "", "tested": []})
            self.runs: dict[str, Any] = mine["runs"]
            self.tested: list[str] = mine["tested"]
            self.secret: str = mine["secret"]
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UsageError(
                f"{self.path} is corrupt: its runs cannot be priced any more; choose another folder"
            ) from None

    def earlier(self, runs: Iterable[Run], row: Row) -> list[Run]:
        """The runs of earlier calls that are none of these."""
        known = {run.name for run in runs}
        return [
            Run(name, told["seed"], row, _history(told["steps"]), told["unit"])
            for name, told in self.runs.items()
            if name not in known
        ]

    def keep(self, runs: Iterable[Run], tested: str = "", secret: str = "") -> None:
        """Add runs whose results were looked at, the run that was tested, or the search whose runs stay secret."""
        self.runs |= {run.name: {"steps": run.history, "seed": run.seed, "unit": run.unit} for run in runs}
        if tested and tested not in self.tested:
            self.tested.append(tested)
        self.secret = secret
        self.all[self.task] = {"runs": self.runs, "secret": self.secret, "tested": self.tested}
        draft = self.path.with_suffix(".draft")
        draft.write_text(json.dumps(self.all, indent=1) + "\n")
        draft.replace(self.path)


def _history(told: list[list[float]] | None) -> History | None:
    return None if told is None else tuple((float(n), float(q), int(steps)) for n, q, steps in told)
