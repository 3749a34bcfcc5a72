"""One attribute of a row, whose others, and whose target, are known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from secure_ml.access import BlackBox
from secure_ml.batch import Batch, Tree, join
from secure_ml.errors import NotApplicable, require
from secure_ml.imputation import features_with, impute
from secure_ml.outputs import Reveal
from secure_ml.randomness import generator
from secure_ml.secrets.base import Hidden, Measured, Secret, Verdict, averaged, require_box, withheld
from secure_ml.stats import Estimate, auc, clopper_pearson, pooled
from secure_ml.surfaces import Box, Table
from secure_ml.task import Task
from secure_ml.threats import SNR
from secure_ml.victim import Victim

FEW = 10
"""Different values of a number that are told apart; of more, it is asked in which half they lie."""


@dataclass(frozen=True)
class Attributes:
    """An attribute: its columns, the values ``(V, c)`` that it may have, and of which kind ``(V,)`` each is."""

    columns: tuple[int, ...]
    options: Tensor
    kinds: Tensor
    border: float | None = None
    """Of a number with many values, the median: kind 1 lies above it."""

    @property
    def count(self) -> int:
        """How many kinds there are."""
        return int(self.kinds.max()) + 1

    def of(self, rows: Tensor) -> Tensor:
        """The kind ``(B,)`` of each of ``(B, d)`` rows."""
        values = rows[:, list(self.columns)]
        if self.border is not None:
            return (values[:, 0] > self.border).long()
        return self.kinds[torch.cdist(values, self.options).argmin(1)]

    def put(self, rows: Tensor, option: Tensor | float) -> Tensor:
        """The rows with a value ``(c,)`` or ``(B, c)`` in the attribute's columns."""
        changed = rows.clone()
        changed[:, list(self.columns)] = torch.as_tensor(option, dtype=rows.dtype, device=rows.device)
        return changed


class Records(BlackBox):
    """The served model, and rows ``(B, d)`` of people, members or not, known but for one attribute, which reads 0."""

    def __init__(self, victim: Victim, reveal: Reveal, attribute: Attributes, batch: Batch) -> None:
        super().__init__(withheld(victim.task), victim.served, reveal)
        self.attribute, self.batch, self.aux = attribute, batch, victim.splits.aux

    def losses(self, option: Tensor) -> Tensor:
        """The loss ``(B,)`` of each row with this value ``(c,)`` of the attribute, by what is revealed."""
        assert isinstance(self.batch.inputs, Tensor)
        return self.loss(Batch(self.attribute.put(self.batch.inputs, option), self.batch.target))


@dataclass(frozen=True)
class OneAttribute(Secret[Records]):
    """The attribute in ``column`` (and in the group of columns that it lies in) of members and of as many others.

    Of a number with more than ten values, the kinds are its two halves. Without a column it is the group with the
    fewest categories, sex in a census say, or the first column of a table that has none.
    """

    column: int | None
    reveal: Reveal

    def check(self, name: str, task: Task) -> None:
        """Raise `NotApplicable` where an input is no row of attributes, as far as the task tells."""
        require_box(name, task)
        if isinstance(task.threat, SNR):
            raise NotApplicable(f"{name} infers attributes in the columns of a table; an input of {task.name} is sound")

    def hide(self, victim: Victim, examples: int, seed: int) -> Hidden[Records]:
        """Blank the attribute in members and others, mixed; the guess is a score ``(B, kinds)``.

        Raises `NotApplicable` for inputs that are no rows, `UsageError` for a column that is not there or constant.
        """
        splits, task = victim.splits, victim.task
        if not isinstance(splits.train.inputs, Tensor) or splits.train.inputs.ndim != 2:
            raise NotApplicable(f"an input of {task.name} is no row of attributes, of which one could be hidden")
        assert isinstance(splits.aux.inputs, Tensor)
        attribute = find_attribute(require_box("", task), splits.aux.inputs, self.column)
        n = min(len(splits.train), len(splits.nonmembers), examples)
        require(n >= 1, f"{task} has no members and non-members whose attribute could be inferred")
        order = torch.randperm(2 * n, generator=generator(seed, "order")).to(victim.device)
        parts = [splits.train.take(slice(0, n)), splits.nonmembers.take(slice(0, n))]
        both = Batch(join([p.inputs for p in parts]), join([p.target for p in parts])).take(order)
        assert isinstance(both.inputs, Tensor)
        blank = replace(both, inputs=attribute.put(both.inputs, 0.0))
        access = Records(victim, self.reveal, attribute, blank)
        truth, shape = attribute.of(both.inputs), (2 * n, attribute.count)
        return Hidden(access, shape, partial(_judge, attribute, blank, truth, order < n, splits.aux))


