"""A model and data from outside, made into a victim: what it is is found out, and every guess is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from secure_ml.batch import Batch, Splits, Tree, join, leaves
from secure_ml.errors import NotApplicable, require
from secure_ml.families.scrutiny import Finding
from secure_ml.outputs import Classes, NextToken, Output, Values
from secure_ml.outside.adapted import Call, Manner, answer_of, call_of
from secure_ml.outside.boxes import THREAT, boxed, normalised
from secure_ml.outside.change import Bounds, Change, name_of, slots
from secure_ml.outside.costs import Costs, measure
from secure_ml.outside.estimator import Estimator
from secure_ml.outside.examples import as_classes, as_floats, as_rows, read
from secure_ml.outside.kinds import Kind, kind_of, per_example
from secure_ml.outside.members import divided, plausible
from secure_ml.outside.models import Model, first_answers, module_of, place_of, placed
from secure_ml.outside.opaque import opaque
from secure_ml.outside.words import worded
from secure_ml.randomness import generator
from secure_ml.scores import RMSE, Accuracy, NatsPerToken, Score
from secure_ml.surfaces import Surface
from secure_ml.task import Loss, Recipe, Task, cross_entropy, next_token_loss, squared_error
from secure_ml.threats import Threat
from secure_ml.victim import Plain, Victim

TARGETS, INPUTS = "targets", "inputs"


@dataclass(frozen=True, kw_only=True)
class Given:
    """What is known of a model from outside; each field is one of `secure_ml.assess`."""

    model: Model
    train: object = None
    test: object = None
    aux: object = None
    loss: object = None
    output: Output | None = None
    score: Score | None = None
    box: Bounds | None = None
    normalize: Bounds | None = None
    surfaces: Sequence[Surface] = ()
    threat: Threat | None = None
    build: Callable[[], nn.Module] | None = None
    recipe: Recipe | None = None
    name: str = "model"
    seed: int = 0
    device: str | torch.device = "auto"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A victim, what was found out about it, and what it costs to ask."""

    victim: Victim
    costs: Costs
    trainable: bool
    """Whether more models like it can be trained."""
    findings: tuple[Finding, ...] = ()


class Outside(Plain):
    """The module's own answers, and what asking for them has cost where that is counted."""

    def usage(self) -> dict[str, int]:
        """Inputs and requests that were sent, of a model that is asked over a network."""
        part = opaque(self.module)
        return dict(part.used()) if part is not None else {}


def prepare(given: Given) -> Subject:
    """The subject of an assessment. Raises `UsageError` where parts do not fit one another, or the box."""
    found: list[Finding] = []
    inner = placed(module_of(given.model), given.device, found)
    parts = _parts(given, inner, found)
    call = call_of(inner, parts["test"].inputs, opaque(inner) is not None)
    few = parts["test"].take(slice(0, 256))
    returned = first_answers(inner, few.inputs, call)
    kind = _kind(given, answer_of(returned), few.target, found, opaque(inner) is not None)
    change = _change(given, inner, join([part.inputs for part in parts.values()]), call, found)
    manner = Manner(call=call, reads=kind.reads, flat=kind.flat, scale=change.scale)
    as_it_is = manner == Manner() and isinstance(returned, Tensor) and next(inner.parameters(), None) is not None
    module = inner if as_it_is else manner.wrap(inner)
    train, test, aux = (
        Batch(change.of(parts[name].inputs), parts[name].target) if name in parts else None for name in PARTS
    )
    assert test is not None
    splits = divided(train, test, aux, generator(given.seed, "pool"), found)
    task = _task(given, kind, change, splits, manner)
    task.check(module, splits if train is not None else replace(splits, train=splits.test))
    costs = measure(module, splits.test, task.loss, next(iter(task.surfaces), None), found)
    task = replace(task, chunk=costs.chunk)
    served = Outside(module, task.chunk)
    found += plausible(task, served, splits)
    victim = Victim(task=task, module=module, served=served, splits=splits, seed=given.seed)
    trainable = given.build is not None and given.recipe is not None
    return Subject(victim=victim, costs=costs, trainable=trainable, findings=tuple(found))


