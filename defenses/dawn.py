"""Wrong answers to a few questions, by a key, that a copy learns by heart."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from defenses._answers import first_inputs
from defenses._probe import classes
from secure_ml.batch import Batch, Tree, leaves
from secure_ml.errors import NotApplicable, UsageError, require
from secure_ml.families.ownership import Evidence, Owner, Watermark
from secure_ml.families.poisoning import answers_one_class
from secure_ml.outputs import Classes
from secure_ml.task import Task
from secure_ml.victim import Served, Victim, Wrapped


@dataclass(frozen=True, kw_only=True)
class DAWN(Watermark):
    """A keyed few of all questions are answered wrongly, always alike (Szyller et al. 2019, https://arxiv.org/abs/1906.00830).

    A keyed hash (HMAC-SHA256) of each input ``(B, *shape)`` says whether it is marked, and which of the other classes
    changes places with the likeliest; nothing is kept between questions. A model that does not depend on the key
    agrees with a marked answer with probability ``1 / (K - 1)`` at most, whatever it is, so that the test is exact.

    Covers: nothing beforehand; it shows afterwards that somebody was trained on the answers. Does not cover: a thief
    who checks answers against each other before copying them (`Laundering`), drops some, asks each question again
    with noise beyond the grid and takes the majority, or fine-tunes the mark away; the weights, which carry no
    mark. Honest clients lose ``share`` of their answers.

    Raises `NotApplicable` for fewer than 3 classes and behind encryption, `UsageError` for settings out of range.
    Differs from the paper: the input is rounded to a grid before it is hashed, rather than embedded.
    """

    misleads: ClassVar[bool] = True

    share: float = 0.005
    """Of all questions, how many are marked: at most 0.5 % in the paper."""
    key: int = 0
    """Of the hash. Whoever knows it can tell which answers are marked: keep this setting to yourself."""
    levels: int = 16
    """Of the grid to which inputs are rounded, between 0 and 1, so that a little noise does not change the answer."""

    def __post_init__(self) -> None:
        require(0 < self.share < 1, f"DAWN needs a share between 0 and 1; given {self.share}")
        require(self.key >= 0, f"DAWN needs a key of at least 0; given {self.key}")
        require(self.levels >= 1, f"DAWN needs a grid of at least 1 level; given {self.levels}")

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` where an answer is not one of at least 3 classes."""
        if not answers_one_class(task):
            raise NotApplicable(f"DAWN answers with another class; an answer of {task.name} is not one class")
        if classes(task) < 3:
            raise NotApplicable("DAWN needs at least 3 classes: of 2, the wrong one is no secret")

    def serve(self, victim: Victim) -> Victim:
        """The victim whose answers are marked; `NotApplicable` behind encryption."""
        if victim.served.decrypted_by_client:
            raise NotApplicable("DAWN cannot stand behind encryption: the client decrypts the answers themselves")
        return replace(victim, served=Marked(victim.served, self))

    def marks(self, owner: Owner) -> Evidence:
        """The different marked questions among those asked, as they were answered."""
        asked, output = Batch(owner.asked, ()), owner.task.output
        assert isinstance(output, Classes)
        seen = {digest: i for i, digest in enumerate(self.digests(owner.asked))}
        chosen = torch.tensor(sorted(i for digest, i in seen.items() if self.marked(digest)), dtype=torch.long)
        inputs = asked.take(chosen.to(owner.victim.device)).inputs
        if not len(chosen):
            return Evidence(Batch(inputs, chosen))
        answers = owner.victim.served(inputs)
        return Evidence(Batch(inputs, output.decide(answers)), 1 / (_classes(answers) - 1))

    def digests(self, inputs: Tree) -> list[bytes]:
        """The keyed hash of each input."""
        rows = [self._rounded(leaf).flatten(1).cpu().numpy() for leaf in leaves(inputs)]
        secret = self.key.to_bytes(-(-max(self.key.bit_length(), 1) // 8), "big")
        return [hmac.digest(secret, b"".join(row[i].tobytes() for row in rows), "sha256") for i in range(len(rows[0]))]

    def marked(self, digest: bytes) -> bool:
        """Whether the input of this hash is marked."""
        return int.from_bytes(digest[:8], "big") < self.share * 2**64

    def _rounded(self, leaf: Tensor) -> Tensor:
        leaf = (leaf * self.levels).round().to(torch.int32) if leaf.is_floating_point() else leaf
        return leaf.reshape(len(leaf), -1) if leaf.numel() else leaf.reshape(len(leaf), 0)

    @classmethod
    def tiny(cls) -> DAWN:
        """Every fifth question."""
        return cls(share=0.2)


class Marked(Wrapped):
    """The answers of another predictor, where the likeliest class of a marked one has changed places with another."""

    def __init__(self, inner: Served, mark: DAWN) -> None:
        super().__init__(inner)
        self.mark = mark

    def __call__(self, inputs: Tree) -> Tensor:
        """The marked answers, ``(B, K)``."""
        answers = self.inner(inputs).clone()
        classes = _classes(answers)
        for i, digest in enumerate(self.mark.digests(first_inputs(inputs, len(answers)))):
            if self.mark.marked(digest):
                first = int(answers[i].argmax())
                second = (first + 1 + int.from_bytes(digest[8:16], "big") % (classes - 1)) % classes
                answers[i, [first, second]] = answers[i, [second, first]]
        return answers


def _classes(answers: Tensor) -> int:
    if answers.ndim > 2:
        raise UsageError(f"DAWN marks answers (B, K); given {tuple(answers.shape)}")
    return 2 if answers.ndim == 1 else answers.shape[1]