def find_attribute(box: Box, rows: Tensor, column: int | None) -> Attributes:
    """The attribute that a column of ``(n, d)`` rows belongs to; `UsageError` if there is none or it tells nothing."""
    groups = box.groups if isinstance(box, Table) else ()
    if column is None:
        column = min(groups, key=len)[0] if groups else 0
    require(0 <= column < rows.shape[1], f"there is no column {column}: a row has {rows.shape[1]}, counted from 0")
    for group in groups:
        if column in group:
            eye = torch.eye(len(group)).to(rows)
            return Attributes(group, eye, torch.arange(len(group), device=rows.device))
    values = rows[:, column]
    distinct = values.unique()
    require(len(distinct) > 1, f"column {column} is the same in all auxiliary rows: there is nothing to infer")
    if len(distinct) <= FEW:
        return Attributes((column,), distinct[:, None], torch.arange(len(distinct), device=rows.device))
    border = values.median()
    border = values[values < border].max() if border == distinct[-1] else border
    tried = values.quantile((torch.arange(FEW, device=rows.device) + 0.5) / FEW).unique()
    return Attributes((column,), tried[:, None], (tried > border).long(), float(border))


def without_access(attribute: Attributes, aux: Batch, rows: Tensor, target: Tree | None) -> Tensor:
    """Chances ``(B, kinds)`` from the other attributes, and the target where it is given, as the auxiliary rows go."""
    assert isinstance(aux.inputs, Tensor)
    blank = attribute.put(aux.inputs, 0.0)
    if target is None:
        return impute(blank, attribute.of(aux.inputs), attribute.count, rows)
    both = features_with(torch.cat([blank, rows]), join([aux.target, target]))
    return impute(both[: len(blank)], attribute.of(aux.inputs), attribute.count, both[len(blank) :])


def _judge(attribute: Attributes, blank: Batch, truth: Tensor, member: Tensor, aux: Batch, guess: Tensor) -> Verdict:
    assert isinstance(blank.inputs, Tensor)
    prior = without_access(attribute, aux, blank.inputs, blank.target)
    right, imputed = ((scores.argmax(1) == truth).double() for scores in (guess, prior))
    gain = right - imputed
    measured = [
        Measured("attribute gain", averaged(gain[member]), "difference", "right answers beyond those of imputation"),
        Measured("attribute gain on non-members", averaged(gain[~member]), "difference"),
        Measured("attribute accuracy", _share(right[member])),
        Measured("attribute accuracy by imputation", _share(imputed[member])),
    ]
    if guess.shape[1] == 2:
        for name, scores in (("attribute AUC", guess), ("attribute AUC by imputation", prior)):
            pair = [(scores[:, 1] - scores[:, 0])[member & (truth == kind)].double().cpu().numpy() for kind in (1, 0)]
            known = min(map(len, pair)) > 0
            area = pooled(auc, [(pair[0], pair[1])]) if known else None
            measured.append(Measured(name, area, note="" if known else "members of one kind only"))
    return Verdict(measured, {"right": right, "imputed": imputed, "member": member})


def _share(right: Tensor) -> Estimate:
    return clopper_pearson(int(right.sum()), len(right))
