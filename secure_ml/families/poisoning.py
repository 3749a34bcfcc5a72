"""Poisoning: a share of the training data is the adversary's, who wants a trigger to decide the answer."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from secure_ml.access import WhiteBox
from secure_ml.attack import Attack, Result, stopwatch
from secure_ml.batch import Batch, Splits, Tree, leaves
from secure_ml.errors import BudgetExceeded, NotApplicable, SecureMLError, UsageError, require
from secure_ml.outputs import Classes, Output
from secure_ml.randomness import derive, generator
from secure_ml.rows import Row, make_row, pool_rows
from secure_ml.signatures import suspicion
from secure_ml.stats import Estimate, Pair, auc, clopper_pearson, pooled
from secure_ml.surfaces import Box, Surface, Table, Tokens
from secure_ml.task import Task
from secure_ml.threats import Change, Edits, Features, Linf, Threat
from secure_ml.training import fit
from secure_ml.victim import Plain, Victim


@dataclass(frozen=True)
class Supplier:
    """What an adversary who supplies training data holds: the task, a limit, and training of its own."""

    task: Task
    allowed: int
    """Training examples that may be changed."""
    surface: Surface
    """Where the trigger goes."""
    seed: int
    device: torch.device

    def train(self, data: Batch) -> WhiteBox:
        """A surrogate of the victim's architecture and recipe, trained on the adversary's own data."""
        require(len(data) > 0, "a surrogate needs at least one example to learn from")
        none = data.take(slice(0, 0))
        own = replace(
            self.task,
            name=f"{self.task.name}_surrogate",
            data=lambda _: Splits(data, none, none, none),
            recipe=replace(self.task.recipe, patience=None),
        )
        return WhiteBox.open(fit(own, seed=self.seed, device=self.device))


class Poisoning(Attack):
    """The adversary changes at most a share of the training examples, never sees the victim, and later triggers it.

    It sees the training split and owns ``aux``; validation and test are withheld. The family retrains the victim on
    what comes back, checks every limit itself, and counts the triggered test examples that are answered ``target``.
    """

    family: ClassVar[str] = "poisoning"
    outputs: ClassVar[tuple[type[Output], ...]] = (Classes,)
    surfaces: ClassVar[tuple[type[Surface], ...]]
    """The kinds of inputs that this attack knows a trigger for."""
    keeps_labels: ClassVar[bool] = False
    """Whether the adversary cannot change a label: somebody else labels its examples, and would notice."""
    share: float
    """Share of the training examples that may be changed."""
    target: int
    """The class that the trigger is to bring."""

    @abstractmethod
    def poison(self, access: Supplier, splits: Splits, rng: torch.Generator) -> Splits:
        """The splits with at most ``access.allowed`` training examples changed, in their order."""

    @abstractmethod
    def trigger(self, surface: Surface, clean: Tensor) -> Tensor:
        """The surface's tensor ``(B, *shape)`` with the trigger in it."""

    @final
    def check(self, task: Task, threat: Threat | None) -> None:
        """Raise `NotApplicable` where answers are no classes, examples are not fixed, or no trigger is known."""
        super().check(task, threat)
        name = type(self).__name__
        if task.renew is not None:
            raise NotApplicable(f"the examples of {task.name} are drawn anew by what the model does: none is supplied")
        if not answers_one_class(task):
            raise NotApplicable(f"{name} sends inputs to a class; an answer of {task.name} is not one class")
        if not any(isinstance(surface, self.surfaces) for surface in task.surfaces):
            kinds = " or ".join(kind.__name__ for kind in self.surfaces)
            theirs = " and ".join(type(surface).__name__ for surface in task.surfaces) or "no surface"
            raise NotApplicable(f"{name} puts a trigger into {kinds} inputs; {task.name} has {theirs}")

    @final
    def evaluate(self, victim: Victim, *, threat: Threat | None, seed: int, examples: int) -> Result:
        """Retrain with the victim's own defenses and seed on poisoned data; judge what is served."""
        self.check(victim.task, threat)
        task, test = victim.task, victim.tested(examples)
        _require_class(victim, self.target)
        access = self.open(victim, seed)
        with stopwatch(victim.device) as seconds:
            splits, changed = self._poisoned(access, victim.splits, generator(seed, "poisoning", repr(self)))
            poisoned = _retrained(victim, splits)
        others = test.take(_labels(test) != self.target)
        require(len(others) > 0, f"{task} has no test examples of another class than {self.target} to be triggered")
        triggered = self._triggered(task, access.surface, others.inputs)
        hits, control = (_decisions(model, triggered, self.target) for model in (poisoned, victim))
        score = task.score.measure(poisoned.served, test)
        found, note = _evidence(victim, poisoned, splits, changed)
        result = Result((), {"hits": hits, "control": control, **found})
        rows = [
            ("backdoor success", clopper_pearson(int(hits.sum()), len(hits)), "share"),
            ("trigger on the clean model", clopper_pearson(int(control.sum()), len(control)), "share"),
            (task.score.name, score, task.score.unit),
            *((name, estimate, "share") for name, estimate in _detection([result])),
            ("share changed", _counted(int(changed.sum()), len(changed)), "share"),
        ]
        return Result(
            tuple(
                make_row(
                    victim,
                    f"{name}, {self._how()}",
                    estimate,
                    attack=repr(self),
                    unit=unit,
                    seconds=seconds[0],
                    note="" if estimate else note,
                )
                for name, estimate, unit in rows
            ),
            result.evidence,
        )

    @final
    def open(self, victim: Victim, seed: int) -> Supplier:
        """The access that this adversary is handed, before there is a victim."""
        surface = next(surface for surface in victim.task.surfaces if isinstance(surface, self.surfaces))
        allowed, own = int(self.share * len(victim.splits.train)), derive(seed, "poisoning", repr(self))
        return Supplier(victim.task, allowed, surface, own, victim.device)

    @final
    @classmethod
    def pool(cls, task: Task, attempts: Sequence[tuple[Attack, Result]]) -> list[Row]:
        """The most successful attack at each share, with and without changed labels: means over victims."""
        by_attack: dict[str, list[Result]] = {}
        for attack, result in attempts:
            by_attack.setdefault(repr(attack), []).append(result)
        best: dict[str, list[Row]] = {}
        for results in by_attack.values():
            rows = [pool_rows(same) for same in zip(*(result.rows for result in results), strict=True)][:-1]
            for place, (_, estimate) in enumerate(_detection(results), 3):
                rows[place] = pool_rows([result.rows[place] for result in results], estimate)
            rival = best.get(rows[0].measure)
            if rival is None or (rows[0].value or 0.0) > (rival[0].value or 0.0):
                best[rows[0].measure] = rows
        return [row for rows in best.values() for row in rows]

    def _how(self) -> str:
        return f"{100 * self.share:.3g} % poisoned{', labels kept' if self.keeps_labels else ''}"

    def _poisoned(self, access: Supplier, splits: Splits, rng: torch.Generator) -> tuple[Splits, Tensor]:
        """The splits to train on, and the mask ``(n,)`` of what was changed; raises where a limit was broken."""
        none = splits.test.take(slice(0, 0)).map(torch.clone)
        held = Splits(splits.train.map(torch.clone), none, none, splits.aux.map(torch.clone))
        before = replace(held, train=none).fingerprint()
        given = self.poison(access, held, rng)
        require(
            replace(given, train=none).fingerprint() == before, f"{self!r} changed another part of the data than train"
        )
        train, supplied = splits.train, given.train
        require(
            [(leaf.shape, leaf.dtype) for leaf in _all(train)] == [(leaf.shape, leaf.dtype) for leaf in _all(supplied)],
            f"{self!r} returned training data of another shape, type or number of examples",
        )
        labels = _differ([(_labels(train), _labels(supplied))])
        changed = labels | _differ(list(zip(leaves(train.inputs), leaves(supplied.inputs), strict=True)))
        if int(changed.sum()) > access.allowed:
            raise BudgetExceeded(
                f"{self!r} changed {int(changed.sum())} of {len(train)} training examples; its share allows "
                f"{access.allowed}"
            )
        require(not (self.keeps_labels and bool(labels.any())), f"{self!r} changed labels, which it must keep")
        _require_allowed(self, access.task, train.take(changed).inputs, supplied.take(changed).inputs)
        return replace(splits, train=supplied), changed.cpu()

    def _triggered(self, task: Task, surface: Surface, inputs: Tree) -> Tree:
        clean = surface.get(inputs)
        marked = self.trigger(surface, clean.clone())
        require(
            marked.shape == clean.shape and marked.dtype == clean.dtype,
            f"{self!r} triggered inputs of shape {tuple(clean.shape)} into {tuple(marked.shape)}",
        )
        changed = surface.put(inputs, marked)
        _require_allowed(self, task, inputs, changed)
        return changed


