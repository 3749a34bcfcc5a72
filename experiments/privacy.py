"""Accuracy against epsilon: what is claimed, what shows of it from below, what attacks find, and the checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate
from tyro.conf import OmitArgPrefixes

from attacks.scrutiny.privacy_checks import PrivacyChecks
from experiments._catalog import Catalog, parse
from experiments._options import Running
from experiments._privacy_plots import Point, draw_privacy
from experiments._provenance import now
from experiments._roc import draw_rocs
from secure_ml.attack import Attack, Result
from secure_ml.cells import Cell
from secure_ml.defense import stack_name
from secure_ml.errors import require
from secure_ml.families.audit import MEASURE, Audit
from secure_ml.families.membership import FALSE_POSITIVES, Membership
from secure_ml.report import with_failures
from secure_ml.roc import Roc, roc
from secure_ml.rows import Row, cell, findings, pool_rows, save_rows
from secure_ml.task import Task

DEFENSES = ("none", "dp_sgd(epsilon=8.0)", "dp_sgd(epsilon=3.0)", "dp_sgd(epsilon=1.0)")
MEMBERSHIP = ("loss_threshold", "lira(shadows=8)", "rmia(shadows=8, online=True)")
AUDITS = ("one_run", "step_audit")
Pairs = list[tuple[Cell, Result]]


@dataclass(frozen=True)
class Privacy:
    """Accuracy against epsilon, bare and under DP-SGD: claims beside bounds from below and membership attacks.

    Under the tables stand the checks that say how far to believe them. A finished cell is kept; a killed call resumes.
    """

    task: str = "digits_cnn"
    """The task: digits_cnn, or mnist_cnn(activation='tanh')."""
    defense: tuple[str, ...] = DEFENSES
    """Stacks of defenses: none, dp_sgd(epsilon=3.0), dp_sgd+label_only."""
    attack: tuple[str, ...] = MEMBERSHIP
    """Membership attacks: loss_threshold, lira(shadows=64), rmia."""
    audit: tuple[str, ...] = AUDITS
    """Audits: one_run, step_audit, many_run."""
    seeds: int = 2
    """Independent victims of each stack, each with its own split of the data."""
    examples: int = 1000
    """Members that are attacked, at most, and as many others."""
    checks: bool = True
    """Whether to check what the numbers are worth."""
    running: OmitArgPrefixes[Running] = Running(out=Path("runs/privacy"))
    """How the table is filled, and where it is kept."""


def main(argv: Sequence[str]) -> int:
    """Run the cells, keep rows and plots, print the tables and the checks."""
    started = now()
    options, catalog = parse(Privacy, argv, "secure-ml privacy")
    options.running.begin(seeds=options.seeds, examples=options.examples)
    task = catalog.task(options.task)
    cells = make_cells(options, catalog, task)
    results = options.running.fill(cells)
    pairs = list(zip(cells, results, strict=True))
    rows = pooled(pairs, task)
    save_rows(rows, options.running.out / "rows.jsonl")
    text = "\n".join(
        [
            repr(task),
            "",
            *price_table(rows),
            "",
            *leak_table(rows),
            "",
            *findings([row for row in rows if row.unit == "verdict"]),
        ]
    )
    draw_privacy(points(rows), options.running.out / "privacy.png", f"{task} under differential privacy")
    draw_rocs(_rocs(pairs), options.running.out / "roc.png", f"membership in the training data of {task}")
    return options.running.finish("privacy", argv, started, rows, results, text)


def make_cells(options: Privacy, catalog: Catalog, task: Task) -> list[Cell]:
    """The cells of every stack: its card, each membership attack, each audit and the checks."""
    tried: list[Attack | None] = [None]
    for names, family, example in ((options.attack, Membership, "lira"), (options.audit, Audit, "one_run")):
        for name in names:
            attack = catalog.attack(name)
            require(isinstance(attack, family), f"{name!r} is no {family.__name__.lower()} attack: name {example}, say")
            tried.append(attack)
    if options.checks:
        tried.append(PrivacyChecks())
    return [
        Cell(task=task, defenses=stack, attack=attack, seed=seed, examples=options.examples)
        for stack in dict.fromkeys(catalog.stack(name) for name in options.defense)
        for seed in options.running.seeds(options.seeds)
        for attack in dict.fromkeys(tried)
    ]


def pooled(pairs: Pairs, task: Task) -> list[Row]:
    """The rows of every stack over its victims, each attack on its own: nothing is chosen by what it found."""
    rows: list[Row] = []
    for stack in dict.fromkeys(c.defenses for c, _ in pairs):
        mine = [(c, r) for c, r in pairs if c.defenses == stack]
        for attack in dict.fromkeys(c.attack for c, _ in mine):
            here = [r for c, r in mine if c.attack == attack]
            met = [r for r in here if not r.obstacle]
            if not met:
                rows.append(pool_rows([r.rows[0] for r in here]))
            elif attack is None:
                rows += with_failures([pool_rows(same) for same in zip(*(r.rows for r in met), strict=True)], here)
            else:
                rows += with_failures(attack.pool(task, [(attack, r) for r in met]), here)
    return rows


def price_table(rows: Sequence[Row]) -> list[str]:
    """Of every stack: what it scores, what it took, what it claims, and what shows of the whole run from below."""
    notes: list[str] = []
    names = [n for n in dict.fromkeys(row.measure for row in rows) if n.startswith(MEASURE) and "one step" not in n]
    lines = []
    for stack, mine in _stacks(rows):
        first = mine[0]
        seconds = [row for row in mine if row.measure == "training seconds"]
        shown = {row.measure: row.value for row in mine if row.value is not None}
        bounds = [f"{shown[name]:.2f}" if name in shown else "-" for name in names]
        claims = "; ".join(claim.short for claim in first.claims) or "-"
        lines.append([stack, cell([first], notes), cell(seconds, notes), claims, *bounds])
    short = [name.removeprefix(MEASURE).lstrip(", ") for name in names]
    headers = ["protection", rows[0].measure, "seconds", "claimed", *(f"epsilon at least, {name}" for name in short)]
    text = tabulate(lines, headers, tablefmt="github", disable_numparse=True)
    return [text, *(f"[{i}] {note}" for i, note in enumerate(notes, 1))]


def leak_table(rows: Sequence[Row]) -> list[str]:
    """Of every stack and membership attack: the area under the ROC and rates of true positives at few false ones."""
    notes: list[str] = []
    found = [row for row in rows if _is_membership(row)]
    names = list(dict.fromkeys(row.measure for row in found))
    lines = [
        [stack, attack, *(cell([r for r in mine if (r.attack, r.measure) == (attack, name)], notes) for name in names)]
        for stack, mine in _stacks(found)
        for attack in dict.fromkeys(row.attack for row in mine)
    ]
    text = tabulate(lines, ["protection", "attack", *names], tablefmt="github", disable_numparse=True)
    return [text, *(f"[{i}] {note}" for i, note in enumerate(notes, 1))]


def points(rows: Sequence[Row]) -> list[Point]:
    """One point for each stack that was trained."""
    made = []
    for _, mine in _stacks(rows):
        claimed = [float(claim.values["epsilon"]) for claim in mine[0].claims if "epsilon" in claim.values]
        whole = [row for row in mine if row.measure.startswith(MEASURE) and "one step" not in row.measure]
        bounds = {row.measure.removeprefix(MEASURE).lstrip(", "): row for row in whole}
        leaks = {r.attack: r for r in mine if r.measure == "membership AUC"}
        made.append(Point(claimed[0] if claimed else None, mine[0], bounds, leaks))
    return made


def _stacks(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    names = dict.fromkeys(row.defenses for row in rows)
    return [(name, [row for row in rows if row.defenses == name]) for name in names]


def _is_membership(row: Row) -> bool:
    return row.measure == "membership AUC" or row.measure.startswith("TPR at")


def _rocs(pairs: Pairs) -> dict[str, dict[str, Roc]]:
    """The ROC of each membership attack on each stack, where its non-members bear one."""
    panels: dict[str, dict[str, Roc]] = {}
    for c, _ in pairs:
        if not isinstance(c.attack, Membership):
            continue
        same = [r for other, r in pairs if (other.defenses, other.attack) == (c.defenses, c.attack) and not r.obstacle]
        scores = [(r.evidence["members"].numpy(), r.evidence["others"].numpy()) for r in same]
        if sum(len(others) for _, others in scores) > FALSE_POSITIVES:
            panels.setdefault(stack_name(c.defenses), {}).setdefault(repr(c.attack), roc(scores))
    return panels
