"""Members and others: what can be known of a training set and a test set before anybody is asked about them."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch
from torch import Tensor

from secure_ml.batch import Batch, Splits, leaves
from secure_ml.families.scrutiny import Finding
from secure_ml.outputs import Classes
from secure_ml.stats import clopper_pearson
from secure_ml.task import Task
from secure_ml.victim import Served

MEMBERS, ENOUGH, LABELS, POOL = "members", "test examples", "labels", "the adversary's pool"
FEW = 100
"""Test examples below which an interval says little."""


def divided(train: Batch | None, test: Batch, aux: Batch | None, rng: torch.Generator, found: list[Finding]) -> Splits:
    """The splits of a model that is trained already: members are ``train``, others are what of ``test`` is not in it.

    Without ``aux`` the adversary owns half of the test examples, and is judged on the other half.
    """
    if len(test) < FEW:
        half = (clopper_pearson(len(test) // 2, len(test)).high - clopper_pearson(len(test) // 2, len(test)).low) / 2
        said = f"{len(test)} examples: a share has an interval of +- {half:.0%}"
        found.append(Finding(ENOUGH, "WARN", said, "give more test examples"))
    if aux is None:
        order = torch.randperm(len(test), generator=rng)
        aux, test = test.take(order[: len(test) // 2]), test.take(order[len(test) // 2 :])
        said = f"{len(aux)} of the test examples, drawn at random; the other {len(test)} judge"
        found.append(Finding(POOL, "WARN", said, "give aux=, examples that the model was not trained on"))
    if train is None:
        found.append(Finding(MEMBERS, "WARN", "the training examples are not known: no membership", "give train="))
    none = test.take(slice(0, 0))
    splits = Splits(none if train is None else train, none, test, aux)
    return splits if train is None else replace(splits, others=_strangers(train, test, found))


def _strangers(train: Batch, test: Batch, found: list[Finding]) -> Batch:
    """The test examples that are not training examples as well, bit for bit."""
    mine = set(_prints(train))
    new = torch.tensor([row not in mine for row in _prints(test)], dtype=torch.bool)
    known = int((~new).sum())
    if known:
        said = f"{known} of {len(test)} test examples are training examples: they are no others, and flatter the score"
        found.append(Finding(MEMBERS, "WARN", said, "take them out of the test set"))
    else:
        said = f"the {len(train)} training examples are members, the {len(test)} test examples others; none is both"
        found.append(Finding(MEMBERS, "PASS", said))
    return test.take(new)


def _prints(batch: Batch) -> list[bytes]:
    """A fingerprint of the inputs of each example."""
    tables = [leaf.detach().cpu().reshape(len(batch), -1).contiguous().numpy() for leaf in leaves(batch.inputs)]
    return [
        hashlib.blake2b(b"".join(t[i].tobytes() for t in tables), digest_size=16).digest() for i in range(len(batch))
    ]


def plausible(task: Task, served: Served, splits: Splits) -> list[Finding]:
    """Whether labels fit the answers: no classifier that was trained is as bad as a constant."""
    target, answers = splits.test.target, served(splits.test.inputs)
    task.output.check(answers, len(splits.test))
    task.output.check_target(answers, target)
    if type(task.output) is not Classes or not isinstance(target, Tensor):
        return []
    right = int((task.output.decide(answers) == target).sum())
    share, constant = clopper_pearson(right, len(target)), int(target.bincount().max()) / len(target)
    said = f"{share.value:.1%} of the answers are right; the commonest class alone gives {constant:.1%}"
    if share.high < constant or share.value <= constant + 0.01:
        remedy = "look for labels in another order, shuffled labels, or inputs that the module expects otherwise"
        return [Finding(LABELS, "FAIL", said, remedy)]
    return [Finding(LABELS, "PASS", said)]
