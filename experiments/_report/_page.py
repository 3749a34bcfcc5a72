"""The report as one HTML file: nothing in it asks a network, and nothing that a row says is taken for markup."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments._report import _style
from experiments._report._material import Run
from experiments._report._svg import _MARKS
from experiments._report._view import Chapter, chapters, cited
from secure_ml.interactions import Effect, compared
from secure_ml.rows import SCHEMA, package_version

HERE = Path(__file__).parent
RANKS = {
    "better": 0,
    "worse": 1,
    "different": 2,
    "perhaps better": 3,
    "perhaps worse": 4,
    "perhaps different": 5,
    "within noise": 6,
}
"""Verdicts from certain to not."""


@dataclass(frozen=True)
class Move:
    """What changed from one run to another."""

    before: str
    after: str
    told: tuple[Effect, ...]
    rest: tuple[Effect, ...]
    gone: tuple[str, ...]
    apart: tuple[tuple[str, str, str], ...]
    """What the runs themselves differ in: name, before, after."""

    @property
    def said(self) -> str:
        """How much moved, in a sentence."""
        sure = [effect.verdict for effect in self.told if not effect.verdict.startswith("perhaps")]
        better, worse = sure.count("better"), sure.count("worse")
        perhaps = len(self.told) - len(sure)
        total = len(self.told) + len(self.rest)
        more = f"; {perhaps} more perhaps" if perhaps else ""
        return f"Of {total} numbers {better} got better and {worse} got worse beyond noise{more}."


def moved(after: Run, before: Run) -> Move:
    """The differences between two runs, those first that are more than noise."""
    found = sorted(compared(after.single, before.single), key=lambda effect: RANKS.get(effect.verdict, 9))
    told = [effect for effect in found if RANKS.get(effect.verdict, 9) < RANKS["within noise"]]
    mine, theirs = ({row.defenses for row in run.rows} for run in (after, before))
    rest = tuple(found[len(told) :])
    return Move(before.name, after.name, tuple(told), rest, tuple(sorted(mine ^ theirs)), tuple(_apart(after, before)))


def _apart(after: Run, before: Run) -> list[tuple[str, str, str]]:
    """Command, versions, hardware and seeds that are not the same; not when it was, nor how long it took."""
    new, old = ({"command": str(run.provenance.get("command") or ""), **dict(origin(run))} for run in (after, before))
    names = [name for name in dict.fromkeys([*old, *new]) if name not in ("started", "seconds")]
    return [(name, old.get(name, "-"), new.get(name, "-")) for name in names if old.get(name) != new.get(name)]


def page(runs: Sequence[Run]) -> str:
    """The report on the last of these runs; where there are several, what moved since the first comes first."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    run, (css, js) = runs[-1], ((HERE / f"page.{kind}").read_text() for kind in ("css", "js"))
    rooms = Environment(
        autoescape=True, loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    whole, moves = chapters(run), [moved(one, runs[0]) for one in runs[1:]]
    return rooms.get_template("page.html.j2").render(
        title=_title(runs, whole),
        facts=_facts(run),
        parts=_parts(whole, moves),
        chapters=whole,
        moves={"pairs": moves, "lead": LEAD} if moves else None,
        methods=cited(run),
        runs=[{"name": one.name, "provenance": _command(one), "facts": origin(one)} for one in runs],
        run_rows=sum(len(one.rows) for one in runs),
        seeds_text=_seeds(run),
        schema=SCHEMA,
        version=package_version(),
        style=_style,
        marks=_MARKS,
        ranks=RANKS,
        css=Markup(css),  # noqa: S704 - our own file
        js=Markup(js),  # noqa: S704 - our own file
        css_hash=_hash(css),
        js_hash=_hash(js),
    )


LEAD = (
    "Every number that both runs measured, the later less the earlier, seed by seed where the seeds match; "
    "p-values are corrected together (Holm). Better and worse are the defender's."
)


def _hash(text: str) -> str:
    """What the page's own policy lets run: this text, and nothing that a row may smuggle in."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _title(runs: Sequence[Run], whole: Sequence[Chapter]) -> str:
    tasks = ", ".join(chapter.task for chapter in whole) if len(whole) < 4 else f"{len(whole)} tasks"
    return tasks if len(runs) == 1 else f"{runs[-1].name} against {runs[0].name}"


def _seeds(run: Run) -> str:
    count = len({seed for row in run.rows for seed in row.seeds})
    if count == 1:
        return "One seed cannot tell what a stack changed from noise."
    return (
        f"The sign says whether what the stack changed against the bare model is more than the noise of {count} seeds."
    )


def _facts(run: Run) -> list[str]:
    """The line under the title."""
    about = run.provenance
    seeds = sorted({seed for row in run.rows for seed in row.seeds})
    facts = [f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"]
    facts += [str(about["started"]).replace("T", " ").partition("+")[0] + " UTC"] if about.get("started") else []
    hardware = about.get("hardware")
    if isinstance(hardware, dict):
        facts.append(str(hardware.get("gpu") or hardware.get("cpu")))
    return [*facts, f"version {next((row.version for row in run.rows if row.version), 'unknown')}"]


def _command(run: Run) -> dict[str, Any]:
    return {"command": str(run.provenance.get("command") or "")}


def origin(run: Run) -> list[tuple[str, str]]:
    """Where a run's numbers come from, as name and text."""
    about, facts = run.provenance, []
    hardware = about.get("hardware")
    if isinstance(hardware, dict):
        facts += [(str(name), str(value)) for name, value in hardware.items() if value is not None]
    facts.append(("device", ", ".join(sorted({row.device for row in run.rows}))))
    facts.append(("threads", ", ".join(map(str, sorted({row.threads for row in run.rows})))))
    facts.append(("seeds", ", ".join(map(str, sorted({seed for row in run.rows for seed in row.seeds})))))
    facts += [(name, str(about[name])) for name in ("started", "seconds") if about.get(name) is not None]
    versions = about.get("versions")
    if isinstance(versions, dict):
        facts += [(str(package), str(version)) for package, version in versions.items()]
    return facts


def _parts(whole: Sequence[Chapter], moves: Sequence[Move]) -> list[tuple[str, str]]:
    """The links at the top."""
    parts = [("moved", "What moved")] if moves else []
    for chapter in whole:
        if len(whole) > 1:
            parts.append((f"{chapter.anchor}", chapter.task))
            continue
        there = {
            "card": True,
            "matrix": True,
            "effects": chapter.changes,
            "stacked": chapter.together or chapter.sums,
            "pareto": chapter.fronts,
            "curves": chapter.curves,
            "roc": chapter.rates,
            "examples": chapter.exhibits,
            "claims": chapter.promises,
            "checks": chapter.checks,
        }
        parts += [(f"{chapter.anchor}-{key}", NAMES[key]) for key, some in there.items() if some]
    return [*parts, ("methods", "Methods"), ("provenance", "Provenance")]


NAMES = {
    "card": "Card",
    "matrix": "Matrix",
    "effects": "Effects",
    "stacked": "Stacking",
    "pareto": "Trade-offs",
    "curves": "Radius",
    "roc": "ROC",
    "examples": "Examples",
    "claims": "Claims",
    "checks": "Checks",
}
