"""Ownership: whether a suspect was copied from the victim, and how often that is said of models that were not."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from secure_ml.access import BlackBox
from secure_ml.attack import Attack, Result, stopwatch
from secure_ml.batch import Batch, Splits, Tree, join, tree_map
from secure_ml.defense import Defense
from secure_ml.errors import NotApplicable, UsageError, require
from secure_ml.families.extraction import Extraction
from secure_ml.families.poisoning import answers_one_class
from secure_ml.families.scrutiny import VERDICTS, Finding, worst_row
from secure_ml.imitation import Imitation
from secure_ml.outputs import Classes, Output
from secure_ml.randomness import derive, generator
from secure_ml.rows import Row, make_row, pool_rows
from secure_ml.scores import Predict
from secure_ml.stats import Estimate, clopper_pearson, over_seeds
from secure_ml.task import Task
from secure_ml.threats import Threat
from secure_ml.training import fit_many
from secure_ml.victim import Plain, Served, Victim, Wrapped


@dataclass(frozen=True)
class Evidence:
    """What an owner keeps: questions, and the answers by which a copy gives itself away."""

    questions: Batch
    """Inputs ``(n, *shape)``, and as target the class ``(n,)`` that a copy names."""
    chance: float = 1.0
    """How likely, at most, a model that was not copied names it."""
    rates: tuple[float, ...] = ()
    """How often each of some models that were not copied names it, where that is what a suspect is compared with."""
    public: Batch | None = None
    """Examples that nobody was trained on, where they are what the questions are compared with."""
    weights: Tensor | None = None
    """Of what is measured at each example ``(d,)``, where that was learned from the victim."""


class Watermark(Defense, ABC):
    """A defense that leaves a mark in what is served, which a copy takes over."""

    @abstractmethod
    def marks(self, owner: Owner) -> Evidence:
        """What the owner keeps of the mark; no questions, where nothing that was asked was marked."""


@dataclass(frozen=True, eq=False)
class Theft:
    """A copy, and what its maker asked."""

    copy: Predict
    asked: Tree
    queries: int


class Owner:
    """What an owner holds before anybody is suspected: the victim, what a client asked, and training of its own."""

    def __init__(self, victim: Victim, asked: Tree, seed: int) -> None:
        self.victim, self.task, self.asked, self.seed = victim, victim.task, asked, seed

    def references(self, count: int, *, held: bool) -> list[Victim]:
        """Models of the victim's kind, without its marks, on data that it was not trained on: none is a copy.

        Those that are held out share no example with the others, which have a quarter of the data. Each takes `SHARED`
        of what its kind has.
        """
        plain = tuple(defense for defense in self.victim.defenses if not isinstance(defense, Watermark))
        tasks, splits = [], self.victim.splits
        data = splits.nonmembers.take((torch.arange(len(splits.nonmembers)) % 4 != 0) == held)
        for i in range(count):
            parts = replace(splits, train=self._part(data, f"reference {held}", i), owner=None)
            tasks.append(replace(self.task, name=f"{self.task.name}_reference", data=partial(_given, parts)))
        return self._fit(tasks, plain, f"reference {held}")

    def surrogates(self, count: int) -> list[Victim]:
        """Copies that the owner makes itself, by imitating what the victim serves for parts of the owner's data."""
        tasks = []
        for i in range(count):
            inputs = self._part(self.victim.splits.train, "surrogate", i).inputs
            answers = self.task.output.reveal(self.victim.served(inputs), "probabilities")
            tasks.append(Imitation(self.victim, self.seed).surrogate(Batch(inputs, answers)))
        return self._fit(tasks, (), "surrogate")

    def _part(self, data: Batch, use: str, i: int) -> Batch:
        order = torch.randperm(len(data), generator=generator(self.seed, use, i))
        return data.take(order[: math.ceil(SHARED * len(data))])

    def _fit(self, tasks: list[Task], defenses: tuple[Defense, ...], use: str) -> list[Victim]:
        seeds = [derive(self.seed, use, i) % 2**31 for i in range(len(tasks))]
        return fit_many(tasks, defenses, seeds=seeds, device=self.victim.device)


