"""Accusation by adversarial examples that copies share, and independent models do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attacks.ownership._thief import check_settings, default_thief
from secure_ml.access import BlackBox
from secure_ml.batch import Batch
from secure_ml.errors import NotApplicable, require
from secure_ml.families.extraction import Extraction
from secure_ml.families.ownership import SHARED, Evidence, Owner, Ownership, decide, predictive_p
from secure_ml.modes import evaluating
from secure_ml.outputs import Classes
from secure_ml.surfaces import Box, Surface
from secure_ml.task import Task
from secure_ml.threats import Linf, Threat


@dataclass(frozen=True, kw_only=True)
class Fingerprint(Ownership):
    """Targeted adversarial examples that transfer to copies only (Lukas et al. 2021, https://arxiv.org/abs/1912.00888).

    The owner trains copies of its own, and reference models on data that the victim has not seen, and climbs from
    training inputs ``(B, *shape)`` within an Linf ball to a random other class where the victim and the copies name it
    and the references do not. Those that the victim answers so are kept. Two thirds of the references, on other data
    again, are not climbed against: that a suspect agrees more often than one more of them would is tested by
    Student's t. One label of each question is asked of a suspect.

    Both matter: references on the victim's data agree so often that no copy stands out, and held-out ones that share
    data with those climbed against agree so rarely that innocents are accused. Exact as far as an innocent suspect is
    like the references: what that is worth is what the independent models show. Does not find
    a thief who trains the copy adversarially. Raises `NotApplicable` where inputs are no box of numbers or an answer is
    not one class, `UsageError` for settings out of range. Differs from the paper: a test against held-out models in the
    place of a fixed threshold, and a plain climb by the sign of the gradient.
    """

    radius: float = 0.25
    """Of the Linf ball, as a share of the box."""
    steps: int = 50
    """Of the climb."""
    questions: int = 100
    """Inputs that the climb starts from."""
    models: int = 24
    """Reference models, of which a third is climbed against; and a third as many copies."""
    queries: int = 2000
    """Budget of each thief, who asks random questions and imitates the probabilities."""
    stealing: Extraction | None = None
    """Another thief, in the place of that one."""
    copies: int = 3
    """Stolen models."""
    independents: int = 10
    """Models of the same task, on other data, that were not stolen."""
    level: float = 0.01
    """Of the test: the most p that is an accusation."""

    def __post_init__(self) -> None:
        check_settings("Fingerprint", self.copies, self.independents, self.level, self.queries)
        require(0 < self.radius <= 1, f"Fingerprint needs a radius between 0 and 1; given {self.radius}")
        for name in ("steps", "questions"):
            require(getattr(self, name) >= 1, f"Fingerprint needs {name} of at least 1; given {getattr(self, name)}")
        require(self.models >= 3, f"Fingerprint needs at least 3 reference models; given {self.models}")

    @property
    def thief(self) -> Extraction:
        """Who makes the copies."""
        return self.stealing or default_thief(self.queries)

    def check(self, task: Task, threat: Threat | None) -> None:
        """Raise `NotApplicable` where no gradient leads through a box."""
        super().check(task, threat)
        if not any(type(surface) is Box for surface in task.surfaces):
            raise NotApplicable(f"Fingerprint changes inputs of real numbers; {task.name} has none in a plain box")

    def collect(self, owner: Owner, rng: torch.Generator) -> Evidence:
        """The adversarial examples on which the victim is followed by its copies alone."""
        victim, output = owner.victim, owner.task.output
        assert isinstance(output, Classes)
        third = self.models // 3
        fought, held = owner.references(third, held=False), owner.references(self.models - third, held=True)
        alike = [victim, *owner.surrogates(third)]
        members = victim.splits.train
        start = members.take(torch.randperm(len(members), generator=rng)[: self.questions])
        answers = victim.served(start.inputs)
        classes = 2 if answers.ndim == 1 else answers.shape[1]
        named = output.decide(answers)
        target = (named + torch.randint(1, classes, (len(named),), generator=rng).to(named.device)) % classes
        surface = next(surface for surface in owner.task.surfaces if type(surface) is Box)
        inputs = self._climb(surface, start, target, [v.module for v in alike], [v.module for v in fought])
        kept = output.decide(victim.served(inputs)) == target
        target, found = target[kept], Batch(inputs, target).take(kept)
        if not len(found):
            return Evidence(found)
        agree = [(output.decide(model.served(found.inputs)) == target).double() for model in held]
        return Evidence(found, rates=tuple(float(same.mean()) for same in agree))

    def accuse(self, evidence: Evidence, suspect: BlackBox, rng: torch.Generator) -> float:
        """How likely one more of the references agrees as often."""
        wanted = evidence.questions.target
        assert isinstance(wanted, Tensor)
        same = (decide(suspect, evidence.questions.inputs) == wanted).double()
        return predictive_p(float(same.mean()), evidence.rates, len(same), SHARED)

    def _climb(
        self, surface: Box, start: Batch, target: Tensor, alike: list[nn.Module], others: list[nn.Module]
    ) -> Any:
        """Inputs within the ball on which the first models name the target, and the others do not."""
        clean = surface.get(start.inputs)
        reach = self.radius * (surface.high - surface.low)
        threat, here = Linf(reach), clean.clone()
        for step in range(self.steps):
            length = reach * 2.5 / self.steps * (1 - step / self.steps)
            slope = _slope(surface, Batch(surface.put(start.inputs, here), target), alike, others)
            here = threat.project(surface, clean, here + 2 * length * slope.sign())
        return surface.put(start.inputs, here)

    @classmethod
    def tiny(cls) -> Fingerprint:
        """Three steps, three references, one copy by eight queries, two independent models."""
        return cls(steps=3, questions=8, models=3, queries=8, copies=1, independents=2)


def _slope(surface: Surface, batch: Batch, alike: list[nn.Module], others: list[nn.Module]) -> Tensor:
    """Gradient of how likely the target is to copies, and how unlikely to others: the mean of the logarithms."""
    leaf = surface.get(batch.inputs).detach().requires_grad_()
    inputs = surface.put(batch.inputs, leaf)
    total = leaf.new_zeros(len(leaf))
    with torch.enable_grad():
        for module in alike:
            with evaluating(module):
                total = total + _logs(module(inputs), batch.target)[0] / len(alike)
        for module in others:
            with evaluating(module):
                total = total + _logs(module(inputs), batch.target)[1] / len(others)
        (slope,) = torch.autograd.grad(total.sum(), leaf)
    return slope


def _logs(outputs: Tensor, target: Any) -> tuple[Tensor, Tensor]:
    """Log-probability of the target class, and of all others together."""
    logits = torch.stack([torch.zeros_like(outputs), outputs], 1) if outputs.ndim == 1 else outputs
    logs = logits.log_softmax(-1)
    mine = logs.gather(1, target[:, None])[:, 0]
    return mine, logs.scatter(1, target[:, None], -torch.inf).logsumexp(1)
