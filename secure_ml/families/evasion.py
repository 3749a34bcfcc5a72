"""Evasion: inputs changed within a threat so that the served answer gets worse."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from secure_ml.access import Access, BlackBox, WhiteBox
from secure_ml.attack import Attack, Result, stopwatch
from secure_ml.batch import Batch, Tree, join
from secure_ml.errors import NotApplicable, UsageError, require
from secure_ml.exhibits import exhibits
from secure_ml.kernels import fast_convolutions
from secure_ml.outputs import Classes, Reveal
from secure_ml.randomness import generator, seeded
from secure_ml.rows import Row, make_row, pool_rows
from secure_ml.scores import AUC, F1, Accuracy, ClosedLoop, Reached, Score
from secure_ml.surfaces import Surface
from secure_ml.task import Task
from secure_ml.threats import Ball, Change, Threat
from secure_ml.victim import Plain, Served, Victim


class Evasion(Attack):
    """The adversary changes inputs within a threat, and is judged on what is served."""

    family: ClassVar[str] = "evasion"
    surfaces: ClassVar[tuple[type[Surface], ...]]
    """The kinds of inputs that this attack can change."""
    at_least: ClassVar[int] = 1
    """Surfaces that a threat must have to be worth this attack."""
    threats: ClassVar[tuple[type[Change], ...]] = (Change,)
    """The kinds of threats that this attack can keep to."""
    sees: ClassVar[Literal["module"] | Reveal] = "module"
    """What the adversary holds: the module, or no more than this of the answers that are served."""
    classifies: ClassVar[bool] = False
    """Whether it looks for another class, and so has a meaning for classifiers only."""

    @abstractmethod
    def perturb(self, access: Any, batch: Batch, threat: Any, rng: torch.Generator) -> Tree:
        """Changed inputs ``(B, *shape)`` for a batch; the family projects them onto the threat and scores them.

        The access is a `WhiteBox`, or a `BlackBox` where `sees` names no module; the threat is one of `threats`.
        """

    def budget(self, examples: int) -> int | None:
        """Queries that it may ask about so many examples; without a limit unless it has a setting for one."""
        return None

    def judged(self, task: Task, batch: Batch) -> tuple[Task, Batch]:
        """The task and the examples by which it is judged: the task's own, unless the adversary has another goal."""
        return task, batch

    @final
    def check(self, task: Task, threat: Threat | None) -> None:
        """Raise `NotApplicable` where the task's surface is not one that this attack changes."""
        super().check(task, threat)
        asked = threat or task.threat
        offered = task.surfaces if asked is None else [task.surface(part) for part in asked.parts()]
        mine = [surface for surface in offered if isinstance(surface, self.surfaces)]
        if not mine:
            kinds = " or ".join(kind.__name__ for kind in self.surfaces)
            theirs = " and ".join(type(surface).__name__ for surface in offered) or "no surface"
            raise NotApplicable(f"{type(self).__name__} changes {kinds} inputs; {task.name} has {theirs}")
        if self.classifies and not is_classifier(task):
            raise NotApplicable(
                f"{type(self).__name__} looks for another class; {task.name} answers {type(task.output).__name__} "
                f"and is judged by {task.score.name}"
            )
        self.check_task(task)
        if len(mine) < self.at_least:
            raise NotApplicable(
                f"{type(self).__name__} changes {self.at_least} surfaces in turn; the threat to {task.name} has one"
            )
        for part in asked.parts() if asked is not None else ():
            if isinstance(task.surface(part), self.surfaces):
                if not isinstance(part, self.threats):
                    known = " or ".join(kind.__name__ for kind in self.threats)
                    raise NotApplicable(f"{type(self).__name__} changes inputs within {known}; the threat is {part}")
                self.check_threat(part)

    def check_task(self, task: Task) -> None:
        """Raise `NotApplicable` where the attack's settings have no meaning for a task."""

    def check_threat(self, threat: Change) -> None:
        """Raise `UsageError` where the attack's settings do not fit a threat that it will be asked to use."""

    @final
    def evaluate(self, victim: Victim, *, threat: Threat | None, seed: int, examples: int) -> Result:
        """Craft on the module, score on the served predictor; an example counts as its worse of clean and changed.

        Where answers act, the adversary changes every observation of an episode, and an episode is an example.
        """
        self.check(victim.task, threat)
        threat = threat or victim.task.threat
        if threat is None:
            raise UsageError(f"{victim.task.name} declares no threat of its own: pass one, threat=Linf(0.1) say")
        task, batch = self.judged(victim.task, victim.tested(examples))
        require(len(batch) > 0, f"{self!r} has nothing to do: no example is left for its goal")
        check_sound(replace(victim, task=task), batch, threat)
        access = self.open(victim, task, len(batch))
        rng = generator(seed, "evasion", repr(self))
        few = batch.take(slice(0, 8)).inputs
        with seeded(seed, "evasion"), fast_convolutions(victim.module, few), stopwatch(victim.device) as seconds:
            clean, attacked, shown = _outcomes(self, victim.served, access, batch, threat, rng)
        worst = task.score.worse(clean, attacked)
        row = make_row(
            victim,
            measure_name(task, threat),
            task.score.aggregate(worst),
            attack=repr(self),
            unit=task.score.unit,
            queries=access.queries,
            gradients=access.gradients,
            seconds=seconds[0],
        )
        return Result((row,), {"worst": worst.cpu(), **shown})

    @final
    def craft(self, victim: Victim, *, threat: Threat | None, seed: int, examples: int) -> tuple[Batch, Batch]:
        """The examples attacked, as they were and as `evaluate` with the same settings scores them."""
        self.check(victim.task, threat)
        threat = threat or victim.task.threat
        require(threat is not None, f"{victim.task.name} declares no threat of its own: pass one, threat=Linf(0.1) say")
        assert threat is not None
        task, batch = self.judged(victim.task, victim.tested(examples))
        if isinstance(task.score, ClosedLoop):
            raise NotApplicable(f"what {task.name} is shown depends on what it did: there are no examples to keep")
        check_sound(replace(victim, task=task), batch, threat)
        with seeded(seed, "evasion"), fast_convolutions(victim.module, batch.take(slice(0, 8)).inputs):
            rng = generator(seed, "evasion", repr(self))
            return batch, craft(self, self.open(victim, task, len(batch)), batch, threat, rng)

    @final
    def open(self, victim: Victim, task: Task, examples: int) -> Access:
        """The access that this adversary is handed; on a limited one, no more queries than its budget."""
        if self.sees == "module":
            return WhiteBox(task, victim.module, victim.served.stand_in())
        return BlackBox(task, victim.served.stand_in(), self.sees, self.budget(examples))

    @final
    @classmethod
    def pool(cls, task: Task, attempts: Sequence[tuple[Attack, Result]]) -> list[Row]:
        """The pointwise worst case over the attacks of one goal on each victim, and its mean over victims."""
        goals: dict[str, dict[int, list[tuple[Row, Tensor, Score]]]] = {}
        for attack, result in attempts:
            assert isinstance(attack, Evasion)
            row, score = result.rows[0], attack.judged(task, _NOBODY)[0].score
            tried = goals.setdefault(row.measure, {}).setdefault(row.seeds[0], [])
            tried.append((row, result.evidence["worst"], score))
        return [pool_rows([_union(tried) for tried in victims.values()]) for victims in goals.values()]