class Ownership(Attack):
    """The owner accuses, or does not, a suspect who answers with labels: stolen copies, and independent models.

    ``aux`` is parted: from one half thieves choose what to ask; on the other, independent models are trained as the
    task has it, without the victim's defenses, each on a part of its own. An accusation is a p-value below ``level``.
    The control is the point: a test that accuses models that were not copied more often than its level is no evidence.
    Its interval takes suspects for independent, and those of one victim share its evidence: several victims say more.
    """

    family: ClassVar[str] = "ownership"
    outputs: ClassVar[tuple[type[Output], ...]] = (Classes,)
    logged: ClassVar[bool] = False
    """Whether the evidence depends on what a client asked: then each copy is tested by the log of its maker."""
    copies: int
    """Stolen models."""
    independents: int
    """Models of the same task, on other data, that were not stolen."""
    level: float
    """Of a test: the most p that is an accusation."""

    @property
    @abstractmethod
    def thief(self) -> Extraction:
        """Who makes the copies."""

    @abstractmethod
    def collect(self, owner: Owner, rng: torch.Generator) -> Evidence:
        """What the owner keeps, before it meets a suspect."""

    @abstractmethod
    def accuse(self, evidence: Evidence, suspect: BlackBox, rng: torch.Generator) -> float:
        """How likely an innocent suspect looks as guilty as this one: a p-value."""

    def check(self, task: Task, threat: Threat | None) -> None:
        """Raise `NotApplicable` where an answer is not one class, or examples are not fixed."""
        super().check(task, threat)
        name = type(self).__name__
        if task.renew is not None:
            raise NotApplicable(f"{task.name} learns by acting: no other data are there for an independent model")
        if not answers_one_class(task):
            raise NotApplicable(f"{name} compares classes; an answer of {task.name} is not one class")
        self.thief.check(task, None)

    @final
    def evaluate(self, victim: Victim, *, threat: Threat | None, seed: int, examples: int) -> Result:
        """Steal, train the control, collect evidence, accuse all; rows of both rates, of p-values, and a verdict."""
        self.check(victim.task, threat)
        task, test = victim.task, victim.tested(examples)
        require(self.copies >= 1 and self.independents >= 1, f"{self!r} needs at least 1 copy and 1 independent model")
        with stopwatch(victim.device) as seconds:
            pool, honest = halves(victim.splits.aux, seed)
            thefts = steal(self.thief, victim, pool, self.copies, seed)
            control = independent_models(victim, honest, self.independents, seed)
            kept = [
                self.collect(Owner(victim, theft.asked, derive(seed, "owner")), generator(seed, "collect", repr(self)))
                for theft in (thefts if self.logged else thefts[:1])
            ]
            accused = [self._p(victim, kept, i, theft.copy, seed) for i, theft in enumerate(thefts)]
            cleared = [self._p(victim, kept, i, model.served, seed) for i, model in enumerate(control)]
        answers = victim.served(test.inputs)
        agree = [
            [task.output.fidelity(model(test.inputs).to(victim.device), answers).value for model in models]
            for models in ([theft.copy for theft in thefts], [model.served for model in control])
        ]
        found = {
            name: torch.tensor(values, dtype=torch.float64)
            for name, values in zip(
                ("copies", "independent", "queries", "copies agree", "independent agree"),
                ([p for p, _ in accused], [p for p, _ in cleared], [float(n) for _, n in accused], *agree),
                strict=True,
            )
        }
        rows = self._rows(found, [len(evidence.questions) for evidence in kept])
        queries = int(found["queries"].max())
        return Result(
            tuple(
                make_row(victim, name, estimate, attack=repr(self), unit=unit, queries=queries, note=note, seconds=s)
                for (name, estimate, unit, note), s in zip(rows, [seconds[0], *[0.0] * len(rows)], strict=False)
            ),
            {**found, "kept": torch.tensor([len(evidence.questions) for evidence in kept])},
        )

    @final
    @classmethod
    def pool(cls, task: Task, attempts: Sequence[tuple[Attack, Result]]) -> list[Row]:
        """Of every test, the rates over all suspects of all victims, and the verdict on them."""
        by_attack: dict[str, tuple[Ownership, list[Result]]] = {}
        for attack, result in attempts:
            assert isinstance(attack, Ownership)
            by_attack.setdefault(repr(attack), (attack, []))[1].append(result)
        pooled = []
        for attack, results in by_attack.values():
            found = {name: torch.cat([r.evidence[name] for r in results]) for name in results[0].evidence}
            kept = [int(n) for n in found.pop("kept")]
            for place, (_, estimate, unit, note) in enumerate(attack._rows(found, kept)):
                same = [result.rows[place] for result in results]
                row = worst_row(same) if unit == "verdict" else pool_rows(same)
                pooled.append(replace(pool_rows([row], estimate), note=note, seeds=row.seeds, seconds=row.seconds))
        return pooled

    def _p(self, victim: Victim, kept: list[Evidence], i: int, model: Predict, seed: int) -> tuple[float, int]:
        """The p-value of one suspect, and how often it was asked; without evidence nobody is accused."""
        suspect = BlackBox(victim.task, lambda inputs: model(inputs).to(victim.device), "label")
        evidence = kept[i % len(kept)]
        p = self.accuse(evidence, suspect, generator(seed, "accuse", repr(self))) if len(evidence.questions) else 1.0
        require(0 <= p <= 1, f"{self!r} gave {p} as a p-value; expected a number in [0, 1]")
        return p, suspect.queries

    def _rows(self, found: dict[str, Tensor], kept: list[int]) -> list[tuple[str, Estimate, str, str]]:
        """Measure, estimate, unit and note of each row."""
        stolen, innocent = found["copies"], found["independent"]
        guilty, wronged = (int((p < self.level).sum()) for p in (stolen, innocent))
        asked = f"at level {self.level:g}, {self!r}"
        finding = judge(type(self).__name__, wronged, len(innocent), self.level)
        listed = [", ".join(f"{p:.2g}" for p in some) for some in (stolen, innocent)]
        questions = f"{min(kept)} to {max(kept)}" if min(kept) < max(kept) else f"{kept[0]}"
        return [
            (f"power {asked}", clopper_pearson(guilty, len(stolen)), "share", f"{questions} questions"),
            (f"false accusations {asked}", clopper_pearson(wronged, len(innocent)), "share", ""),
            (f"median p of copies, {self!r}", _number(stolen.median(), len(stolen)), "p-value", f"p: {listed[0]}"),
            (f"least p of others, {self!r}", _number(innocent.min(), len(innocent)), "p-value", f"p: {listed[1]}"),
            ("fidelity of the copies", over_seeds(found["copies agree"].tolist()), "agreement", ""),
            ("fidelity of the others", over_seeds(found["independent agree"].tolist()), "agreement", ""),
            (finding.check, _number(VERDICTS.index(finding.verdict), 1), "verdict", str(finding)),
        ]


