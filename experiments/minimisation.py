"""Data minimisation: accuracy and leakage as features are dropped, the least useful first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tabulate import tabulate
from torch import Tensor
from tyro.conf import OmitArgPrefixes

from attacks.reconstruction.attribute_inference import AttributeInference
from experiments._catalog import Catalog, parse
from experiments._options import Running
from experiments._provenance import now
from secure_ml.attack import Attack, Result
from secure_ml.batch import Batch, Splits
from secure_ml.cells import Cell
from secure_ml.errors import UsageError, require
from secure_ml.report import verdict
from secure_ml.rows import Row, cell, save_rows
from secure_ml.task import Task
from secure_ml.tasks._adult import CODES, NUMBERS, columns
from secure_ml.training import fit

GAIN = "attribute gain"


@dataclass(frozen=True)
class Minimisation:
    """Accuracy and leakage as features are dropped, the least useful first, so that a model sees no more than it needs.

    A feature's use is measured on what the first seed's models are trained or validated on. Leakage is that of
    membership, and of one sensitive attribute beyond what imputation knows without the model; where the model does not
    see the attribute, there is nothing to ask it. A finished cell is kept; a killed call resumes.
    """

    task: str = "table_mlp(bundled='breast_cancer')"
    """The task: a table_mlp of rows, or adult_mlp."""
    defense: str = "none"
    """A stack of defenses: none, dp_sgd(epsilon=3)."""
    attack: str = "loss_threshold"
    """The membership attack."""
    sensitive: str = ""
    """The attribute to be inferred: sex, or a column's number; unless given sex, or the most useful column."""
    order: Literal["information", "permutation"] = "information"
    """What says how useful a feature is: mutual information with the target, or what accuracy shuffling it costs."""
    levels: int = 8
    """How many numbers of features are tried, from all to one."""
    seeds: int = 3
    """Independent victims at each, each with its own split of the data."""
    examples: int = 1000
    """Members that are attacked, at most, and as many others."""
    running: OmitArgPrefixes[Running] = Running(out=Path("runs/minimisation"))
    """How the table is filled, and where it is kept."""


@dataclass(frozen=True)
class Level:
    """The features that are left, and the pooled rows of the models that see no others."""

    left: tuple[str, ...]
    rows: list[Row]

    def row(self, measure: str) -> Row | None:
        """The row of that measure."""
        return next((row for row in self.rows if row.measure == measure), None)


def main(argv: Sequence[str]) -> int:
    """Order the features, run the cells, keep rows and plot, print the table."""
    started = now()
    options, catalog = parse(Minimisation, argv, "secure-ml minimisation")
    options.running.begin(levels=options.levels, seeds=options.seeds, examples=options.examples)
    task, seed, out = catalog.task(options.task), options.running.seed, options.running.out
    features = features_of(task, seed)
    ranked = rank(task, features, options.order, seed)
    sensitive = options.sensitive or ("sex" if "sex" in features else ranked[0])
    require(sensitive in features, f"{task} has no feature {sensitive!r}; it has {', '.join(features)}")
    cells = make_cells(options, catalog, task, ranked, sensitive)
    groups = [cells[left] for left in cells]
    results = options.running.fill([c for group in groups for c in group])
    found = make_levels(cells, results, task, sensitive)
    rows = [row for level in found for row in level.rows]
    save_rows([*(row for result in results for row in result.rows), *rows], out / "rows.jsonl")
    title = f"{task}, sensitive: {sensitive}; most useful first ({options.order}): {', '.join(ranked)}"
    text = "\n".join([title, "", *_table(found, task)])
    _draw(found, task, out / "minimisation.png")
    return options.running.finish("minimisation", argv, started, rows, results, text)


def features_of(task: Task, seed: int) -> dict[str, tuple[int, ...]]:
    """The columns of each feature by its name; numbered, where a table has no names."""
    if task.name == "adult_mlp":
        require("drop" not in task.options, "give the whole table: this command drops features itself")
        return {name: columns(name) for name in (*NUMBERS, *CODES)}
    inputs = task.draw(seed).train.inputs
    if task.name != "table_mlp" or not isinstance(inputs, Tensor) or inputs.ndim != 2 or "drop" in task.options:
        raise UsageError(f"features are dropped from a whole adult_mlp or table_mlp of rows; given {task}")
    return {str(column): (column,) for column in range(inputs.shape[1])}


def rank(task: Task, features: Mapping[str, tuple[int, ...]], order: str, seed: int) -> list[str]:
    """The features, the most useful first."""
    splits = task.draw(seed)
    use = _information(splits, features) if order == "information" else _permutation(task, features, seed)
    return sorted(features, key=lambda name: -use[name])