def _parts(given: Given, module: nn.Module, found: list[Finding]) -> dict[str, Batch]:
    """The data, as tensors where the module lies."""
    sources = {name: getattr(given, name) for name in PARTS if getattr(given, name) is not None}
    require("test" in sources, "give test=, examples that the model was not trained on, with their targets")
    blind, place = opaque(module), place_of(module)
    if isinstance(blind, Estimator):
        sources, blind.columns = as_rows(sources, blind.names)
    raw = {name: read(source, name, found, given.seed) for name, source in sources.items()}
    encode = blind.classes if isinstance(blind, Estimator) and blind.kinds is not None else None
    targets, said = as_classes([target for _, target in raw.values()], encode)
    if said:
        found.append(Finding(TARGETS, "WARN", said, "give numbers in the order of the model's answers"))
    every = isinstance(blind, Estimator)
    parts = {}
    for (name, (inputs, _)), target in zip(raw.items(), targets, strict=True):
        numbers = as_floats(inputs, every)
        rows = {len(leaf) for leaf in leaves(numbers)}
        require(rows == {len(target)}, f"{name} has inputs of {sorted(rows)} examples and {len(target)} targets")
        parts[name] = Batch(numbers, target).to(place)
    require(len(parts["test"]) >= 4, f"test has {len(parts['test'])} examples: give at least 4, and better hundreds")
    shapes = {name: [tuple(leaf.shape[1:]) for leaf in leaves(part.inputs)] for name, part in parts.items()}
    for name, shape in shapes.items():
        require(shape == shapes["test"], f"inputs of {name} have shapes {shape}, those of test {shapes['test']}")
    return parts


def _kind(given: Given, answers: Tensor, target: Tree, found: list[Finding], blind: bool) -> Kind:
    if given.output is None:
        assert isinstance(target, Tensor)
        return kind_of(answers, target, found, blind)
    score, loss = _USUAL.get(type(given.output), (given.score, given.loss))
    require(score is not None and loss is not None, f"{given.output} needs score= and loss= as well")
    return Kind(output=given.output, score=score, loss=loss)  # type: ignore[arg-type]


def _change(given: Given, module: nn.Module, inputs: Tree, call: Call, found: list[Finding]) -> Change:
    if given.surfaces:
        require(given.box is None and given.normalize is None, "give either surfaces, or box and normalize")
        require(given.threat is not None, "give threat= with surfaces=: how far they may be changed")
        return Change(surfaces=tuple(given.surfaces))
    there = slots(inputs)
    numbers = [path for path, leaf in there.items() if leaf.is_floating_point()]
    if not numbers:
        require(given.box is None and given.normalize is None, "box and normalize are for real numbers; there are none")
        change = worded(module, inputs, call, there, found)
    elif given.normalize is not None:
        change = normalised(numbers[0], there[numbers[0]], given.box, given.normalize, found)
    else:
        blind = opaque(module)
        columns = blind.columns if isinstance(blind, Estimator) else None
        change = boxed(numbers[0], there[numbers[0]], given.box, found, columns)
    others = [name_of(path) for path in there if not any(path == surface.path for surface in change.surfaces)]
    if others and change.surfaces:
        said = f"{name_of(change.surfaces[0].path)} is what attacks change; {', '.join(others)} stay"
        found.append(Finding(INPUTS, "PASS", said))
    if given.threat is None:
        return change
    found[:] = [finding for finding in found if finding.check != THREAT]
    return replace(change, threat=given.threat)


def _task(given: Given, kind: Kind, change: Change, splits: Splits, manner: Manner) -> Task:
    """The task of the model; where nothing says how, another of its kind cannot be trained."""
    lacking = [name for name, part in (("build=", given.build), ("recipe=", given.recipe)) if part is None]

    def another() -> nn.Module:
        if given.build is None or lacking:
            raise NotApplicable(f"this trains models of the same kind: give {' and '.join(lacking)}")
        return manner.wrap(given.build())

    return Task(
        name=given.name,
        build=another,
        data=lambda _: splits,
        loss=kind.loss if given.loss is None else per_example(given.loss),
        output=kind.output,
        score=given.score or kind.score,
        surfaces=change.surfaces,
        threat=given.threat or change.threat,
        recipe=given.recipe or USUAL,
        assumes=change.public,
    )


PARTS = ("train", "test", "aux")
USUAL = Recipe(optimizer="Adam", learning_rate=1e-3)
"""How copies are trained where nothing is known of the model's own training."""
_USUAL: dict[type[Output], tuple[Score, Loss]] = {
    Classes: (Accuracy(), cross_entropy),
    Values: (RMSE(), squared_error),
    NextToken: (NatsPerToken(), next_token_loss),
}
