"""Fidelity against queries: how good a copy the answers of each stack of defenses sell, at which price."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate
from tyro.conf import OmitArgPrefixes

from experiments._catalog import Catalog, parse
from experiments._fidelity import Offer, draw_fidelity, offers
from experiments._options import Running
from experiments._provenance import now
from secure_ml.attack import Attack, Result
from secure_ml.cells import Cell
from secure_ml.errors import require
from secure_ml.families.extraction import KEPT, MOVED, Extraction
from secure_ml.report import with_failures
from secure_ml.rows import Row, cell, pool_rows, save_rows
from secure_ml.task import Task

DEFENSES = (
    "none",
    "rounding(decimals=1)",
    "top_k(k=1)",
    "label_only",
    "noisy_answers",
    "reverse_sigmoid",
    "prediction_poisoning(budget=1.0)",
    "dp_sgd(epsilon=3.0)",
)
ATTACKS = ("knockoff", "knockoff(reveal='label')", "recovery")


@dataclass(frozen=True)
class Extract:
    """Fidelity, accuracy and price of copies made from the answers of each stack of defenses, along the budget.

    The strongest attack at each budget counts; it is named. A finished cell is kept; a killed call resumes.
    """

    task: str = "digits_cnn"
    """The task: digits_cnn, or mnist_cnn(net='lenet')."""
    defense: tuple[str, ...] = DEFENSES
    """Stacks of defenses: none, rounding(decimals=1), top_k+noisy_answers."""
    attack: tuple[str, ...] = ATTACKS
    """Extraction attacks: knockoff, knockoff(reveal='label'), semi_supervised."""
    queries: tuple[int, ...] = (50, 100, 300)
    """Budgets at which each copy is judged."""
    price: float = 1.0
    """Dollars for 1,000 answers."""
    seeds: int = 1
    """Independent victims of each stack, each with its own split of the data and copies of its own."""
    examples: int = 1000
    """Test examples on which copy and victim are compared, at most."""
    running: OmitArgPrefixes[Running] = Running(out=Path("runs/extraction"))
    """How the table is filled, and where it is kept."""


def main(argv: Sequence[str]) -> int:
    """Run the cells, keep rows and the plot, print the table."""
    started = now()
    options, catalog = parse(Extract, argv, "secure-ml extraction")
    options.running.begin(seeds=options.seeds, examples=options.examples)
    require(
        bool(options.queries) and min(options.queries) >= 1, f"--queries must be at least 1; given {options.queries}"
    )
    require(options.price >= 0, f"--price must be at least 0 dollars; given {options.price}")
    task = catalog.task(options.task)
    cells = make_cells(options, catalog, task)
    results = options.running.fill(cells)
    rows = pooled(list(zip(cells, results, strict=True)))
    save_rows(rows, options.running.out / "rows.jsonl")
    found = offers(rows)
    require(bool(found), f"none of these attacks makes a copy of {task}; name knockoff, say, or see secure-ml matrix")
    text = "\n".join([repr(task), "", *fidelity_table(rows, found, options.price)])
    draw_fidelity(found, options.running.out / "extraction.png", f"copies of {task}")
    return options.running.finish("extraction", argv, started, rows, results, text)


def make_cells(options: Extract, catalog: Catalog, task: Task) -> list[Cell]:
    """The cells of every stack: its card and each attack, with the budgets that are asked for."""
    budgets = tuple(sorted(set(options.queries)))
    tried: list[Attack | None] = [None]
    for name in options.attack:
        attack = catalog.attack(name)
        require(isinstance(attack, Extraction), f"{name!r} is no extraction attack: name knockoff, say")
        along = {"queries": budgets[-1], "budgets": budgets[:-1]}
        known = {field.name for field in dataclasses.fields(attack)}  # type: ignore[arg-type]
        tried.append(dataclasses.replace(attack, **{k: v for k, v in along.items() if k in known}))  # type: ignore[type-var]
    return [
        Cell(task=task, defenses=stack, attack=attack, seed=seed, examples=options.examples)
        for stack in dict.fromkeys(catalog.stack(name) for name in options.defense)
        for seed in options.running.seeds(options.seeds)
        for attack in dict.fromkeys(tried)
    ]


def pooled(pairs: Sequence[tuple[Cell, Result]]) -> list[Row]:
    """The rows of every stack and attack over its victims."""
    groups: dict[tuple[object, Attack | None], list[Result]] = {}
    for place, result in pairs:
        groups.setdefault((place.defenses, place.attack), []).append(result)
    rows: list[Row] = []
    for results in groups.values():
        met = [result for result in results if not result.obstacle]
        if met:
            rows += with_failures(
                [pool_rows(same) for same in zip(*(result.rows for result in met), strict=True)], results
            )
        else:
            rows.append(pool_rows([result.rows[0] for result in results]))
    return rows


def fidelity_table(rows: Sequence[Row], found: Sequence[Offer], price: float) -> list[str]:
    """Of every stack its own score, and at each budget the strongest attack, what its copy reaches, what it cost."""
    notes: list[str] = []
    lines = []
    for stack in dict.fromkeys(row.defenses for row in rows):
        mine = [row for row in rows if row.defenses == stack]
        honest = [cell([row for row in mine if row.measure == name][:1], notes) for name in (KEPT, MOVED)]
        for offer in sorted((o for o in found if o.defenses == stack), key=lambda o: o.budget):
            moved = [offer.transfer] if offer.transfer else []
            lines.append(
                [stack, cell(mine[:1], notes), *honest, f"{offer.budget:,}", f"{offer.budget * price / 1000:.2f}"]
                + [cell([row], notes) for row in (offer.fidelity, offer.score)]
                + [cell(moved, notes), offer.fidelity.attack]
            )
    headers = [
        "protection",
        rows[0].measure,
        KEPT,
        MOVED,
        "queries",
        "dollars",
        "fidelity",
        "copy's score",
        "transfer",
        "strongest",
    ]
    text = tabulate(lines, headers, tablefmt="github", disable_numparse=True)
    return [text, *(f"[{i}] {note}" for i, note in enumerate(notes, 1))]
