"""The short name of a measurement: what is asked for on a command line, ``robust_accuracy@linf:0.03`` say."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from math import isclose

from secure_ml.errors import UsageError, require

CHECK = "check:"
"""Before the name of a check."""
SAME = 1e-4
"""By how much two numbers may differ, relatively, and still name the same radius, budget or rate."""
UNITS = frozenset({"queries", "fpr"})
"""Words of a qualifier that only say what its number counts."""
_TOKEN = re.compile(r"([a-z_]\w*)|(\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+)(?:\s*/\s*(\d+))?(\s*%)?")


@dataclass(frozen=True)
class Short:
    """A short name: what was measured, and for which threat, budget or rate."""

    head: str
    words: str = ""
    numbers: tuple[float, ...] = ()
    text: str = ""
    """The qualifier as one word, where it is a name rather than a threat or a number."""

    def __str__(self) -> str:
        """``robust_accuracy@linf:0.03``, ``fidelity@1000``, ``exposure@planted_16_times``."""
        numbers = ",".join(f"{number:.6g}" for number in self.numbers)
        tail = self.text or ":".join(part for part in (self.words, numbers) if part)
        return f"{self.head}@{tail}" if tail else self.head

    def meets(self, asked: Short) -> bool:
        """Whether the qualifier that was asked for is this one, or leaves it open."""
        if self.text:
            return asked.text in ("", self.text)
        alike = len(asked.numbers) == len(self.numbers) and all(
            isclose(mine, theirs, rel_tol=SAME) for mine, theirs in zip(self.numbers, asked.numbers, strict=True)
        )
        return asked.words in ("", self.words) and (alike or not asked.numbers)


def short(measure: str, unit: str = "") -> Short:
    """The short name of a measurement as it stands in a row.

    Words in lower case are joined by ``_``, a possessive and ``(95 %)`` are dropped. ``X under T`` is ``robust_X@t``
    (``certified`` keeps its own name), ``X at N`` and ``X@N`` are ``x@n``, ``X, Y`` and ``X (Y)`` are ``x@y``; before a
    verdict stands ``check:``.
    """
    if unit == "verdict":
        return Short(CHECK + slug(measure))
    measure = measure.replace("(95 %)", "").replace(" ,", ",").strip()
    for mark in (" under ", " at ", "@"):
        head, found, tail = measure.partition(mark)
        if found:
            robust = mark == " under " and not head.startswith("certified")
            words, numbers = qualifier(tail if mark == " under " else tail.partition(", ")[0])
            return Short(("robust_" if robust else "") + slug(head), words, numbers)
    head, _, tail = measure.partition(", ")
    if not tail and measure.endswith(")"):
        head, _, tail = measure.removesuffix(")").partition(" (")
    return Short(slug(head), text=slug(tail))


def asked(name: str, tail: str) -> Short:
    """The short name that somebody wrote as ``name@tail``."""
    words, numbers = qualifier(tail)
    return Short(name.lower(), words, numbers, slug(tail))


def slug(text: str) -> str:
    """Words in lower case joined by ``_``."""
    return re.sub(r"\W+", "_", text.lower().replace("'s", "")).strip("_")


def qualifier(text: str) -> tuple[str, tuple[float, ...]]:
    """Words and numbers of a threat, a budget, a rate: of ``Linf(8/255)``, ``linf:0.1``, ``1000 queries``, ``1 %``."""
    words, numbers = [], []
    for word, number, below, percent in _TOKEN.findall(text.lower()):
        if word:
            words += [] if word in UNITS or word == "joint" else [word]
        else:
            require(float(below or 1) > 0, f"{text!r} divides by 0")
            numbers.append(float(number) / float(below or 1) / (100 if percent else 1))
    return "+".join(words), tuple(numbers)


def resolve(name: str, heads: Iterable[str]) -> str:
    """The head that a name means: itself, without ``clean_``, or the only one that begins with it.

    Raises `UsageError` with the nearest names, or with all, where there is none.
    """
    known = sorted(set(heads))
    plain = name.removeprefix("clean_")
    for candidate in (name, plain):
        if candidate in known:
            return candidate
    longer = [head for head in known if head.startswith(plain + "_")]
    if len(longer) == 1:
        return longer[0]
    if longer:
        raise UsageError(f"{name!r} may be {' or '.join(longer)}: say which")
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? there are: " if near else "there are: "
    raise UsageError(f"nothing measured is called {name!r}; {hint}{', '.join(known) or 'no rows'}")
