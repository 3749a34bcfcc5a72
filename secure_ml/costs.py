"""What pieces of work took, kept beside a run's cells, and what the rest of a run will take by that."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean

from secure_ml.defense import stack_name
from secure_ml.shelf import Local, Remote
from secure_ml.work import Outcome, Piece

NAME = "costs.jsonl"
KEPT = 20
"""Measurements of one kind that are kept, the latest."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Pieces that should take the same time: everything that defines one, but for its seed."""

    task: str
    defenses: str
    work: str
    examples: int
    device: str
    threads: int


def kind_of(piece: Piece, device: str, threads: int) -> Kind:
    """The kind of a piece."""
    cell = piece.job.cell
    training = piece.kind == "train"
    return Kind(
        task=repr(cell.task),
        defenses=stack_name(cell.trained if training else cell.defenses),
        work="training" if training else repr(cell.attack) if cell.attack else "report",
        examples=0 if training else cell.examples,
        device=device,
        threads=threads,
    )


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What work will take: the seconds of what is known, and the kinds of work that nothing is known of."""

    seconds: float
    unknown: tuple[str, ...]
    pieces: int

    def __str__(self) -> str:
        """In words; honest about what is unknown."""
        if not self.pieces:
            return "nothing"
        if not self.unknown:
            return f"about {duration(self.seconds)}"
        names = list(dict.fromkeys(self.unknown))
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        if len(self.unknown) == self.pieces:
            return f"of unknown cost, as nothing like it was done in this folder ({shown})"
        return f"about {duration(self.seconds)}, and {counted(len(self.unknown), 'piece')} of unknown cost ({shown})"


@dataclass
class Costs:
    """Seconds of finished pieces by kind. A measurement of work that failed or had no meaning is not one."""

    device: str
    threads: int
    seconds: dict[Kind, list[float]] = field(default_factory=dict)
    fresh: int = 0

    @classmethod
    def read(cls, shelf: Local | Remote, device: str, threads: int) -> Costs:
        """What earlier runs of this folder took; a line that cannot be read is left out."""
        costs = cls(device, threads)
        for line in shelf.read(NAME).splitlines():
            try:
                said = json.loads(line)
                costs.seconds[Kind(**said["kind"])] = [float(value) for value in said["seconds"]]
            except (ValueError, KeyError, TypeError):
                continue
        return costs

    def add(self, piece: Piece, outcome: Outcome) -> None:
        """Learn from a finished piece."""
        if outcome.failure or outcome.obstacle or (outcome.result and outcome.result.obstacle):
            return
        known = self.seconds.setdefault(kind_of(piece, self.device, self.threads), [])
        known.append(outcome.seconds)
        del known[:-KEPT]
        self.fresh += 1

    def write(self, shelf: Local | Remote) -> None:
        """Keep them, if there is something new."""
        if self.fresh:
            lines = (json.dumps({"kind": asdict(kind), "seconds": s}) for kind, s in self.seconds.items())
            shelf.write(NAME, "".join(f"{line}\n" for line in lines))
            self.fresh = 0

    def of(self, piece: Piece) -> float | None:
        """What a piece will take: as its kind did; else as the same work did on other stacks; None if never done."""
        kind = kind_of(piece, self.device, self.threads)
        if kind in self.seconds:
            return fmean(self.seconds[kind])
        if kind.work == "training":
            return None
        like = [s for other, s in self.seconds.items() if (other.task, other.work) == (kind.task, kind.work)]
        return max(map(fmean, like)) if like else None

    def forecast(self, waiting: Sequence[Piece], going: Sequence[tuple[Piece, float]], places: int) -> Forecast:
        """What is left with so many places: waiting pieces, and those going on for some seconds."""
        known, unknown, longest = 0.0, [], 0.0
        for piece, spent in [*((piece, 0.0) for piece in waiting), *going]:
            whole = self.of(piece)
            if whole is None:
                unknown.append(kind_of(piece, self.device, self.threads).work)
                continue
            left = max(whole - spent, 0.0)
            known += left
            longest = max(longest, left)
        seconds = max(known / max(places, 1), longest)
        return Forecast(seconds=seconds, unknown=tuple(unknown), pieces=len(waiting) + len(going))


def counted(number: int, thing: str) -> str:
    """``1 cell``, ``2 cells``."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
