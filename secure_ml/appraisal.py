"""A suite run on victims of one stack, within the time that it may take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from secure_ml.access import WhiteBox
from secure_ml.attack import Attack, Result
from secure_ml.batch import Batch, leaves
from secure_ml.climb import climb
from secure_ml.errors import BudgetExceeded, NotApplicable, UsageError
from secure_ml.families.evasion import is_classifier
from secure_ml.families.scrutiny import Finding
from secure_ml.identity import digest
from secure_ml.keeping import Keeper, about
from secure_ml.outputs import Classes
from secure_ml.outside.costs import Costs
from secure_ml.outside.opaque import opaque
from secure_ml.randomness import generator
from secure_ml.report import card
from secure_ml.rows import make_row
from secure_ml.stats import Estimate, clopper_pearson
from secure_ml.suite import Facts, Rung, Step
from secure_ml.threats import Walk
from secure_ml.victim import Victim

Tell = Callable[[str], None]
Tried = list[tuple[Attack | None, Result]]
MEMBERS = "on members"
"""What is added to the name of a score that is measured on training examples."""
LOOKED_AT = 32
"""Examples of which it is seen beforehand whether they stand."""
NOTICED = 0.5
"""Seconds of an estimate above which it is compared with what a step took."""


@dataclass(frozen=True)
class Appraisal:
    """What was tried on a stack's victims, and how thoroughly."""

    tried: Tried = field(default_factory=list)
    plan: list[Finding] = field(default_factory=list)


def appraise(
    victims: Sequence[Victim],
    steps: Sequence[Step],
    seconds: float,
    seed: int,
    tell: Tell,
    keeper: Keeper | None = None,
) -> Appraisal:
    """Every step on every victim, each as thoroughly as its share of the time that is left allows.

    Where the steps so far took longer than was thought, those that are to come are taken to be as slow. What the keeper
    holds, results and decisions, is not made again.
    """
    keeper = keeper or Keeper()
    done, pace, spent, thought = Appraisal(), 1.0, 0.0, 0.0
    end = time.perf_counter() + seconds
    for victim in victims:
        plain = partial(_guarded, victim, None, partial(_card, victim), {})
        done.tried.append((None, keeper.result(victim, None, 0, seed, plain)))
    for place, step in enumerate(steps):
        start = time.perf_counter()
        left = max(end - start, 0.0)
        share = step.weight / sum(other.weight for other in steps[place:])
        choose = partial(_chosen, step, left / len(victims) / pace, _spare(victims[0]), share)
        rung = _decided(keeper, about(victims[0].defenses, f"{place} {step.name}"), step, choose)
        tried: Tried = []
        for attack in (rung or step.rungs[-1]).attacks:
            for victim in victims:
                which = about(victim.defenses, f"{place} {step.name}, {attack!r}, seed {victim.seed}")
                why = keeper.decided(which, partial(_obstacle, step, rung, pace, end, victim))
                if why:
                    tried.append((attack, _nothing(victim, attack, why)))
                else:
                    tell(f"{step.name}: {attack!r}")
                    examples = rung.examples if rung else 0
                    attempt = partial(_attempt, victim, attack, examples, seed)
                    tried.append((attack, keeper.result(victim, attack, examples, seed, attempt)))
        done.tried.extend(tried)
        done.plan.append(_said(step, rung, tried, math.isfinite(_spare(victims[0]))))
        if rung is not None and rung.seconds > NOTICED:
            spent, thought = spent + time.perf_counter() - start, thought + rung.seconds * len(victims)
            pace = max(spent / thought, 1.0)
    return done


def _decided(keeper: Keeper, which: str, step: Step, choose: Callable[[], Rung | None]) -> Rung | None:
    """How thorough a step is, by its place among the step's ways, where these were the same before."""
    ways = digest(*(f"{rung.attacks} on {rung.examples}" for rung in step.rungs))

    def place() -> int | None:
        rung = choose()
        return None if rung is None else step.rungs.index(rung)

    chosen = keeper.decided(f"{which}, of {ways}", place)
    return None if chosen is None else step.rungs[chosen]


def _obstacle(step: Step, rung: Rung | None, pace: float, end: float, victim: Victim) -> str:
    """Why an attack is left out; empty where it is not."""
    now = time.perf_counter()
    if rung is None or (rung.seconds and now > end):
        return _too_much(step.rungs[-1], pace, end - now, _spare(victim))
    return ""


def _chosen(step: Step, seconds: float, spare: float, share: float) -> Rung | None:
    """The most thorough way within the share of what is left, or a cheaper one within half of all that is left."""
    return step.within(share * seconds, share * spare) or step.within(seconds / 2, spare / 2)


def _spare(victim: Victim) -> float:
    """Inputs that the model may still be asked about."""
    part = opaque(victim.module)
    return float("inf") if part is None else part.spare()


def facts_of(victim: Victim, costs: Costs, trainable: bool, seconds: float) -> Facts:
    """What a suite is chosen by, of which no more than a twentieth of so many seconds are used up."""
    task, splits = victim.task, victim.splits
    few = victim.served(splits.test.take(slice(0, 2)).inputs)
    classes = (2 if few.ndim == 1 else few.shape[-1]) if isinstance(task.output, Classes) else 0
    return Facts(
        task=task,
        costs=costs,
        training=max(training_of(victim, costs), victim.seconds) if trainable else 0.0,
        trainable=trainable,
        members=len(splits.train),
        others=len(splits.nonmembers),
        tested=len(splits.test),
        pool=len(splits.aux),
        shape=tuple(splits.test.inputs.shape[1:]) if isinstance(splits.test.inputs, Tensor) else (),
        classes=classes,
        blind=opaque(victim.module) is not None,
        standing=_standing(victim, costs, seconds / 20),
    )


