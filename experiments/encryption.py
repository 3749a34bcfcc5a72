"""Accuracy, error, latency and bytes of encrypted inference against depth, ring and activation, with the audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tabulate import tabulate
from tyro.conf import OmitArgPrefixes

from defenses.homomorphic import Homomorphic
from defenses.homomorphic.contract import Engine
from experiments import _encryption_cost as cost
from experiments._catalog import parse
from experiments._deeper import deeper
from experiments._encryption_cost import EncryptionCost
from experiments._encryption_plots import Setting, draw_costs
from experiments._options import Running
from experiments._provenance import now
from secure_ml.attack import Result
from secure_ml.cells import Cell
from secure_ml.errors import require
from secure_ml.families.scrutiny import worst_row
from secure_ml.report import with_failures
from secure_ml.rows import Row, cell, findings, pool_rows, save_rows
from secure_ml.task import Task

Activation = Literal["fixed", "learned"]
MEASURES = (
    *(cost.ACCURACY, cost.CLEAR, cost.EQUAL, cost.ERROR),
    *(cost.LATENCY, cost.AMORTISED, cost.UP, cost.DOWN, cost.KEYS),
)


@dataclass(frozen=True)
class Encryption:
    """Accuracy, logit error, latency and bytes of encrypted inference against depth, ring, activation and engine.

    A model is trained for each depth and activation, its ReLU twin beside it; each is then served by each engine on
    each ring. Under the table stands the audit of both ends. A finished cell is kept; a killed call resumes.
    """

    task: str = "digits_cnn"
    """The task: digits_cnn, or mnist_cnn; a Sequential that ends in a dense layer."""
    activations: tuple[int, ...] = (1, 2, 3)
    """Numbers of activations: dense layers are added before the last one."""
    activation: tuple[Activation, ...] = ("fixed", "learned")
    """Quadratics whose coefficients stay, or are trained with the weights."""
    engine: tuple[Engine, ...] = ("throughput", "latency")
    """throughput encrypts every test input; latency and reference encrypt --spot of them, and simulate the others."""
    degrees: tuple[int, ...] = (4096, 8192, 16384)
    """Rings: 4096, 8192, 16384, 32768."""
    precision: float = 1.0
    """The largest logit error allowed: what is expected to exceed it is not run."""
    products: int = 1_000_000
    """The most products of a ciphertext and a weight that a program may need for an input: larger ones are not run."""
    range_penalty: float = 1.0
    """Times the mean square by which inputs of activations leave their span, in training; 0 where it is not wanted."""
    learning_rate_factor: float = 0.2
    """On the recipe's learning rate: deep quadratic networks diverge at that of ReLU."""
    spot: int = 8
    """Queries that are encrypted where most are simulated, and in the audit."""
    seeds: int = 1
    """Independent victims of each depth and activation, each with its own split of the data."""
    examples: int = 1000
    """Test examples that are asked about, at most."""
    checks: bool = True
    """Whether to audit both ends of every program."""
    running: OmitArgPrefixes[Running] = Running(out=Path("runs/encryption"))
    """How the table is filled, and where it is kept."""


def main(argv: Sequence[str]) -> int:
    """Run the cells, keep rows and plot, print the table and the audit."""
    started = now()
    options, catalog = parse(Encryption, argv, "secure-ml encryption")
    options.running.begin(seeds=options.seeds, examples=options.examples, spot=options.spot, products=options.products)
    require(len(options.activations) > 0, "--activations needs at least one number: 1 2 3, say")
    cells = make_cells(options, catalog.task(options.task))
    results = options.running.fill(cells)
    rows = pooled(cells, results)
    save_rows(rows, options.running.out / "rows.jsonl")
    text = "\n".join([options.task, "", *cost_table(rows), *audits(rows)])
    draw_costs(settings(rows), options.running.out / "encryption.png", f"encrypted {options.task}")
    return options.running.finish("encryption", argv, started, rows, results, text)