_NOBODY = Batch(torch.empty(0), torch.empty(0, dtype=torch.long))


def _union(tried: Sequence[tuple[Row, Tensor, Score]]) -> Row:
    """One victim's row from the worst that any attack did to each example."""
    score = tried[0][2]
    return pool_rows([row for row, _, _ in tried], score.aggregate(reduce(score.worse, (v for _, v, _ in tried))))


def is_classifier(task: Task) -> bool:
    """Whether each answer names one class, and the target is the class that it should name."""
    return type(task.output) is Classes and type(task.score) in (Accuracy, Reached, AUC, F1)


def check_sound(victim: Victim, batch: Batch, threat: Threat) -> None:
    """Raise `UsageError` where examples, answers or radius are such that a number would mean nothing."""
    task = victim.task
    for part in threat.parts():
        surface = task.surface(part)
        surface.check(batch.inputs)
        reach = part.reach(surface, surface.get(batch.inputs)) if isinstance(part, Ball) else math.inf
        require(
            part.radius <= reach * (1 + 1e-6),
            f"{part} reaches beyond the whole box, whose size is {reach:.4g}: no model can resist it; use less",
        )
    few = batch.take(slice(0, 100))
    outputs = Plain(victim.module, task.chunk)(few.inputs)
    task.output.check(outputs, len(few))
    task.output.check_target(outputs, batch.target)
    require(
        not (isinstance(task.output, Classes) and are_probabilities(outputs)),
        "the module answers with probabilities, whose gradients vanish where it is sure: take the softmax out of it, "
        "so that it answers with logits",
    )