def _information(splits: Splits, features: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """Mutual information with the target, of a category or of a number (by nearest neighbours)."""
    from sklearn.feature_selection import mutual_info_classif, mutual_info_regression

    inputs, target = splits.train.inputs, splits.train.target
    assert isinstance(inputs, Tensor)
    assert isinstance(target, Tensor)
    parts = [inputs[:, list(place)] for place in features.values()]
    values = [part.argmax(1) if part.shape[1] > 1 else part[:, 0] for part in parts]
    table = torch.stack([value.double() for value in values], 1).numpy()
    discrete = torch.tensor([len(place) > 1 for place in features.values()]).numpy()
    measure = mutual_info_regression if target.is_floating_point() else mutual_info_classif
    found = measure(table, target.numpy(), discrete_features=discrete, random_state=0)
    return dict(zip(features, found.tolist(), strict=True))


def _permutation(task: Task, features: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, float]:
    """What shuffling a feature costs a bare model's score on the validation split."""
    victim = fit(task, seed=seed, device="cpu")
    held = victim.splits.validation
    require(len(held) > 0, f"{task} has no validation split to measure a feature's use on")
    sign = 1 if task.score.higher_is_better else -1
    whole = task.score.measure(victim.served, held).value
    assert isinstance(held.inputs, Tensor)
    use = {}
    rng = torch.Generator().manual_seed(seed)
    for name, place in features.items():
        lost = []
        for _ in range(5):
            shuffled = held.inputs.clone()
            shuffled[:, list(place)] = held.inputs[torch.randperm(len(held), generator=rng)][:, list(place)]
            lost.append(sign * (whole - task.score.measure(victim.served, Batch(shuffled, held.target)).value))
        use[name] = sum(lost) / len(lost)
    return use


def make_cells(
    options: Minimisation, catalog: Catalog, task: Task, ranked: list[str], sensitive: str
) -> dict[tuple[str, ...], list[Cell]]:
    """The cells of each set of features that are left, the largest first: the card and both attacks."""
    stack, member = catalog.stack(options.defense), catalog.attack(options.attack)
    require(member.family == "membership", f"{options.attack!r} infers no membership: name one that does")
    cells: dict[tuple[str, ...], list[Cell]] = {}
    for size in _sizes(len(ranked), options.levels):
        left = tuple(ranked[:size])
        smaller = _smaller(catalog, options.task, task, [name for name in ranked if name not in left])
        tried: list[Attack | None] = [None, member]
        if sensitive in left:
            tried.append(AttributeInference(column=_place(task, sensitive, left, options.running.seed)))
        cells[left] = [
            Cell(task=smaller, defenses=stack, attack=attack, seed=seed, examples=options.examples)
            for attack in tried
            for seed in options.running.seeds(options.seeds)
        ]
    return cells


def _sizes(count: int, levels: int) -> list[int]:
    """From all features to one, evenly."""
    steps = min(levels, count)
    return sorted({round(1 + (count - 1) * i / max(steps - 1, 1)) for i in range(steps)} | {count}, reverse=True)


def _smaller(catalog: Catalog, text: str, task: Task, dropped: Sequence[str]) -> Task:
    """The task without some features."""
    if not dropped:
        return task
    names: tuple[Any, ...] = tuple(sorted(dropped))
    if task.name == "table_mlp":
        names = tuple(sorted(int(name) for name in dropped))
    configured = catalog.configured[task.name]
    other = Catalog({**catalog.configured, task.name: replace(configured, drop=names)})
    smaller = other.task(text)
    fact = "which columns are dropped is public, though training data were looked at to choose them"
    return replace(smaller, assumes=(*smaller.assumes, fact))


def _place(task: Task, sensitive: str, left: Sequence[str], seed: int) -> int:
    """The first column of a feature among those that are left."""
    features = features_of(task, seed)
    there = sorted(place for name in left for place in features[name])
    return there.index(features[sensitive][0])


def make_levels(
    cells: Mapping[tuple[str, ...], list[Cell]], results: Sequence[Result], task: Task, sensitive: str
) -> list[Level]:
    """The pooled rows of each set of features; where the sensitive one is dropped, one that says so."""
    found, start = [], 0
    for left, group in cells.items():
        mine = results[start : start + len(group)]
        start += len(group)
        rows = verdict(group[0].task, [(c.attack, result) for c, result in zip(group, mine, strict=True)])
        if sensitive not in left:
            note = "the model does not see the attribute, so that no value of it can be tried"
            rows.append(replace(rows[0], measure=GAIN, value=None, low=None, high=None, note=note, attack=""))
        found.append(Level(left, rows))
    return found


def _measures(task: Task) -> list[str]:
    return [task.score.name, "membership AUC", GAIN, "attribute gain on non-members"]


def _table(levels: Sequence[Level], task: Task) -> list[str]:
    notes: list[str] = []
    measures = _measures(task)
    lines = []
    for i, level in enumerate(levels):
        after = levels[i + 1].left if i + 1 < len(levels) else ()
        cells = [cell([row] if (row := level.row(measure)) else [], notes) for measure in measures]
        lines.append([len(level.left), *cells, ", ".join(name for name in level.left if name not in after)])
    text = tabulate(lines, ["features", *measures, "dropped next"], tablefmt="github", disable_numparse=True)
    return [text, *(f"[{i}] {note}" for i, note in enumerate(notes, 1))]


def _draw(levels: Sequence[Level], task: Task, path: Path) -> None:
    """The score, and below it what leaks, against the number of features."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for panel, measure, style in (
        (upper, task.score.name, "ko-"),
        (lower, "membership AUC", "C0s-"),
        (lower, GAIN, "C1^-"),
    ):
        known = [(len(level.left), row) for level in levels if (row := level.row(measure)) and row.value is not None]
        if not known:
            continue
        x, y = [size for size, _ in known], [row.value or 0.0 for _, row in known]
        panel.plot(x, y, style, label=measure)
        ends = [[row.low if row.low is not None else row.value or 0.0 for _, row in known],
                [row.high if row.high is not None else row.value or 0.0 for _, row in known]]  # fmt: skip
        panel.fill_between(x, *ends, color=style[:-2], alpha=0.15, lw=0)
    lower.axhline(0.5, color="C0", ls=":", lw=1)
    lower.axhline(0.0, color="C1", ls=":", lw=1)
    for panel in (upper, lower):
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    upper.set_title(str(task), fontsize="small")
    lower.set_xlabel("features that the model sees (dotted: chance)")
    figure.savefig(path, dpi=150)
