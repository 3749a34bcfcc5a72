"""The suite of a report card: which attacks, in which settings, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from attacks.evasion.apgd import APGD
from attacks.evasion.auto_attack import AutoAttack
from attacks.evasion.column_queries import ColumnQueries
from attacks.evasion.hop_skip_jump import HopSkipJump
from attacks.evasion.nes import NES
from attacks.evasion.pgd import PGD
from attacks.evasion.square import Square
from attacks.evasion.token_swap import TokenSwap
from attacks.evasion.word_queries import WordQueries
from attacks.extraction.knockoff import Knockoff
from attacks.membership.boundary_distance import BoundaryDistance
from attacks.membership.entropy import Entropy
from attacks.membership.lira import LiRA
from attacks.membership.loss_threshold import LossThreshold
from attacks.membership.rmia import RMIA
from attacks.scrutiny.evasion_checks import EvasionChecks
from attacks.scrutiny.privacy_checks import PrivacyChecks
from secure_ml.attack import Attack
from secure_ml.families.evasion import is_classifier
from secure_ml.families.extraction import CLIMB, TRANSFERRED
from secure_ml.imitation import Net
from secure_ml.outside.costs import Costs
from secure_ml.suite import Facts, Rung, Step, Suite
from secure_ml.surfaces import Box, Tokens
from secure_ml.threats import Features


@dataclass(frozen=True, kw_only=True)
class ReportCard(Suite):
    """Evasion, membership, extraction and the checks, each as thorough as the time allows.

    Costs are upper bounds: every example is taken to stand to the end of every attack.
    """

    protections: tuple[str, ...] = ("adversarial_training", "dp_sgd")
    """Defenses, by name, under which the model is trained anew where that can be done."""
    examples: int = 1000
    """Test examples that are attacked, at most."""

    def steps(self, facts: Facts) -> tuple[Step, ...]:
        """Cheap questions first, so that little time still answers something."""
        made = [
            Step(name="membership by loss", rungs=self._losses(facts), weight=0.5),
            Step(name="evasion", rungs=self._evasion(facts), weight=4),
            Step(name="extraction", rungs=tuple(_extraction(facts, self.examples)), weight=2),
            Step(name="checks of privacy", rungs=self._privacy(facts), weight=0.5),
            Step(name="checks of robustness", rungs=tuple(_checks(facts)), weight=3),
            Step(name="membership by labels", rungs=tuple(self._labels(facts)), weight=1),
            Step(name="membership by shadows", rungs=tuple(self._shadows(facts)), weight=3),
        ]
        return tuple(step for step in made if step.rungs)

    def _losses(self, facts: Facts) -> tuple[Rung, ...]:
        n = self._paired(facts)
        attacks = (LossThreshold(), *([Entropy()] if is_classifier(facts.task) else []))
        return (Rung(attacks, n, facts.costs.ask(4, n), 4 * n),) if n else ()

    def _privacy(self, facts: Facts) -> tuple[Rung, ...]:
        n = self._paired(facts)
        return (Rung((PrivacyChecks(),), n, 2.0),) if n else ()

    def _paired(self, facts: Facts) -> int:
        """Members that are told from as many others."""
        return min(self.examples, facts.members, facts.others)

    def _evasion(self, facts: Facts) -> tuple[Rung, ...]:
        """From the standard ensemble on all examples down to a few steps on twenty."""
        numbers = any(isinstance(surface, Box) for surface in facts.task.surfaces)
        words = any(isinstance(surface, Tokens) for surface in facts.task.surfaces)
        asks = facts.blind or facts.costs.backward is None
        ways = (
            _asking(facts) if numbers and asks else _climbing(facts) if numbers else _swapping(facts) if words else ()
        )
        return tuple(_by_worth(list(ways), min(self.examples, facts.tested)))

    def _labels(self, facts: Facts) -> Iterator[Rung]:
        n = self._paired(facts)
        if n and is_classifier(facts.task) and any(isinstance(s, Box) for s in facts.task.surfaces):
            for queries, most in ((250, n), (100, n), (30, n), (30, 100)):
                pairs, attack = min(n, most), BoundaryDistance(search="noise", queries=queries)
                yield Rung((attack,), pairs, facts.costs.ask(queries, 2 * pairs), 2 * queries * pairs)

    def _shadows(self, facts: Facts) -> Iterator[Rung]:
        n = self._paired(facts)
        if n and not facts.trainable:  # which the row says
            yield Rung((LiRA(), RMIA(online=True)), 1, 0.0)
            return
        for count in (64, 32, 16, 8, 4) if n else ():
            attacks = (LiRA(shadows=count), RMIA(shadows=count, online=True))
            yield Rung(attacks, n, count * (facts.training + facts.costs.ask(4, n)))


@dataclass(frozen=True)
class Way:
    """Attacks, the seconds that they take on so many examples, and what they ask about each."""

    attacks: tuple[Attack, ...]
    seconds: Callable[[int], float]
    asks: float

    def on(self, n: int) -> Rung:
        """On so many examples, whose answers are looked at besides."""
        return Rung(self.attacks, n, self.seconds(n), round((self.asks + 2 * len(self.attacks)) * n))


def _by_worth(ways: list[Way], whole: int) -> Iterator[Rung]:
    """Hundreds of examples before strength, strength before a hundred, and a few dozen if nothing else fits."""
    strong, weak = ways[:2], ways[2:]
    many, hundred, few = (whole, 500, 200), (100,), (50, 20)
    for some, sizes in ((strong, many), (strong, hundred), (weak, many), (weak, hundred), (ways, few)):
        for way in some:
            yield from (way.on(n) for n in sizes if n == whole or n < whole)


def _way(costs: Costs, climbs: float, asks: float, *attacks: Attack, standing: float = 1.0) -> Way:
    """Attacks that take so many gradients and so many answers about each example that stands, and few about others."""

    def seconds(n: int) -> float:
        dwelt_on = math.ceil(n * standing)
        quick = costs.climb(min(climbs, QUICK), n) if standing < 1 else 0.0
        return quick + (costs.climb(climbs, dwelt_on) if climbs else 0.0) + costs.ask(asks, dwelt_on)

    return Way(attacks, seconds, asks)


def _climbing(facts: Facts) -> Iterator[Way]:
    """With the gradient: the ensemble, which also asks; what is no classifier is climbed by its own loss."""
    if not is_classifier(facts.task):
        yield from (_way(facts.costs, 2 * steps, 1, APGD(steps=steps), PGD(steps=steps)) for steps in (100, 20, 5))
        return
    for steps, targets, queries in ((100, 9, 5000), (50, 3, 1000), (20, 1, 200)):
        few = min(targets, facts.classes - 1)
        ensemble = AutoAttack(steps=steps, targets=targets, queries=queries)
        path = PGD(steps=steps, loss="margin")
        climbs, asks = steps * (2 + 2 * few), steps * few + queries
        yield _way(facts.costs, climbs, asks, ensemble, path, standing=facts.standing)
    yield _way(facts.costs, 10, 20, PGD(steps=10, loss="margin"), Square(queries=20), standing=facts.standing)


def _asking(facts: Facts) -> Iterator[Way]:
    """Without: scores and labels are asked for; what needs the weights says so in a row of its own."""
    for queries in (5000, 1000, 300, 100):
        few = queries // 4
        if isinstance(facts.task.threat, Features):
            columns = ColumnQueries(queries=queries, loss="margin" if is_classifier(facts.task) else "task")
            yield _way(facts.costs, 0, queries, APGD(), columns)
        elif is_classifier(facts.task):
            border = HopSkipJump(queries=queries, samples=min(100, few))
            yield _way(facts.costs, 0, 2 * queries, AutoAttack(), Square(queries=queries), border)
        else:
            yield _way(facts.costs, 0, queries, APGD(), NES(queries=queries, pairs=min(25, few)))


def _swapping(facts: Facts) -> Iterator[Way]:
    """Replacements by the gradient, of as many texts at a time as there are places in the beam, and by asking."""
    if facts.blind:
        for queries in (5000, 1000, 300, 100, 30):
            yield _way(facts.costs, 0, queries, TokenSwap(), WordQueries(queries=queries))
        return
    for candidates, beam, again in ((64, 4, 4), (32, 2, 2), (8, 1, 1)):
        looks, swap = 2.0 * (1 + again) * beam, TokenSwap(candidates=candidates, beam=beam, again=again)
        asking = [WordQueries(queries=16 * candidates)] if beam > 1 else []
        asks = sum(attack.queries for attack in asking)
        yield _way(facts.costs, looks, looks * candidates + asks, swap, *asking)


def _extraction(facts: Facts, examples: int) -> Iterator[Rung]:
    """A copy from the adversary's own examples, of the same architecture where that can be built."""
    net, n = _net(facts), min(examples, facts.tested)
    if net is None and facts.pool:  # which the row says
        yield Rung((Knockoff(),), 1, 0.0)
    for queries in dict.fromkeys(min(q, facts.pool) for q in (3000, 1000, 300, 100, 30)):
        if net is None or queries < 10:
            return
        budgets = tuple(budget for budget in (queries // 10, queries // 3) if budget >= 10)
        stages = 1 + len(budgets)
        if net == "same":
            learning = stages * (facts.training + facts.costs.climb(CLIMB, TRANSFERRED))
        else:
            each = 1e-4 + (1.5e-6 * math.prod(facts.shape[1:]) if net == "convolutional" else 0.0)
            learning = each * (COPYING * (queries + sum(budgets)) + stages * CLIMB * TRANSFERRED)
        copy = Knockoff(queries=queries, budgets=budgets, net=net, epochs=None if net == "same" else COPYING)
        yield Rung((copy,), n, facts.costs.ask(1, queries) + learning, queries + n + stages * TRANSFERRED)


def _net(facts: Facts) -> Net | None:
    if facts.trainable:
        return "same"
    if not any(isinstance(surface, Box) and not surface.path for surface in facts.task.surfaces):
        return None
    return "convolutional" if len(facts.shape) == 3 and min(facts.shape[1:]) >= 4 else "dense"


def _checks(facts: Facts) -> Iterator[Rung]:
    if is_classifier(facts.task) and any(type(surface) is Box for surface in facts.task.surfaces):
        for points in (200, 100, 50, 20, 10):
            seconds = 0.0 if facts.blind else facts.costs.climb(1500, points) + facts.costs.ask(2000, points)
            yield Rung((EvasionChecks(points=points),), points, seconds + facts.training)


QUICK = 20
"""Gradients that examples take which fall at once, in two attacks."""
COPYING = 50
"""Epochs of a small copy."""