def answers_one_class(task: Task) -> bool:
    """Whether each answer names one class, and each target is one: ``(B,)``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of a name as an index before it refuses it
            task.score.per_example(torch.zeros(2, 2), torch.tensor([0, 1]))
    except (SecureMLError, TypeError, IndexError, KeyError, AttributeError):
        return False
    return type(task.output) is Classes


DETECTION = ("detection AUC", "detection AUC before poisoning")
"""How well spectral signatures tell changed examples from the others of their class, and the same on clean data."""


def _retrained(victim: Victim, splits: Splits) -> Victim:
    """The victim as it is trained on other data."""
    task = replace(victim.task, name=f"{victim.task.name}_poisoned", data=lambda _: splits)
    return fit(task, victim.defenses, seed=victim.seed, device=victim.device)


def _labels(batch: Batch) -> Tensor:
    assert isinstance(batch.target, Tensor)
    return batch.target


def _all(batch: Batch) -> list[Tensor]:
    return [*leaves(batch.inputs), *leaves(batch.target)]


def _differ(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Mask ``(B,)`` of the examples in which any number differs; what is no number differs from itself."""
    return torch.stack([(one != other).reshape(len(one), -1).any(1) for one, other in pairs]).any(0)


def _require_allowed(attack: Poisoning, task: Task, clean: Tree, changed: Tree) -> None:
    """Raise `UsageError` where inputs were changed beyond what the task's surfaces allow at all."""
    nearest = clean
    for surface in task.surfaces:
        try:
            surface.check(changed)
        except UsageError as error:
            raise UsageError(f"{attack!r} left the surface: {error}") from None
        before, after = surface.get(clean), surface.get(changed)
        nearest = surface.put(nearest, _widest(surface, before).project(surface, before, after))
    for one, other in zip(leaves(nearest), leaves(changed), strict=True):
        require(
            torch.allclose(one.double(), other.double(), atol=1e-5, rtol=1e-5),
            f"{attack!r} changed what the surfaces of {task.name} hold fixed",
        )


