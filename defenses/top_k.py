"""Answers that name the likeliest classes alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from defenses._answers import Altered, require_classes, require_open
from secure_ml.batch import Tree
from secure_ml.defense import Defense
from secure_ml.errors import NotApplicable, require
from secure_ml.outputs import Ranking
from secure_ml.scores import TOP
from secure_ml.task import Task
from secure_ml.victim import Victim


@dataclass(frozen=True, kw_only=True)
class TopK(Defense):
    """Serves the k largest probabilities (Orekondy et al. 2019, https://arxiv.org/abs/1812.02766).

    Of answers to ``(B, *shape)`` inputs the k largest probabilities stay as they are, at each place of a generator;
    all others share what is left equally, so that nothing but these k numbers is told. With k at least the number of
    classes nothing changes. A ranking's k is at least the length of its list.

    Covers: what reads the tail of the answers. Does not cover: a surrogate, which learns nearly as well from the
    first probability, or from labels. Raises `NotApplicable` for values, for a k below a ranking's list and behind
    encryption, `UsageError` for a k below 1.
    """

    k: int = 1
    """Probabilities that are served."""

    def __post_init__(self) -> None:
        require(self.k >= 1, f"TopK serves at least 1 probability; given k={self.k}")

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` unless the answers hold probabilities, and a list stays whole."""
        if not isinstance(task.output, Ranking):
            require_classes(self, task)
        elif self.k < TOP:
            raise NotApplicable(f"{task.name} answers lists of {TOP} items, which TopK(k={self.k}) would cut short")

    def serve(self, victim: Victim) -> Victim:
        """The victim answering with k probabilities; `NotApplicable` behind encryption."""
        require_open(self, victim)
        return replace(victim, served=Altered(victim.served, self.change))

    def change(self, shares: Tensor, inputs: Tree) -> Tensor:
        """The k largest probabilities ``(N, K)`` of each row, and equal ones."""
        k, classes = self.k, shares.shape[-1]
        if k >= classes:
            return shares
        top = shares.topk(k, -1)
        left = (1 - top.values.sum(-1, keepdim=True)).clamp_min(0) / (classes - k)
        return torch.scatter(left.expand_as(shares).clone(), -1, top.indices, top.values)

    @classmethod
    def tiny(cls) -> TopK:
        """Three probabilities."""
        return cls(k=3)
