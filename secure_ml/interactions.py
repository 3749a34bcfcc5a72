"""What a defense changes: differences between victims of the same seeds, and which of them are more than noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from secure_ml.direction import direction
from secure_ml.rows import TIMES, Row

Correction = Literal["holm", "bh", "none"]
BARE = "none"
LEVEL = 0.05
Key = tuple[str, str, str]
"""Task, attack and measure: what is compared across stacks."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A difference of means over seeds, with its 95 % interval and the chance of one as large without an effect."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    """Pairs of victims of the same seed; the smaller number of victims where seeds do not match."""
    paired: bool = True
    p: float | None = None
    adjusted: float | None = None
    """``p`` after correction for all comparisons that were made with it."""
    why: str = ""
    """Why nothing can be told, where nothing can."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What a stack does to a measure: the difference to the bare model, or of a stack of several to their sum."""

    task: str
    defenses: str
    attack: str
    measure: str
    unit: str
    difference: Difference
    before: float | None = None
    """The mean of what it is compared with: of the bare model, or the sum of the parts' effects on it."""
    after: float | None = None
    better: int = 0
    """1 where more is better for the defender, -1 where less is, 0 where neither is."""
    parts: tuple[str, ...] = ()
    """The stack's parts, where it is compared with their sum."""

    @property
    def tested(self) -> bool:
        """Whether it is among the comparisons that are corrected: there is a better way, and it is no duration."""
        return bool(self.better) and self.unit not in TIMES

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, ``perhaps better``, ``perhaps worse``, ``within noise``, or why it cannot be told.

        *Perhaps* is what stands alone and not after correction; ``different`` where no way is the better one.
        """
        found = self.difference
        if found.value is None or found.p is None or found.adjusted is None:
            return found.why
        if found.p >= LEVEL:
            return "within noise"
        side = math.copysign(1, found.value) * self.better
        way = "better" if side > 0 else "worse" if side < 0 else "different"
        return way if found.adjusted < LEVEL else f"perhaps {way}"


Choice = Callable[[Effect], bool]


def difference(after: Mapping[int, float], before: Mapping[int, float], step: float = 0.0) -> Difference:
    """The mean difference between the victims of some seeds and others, each seed's value given.

    Victims of the same seed share their data and are compared with each other (paired t); without a common seed,
    all with all (Welch 1947, https://doi.org/10.1093/biomet/34.1-2.28). ``step`` is the smallest change that a value
    can show, one example of n: the spread over seeds is taken to be no smaller.
    """
    common = sorted(set(after) & set(before))
    if common:
        return paired([after[seed] - before[seed] for seed in common], step)
    return _welch(list(after.values()), list(before.values()), step)


def paired(differences: Sequence[float], step: float = 0.0) -> Difference:
    """The mean of differences seed by seed, with Student's t interval."""
    from scipy.special import stdtrit  # scipy.stats, which asks the same function, takes a second to load

    n, mean = len(differences), float(np.mean(differences)) if differences else None
    if mean is None or n < 2:
        return Difference(value=mean, n=n, why=_too_few(n))
    spread = max(float(np.std(differences, ddof=1)), step)
    return _with_t(mean, spread / math.sqrt(n), n - 1, Difference(n=n), float(stdtrit(n - 1, 1 - LEVEL / 2)))


def _welch(after: Sequence[float], before: Sequence[float], step: float) -> Difference:
    from scipy.special import stdtrit

    fewer = min(len(after), len(before))
    if not fewer:
        return Difference(paired=False, why=_too_few(0))
    mean = float(np.mean(after) - np.mean(before))
    if fewer < 2:
        return Difference(value=mean, n=fewer, paired=False, why=_too_few(fewer))
    parts = [max(float(np.var(side, ddof=1)), step**2) / len(side) for side in (after, before)]
    squared = sum(part**2 / (len(side) - 1) for part, side in zip(parts, (after, before), strict=True))
    freedom = sum(parts) ** 2 / squared if squared else fewer - 1.0
    empty = Difference(n=fewer, paired=False)
    return _with_t(mean, math.sqrt(sum(parts)), freedom, empty, float(stdtrit(freedom, 1 - LEVEL / 2)))


def _with_t(mean: float, error: float, freedom: float, empty: Difference, quantile: float) -> Difference:
    from scipy.special import stdtr

    if not error:
        same = mean == 0
        p = 1.0 if same else None
        return replace(empty, value=mean, low=mean, high=mean, p=p, why="" if same else "cannot tell: no spread")
    p = float(2 * stdtr(freedom, -abs(mean) / error))
    return replace(empty, value=mean, low=mean - quantile * error, high=mean + quantile * error, p=p)


def _too_few(n: int) -> str:
    return "cannot tell: 1 seed" if n == 1 else "cannot tell: no seed was measured on both"


def adjust(p: Sequence[float], correction: Correction = "holm") -> list[float]:
    """Corrected p-values, in the order given.

    ``holm`` bounds the chance of a single false finding among all of them (Holm 1979, https://www.jstor.org/stable/4615733),
    however they depend on each other; ``bh`` the share of false ones among the findings (Benjamini and Hochberg 1995).
    """
    if correction == "none" or not p:
        return [float(one) for one in p]
    values, n = np.asarray(p, dtype=np.float64), len(p)
    if correction == "bh":
        from scipy.stats import false_discovery_control

        return [float(one) for one in false_discovery_control(values)]
    order = np.argsort(values)
    stepped = np.maximum.accumulate(values[order] * np.arange(n, 0, -1)).clip(max=1.0)
    out = np.empty(n)
    out[order] = stepped
    return [float(one) for one in out]


def corrected(found: Sequence[Effect], correction: Correction = "holm") -> list[Effect]:
    """The effects with their p-values corrected for all of them that have one."""
    known = [i for i, effect in enumerate(found) if effect.difference.p is not None]
    values = adjust([p for i in known if (p := found[i].difference.p) is not None], correction)
    done = dict(zip(known, values, strict=True))
    return [
        replace(e, difference=replace(e.difference, adjusted=done[i])) if i in done else e for i, e in enumerate(found)
    ]


def every(effect: Effect) -> bool:
    """All are as important."""
    return True


def _in_turn(found: Sequence[Effect], correction: Correction, first: Choice) -> list[Effect]:
    """What is first, corrected; then the others, corrected; then what is not tested."""
    tested = [effect for effect in found if effect.tested]
    main, rest = ([e for e in tested if first(e) == wanted] for wanted in (True, False))
    untested = [effect for effect in found if not effect.tested]
    return corrected(main, correction) + corrected(rest, correction) + corrected(untested, "none")


@dataclass(frozen=True)
class Series:
    """One measure of one stack under one attack: its value at each seed."""

    values: Mapping[int, float]
    unit: str
    step: float


def by_seed(rows: Sequence[Row]) -> dict[Key, dict[str, Series]]:
    """What single victims measured, by stack: of all rows with a value and a single seed that are compared at all."""
    found: dict[Key, dict[str, dict[int, Row]]] = {}
    for row in rows:
        if row.value is None or len(row.seeds) != 1 or row.unit in ("verdict", "count", "p-value"):
            continue
        stacks = found.setdefault((row.task, row.attack, row.measure), {})
        stacks.setdefault(row.defenses, {}).setdefault(row.seeds[0], row)
    return {key: {name: _series(of) for name, of in stacks.items()} for key, stacks in found.items()}


def _series(rows: Mapping[int, Row]) -> Series:
    """A share of n examples moves in steps of 1/n."""
    counted = [row.n for row in rows.values() if row.interval == "Clopper-Pearson" and row.n]
    values = {seed: row.value for seed, row in rows.items() if row.value is not None}
    return Series(values, next(iter(rows.values())).unit, 1 / min(counted) if counted else 0.0)


def effects(rows: Sequence[Row], correction: Correction = "holm", first: Choice = every) -> list[Effect]:
    """Of every stack and measure the difference to the bare model, corrected for many comparisons.

    Takes the rows of single victims, each attack on its own: nothing is chosen by what it found. Those that are
    ``first``, one measure a risk say, are corrected together, and all others together, so that many details do not
    drown the main findings. What has no better way, and what training took, is not tested and costs the others nothing.
    """
    found: list[Effect] = []
    for key, stacks in by_seed(rows).items():
        bare = stacks.get(BARE)
        for name, mine in stacks.items():
            if bare is None or name == BARE:
                continue
            found.append(_changed(key, name, mine, bare))
    return _in_turn(found, correction, first)


def stacked(rows: Sequence[Row], correction: Correction = "holm", first: Choice = every) -> list[Effect]:
    """Of every stack whose parts were measured alone too: its effect less the sum of theirs, seed by seed.

    0 where effects add up. Better than the sum is what stacking buys, worse what the parts cost each other. Corrected
    as `effects` are.
    """
    found: list[Effect] = []
    for (task, attack, measure), stacks in by_seed(rows).items():
        better = direction(measure, next(iter(stacks.values())).unit)
        for name, mine in stacks.items():
            parts = split(name)
            if len(parts) < 2 or not better or mine.unit in TIMES or not {BARE, *parts} <= set(stacks):
                continue
            bare, alone = stacks[BARE], [stacks[part] for part in parts]
            seeds = set(mine.values) & set(bare.values)
            seeds = seeds.intersection(*(part.values for part in alone))
            sums = {s: sum(p.values[s] - bare.values[s] for p in alone) for s in seeds}
            whole = {s: mine.values[s] - bare.values[s] for s in seeds}
            found.append(
                Effect(
                    task=task,
                    defenses=name,
                    attack=attack,
                    measure=measure,
                    unit=mine.unit,
                    difference=difference(whole, sums, max(part.step for part in (mine, bare, *alone))),
                    before=float(np.mean(list(sums.values()))) if seeds else None,
                    after=float(np.mean(list(whole.values()))) if seeds else None,
                    better=better,
                    parts=parts,
                )
            )
    return _in_turn(found, correction, first)


def compared(after: Sequence[Row], before: Sequence[Row], correction: Correction = "holm") -> list[Effect]:
    """What moved between two runs: of each stack, attack and measure in both, the later less the earlier."""
    old = by_seed(before)
    found: list[Effect] = []
    for key, stacks in by_seed(after).items():
        for name, mine in stacks.items():
            theirs = old.get(key, {}).get(name)
            if theirs is None:
                continue
            found.append(_changed(key, name, mine, theirs))
    return _in_turn(found, correction, every)


def split(stack: str) -> tuple[str, ...]:
    """The parts of a stack's name: ``A(x=1) + B()`` has two, however their settings look."""
    parts, depth = [""], 0
    for i, letter in enumerate(stack):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0 and stack[i : i + 3] == " + ":
            parts.append("")
        else:
            parts[-1] += letter
    return tuple(part.removeprefix("+ ").strip() for part in parts)


def _changed(key: Key, name: str, mine: Series, other: Series) -> Effect:
    """What a stack measured less what it is compared with."""
    task, attack, measure = key
    return Effect(
        task=task,
        defenses=name,
        attack=attack,
        measure=measure,
        unit=mine.unit,
        difference=difference(mine.values, other.values, max(mine.step, other.step)),
        before=_mean(other),
        after=_mean(mine),
        better=direction(measure, mine.unit),
    )


def _mean(series: Series) -> float:
    return float(np.mean(list(series.values.values())))
