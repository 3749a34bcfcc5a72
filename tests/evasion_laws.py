"""The laws that attacks on inputs, and the threats that they keep to, obey because they exist."""

import dataclasses

import torch
from torch import Tensor

import secure_ml as sm
from secure_ml.access import WhiteBox
from secure_ml.batch import Batch, Tree, leaves
from secure_ml.families.evasion import Evasion, attack_batch
from secure_ml.surfaces import Surface
from secure_ml.threats import Ball, Change, Threat, Walk
from secure_ml.victim import Served
from tests.laws import same


def law_judged_on_what_is_served(attack: Evasion, victim: sm.Victim) -> None:
    """A served constant scores what the constant scores, whatever the module would have said."""
    served = Constant(victim.served)
    constant = dataclasses.replace(victim, served=served)
    task, test = attack.judged(victim.task, victim.splits.test.take(slice(0, 20)))
    score = task.score
    served(victim.splits.test.inputs)
    values = score.values(served, test)
    if isinstance(score, sm.scores.ClosedLoop):
        values = score.worse(values, score.values(served, test))
    expected = score.aggregate(values).value
    (row,) = attack.evaluate(constant, threat=None, seed=0, examples=20).rows
    assert row.value == expected


class Constant(Served):
    """The answer to the first query, to every query."""

    def __init__(self, inner: Served) -> None:
        self.inner, self.answer = inner, None

    def __call__(self, inputs: Tree) -> Tensor:
        if self.answer is None:
            self.answer = self.inner(inputs)[:1]
        return self.answer.expand(len(next(leaves(inputs))), *self.answer.shape[1:])


def law_stays_in_threat(attack: Evasion, victim: sm.Victim, threat: Threat | None = None) -> None:
    """Every changed input lies in its threat and in its surface; batches of 0 and 1 pass; radius 0 changes nothing."""
    task = victim.task
    threat = threat or task.threat
    assert threat is not None
    rng = torch.Generator().manual_seed(0)
    for n in (0, 1, 12):
        batch = victim.splits.test.take(slice(0, n))
        access = attack.open(victim, task, n)
        changed = attack_batch(attack, access, batch, threat, rng)
        assert len(changed) == n
        for part in threat.parts():
            surface = task.surface(part)
            before, after = surface.get(batch.inputs), surface.get(changed.inputs)
            assert bool((part.size(before, after) <= part.radius + 1e-6).all()), "outside the threat"
            surface.check(changed.inputs)
    nothing = attack_batch(attack, attack.open(victim, task, n), batch, threat.within(0), rng)
    assert same(list(leaves(nothing.inputs)), list(leaves(batch.inputs))), "radius 0 changed an input"


def law_beats_chance_perturbation(attack: Evasion, victim: sm.Victim) -> None:
    """The losses it reaches are above those of random changes of the same size.

    An example that could not be answered worse is won, whatever its loss: an attack may leave it there. Not of attacks
    that are told nothing but the class: they look for near errors, and know no losses.
    """
    if attack.sees == "label":
        return
    task, test = attack.judged(victim.task, victim.splits.test.take(slice(0, 30)))
    threat = task.threat
    assert threat is not None
    rng, inputs = torch.Generator().manual_seed(1), test.inputs
    for part in threat.parts():
        surface = task.surface(part)
        if isinstance(surface, attack.surfaces):
            inputs = surface.put(inputs, at_random(part, surface, surface.get(inputs), rng))
    changed = attack_batch(attack, attack.open(victim, task, len(test)), test, threat, rng)
    access = WhiteBox(task, victim.module)
    random = task.loss(access, Batch(inputs, test.target))
    reached = task.loss(access, changed)
    score, won = task.score, torch.tensor(False)
    if score.ceiling < torch.inf:
        won = score.harm(score.values(access, changed)) >= score.ceiling
    assert won.all() or torch.where(won, reached.maximum(random), reached).mean() > random.mean()


def at_random(threat: Change, surface: Surface, clean: Tensor, rng: torch.Generator) -> Tensor:
    """A random change, as large as the threat allows where that is easily told."""
    if isinstance(threat, Ball):
        return threat.project(surface, clean, clean + threat.radius * threat.sample(clean, rng).sign())
    if isinstance(threat, Walk):
        return threat.realise(surface, clean, threat.start(surface, clean, rng))
    return threat.project(surface, clean, torch.randint(1, surface.vocabulary, clean.shape, generator=rng))


def law_projects(threat: Change, surface: Surface, clean: Tensor) -> None:
    """Projection ends inside, is the identity inside, heals what is no number, and samples stay inside."""
    rng = torch.Generator().manual_seed(0)
    if isinstance(threat, Walk):
        wild = [clean + 3 * torch.randn(clean.shape, generator=rng), torch.full_like(clean, torch.nan)]
        inside = threat.realise(surface, clean, threat.start(surface, clean, rng))
        assert bool((threat.size(clean, inside) <= threat.radius + 1e-6).all()), "a start lies outside"
        surface.check(inside)
    else:
        wild = [torch.randint(-5, 100, clean.shape, generator=rng)]
    for proposal in wild:
        near = threat.project(surface, clean, proposal)
        assert bool((threat.size(clean, near) <= threat.radius + 1e-6).all()), "the projection lies outside"
        surface.check(near)
        assert torch.allclose(threat.project(surface, clean, near).double(), near.double(), atol=1e-6)