def make_cells(options: Encryption, task: Task) -> list[Cell]:
    """Of every depth the ReLU twin's card, and each activation under each engine and ring."""
    cells = []
    for depth in dict.fromkeys(options.activations):
        variant = deeper(task, depth)
        seeds = options.running.seeds(options.seeds)
        cells += [Cell(task=variant, defenses=(), attack=None, seed=seed) for seed in seeds]
        for activation in dict.fromkeys(options.activation):
            trained = Homomorphic(
                activation=activation,
                mode="simulate",
                precision=options.precision,
                products=options.products,
                range_penalty=options.range_penalty,
                learning_rate_factor=options.learning_rate_factor,
            )
            base = EncryptionCost(precision=options.precision, spot=options.spot, checks=options.checks)
            cells += [
                Cell(task=variant, defenses=(trained,), attack=attack, seed=seed, examples=options.examples)
                for engine in dict.fromkeys(options.engine)
                for degree in sorted(set(options.degrees))
                for attack in (replace(base, engine=engine, degree=degree),)
                for seed in seeds
            ]
    return cells


def pooled(cells: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    """The rows of every network and program over its victims; of each check, the worst finding."""
    groups: dict[tuple[str, object, object], list[Result]] = {}
    for place, result in zip(cells, results, strict=True):
        groups.setdefault((repr(place.task), place.defenses, place.attack), []).append(result)
    found: list[Row] = []
    for same in groups.values():
        met = [result for result in same if not result.obstacle]
        each = list(zip(*(result.rows for result in met or same), strict=True))
        pooled = [worst_row(one) if one[0].unit == "verdict" else pool_rows(one) for one in each]
        found += with_failures(pooled, same) if met else pooled
    return found


def settings(rows: Sequence[Row]) -> list[Setting]:
    """One setting for each program that was tried, from pooled rows."""
    groups: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        if row.attack and row.unit != "verdict":
            groups.setdefault((row.task, row.defenses, row.attack), {})[row.measure] = row
    found = []
    for (task, stack, attack), measured in groups.items():
        depth = int(task.rpartition("activations=")[2].rstrip(")"))
        engine = _said(attack, "engine", "throughput")
        found.append(
            Setting(depth, _said(stack, "activation", "fixed"), engine, int(_said(attack, "degree", "0")), measured)
        )
    return found


def cost_table(rows: Sequence[Row]) -> list[str]:
    """One line a network with ReLU, in the clear; one a program; notes say what was simulated."""
    notes: list[str] = []
    blank = ["-"] * (len(MEASURES) - 1)
    twins = {row.task: row for row in rows if not row.attack and row.measure == "accuracy"}
    lines = [
        [task.rpartition("activations=")[2].rstrip(")"), "ReLU", "in the clear", "-", "-", cell([row], notes), *blank]
        for task, row in twins.items()
    ]
    for one in settings(rows):
        why = [row for row in one.rows.values() if row.value is None]
        shown = [cell([one.rows[name]], notes) if name in one.rows else "-" for name in MEASURES]
        shown = [cell(why, notes), *shown[1:]] if why else shown
        parameters = one.rows[cost.MODULUS].note.partition("[")[2].partition("]")[0] if not why else "-"
        lines.append([str(one.activations), one.activation, one.engine, str(one.degree), *shown, parameters])
    headers = ["activations", "activation", "engine", "N", *MEASURES, cost.MODULUS]
    text = tabulate(lines, headers, tablefmt="github", disable_numparse=True)
    return [text, *(f"[{i}] {note}" for i, note in enumerate(notes, 1))]


def audits(rows: Sequence[Row]) -> list[str]:
    """Of each stack, the worst that each check found on any of its programs."""
    checks: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.unit == "verdict":
            checks.setdefault((row.defenses, row.measure), []).append(row)
    return findings([worst_row(same) for same in checks.values()])


def _said(text: str, name: str, default: str) -> str:
    """A setting in the repr of what has it."""
    _, found, rest = text.partition(f"{name}=")
    return rest.partition(",")[0].rstrip(")").strip("'") if found else default
