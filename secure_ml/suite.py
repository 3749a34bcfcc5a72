"""What is run on a model in a given time: steps, each in settings from the strongest to the cheapest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from secure_ml.attack import Attack
from secure_ml.outside.costs import Costs
from secure_ml.task import Task


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a suite is chosen by."""

    task: Task
    costs: Costs
    training: float
    """Seconds that one more model of the kind takes to train, 0 where none can be."""
    trainable: bool
    members: int
    others: int
    tested: int
    pool: int
    """Examples that the adversary owns."""
    shape: tuple[int, ...]
    """Of one input, where inputs are one tensor; else empty."""
    classes: int
    """Classes that are told apart; 0 where answers are no classes."""
    standing: float = 1.0
    """The share of examples that a quick attack leaves standing, at most: what a thorough one takes its time for."""
    blind: bool
    """Whether the model only answers."""


@dataclass(frozen=True)
class Rung:
    """Attacks in one setting, on so many examples, and the seconds and questions that all of them take at most."""

    attacks: tuple[Attack, ...]
    examples: int
    seconds: float
    asked: int = 0
    """Inputs that the model is asked about, at most: of importance where they are counted."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One question, and the ways of answering it, the most thorough first."""

    name: str
    rungs: tuple[Rung, ...]
    weight: float = 1.0
    """Its share of the time that is left, beside the other steps' that are to come."""

    def within(self, seconds: float, asked: float) -> Rung | None:
        """The most thorough way that seconds and questions last for; None where they last for none."""
        return next((rung for rung in self.rungs if rung.seconds <= seconds and rung.asked <= asked), None)


class Suite(ABC):
    """A choice of attacks. One that lies where attacks lie is found there, as attacks are."""

    protections: tuple[str, ...]
    """Defenses, by name, under which the model is trained anew where that can be done."""

    @abstractmethod
    def steps(self, facts: Facts) -> tuple[Step, ...]:
        """The steps for a model, in the order in which they are run: what says most about it first."""


@dataclass(frozen=True, kw_only=True)
class Exactly(Suite):
    """These attacks, whatever they take, on so many examples."""

    attacks: tuple[Attack, ...]
    examples: int = 1000
    protections: tuple[str, ...] = ()

    def steps(self, facts: Facts) -> tuple[Step, ...]:
        """A step for each."""
        return tuple(Step(name=a.family, rungs=(Rung((a,), self.examples, 0.0),)) for a in self.attacks)
