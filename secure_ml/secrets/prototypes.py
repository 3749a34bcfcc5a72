"""What the examples of each class look like, to who holds the weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from secure_ml.access import WhiteBox
from secure_ml.batch import Batch, Splits
from secure_ml.errors import require
from secure_ml.outputs import Classes
from secure_ml.randomness import generator
from secure_ml.secrets.base import (
    Hidden,
    Measured,
    Secret,
    Verdict,
    averaged,
    count_classes,
    require_box,
    require_class,
    withheld,
)
from secure_ml.surfaces import Box
from secure_ml.task import Task
from secure_ml.training import fit
from secure_ml.victim import Victim


class Weights(WhiteBox):
    """The weights and auxiliary data, of which ``each`` inputs are to be made for every one of ``classes``."""

    def __init__(self, victim: Victim, box: Box, classes: int, each: int) -> None:
        super().__init__(withheld(victim.task), victim.module, victim.served.stand_in())
        self.box, self.classes, self.each, self.aux = box, classes, each, victim.splits.aux


@dataclass(frozen=True)
class Prototypes(Secret[Weights]):
    """Inputs of each class, ``each`` of them.

    A likeness to the class is no leakage: whoever owns other data of the same kind has it too. What would be is a
    likeness to the members beyond that to as many non-members.
    """

    each: int

    def check(self, name: str, task: Task) -> None:
        """Raise `NotApplicable` for inputs that are not one box, or answers that are not one class."""
        require_box(name, task)
        require_class(name, task)

    def hide(self, victim: Victim, examples: int, seed: int) -> Hidden[Weights]:
        """Hand over the weights; the guess has shape ``(classes, each, *shape)``."""
        inputs = victim.splits.train.inputs
        assert isinstance(inputs, Tensor)
        classes = count_classes(victim.served(victim.splits.test.take(slice(0, 1)).inputs))
        access = Weights(victim, require_box("", victim.task), classes, self.each)
        judge = partial(_judge, victim, access.box, examples, seed)
        return Hidden(access, (classes, self.each, *inputs.shape[1:]), judge)


def _judge(victim: Victim, box: Box, examples: int, seed: int, guess: Tensor) -> Verdict:
    classes, each = guess.shape[:2]
    inputs = guess.clamp(box.low, box.high).flatten(0, 1)
    blind = class_means(victim.splits.aux, classes)
    mine, ratio = _compared(victim, inputs, examples, seed)
    theirs, _ = _compared(victim, blind, examples, seed)
    mine, ratio = (values.reshape(classes, each).mean(1) for values in (mine, ratio))
    output = victim.task.output
    assert isinstance(output, Classes)
    labels = torch.arange(classes, device=inputs.device).repeat_interleave(each)
    known = output.decide(_independent(victim, seed).served(inputs)) == labels
    measured = [
        Measured("member gain", averaged(mine - theirs), "difference", "over the classes' means in auxiliary data"),
        Measured("nearest is a member", averaged(mine), note="of as many members as non-members"),
        Measured("nearest is a member, without access", averaged(theirs)),
        Measured("distance ratio", averaged(ratio), "log2", "nearest member over nearest non-member"),
        Measured(
            "recognised by another model",
            averaged(known.double().reshape(classes, each).mean(1)),
            note="by a bare model of auxiliary data: knowledge of the class, not of a person",
        ),
    ]
    return Verdict(measured, {"member": mine, "member without access": theirs, "ratio": ratio, "recognised": known})


def class_means(aux: Batch, classes: int) -> Tensor:
    """The mean input of each class ``(classes, *shape)``; of a class without examples, that of all."""
    assert isinstance(aux.inputs, Tensor)
    assert isinstance(aux.target, Tensor)
    mine = [aux.inputs[aux.target == label] for label in range(classes)]
    return torch.stack([(inputs if len(inputs) else aux.inputs).mean(0) for inputs in mine])


def _compared(victim: Victim, inputs: Tensor, examples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Whether the nearest example is a member, a tie counting half, and the logarithm of both distances' ratio."""
    mine, theirs = _distances(victim, inputs, examples, seed)
    nearer = (mine < theirs).double() + (mine == theirs).double() / 2
    return nearer, (mine.clamp(min=1e-9) / theirs.clamp(min=1e-9)).log2().double()


def _distances(victim: Victim, inputs: Tensor, examples: int, seed: int) -> tuple[Tensor, Tensor]:
    """The distance ``(B,)`` to the nearest member, and to the nearest of as many non-members."""
    parts = (victim.splits.train, victim.splits.nonmembers)
    n = min(*map(len, parts), examples)
    require(n >= 1, f"{victim.task} has no members and non-members to compare with")
    found = []
    for name, part in zip(("members", "others"), parts, strict=True):
        chosen = torch.randperm(len(part), generator=generator(seed, name))[:n].to(victim.device)
        values = part.take(chosen).inputs
        assert isinstance(values, Tensor)
        found.append(torch.cdist(inputs.flatten(1), values.flatten(1)).min(1).values)
    return found[0], found[1]


def _independent(victim: Victim, seed: int) -> Victim:
    """A bare model by the task's own recipe, trained on the auxiliary data."""
    none: Batch = victim.splits.aux.take(slice(0, 0))
    parts = Splits(victim.splits.aux, none, none, none)
    task = replace(
        victim.task,
        name=f"{victim.task.name}_judge",
        data=lambda _: parts,
        recipe=replace(victim.task.recipe, patience=None),
    )
    return fit(task, seed=seed % 2**31, device=victim.device)