def are_probabilities(outputs: Tensor) -> bool:
    """Whether answers ``(B, K)`` are distributions rather than logits."""
    if outputs.ndim != 2 or not len(outputs):
        return False
    return bool((outputs >= 0).all() and ((outputs.sum(1) - 1).abs() < 1e-5).all())


def attack_batch(attack: Evasion, access: Access, batch: Batch, threat: Threat, rng: torch.Generator) -> Batch:
    """A batch changed by an attack and projected onto the threat, whatever the attack returned.

    Of a threat to several surfaces, the attack changes those that it can, each after the one before.
    """
    if not len(batch):
        return batch
    for part in threat.parts():
        surface = access.task.surface(part)
        if not isinstance(surface, attack.surfaces) or not part.radius:
            continue
        clean = surface.get(batch.inputs)
        proposal = surface.get(attack.perturb(access, batch, part, rng))
        require(
            proposal.shape == clean.shape,
            f"{attack!r} returned inputs of shape {tuple(proposal.shape)} for {tuple(clean.shape)}",
        )
        changed = part.project(surface, clean, proposal.detach().to(clean.dtype))
        batch = Batch(surface.put(batch.inputs, changed), batch.target)
    return batch


def craft(attack: Evasion, access: Access, batch: Batch, threat: Threat, rng: torch.Generator) -> Batch:
    """All examples attacked, a chunk at a time."""
    pieces = [attack_batch(attack, access, piece, threat, rng) for piece in batch.chunks(access.task.chunk)]
    return Batch(join([piece.inputs for piece in pieces]), batch.target)


def _outcomes(
    attack: Evasion, served: Served, access: Access, batch: Batch, threat: Threat, rng: torch.Generator
) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
    """What the score keeps of each example (of each episode), clean and attacked, and some to be looked at."""
    score = access.task.score
    if isinstance(score, ClosedLoop):

        def misled(inputs: Tree) -> Tensor:
            seen = Batch(inputs, score.target(access(inputs)))
            return served(attack_batch(attack, access, seen, threat, rng).inputs)

        return score.values(served, batch), score.values(misled, batch), {}
    changed = craft(attack, access, batch, threat, rng).inputs
    answers = served(join([batch.inputs, changed]))
    clean, attacked = (_kept(score, half, batch) for half in answers.split(len(batch)))
    shown = exhibits(access.task, batch, changed, answers, score.harm(attacked) - score.harm(clean))
    return clean, attacked, shown


def _kept(score: Score, answers: Tensor, batch: Batch) -> Tensor:
    """What a score keeps of answers that are there already."""
    return score.values(lambda _: answers, batch)


def measure_name(task: Task, threat: Threat) -> str:
    """How the score under attack is called, with the threat that it holds for."""
    return f"{task.score.name} under {threat}"
