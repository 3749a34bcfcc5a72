"""Accuracy against the radius of attacks, bare and under each defense, with what is certified and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tabulate import tabulate
from tyro.conf import OmitArgPrefixes

from attacks.certification.certified import Certified
from attacks.scrutiny.evasion_checks import EvasionChecks
from experiments._catalog import Catalog, parse, threat_of
from experiments._curves import Curve, draw_curves
from experiments._options import Running
from experiments._provenance import now
from secure_ml.attack import Attack, Result
from secure_ml.cells import Cell
from secure_ml.defense import stack_name
from secure_ml.errors import UsageError, require
from secure_ml.families.evasion import Evasion
from secure_ml.report import with_failures
from secure_ml.rows import Row, cell, findings, pool_rows, save_rows
from secure_ml.stats import clopper_pearson
from secure_ml.task import Task
from secure_ml.threats import Threat

DEFENSES = (
    "none",
    "adversarial_training",
    "trades",
    "interval_bounds",
    "feature_squeezing",
    "gradient_masking",
)
ATTACKS = ("fgsm", "pgd", "auto_attack")


@dataclass(frozen=True)
class Robustness:
    """Accuracy against the radius of an attack, bare and under each defense, by attack, with what is certified.

    Under the table stand the checks that say how far to believe it. A finished cell is kept; a killed call resumes.
    """

    task: str = "digits_cnn"
    """The task: digits_cnn, or mnist_cnn."""
    defense: tuple[str, ...] = DEFENSES
    """Stacks of defenses: none, trades, interval_bounds(radius=0.1)."""
    attack: tuple[str, ...] = ATTACKS
    """Evasion attacks: pgd, or auto_attack(version='plus')."""
    threat: str | None = None
    """What evasion may change: Linf(0.1), L2(1.5), L1(5); the task's own unless given."""
    factors: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    """Radii, as multiples of the threat's own."""
    seeds: int = 1
    """Independent victims of each stack, each with its own split of the data."""
    examples: int = 200
    """Test examples that are attacked, at most."""
    checks: bool = True
    """Whether to check what the numbers are worth."""
    running: OmitArgPrefixes[Running] = Running(out=Path("runs/robustness"))
    """How the table is filled, and where it is kept."""


def main(argv: Sequence[str]) -> int:
    """Run the cells, keep rows and plot, print the table and the checks."""
    started = now()
    options, catalog = parse(Robustness, argv, "secure-ml robustness")
    options.running.begin(seeds=options.seeds, examples=options.examples)
    require(
        len(options.factors) > 0 and min(options.factors) > 0, f"--factors must be above 0; given {options.factors}"
    )
    task = catalog.task(options.task)
    threat = threat_of(options.threat) if options.threat else task.threat
    if threat is None:
        raise UsageError(f"{task.name} declares no threat of its own: give one, --threat 'Linf(0.1)' say")
    cells = make_cells(options, catalog, task, threat)
    results = options.running.fill(cells)
    curves = make_curves(cells, results, task, threat, (0.0, *options.factors))
    rows = [row for curve in curves for row in curve.rows]
    checked = [row for c, result in zip(cells, results, strict=True) if _is_check(c) for row in result.rows]
    save_rows([*rows, *checked], options.running.out / "rows.jsonl")
    text = "\n".join([repr(task), *_table(curves, threat, options.factors), *findings(checked)])
    draw_curves(
        curves, options.running.out / "robustness.png", f"{task}: {task.score.name} under {type(threat).__name__}"
    )
    return options.running.finish("robustness", argv, started, [*rows, *checked], results, text)