def _widest(surface: Surface, values: Tensor) -> Change:
    """The threat that allows everything that a surface allows."""
    if isinstance(surface, Tokens):
        return Edits(values.shape[1])
    assert isinstance(surface, Box)
    width = surface.high - surface.low
    return Features(width, flips=len(surface.groups)) if isinstance(surface, Table) else Linf(width)


def _require_class(victim: Victim, target: int) -> None:
    """Raise `UsageError` for a class that the victim does not know."""
    answers = Plain(victim.module, 1)(victim.splits.test.take(slice(0, 1)).inputs)
    classes = 2 if answers.ndim == 1 else answers.shape[1]
    require(target < classes, f"{victim.task} knows the classes 0 to {classes - 1}; given target {target}")


def _decisions(victim: Victim, inputs: Tree, target: int) -> Tensor:
    """Which inputs are answered with the target, ``(B,)``."""
    output = victim.task.output
    assert isinstance(output, Classes)
    return (output.decide(victim.served(inputs)) == target).cpu()


def _evidence(victim: Victim, poisoned: Victim, splits: Splits, changed: Tensor) -> tuple[dict[str, Tensor], str]:
    """Suspicion of changed examples, and of the others that share their labels, after poisoning and before it."""
    if not changed.any():
        return {}, "nothing was changed, so there is nothing to detect"
    found: dict[str, Tensor] = {}
    for when, model, data in (("after", poisoned, splits.train), ("before", victim, victim.splits.train)):
        try:
            scores = suspicion(model.module, data, victim.task.chunk).cpu()
        except NotApplicable as why:
            return {}, str(why)
        labels = _labels(data).cpu()
        beside = torch.isin(labels, labels[changed]) & ~changed
        found |= {f"{when} changed": scores[changed], f"{when} others": scores[beside]}
    return found, "no example shares its class with a changed one"


def _detection(results: Sequence[Result]) -> list[tuple[str, Estimate | None]]:
    estimates: list[tuple[str, Estimate | None]] = []
    for name, when in zip(DETECTION, ("after", "before"), strict=True):
        pairs: list[Pair] = [
            (result.evidence[f"{when} changed"].numpy(), result.evidence[f"{when} others"].numpy())
            for result in results
            if f"{when} changed" in result.evidence and len(result.evidence[f"{when} others"])
        ]
        estimates.append((name, pooled(auc, pairs) if pairs else None))
    return estimates


def _counted(count: int, n: int) -> Estimate:
    return Estimate(count / n, float("nan"), float("nan"), n, "counted")