def judge(name: str, accused: int, n: int, level: float) -> Finding:
    """FAIL where as many accusations of ``n`` independent models have a chance below 5 % under a test of this level."""
    from scipy.stats import binom

    check = f"no false accusations, {name}"
    bound = clopper_pearson(accused, n)
    evidence = (
        f"{accused} of {n} independent models accused at level {level:g} "
        f"(95 % interval of the rate {bound.low:.3f} to {bound.high:.3f})"
    )
    if accused == 0:
        return Finding(check, "PASS", evidence)
    if float(binom.sf(accused - 1, n, level)) < 0.05:
        return Finding(check, "FAIL", evidence, "the p-values are too small: this test is no evidence of a theft")
    return Finding(check, "WARN", evidence, "train more independent models before this test is believed")


def halves(aux: Batch, seed: int) -> tuple[Batch, Batch]:
    """What thieves ask about, and what independent models are trained on; `UsageError` where there is too little."""
    require(len(aux) >= 4, f"an ownership test parts the auxiliary data between thieves and others; given {len(aux)}")
    order = torch.randperm(len(aux), generator=generator(seed, "ownership halves"))
    first, second = order.split([len(aux) // 2, len(aux) - len(aux) // 2])
    return aux.take(first), aux.take(second)


def steal(thief: Extraction, victim: Victim, pool: Batch, count: int, seed: int) -> list[Theft]:
    """Copies of what is served, each made by a thief with a seed of its own, and what each thief asked."""
    return [_steal(thief, victim, pool, derive(seed, "theft", i) % 2**31) for i in range(count)]


def _steal(thief: Extraction, victim: Victim, pool: Batch, seed: int) -> Theft:
    log = _Log(victim.served)
    asked = thief._pool(replace(victim, splits=replace(victim.splits, aux=pool)))
    access = BlackBox(victim.task, log, thief.reveal, thief.queries)
    stolen = thief.steal(access, asked, Imitation(victim, seed), generator(seed, "theft"))
    copies = [copy for copy in stolen if isinstance(copy, nn.Module)]
    if not copies or not log.asked:
        raise UsageError(f"{thief!r} asked nothing, or made no copy of {victim.task}: give it a budget")
    return Theft(Plain(copies[-1].eval(), victim.task.chunk), join(log.asked), access.queries)


class _Log(Wrapped):
    """What is served, and a note of everything that was asked, in any session."""

    def __init__(self, inner: Served) -> None:
        super().__init__(inner)
        self.asked: list[Tree] = []

    def __call__(self, inputs: Tree) -> Tensor:
        self.asked.append(tree_map(lambda tensor: tensor.detach().clone(), inputs))
        return self.inner(inputs)


def independent_models(victim: Victim, data: Batch, count: int, seed: int) -> list[Victim]:
    """Bare models of the task, each on four fifths of the data, as many at most as the victim was trained on."""
    tasks, none = [], victim.splits.test.take(slice(0, 0))
    for i in range(count):
        order = torch.randperm(len(data), generator=generator(seed, "independent", i))
        mine = data.take(order[: min(-(-4 * len(data) // 5), len(victim.splits.train))])
        parts = Splits(mine, victim.splits.validation, none, none)
        tasks.append(replace(victim.task, name=f"{victim.task.name}_other", data=partial(_given, parts)))
    seeds = [derive(seed, "independent", i) % 2**31 for i in range(count)]
    return fit_many(tasks, (), seeds=seeds, device=victim.device)


def _given(parts: Splits, rng: torch.Generator) -> Splits:
    return parts


def binomial_p(answers: Tensor, wanted: Tensor, chance: float) -> float:
    """The chance of at least so many agreements ``(n,)`` by a model that agrees with probability ``chance``."""
    from scipy.stats import binom

    return float(binom.sf(int((answers == wanted).sum()) - 1, len(wanted), chance))


def predictive_p(rate: float, rates: Sequence[float], n: int, shared: float = 0.0) -> float:
    """The chance that one more model of those with these ``rates`` agrees on so large a share of ``n`` questions.

    Student's t for a new observation of a normal sample: exact where rates of models are normal. Models that were each
    trained on a ``shared`` part of the same data differ by less than those on data of their own: where data make the
    difference, by ``1 - shared`` of the variance, and the rest moves their mean. That is allowed for, in full. The
    spread is taken for no less than that of ``n`` throws.
    """
    from scipy.stats import t

    m = len(rates)
    require(m >= 2, f"a suspect can be compared with no fewer than 2 models; given {m}")
    mean = sum(rates) / m
    spread = sum((r - mean) ** 2 for r in rates) / (m - 1)
    level = min(max(mean, 1 / (n + 2)), (n + 1) / (n + 2))
    spread = max(spread, level * (1 - level) / n)
    return float(t.sf((rate - mean) / (spread * ((1 + shared) / (1 - shared) + 1 / m)) ** 0.5, m - 1))


def decide(suspect: BlackBox, inputs: Tree) -> Tensor:
    """The classes ``(n,)`` that a suspect names."""
    output = suspect.task.output
    assert isinstance(output, Classes)
    return output.decide(suspect(inputs))


SHARED = 1 / 3
"""Of the data, what each of an owner's own models is trained on."""


def _number(value: float | Tensor, n: int) -> Estimate:
    return Estimate(float(value), float("nan"), float("nan"), n, "counted")