def make_cells(options: Robustness, catalog: Catalog, task: Task, threat: Threat) -> list[Cell]:
    """The cells of every stack: each attack at each radius, 0 included, the certificate and the checks."""
    tried: list[tuple[Attack, Threat]] = []
    for name in options.attack:
        attack = catalog.attack(name)
        require(isinstance(attack, Evasion), f"{name!r} changes no inputs: name an evasion attack, pgd say")
        tried += [(attack, threat.scaled(factor)) for factor in (0.0, *options.factors)]
    tried.append((Certified(), threat))
    if options.checks:
        tried.append((EvasionChecks(), threat))
    return [
        Cell(task=task, defenses=stack, attack=attack, seed=seed, threat=within, examples=options.examples)
        for stack in dict.fromkeys(catalog.stack(name) for name in options.defense)
        for attack, within in tried
        for seed in options.running.seeds(options.seeds)
    ]


def make_curves(
    cells: Sequence[Cell], results: Sequence[Result], task: Task, threat: Threat, factors: Sequence[float]
) -> list[Curve]:
    """Of every stack: a curve for each attack, one for the worst of them on each example, and what is certified."""
    curves: list[Curve] = []
    pairs = list(zip(cells, results, strict=True))
    radii = [sum(part.radius for part in threat.scaled(factor).parts()) for factor in factors]
    for stack in dict.fromkeys(c.defenses for c in cells):
        mine = [(c, r) for c, r in pairs if c.defenses == stack]
        name = stack_name(stack)
        attempts = [(c.attack, c.threat, r) for c, r in mine if isinstance(c.attack, Evasion)]
        for attack in dict.fromkeys(a for a, _, _ in attempts):
            rows = _at_each([t for t in attempts if t[0] == attack], task, threat, factors)
            curves.append(Curve(name, repr(attack), radii, rows))
        if len({attack for attack, _, _ in attempts}) > 1:
            rows = _at_each(attempts, task, threat, factors)
            curves.append(Curve(name, "worst case", radii, rows))
        proofs = [r for c, r in mine if isinstance(c.attack, Certified) and not r.obstacle]
        if proofs:
            curves.append(Curve(name, "certified", radii, _certified(proofs, threat, factors)))
    return curves


def _at_each(
    attempts: Sequence[tuple[Evasion, Threat | None, Result]], task: Task, threat: Threat, factors: Sequence[float]
) -> list[Row]:
    """One pooled row for each radius; the worst case, where there are several attacks."""
    rows = []
    for factor in factors:
        here = [(attack, result) for attack, within, result in attempts if within == threat.scaled(factor)]
        met = [(attack, result) for attack, result in here if not result.obstacle]
        results = [result for _, result in here]
        pooled = met[0][0].pool(task, met)[0] if met else pool_rows([result.rows[0] for result in results])
        rows += with_failures([pooled], results)
    return rows


def _certified(proofs: Sequence[Result], threat: Threat, factors: Sequence[float]) -> list[Row]:
    """Certified accuracy at each radius, from the radii that were proved at once."""
    rows = []
    for factor in factors:
        within = threat.scaled(factor)
        radius = sum(part.radius for part in within.parts())
        held = [
            _with(result.rows[0], result.evidence["radii"] >= radius, f"certified accuracy under {within}")
            for result in proofs
        ]
        rows.append(pool_rows(held))
    return rows


def _with(row: Row, held: torch.Tensor, measure: str) -> Row:
    share = clopper_pearson(int(held.sum()), len(held))
    return replace(row, measure=measure, value=share.value, low=share.low, high=share.high, n=share.n)


def _table(curves: Sequence[Curve], threat: Threat, factors: Sequence[float]) -> list[str]:
    notes: list[str] = []
    lines = [[curve.defenses, curve.attack, *(cell([row], notes) for row in curve.rows)] for curve in curves]
    headers = ["protection", "attack", "clean", *(str(threat.scaled(factor)) for factor in factors)]
    text = tabulate(lines, headers, tablefmt="github", disable_numparse=True)
    return [text, *(f"[{i}] {note}" for i, note in enumerate(notes, 1))]


def _is_check(cell: Cell) -> bool:
    return isinstance(cell.attack, EvasionChecks)
