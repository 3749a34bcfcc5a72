"""The best of several DP-SGD settings by the validation split, and the honest total of having chosen it."""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from tabulate import tabulate

from defenses.dp_sgd.accounting import epsilon_of
from defenses.dp_sgd.selection import SHAPES, UNPROTECTED, Selection
from experiments._catalog import Catalog, parse, set_data_directory
from experiments._run import run
from experiments._search import (
    Ledger,
    Run,
    SameSplit,
    Validation,
    composed_price,
    planned,
    private_part,
    run_of,
    training_seed,
    varied,
)
from secure_ml.cells import Cell, Stack
from secure_ml.defense import stack_name
from secure_ml.errors import require
from secure_ml.randomness import generator
from secure_ml.rows import Row, cell, package_version, save_rows
from secure_ml.task import Task
from secure_ml.victim import writable

CLIPS, RATES = (0.1, 1.0), (0.5, 2.0)
GRID = ("clip", "learning_rate", "batch_size", "epochs")


@dataclass(frozen=True)
class Tune:
    """The best of several DP-SGD settings by the validation split, and the honest total of having chosen it.

    Every run reveals something. With fixed trials each setting is trained once, all results are shown, and all runs
    compose, those of earlier calls in the same folder included. With random trials only the best run is shown, which
    costs less (Papernot and Steinke 2022). A finished run is kept; a killed call resumes.
    """

    task: str = "digits_cnn"
    """The task: digits_cnn, or digits_cnn(width=8)."""
    setting: tuple[str, ...] = ("dp_sgd",)
    """Settings: dp_sgd, 'dp_sgd(clip=0.1, learning_rate=0.5)', adversarial_training+dp_sgd."""
    clip: tuple[float, ...] = ()
    """Clips to be tried with each setting; 0.1 and 1 if no setting and no grid is given."""
    learning_rate: tuple[float, ...] = ()
    """Learning rates to be tried with each setting; 0.5 and 2 if no setting and no grid is given."""
    batch_size: tuple[int, ...] = ()
    """Expected batch sizes to be tried with each setting."""
    epochs: tuple[int, ...] = ()
    """Epochs to be tried with each setting."""
    trials: Literal["fixed", "geometric", "logarithmic", "poisson"] = "fixed"
    """Every setting once; or a number of runs drawn from this law, of settings drawn with replacement."""
    mean: float | None = None
    """Runs to be expected of random trials; 10 unless given."""
    show: bool = False
    """Whether random trials show every run, which then costs as much as fixed ones."""
    seed: int = 0
    """Of the split, the trials, the weights, the batches and the noise."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    threads: int = 1
    """Threads of each worker on the CPU; may change results in the last digits."""
    workers: int | None = None
    """Processes; as many as the cores hold threads unless given, 1 on a GPU. Changes no result."""
    out: Path = Path("runs/tune")
    """Folder of the search: models, rows, table, and the ledger of every run that was looked at."""
    data_dir: Path | None = None
    """Where data sets lie; SECURE_ML_DATA or ~/.cache/secure_ml unless given."""
    json: bool = False
    """Print the rows as JSON Lines instead of a table."""


def main(argv: Sequence[str]) -> int:
    """Train the trials, choose by validation, test the choice, print what it cost."""
    options, catalog = parse(Tune, argv, "secure-ml tune")
    set_data_directory(options.data_dir)
    for name in ("threads", "workers"):
        given = getattr(options, name)
        require(given is None or given >= 1, f"--{name} must be at least 1; given {given}")
    task = catalog.task(options.task)
    task = replace(task, data=SameSplit(task.data, options.seed))
    require(
        len(task.draw(options.seed).validation) > 0,
        f"{task} has no validation examples to choose by: name a task with a validation split",
    )
    candidates = settings(options, catalog)
    law = _law(options)
    trials = list(candidates) if law is None else drawn(law, candidates, options.seed)
    ledger = Ledger(writable(options.out), task)
    secret = "" if law is None or options.show else f"{law} of {[*map(stack_name, candidates)]}, seed {options.seed}"
    _refuse_mixture(ledger, secret, options.out)
    if not trials:
        print("The law drew no run at all, and nothing is released: that may happen, and is part of the guarantee.")
        return 0
    report = _search(options, task, candidates, trials, law, ledger, secret)
    save_rows(report.rows, options.out / "rows.jsonl")
    (options.out / "table.md").write_text(report.text + "\n")
    print("\n".join(json.dumps(asdict(row)) for row in report.rows) if options.json else report.text)
    print(f"rows and models are in {options.out}", file=sys.stderr)
    return 0


def settings(options: Tune, catalog: Catalog) -> list[Stack]:
    """The candidates: every setting with every point of the grid, all of one delta."""
    grid = {name: getattr(options, name) for name in GRID if getattr(options, name)}
    if not grid and options.setting == Tune.setting:
        grid = {"clip": CLIPS, "learning_rate": RATES}
    stacks = dict.fromkeys(
        varied(stack, **dict(zip(grid, point, strict=True)))
        for stack in map(catalog.stack, options.setting)
        for point in itertools.product(*grid.values())
    )
    require(len(stacks) > 0, "there is no setting to try: give one, --setting dp_sgd say")
    parts = list(map(private_part, stacks))
    deltas = sorted({part.delta for part in parts})
    require(
        len(deltas) == 1, f"the settings have different deltas, {deltas}: give them one, so that they can be added up"
    )
    require(len({part.persons for part in parts}) == 1, "some settings protect persons, others records: choose one")
    return list(stacks)


def drawn(law: Selection, candidates: Sequence[Stack], seed: int) -> list[Stack]:
    """Random trials: their number from the law, their settings uniformly with replacement."""
    rng = generator(seed, "trials", repr(law))
    picks = torch.randint(len(candidates), (law.draw(rng),), generator=rng)
    return [candidates[i] for i in picks.tolist()]


@dataclass(frozen=True)
class Report:
    """What is shown of a search, and nothing else of it."""

    rows: list[Row]
    text: str


def _search(
    options: Tune, task: Task, candidates: list[Stack], trials: list[Stack], law: Selection | None, ledger: Ledger,
    secret: str,
) -> Report:  # fmt: skip
    times: Counter[Stack] = Counter()
    seeds = []
    for stack in trials:
        seeds.append(training_seed(options.seed, stack, times[stack]))
        times[stack] += 1
    cells = [Cell(task=task, defenses=s, attack=Validation(), seed=n) for s, n in zip(trials, seeds, strict=True)]
    place = (options.out, options.device, options.threads, options.workers)
    results = run(cells, *place)
    blocked = [result.obstacle for result in results if result.obstacle]
    require(not blocked, blocked[0] if blocked else "")
    runs = [run_of(c.defenses, c.seed, result.rows[0]) for c, result in zip(cells, results, strict=True)]
    best = max(range(len(runs)), key=lambda i: runs[i].merit(task))
    delta = private_part(candidates[0]).delta
    if secret and law is not None:
        plans = [planned(task, stack, options.seed) for stack in candidates]
        prices = secret_prices(runs, runs[best], dict(zip(map(stack_name, candidates), plans, strict=True)), law, delta)
        ledger.keep([], runs[best].name, secret)
        shown = [runs[best]]
    else:
        earlier = ledger.earlier(runs, runs[best].row)
        prices = shown_prices(runs, earlier, runs[best], delta)
        ledger.keep(runs, runs[best].name)
        shown = runs
    (tested,) = run([replace(cells[best], attack=None)], *place)
    rows = [run.row for run in shown]
    test = replace(tested.rows[0], measure=f"{task.score.name} on test")
    bill = [_price_row(test, name, value, note) for name, value, note in prices]
    text = _text(task, shown, runs[best], test, bill, delta, len(ledger.tested), bool(secret), options.out)
    return Report([*rows, test, *bill], text)


Price = tuple[str, float | None, str]


def shown_prices(runs: Sequence[Run], earlier: Sequence[Run], best: Run, delta: float) -> list[Price]:
    """Of the chosen run alone, and of all runs whose results were seen: the honest total."""
    count = f"all {len(runs)} runs above" + (f" and {len(earlier)} of earlier calls" if earlier else "")
    alone, total = composed_price([best], delta), composed_price([*runs, *earlier], delta)
    why = "a run claims nothing, or speaks of another unit: no epsilon holds"
    return [
        (
            "epsilon of the chosen run alone",
            alone and alone[0],
            f"{alone[1]}, had it been the only one" if alone else why,
        ),
        ("epsilon with the selection", total and total[0], f"{total[1]}, {count}" if total else why),
    ]


def secret_prices(
    runs: Sequence[Run], best: Run, plans: dict[str, tuple[tuple[float, float, int], ...]], law: Selection, delta: float
) -> list[Price]:
    """Of the chosen run alone, and of the choice by random trials; none where a run did not do what was planned."""
    told = "RDP, of all that is shown; the other runs, and how many there were, must stay secret"
    if composed_price(runs, delta) is None:
        why = "a run claims nothing: no epsilon holds"
        return [("epsilon of the chosen run alone", None, why), ("epsilon with the selection", None, why)]
    if any(run.history != plans[run.setting] for run in runs):
        why = "a run did not do what was planned: no epsilon holds"
        return [("epsilon of the chosen run alone", None, why), ("epsilon with the selection", None, why)]
    assert best.history is not None
    alone, accountant = epsilon_of(best.history, delta)
    total = law.epsilon(list(plans.values()), delta)
    return [
        ("epsilon of the chosen run alone", alone, f"{accountant}, had it been the only one"),
        ("epsilon with the selection", max(total, alone), told),
    ]


def _law(options: Tune) -> Selection | None:
    if options.trials == "fixed":
        require(options.mean is None, "--mean is of random trials: add --trials geometric, or leave it out")
        require(not options.show, "--show is of random trials: fixed ones are all shown; leave it out")
        return None
    return Selection(shape=SHAPES[options.trials], mean=10.0 if options.mean is None else options.mean)


def _refuse_mixture(ledger: Ledger, secret: str, folder: Path) -> None:
    """The price of random trials holds for one search whose other runs nobody sees."""
    require(
        not secret or (not ledger.runs and ledger.secret in ("", secret)),
        f"{folder} holds another search on this data, whose price would have to be added: choose another folder, --out",
    )
    require(
        bool(secret) or not ledger.secret,
        f"{folder} holds a search whose other runs must stay secret: choose another folder, --out",
    )


def _price_row(test: Row, name: str, value: float | None, note: str) -> Row:
    return Row(
        task=test.task,
        defenses=test.defenses,
        attack="",
        seeds=test.seeds,
        measure=name,
        value=value,
        unit="epsilon",
        note=note,
        claims=test.claims,
        version=package_version(),
    )


def _text(
    task: Task, shown: Sequence[Run], best: Run, test: Row, bill: Sequence[Row], delta: float, tested: int,
    secret: bool, folder: Path,
) -> str:  # fmt: skip
    notes: list[str] = []
    lines = [[("* " if r is best else "") + r.setting, cell([r.row], notes), _claimed(r)] for r in shown]
    table = tabulate(lines, ["setting", best.row.measure, "its claim"], tablefmt="github", disable_numparse=True)
    unit = str(next((c.values.get("unit") for c in best.row.claims if c.values), task.unit))
    words = [
        repr(task),
        table,
        "",
        f"chosen: {best.setting}",
        f"{test.measure}: {cell([test], notes)}, looked at once"
        + (f", for {tested} choices by now" if tested > 1 else ""),
        "",
        f"What the choice costs at delta {delta:g}, for any one {unit} of the training data:",
        *(f"  {_number(row.value):<8} {row.measure.removeprefix('epsilon ')} ({row.note})" for row in bill),
        f"Mind: {UNPROTECTED}.",
    ]
    if secret:
        words.append(f"Mind: {folder} holds the runs that must stay secret; --seed tells how many, so keep it as well.")
    return "\n".join([*words, *(f"[{i}] {note}" for i, note in enumerate(notes, 1))])


def _claimed(run: Run) -> str:
    return "; ".join(claim.short for claim in run.row.claims) or "none"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
