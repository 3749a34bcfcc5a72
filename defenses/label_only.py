"""Answers without confidence."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from secure_ml.batch import Tree
from secure_ml.defense import Defense
from secure_ml.errors import NotApplicable
from secure_ml.outputs import Output
from secure_ml.task import Task
from secure_ml.victim import Served, Victim, Wrapped


@dataclass(frozen=True, kw_only=True)
class LabelOnly(Defense):
    """Serves the predicted class and nothing else (Shokri et al. 2017, https://arxiv.org/abs/1610.05820, section VIII).

    Covers: attacks that read confidence values. Does not cover: the weights, which are the bare model's; attacks
    that need labels only (the gap attack, extraction by labels, decision-based evasion). The class of an answer to
    ``(B, *shape)`` inputs (of a recommender its list, of a generator each next symbol) is written as nearly certain
    logits, so that every score and loss still applies. Raises `NotApplicable` for models whose answers hold no
    decision, and behind encryption.
    """

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` unless the task's answers hold a decision."""
        if not task.output.labels:
            raise NotApplicable(f"LabelOnly serves classes; {task.name} answers {type(task.output).__name__}")

    def serve(self, victim: Victim) -> Victim:
        """The victim answering with labels; `NotApplicable` behind encryption, whose client sees the logits."""
        if victim.served.decrypted_by_client:
            raise NotApplicable(
                "LabelOnly cannot stand behind encryption: the client who asks decrypts the logits themselves"
            )
        return replace(victim, served=Labels(victim.served, victim.task.output))


class Labels(Wrapped):
    """The class of another predictor's answers."""

    def __init__(self, inner: Served, output: Output) -> None:
        super().__init__(inner)
        self.output = output

    def __call__(self, inputs: Tree) -> Tensor:
        """Nearly certain logits of the class."""
        return self.output.reveal(self.inner(inputs), "label")
