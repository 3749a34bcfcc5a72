"""So many answers a client, and no more."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from defenses._answers import first_inputs, require_open
from secure_ml.batch import Tree, leaves
from secure_ml.defense import Defense
from secure_ml.errors import require
from secure_ml.victim import Served, Victim, Wrapped


@dataclass(frozen=True, kw_only=True)
class RateLimit(Defense):
    """Answers each client so many queries and no more: a query is what extraction pays with.

    What a query is worth: Tramèr et al. 2016 (https://arxiv.org/abs/1609.02943).

    Of inputs ``(B, *shape)`` that go beyond ``queries``, the first are answered and the others refused, as all later
    ones are. One adversary is one client. Who measures what is served is none, and is neither counted nor refused.

    Covers: every attack by one client that needs more queries. Does not cover: clients who share their answers, or one
    under several names; whatever needs fewer queries. Raises `UsageError` for a limit below 1, `NotApplicable` behind
    encryption, where what is served is not taken apart.
    """

    queries: int = 1000
    """Answers to each client."""

    def __post_init__(self) -> None:
        require(self.queries >= 1, f"RateLimit answers at least 1 query; given {self.queries}")

    def serve(self, victim: Victim) -> Victim:
        """The victim that counts each client's queries."""
        require_open(self, victim)
        return replace(victim, served=Limited(victim.served, self.queries))


class Limited(Wrapped):
    """Another predictor's answers, so many a client."""

    def __init__(self, inner: Served, queries: int) -> None:
        super().__init__(inner)
        self.queries = queries
        self.left: int | None = None

    def session(self) -> Served:
        """A client who has all its queries left."""
        view = super().session()
        assert isinstance(view, Limited)
        view.left = self.queries
        return view

    def __call__(self, inputs: Tree) -> Tensor:
        """Answers to the inputs, or to as many of the first as are left."""
        if self.left is None:
            return self.inner(inputs)
        answers = self.inner(first_inputs(inputs, min(self.left, _count(inputs))))
        self.left -= len(answers)
        return answers


def _count(inputs: Tree) -> int:
    return len(next(leaves(inputs)))
