"""The likelihood ratio attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from attacks.membership._gaussian import Normals, fit_normals, log_ratio, log_tail
from attacks.membership._signals import confidence, looks, of_shadows
from attacks.membership._student import fit_students
from secure_ml.batch import Batch
from secure_ml.errors import require, unknown
from secure_ml.families.membership import Membership, Questioned
from secure_ml.outputs import Reveal, check_reveal

Variance = Literal["auto", "fixed", "per_example", "shrunk"]
Combine = Literal["average", "multivariate"]


@dataclass(frozen=True, kw_only=True)
class LiRA(Membership):
    """Is a confidence like that of models that saw the example, or did not? (Carlini et al. 2022, https://arxiv.org/abs/2112.03570).

    The confidence in an example of inputs ``(B, *shape)`` is the log-odds of its class (minus the loss where there are
    no classes). Online, shadows of which half saw the example give a normal distribution each for in and out, and the
    score is the log of their ratio. Offline no shadow saw it, and the score is minus the log of the one-sided tail
    above the confidence. Raises `UsageError` for settings out of range or, offline, without auxiliary data.

    Differs from the paper: 64 shadows instead of 256; one query instead of 18, which pay where a model was trained with
    augmentation; shrunk variances are not in it. Its published code scores offline by the two-sided density, and takes
    the deviation of the out-scores from the in-scores where it is fixed; this does not.
    """

    reveal: Reveal = "probabilities"
    """How much of each answer the adversary sees."""
    shadows: int = 64
    """Shadow models, an even number."""
    online: bool = True
    """Whether shadows are trained on halves of the examples in question, else on none of them."""
    queries: int = 1
    """Looks at each example: itself, then shifts of an image, or draws of the task's own augmentation; at most 25."""
    variance: Variance = "auto"
    """fixed for all examples, or per_example; auto: per_example from 64 shadows on. shrunk: between the two, as far as
    shadows allow, with the heavier tails of a variance that is not known."""
    combine: Combine = "average"
    """Of several queries: the mean of their scores, or the score of their joint distribution."""

    def __post_init__(self) -> None:
        check_reveal(self.reveal)
        require(1 <= self.queries <= 25, f"LiRA needs 1 to 25 queries; given {self.queries}")
        for kind, name, known in (
            ("variance", self.variance, get_args(Variance)),
            ("combination of queries", self.combine, get_args(Combine)),
        ):
            if name not in known:
                raise unknown(kind, name, known)
        require(
            self.variance != "shrunk" or self.combine == "average",
            "LiRA knows no joint distribution of queries with shrunk variances: combine them by average",
        )

    def score(self, access: Questioned, batch: Batch, aux: Batch, rng: torch.Generator) -> Tensor:
        """The log-ratio, or minus the log of the tail, of each example, ``(B,)``."""
        if not len(batch):
            return torch.zeros(0)
        shadows = access.shadows(self.shadows, online=self.online)
        asked = looks(access.task, batch, self.queries, rng)
        mine = torch.stack([confidence(access, look) for look in asked], -1)
        theirs = torch.stack([of_shadows(access, shadows, look) for look in asked], -1)
        return self.compare(mine, theirs, shadows.saw)

    def compare(self, mine: Tensor, theirs: Tensor, saw: Tensor) -> Tensor:
        """The score ``(B,)`` from the victim's confidences ``(B, Q)``, the shadows' ``(S, B, Q)`` and who saw what."""
        if self.variance == "shrunk":
            apart = fit_students(theirs, ~saw)
            if not self.online:
                return apart.log_tail(mine).mean(1)
            return (fit_students(theirs, saw).log_density(mine) - apart.log_density(mine)).mean(1)
        fixed = self.variance == "fixed" or (self.variance == "auto" and len(theirs) < ENOUGH)
        outside = fit_normals(theirs, ~saw, fixed=fixed)
        inside = fit_normals(theirs, saw, fixed=fixed) if self.online else outside
        if self.combine == "multivariate":
            return log_ratio(mine, inside, outside) if self.online else log_tail(mine, outside)
        each = range(mine.shape[1])
        scores = [self._alone(mine[:, q : q + 1], inside.only(q), outside.only(q)) for q in each]
        return torch.stack(scores).mean(0)

    def _alone(self, mine: Tensor, inside: Normals, outside: Normals) -> Tensor:
        return log_ratio(mine, inside, outside) if self.online else log_tail(mine, outside)

    @classmethod
    def tiny(cls) -> LiRA:
        """Two shadows."""
        return cls(shadows=2)


ENOUGH = 64
"""Shadows from which on an example's own variance is better than one for all."""