def _standing(victim: Victim, costs: Costs, seconds: float) -> float:
    """The share of examples that a few steps do not break, at most: those that a longer attack will dwell on."""
    threat, batch = victim.task.threat, victim.splits.test.take(slice(0, LOOKED_AT))
    climbed = threat is not None and all(isinstance(part, Walk) for part in threat.parts())
    if not climbed or costs.backward is None or not is_classifier(victim.task) or costs.climb(10, len(batch)) > seconds:
        return 1.0
    assert threat is not None
    access, rng = WhiteBox(victim.task, victim.module), generator(victim.seed, "standing")
    try:
        changed = Batch(climb(access, batch, threat, None, rng, steps=10), batch.target)
    except Exception:  # which the attacks will meet as well, and tell
        return 1.0
    right = victim.task.score.values(victim.served, changed) > 0
    return clopper_pearson(int(right.sum()), len(batch)).high


def training_of(victim: Victim, costs: Costs) -> float:
    """Seconds that one more such model takes to train, from those of a gradient in the inputs, half of the work."""
    recipe, members = victim.task.recipe, len(victim.splits.train)
    steps = -(-members // recipe.batch_size)
    return 1.5 * recipe.epochs * steps * costs.climb(1, min(recipe.batch_size, members))


def nothing(victim: Victim, why: Exception, attack: Attack | None = None) -> Result:
    """The result of a stack, or of an attack, that is not there: a row that says why, and whether that is a failure."""
    if isinstance(why, (NotApplicable, BudgetExceeded)) or (attack is None and isinstance(why, UsageError)):
        return _nothing(victim, attack, str(why))
    first = (str(why).splitlines() or ["it says no more"])[0]
    return _nothing(victim, attack, f"failed: {type(why).__name__}: {first}", failed=True)


def _attempt(victim: Victim, attack: Attack, examples: int, seed: int) -> Result:
    work = partial(attack.evaluate, victim, threat=None, seed=seed, examples=examples)
    return _guarded(victim, attack, work, dict(victim.served.usage()))


def _guarded(victim: Victim, attack: Attack | None, work: Callable[[], Result], before: Mapping[str, int]) -> Result:
    """The result, or a row that says why there is none: whatever one attack does, the others go on.

    What was used by it is what is counted now, less what was counted before.
    """
    result = _kept(victim, attack, work)
    used = {name: count - before.get(name, 0) for name, count in victim.served.usage().items()}
    rows = (make_row(victim, name, _exactly(count), unit="count") for name, count in used.items() if count)
    return replace(result, usage=tuple(rows))


def _kept(victim: Victim, attack: Attack | None, work: Callable[[], Result]) -> Result:
    try:
        return work()
    except Exception as why:
        return nothing(victim, why, attack)


def _nothing(victim: Victim, attack: Attack | None, why: str, failed: bool = False) -> Result:
    measure = attack.family if attack else victim.task.score.name
    row = make_row(victim, measure, attack=repr(attack) if attack else "", note=why)
    return Result((row,), obstacle=why, failed=failed)


def _card(victim: Victim) -> Result:
    """The score on the test split, and on the members; nothing is known of a training that was somebody else's."""
    known = card(victim)
    rows = [row for row in known.rows if row.unit != "seconds" or row.value]
    score, train = victim.task.score, victim.splits.train
    if next(leaves(train.inputs)).numel():
        told = make_row(victim, f"{score.name} {MEMBERS}", score.measure(victim.served, train), unit=score.unit)
        rows.insert(1, told)
    return Result(tuple(rows))


def _exactly(value: float) -> Estimate:
    return Estimate(float(value), float("nan"), float("nan"), 1, "counted")


def _too_much(rung: Rung, pace: float, left: float, spare: float) -> str:
    """Why not even the cheapest way was taken."""
    if left <= 0:
        return "left out: the time was up; give more minutes"
    if rung.asked > spare / 2:
        return f"left out: it would ask about {rung.asked:,} inputs, and {spare:,.0f} are left; raise the limit"
    return f"left out: it would take up to {duration(pace * rung.seconds)} of the {duration(left)} that are left"


def _said(step: Step, rung: Rung | None, tried: Tried, counted: bool) -> Finding:
    """How a step was done, and what the most thorough way would have taken."""
    best, obstacles = step.rungs[0], [result.obstacle for _, result in tried]
    if all(obstacles):
        return Finding(step.name, "WARN" if rung is None else "SKIP", obstacles[0])
    assert rung is not None
    told = f"{', '.join(map(repr, rung.attacks))} on {rung.examples} examples, at most {duration(rung.seconds)}"
    if rung == best:
        return Finding(step.name, "PASS", told)
    more = f" and ask about {best.asked:,} inputs" if counted else ""
    whole = f"{', '.join(map(repr, best.attacks))} on {best.examples} would take up to {duration(best.seconds)}{more}"
    return Finding(step.name, "WARN", f"{told}; {whole}", "give more minutes")


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
