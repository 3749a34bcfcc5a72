"""What a run shows of itself on stderr while it goes on: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from secure_ml.cells import Agenda, Event
from secure_ml.costs import Costs, Forecast, duration
from secure_ml.work import Piece

SHOWN = 12
"""Places that the table lists."""


@dataclass
class Board:
    """Cells by state, what is going on where and since when, and what is left, learned from what was finished."""

    agenda: Agenda
    costs: Costs
    places: int
    console: Console = field(default_factory=lambda: Console(stderr=True))
    going: dict[str, tuple[Piece, float]] = field(default_factory=dict)

    def showing(self) -> AbstractContextManager[Any]:
        """A live table around the run, where there is a terminal."""
        if not self.console.is_terminal:
            return nullcontext()
        return Live(get_renderable=self.render, console=self.console, refresh_per_second=2, transient=True)

    def hear(self, event: Event) -> None:
        """Take note of an event; without a terminal, say what was finished."""
        if event.piece is None:
            return
        if event.kind == "started":
            self.going[event.place] = event.piece, time.monotonic()
            return
        self.going.pop(event.place, None)
        assert event.outcome is not None
        self.costs.add(event.piece, event.outcome)
        result = event.outcome.result
        verb = {"trained": "done", "attacked": "n/a" if result is None or result.obstacle else "done"}.get(
            event.kind, f"FAILED ({event.outcome.failure})"
        )
        if event.kind == "failed" or not self.console.is_terminal:
            left = f"; left: {self.forecast()}" if event.kind != "failed" else ""
            line = f"{self.counts()}: {event.piece}: {verb}, {duration(event.outcome.seconds)}{left}"
            print(line, file=sys.stderr)  # through a live table, if there is one

    def counts(self) -> str:
        """How many cells are done, of how many."""
        return f"{len(self.agenda.done)}/{len(self.agenda.jobs)}"

    def forecast(self) -> Forecast:
        """What is left."""
        now = time.monotonic()
        going = [(piece, now - since) for piece, since in self.going.values()]
        return self.costs.forecast(self.agenda.waiting(), going, self.places)

    def render(self) -> RenderableType:
        """The table."""
        agenda, going = self.agenda, list(self.going.items())
        cells = sum(piece.kind == "attack" for _, (piece, _) in going)
        done = len(agenda.done) - agenda.meaningless - agenda.failed
        states = {
            "done": done,
            "running": cells,
            "waiting": len(agenda.jobs) - len(agenda.done) - cells,
            "failed": agenda.failed,
            "n/a": agenda.meaningless,
        }
        head = Text.assemble(
            *(
                (f"{number} {state}   ", "bold red" if state == "failed" and number else "")
                for state, number in states.items()
            ),
            (f"left: {self.forecast()}", "dim"),
        )
        table = Table("where", "what", "for", box=None, padding=(0, 2, 0, 0), header_style="dim")
        now = time.monotonic()
        for place, (piece, since) in going[:SHOWN]:
            table.add_row(place, str(piece), duration(now - since))
        if len(going) > SHOWN:
            table.add_row("", f"and {len(going) - SHOWN} more", "")
        bar = ProgressBar(total=max(len(agenda.jobs), 1), completed=len(agenda.done), width=60)
        return Group(head, bar, table)
