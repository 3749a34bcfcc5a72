"""Evasion: inputs changed within a threat so that the served answer gets worse."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Tensor

from secure_ml.access import WhiteBox
from secure_ml.attack import Attack, Result, stopwatch
from secure_ml.batch import Batch, Tree, join
from secure_ml.errors import NotApplicable, UsageError, require
from secure_ml.randomness import generator
from secure_ml.rows import Row, make_row, pool_rows
from secure_ml.scores import ClosedLoop, Score
from secure_ml.surfaces import Surface
from secure_ml.task import Task
from secure_ml.threats import Change, Threat
from secure_ml.victim import Victim


class Evasion(Attack):
    """The adversary holds the weights, changes inputs within a threat, and is judged on what is served."""

    family: ClassVar[str] = "evasion"
    surfaces: ClassVar[tuple[type[Surface], ...]]
    """The kinds of inputs that this attack can change."""
    at_least: ClassVar[int] = 1
    """Surfaces that a threat must have to be worth this attack."""

    @abstractmethod
    def perturb(self, access: WhiteBox, batch: Batch, threat: Change, rng: torch.Generator) -> Tree:
        """Changed inputs ``(B, *shape)`` for a batch; the family projects them onto the threat and scores them."""

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
        if len(mine) < self.at_least:
            raise NotApplicable(
                f"{type(self).__name__} changes {self.at_least} surfaces in turn; the threat to {task.name} has one"
            )
        for part in asked.parts() if asked is not None else ():
            if isinstance(task.surface(part), self.surfaces):
                self.check_threat(part)

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
        task, batch = victim.task, victim.tested(examples)
        access = WhiteBox.open(victim)
        rng = generator(seed, "evasion", repr(self))
        with stopwatch(victim.device) as seconds:
            clean, attacked = _outcomes(self, victim, access, batch, threat, rng)
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
        return Result((row,), {"worst": worst.cpu()})

    @final
    @classmethod
    def pool(cls, task: Task, attempts: Sequence[tuple[Attack, Result]]) -> list[Row]:
        """The pointwise worst case over the attacks on each victim, and its mean over victims."""
        by_victim: dict[int, list[tuple[Row, Tensor]]] = {}
        for _, result in attempts:
            row = result.rows[0]
            by_victim.setdefault(row.seeds[0], []).append((row, result.evidence["worst"]))
        rows = []
        for tried in by_victim.values():
            worst = tried[0][1]
            for _, values in tried[1:]:
                worst = task.score.worse(worst, values)
            rows.append(pool_rows([row for row, _ in tried], task.score.aggregate(worst)))
        return [pool_rows(rows)]


def attack_batch(attack: Evasion, access: WhiteBox, batch: Batch, threat: Threat, rng: torch.Generator) -> Batch:
    """A batch changed by an attack and projected onto the threat, whatever the attack returned.

    Of a threat to several surfaces, the attack changes those that it can, each after the one before.
    """
    if not len(batch):
        return batch
    for part in threat.parts():
        surface = access.task.surface(part)
        if not isinstance(surface, attack.surfaces):
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


def _outcomes(
    attack: Evasion, victim: Victim, access: WhiteBox, batch: Batch, threat: Threat, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What the score keeps of each example (of each episode), clean and attacked, from what is served."""
    score, size = victim.task.score, victim.task.chunk
    if isinstance(score, ClosedLoop):

        def misled(inputs: Tree) -> Tensor:
            seen = Batch(inputs, score.target(access(inputs)))
            return victim.served(attack_batch(attack, access, seen, threat, rng).inputs)

        return score.values(victim.served, batch), score.values(misled, batch)
    pieces = [attack_batch(attack, access, piece, threat, rng) for piece in batch.chunks(size)]
    answers = victim.served(join([batch.inputs, *(piece.inputs for piece in pieces)]))
    clean, attacked = (_kept(score, half, batch) for half in answers.split(len(batch)))
    return clean, attacked


def _kept(score: Score, answers: Tensor, batch: Batch) -> Tensor:
    """What a score keeps of answers that are there already."""
    return score.values(lambda _: answers, batch)


def measure_name(task: Task, threat: Threat) -> str:
    """How the score under attack is called, with the threat that it holds for."""
    return f"{task.score.name} under {threat}"
