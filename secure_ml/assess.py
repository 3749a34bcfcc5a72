"""Bring your own model: its report card in one call."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from secure_ml.appraisal import Appraisal, Tell, Tried, appraise, duration, facts_of, nothing, training_of
from secure_ml.assessment import Assessment
from secure_ml.attack import Attack
from secure_ml.defense import Defense, stack_name
from secure_ml.discovery import methods
from secure_ml.errors import NotApplicable, require, unknown
from secure_ml.families.scrutiny import Finding
from secure_ml.identity import Unidentifiable, digest, identify
from secure_ml.keeping import Keeper, about, identity, store_for
from secure_ml.outputs import Output
from secure_ml.outside.change import Bounds
from secure_ml.outside.costs import Costs, Price, measure
from secure_ml.outside.models import Model
from secure_ml.outside.opaque import opaque
from secure_ml.outside.prepare import Given, Subject, prepare
from secure_ml.randomness import seeded
from secure_ml.scores import Score
from secure_ml.store import CorruptStore
from secure_ml.suite import Exactly, Suite
from secure_ml.surfaces import Surface
from secure_ml.task import Recipe, Task
from secure_ml.threats import Threat
from secure_ml.victim import Victim, resolve_device, serve

Stack = tuple[Defense, ...]


def assess(
    model: Model,
    train: object = None,
    test: object = None,
    *,
    aux: object = None,
    loss: object = None,
    output: Output | None = None,
    score: Score | None = None,
    box: Bounds | None = None,
    normalize: Bounds | None = None,
    surfaces: Sequence[Surface] = (),
    threat: Threat | None = None,
    build: Callable[[], nn.Module] | None = None,
    recipe: Recipe | None = None,
    defenses: Sequence[str | Defense | Stack] | None = None,
    attacks: Sequence[Attack] | None = None,
    suite: Suite | None = None,
    examples: int = 1000,
    minutes: float = 10.0,
    seeds: int = 1,
    seed: int = 0,
    device: str | torch.device = "auto",
    name: str = "model",
    keep: Path | str | None = None,
    tell: Tell = lambda _: None,
) -> Assessment:
    """The report card of a trained model, which is asked and attacked as it is and left as it was.

    What is not given is found out or assumed, and each assumption is a line of the result. Raises `UsageError` where
    data, answers and box do not fit one another.

    Args:
        model: an ``nn.Module``, a file of torch.export, TorchScript or ONNX, an `Endpoint` (or the TOML file of one), a
            fitted scikit-learn estimator, or a function of arrays that answers with probabilities; or a `Task`, which
            is trained first.
        train: what it was trained on, the members: a dataset of ``(x, y)`` or dictionaries, or a pair of arrays.
        test: what it was not trained on, in the same form: the others, by which everything is judged.
        aux: what the adversary owns; half of the test examples unless given.
        loss: ``(predictor, batch) -> (B,)``, or a criterion of torch.
        output: what answers are, `Classes` say; told by answers and targets unless given.
        score: by what it is judged.
        box: lowest and highest value of an input, as numbers or for each column; the observed range unless given.
        normalize: mean and deviation of each channel, where the model expects normalised inputs; the box is then that
            of raw values, [0, 1] unless given. The data may be either.
        surfaces: what an adversary may change, in place of all that is found out about it.
        threat: how far; 8/255 of the box for images, a twentieth for other numbers, two edits of a text, unless given.
        build: makes an untrained module of the kind; with ``recipe``, shadow models and defenses in training are there.
        recipe: how it was trained.
        defenses: stacks to compare with, by name or as they are; those that train need ``build`` and ``recipe``.
        attacks: exactly these, whatever they take, in place of a suite that fits the time.
        suite: what is run in the time; the one that lies where attacks lie unless given.
        examples: test examples attacked, at most, by ``attacks``.
        minutes: what all of it may take, by an estimate that starts from the measured cost of asking the model.
        seeds: independent victims of a `Task`.
        seed: of every choice that is made at random, or of the first victim.
        device: where; where the model lies unless given.
        name: of the model, in every row.
        keep: a folder (or a URL that fsspec reaches) where each result is kept as it is done: the same call, killed and
            made again, goes on there with the same card. What only answers is asked anew each time.
        tell: hears what is being done.
    """
    require(minutes > 0, f"an assessment needs more than 0 minutes; given {minutes}")
    require(seeds >= 1, f"an assessment needs at least 1 seed; given {seeds}")
    start = time.perf_counter()
    end = start + 60 * minutes
    given = Given(
        model=model, train=train, test=test, aux=aux, loss=loss, output=output, score=score, box=box,
        normalize=normalize, surfaces=surfaces, threat=threat, build=build, recipe=recipe, name=name, seed=seed,
        device=device,
    )  # fmt: skip
    with _unheard(seed):
        question = f"{minutes} minutes, seed {seed}, {seeds} seeds"
        subjects, keeper = _subjects(given, seeds, tell, keep, question)
        end -= keeper.earlier
        chosen = suite or (_usual_suite() if attacks is None else Exactly(attacks=tuple(attacks), examples=examples))
        blind = opaque(subjects[0].victim.module) is not None
        usual = (() if blind else chosen.protections) if defenses is None else ()
        asked = [stack for stack in map(_stack, (*usual, *(defenses or ()))) if stack]
        stacks = [(), *(asked if subjects[0].trainable or not usual else ())]
        found = list(subjects[0].findings)
        groups: list[tuple[Task, Tried]] = []
        for place, stack in enumerate(stacks):
            left = max(end - time.perf_counter(), 0.0)
            done = _appraised(subjects, stack, chosen, left / (len(stacks) - place), tell, keeper)
            groups.append((subjects[0].victim.task, done.tried))
            found += [replace(line, check=f"{line.check} ({stack_name(stack)})") for line in done.plan]
        rest = [_appraised(subjects, stack, chosen, 0.0, tell, keeper).tried for stack in asked if stack not in stacks]
        seconds = keeper.earlier + time.perf_counter() - start
    return Assessment.of(subjects[0].victim, groups, found, [tried for many in rest for tried in many], seconds)


def _subjects(
    given: Given, seeds: int, tell: Tell, keep: Path | str | None, question: str
) -> tuple[list[Subject], Keeper]:
    """One victim that is there, or as many as there are seeds of a task; and who keeps what is done about them."""
    if not isinstance(given.model, Task):
        require(seeds == 1, "a model that is trained already is one victim: seeds are for a Task")
        tell("looking at the model")
        subject = prepare(given)
        name = partial(identity, subject.victim, given.build)
        keeper, said = _keeper(keep, subject.victim.device, name, question)
        return [_as_before(replace(subject, findings=(*subject.findings, *said)), keeper)], keeper
    require(given.train is None and given.test is None, "a Task brings its own data: leave train and test out")
    task = replace(given.model, threat=given.threat or given.model.threat)
    name = partial(_name_of, task, given.seed)
    keeper, said = _keeper(keep, resolve_device(given.device), name, question)
    made = []
    for seed in range(given.seed, given.seed + seeds):
        tell(f"training {task}, seed {seed}")
        victim = keeper.victim(task, (), seed, given.device)
        surface = next(iter(task.surfaces), None)
        found = list(said)
        costs = measure(victim.module, victim.splits.test, task.loss, surface, found)
        made.append(_as_before(Subject(victim=victim, costs=costs, trainable=True, findings=tuple(found)), keeper))
    return made, keeper


def _name_of(task: Task, seed: int) -> str:
    return digest(identify(task), task.draw(seed).fingerprint())


def _keeper(
    keep: Path | str | None, device: torch.device, name: Callable[[], str], question: str
) -> tuple[Keeper, list[Finding]]:
    """Who keeps what is done, and what is said about it: where a model cannot be told from another, nothing is kept."""
    if keep is None:
        return Keeper(), []
    try:
        keeper = Keeper.at(store_for(keep, device), name(), question)
    except Unidentifiable as what:
        return Keeper(), [Finding(KEPT, "WARN", f"nothing: this is {what}; a call that is killed begins again")]
    return keeper, [Finding(KEPT, "PASS", "each result as it is done: the same call, killed and made again, goes on")]


def _as_before(subject: Subject, keeper: Keeper) -> Subject:
    """A subject that costs what it cost an earlier call, by which the same is then run."""
    which = f"costs, seed {subject.victim.seed}"
    said = keeper.decided(which, lambda: [asdict(subject.costs), [asdict(line) for line in subject.findings]])
    costs: dict[str, Any] = {k: Price(**part) if isinstance(part, dict) else part for k, part in said[0].items()}
    return replace(subject, costs=Costs(**costs), findings=tuple(Finding(**line) for line in said[1]))


def _appraised(
    subjects: Sequence[Subject], stack: Stack, suite: Suite, seconds: float, tell: Tell, keeper: Keeper
) -> Appraisal:
    """What becomes of the victims, or of others like them that are trained under a stack."""
    first = subjects[0]
    start = time.perf_counter()
    try:
        victims = [_protected(subject, stack, seconds, tell, keeper) for subject in subjects]
    except CorruptStore:
        raise
    except Exception as why:  # whatever one stack does, the others go on
        bare = [replace(subject.victim, defenses=stack, claims=()) for subject in subjects]
        return Appraisal([(None, nothing(victim, why)) for victim in bare])
    left = seconds - (time.perf_counter() - start)
    facts = facts_of(victims[0], first.costs, first.trainable, left)
    facts = replace(facts, standing=keeper.decided(about(stack, "standing"), lambda: facts.standing))
    left = seconds - (time.perf_counter() - start)
    return appraise(victims, suite.steps(facts), left, first.victim.seed, tell, keeper)


def _protected(subject: Subject, stack: Stack, seconds: float, tell: Tell, keeper: Keeper) -> Victim:
    """The victim behind a stack, trained anew where the stack trains; `NotApplicable` where it cannot be."""
    victim = subject.victim
    for defense in stack:
        defense.check(victim.task)
    if not any(defense.trains() for defense in stack):
        return serve(replace(victim, defenses=stack))
    if not subject.trainable:
        victim.task.build()  # which says what is missing
    why = keeper.decided(about(stack, "training"), partial(_too_long, subject, stack, seconds))
    if why:
        raise NotApplicable(why)
    tell(f"training under {stack_name(stack)}")
    return keeper.victim(victim.task, stack, victim.seed, victim.device)


def _too_long(subject: Subject, stack: Stack, seconds: float) -> str:
    """Why a stack is not trained for; empty where it is."""
    victim = subject.victim
    training = training_of(victim, subject.costs)
    slow = REHEARSING if any(defense.rehearses(victim.task) for defense in stack) else PRIVATE
    if slow * training <= seconds / 2:
        return ""
    most = f"{duration(slow * training)} of the {duration(max(seconds, 0.0))} that are left for it"
    return f"left out: training may take {most}; give more minutes"


def _stack(asked: str | Defense | Stack) -> Stack:
    """Defenses by their names, ``dp_sgd+label_only``, in their own defaults."""
    if isinstance(asked, Defense):
        return (asked,)
    if isinstance(asked, tuple):
        return asked
    known, made = methods("defenses", Defense), []
    for name in asked.split("+") if asked != "none" else ():
        if name.strip() not in known:
            raise unknown("defense", name.strip(), known)
        made.append(known[name.strip()]())
    return tuple(made)


def _usual_suite() -> Suite:
    """The suite that lies where attacks lie."""
    found = methods("attacks", Suite)  # type: ignore[type-abstract]
    require(len(found) == 1, f"there are {len(found)} suites ({', '.join(found)}): give suite=, or attacks=")
    return next(iter(found.values()))()


@contextmanager
def _unheard(seed: int) -> Iterator[None]:
    """The streams of random numbers that everybody shares, those of data sets among them, return as they were."""
    mine, numpys = random.getstate(), np.random.get_state()
    with seeded(seed, "assess"):
        try:
            yield
        finally:
            random.setstate(mine)
            np.random.set_state(numpys)


KEPT = "kept"
"""What is said of whether a call that is killed can go on."""
REHEARSING, PRIVATE = 12.0, 4.0
"""How many times as long training takes at most, where it meets an attack in every step, and otherwise."""
