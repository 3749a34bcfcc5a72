"""Wrong answers to queries that are not of the model's own kind."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from defenses._answers import Altered, probabilities, require_classes, require_open
from secure_ml.batch import Batch, Splits, Tree
from secure_ml.defense import Defense
from secure_ml.errors import NotApplicable, require
from secure_ml.outputs import Classes
from secure_ml.randomness import derive
from secure_ml.task import Predictor, Task, unchanged
from secure_ml.training import fit
from secure_ml.victim import Served, Victim

OFF = 0.01
"""A switch below this is off: the answer is the module's own."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveMisinformation(Defense):
    """Misinforms who asks about unusual inputs (Kariyappa and Qureshi 2020, https://arxiv.org/abs/1911.07100).

    Of answers to ``(B, *shape)`` inputs, those with a largest probability m below a threshold t are mixed with a second
    model's, which has learnt what is wrong: its share is ``1 / (1 + exp(sharpness (m - t)))``. The threshold is such
    that of the validation split the share ``untouched`` is answered with the module's own probabilities. Unusual
    is whatever the model is unsure of, so that honest users pay where it errs most.

    Covers: surrogates, labels included, from inputs that are out of distribution and look so. Does not cover: queries
    that the model is sure of, such as natural inputs of its own kind, nor the weights. Raises `NotApplicable` unless
    answers are probabilities of classes, behind encryption, and where the training data are promised a protection that
    the second model would not give them; `UsageError` for a share outside (0, 1], a sharpness
    not above 0, less than 1 epoch, or no validation examples.

    Differs from the paper: the model itself is not trained to be unsure of outliers; the second model learns to avoid
    the class that is served, with the task's own recipe, for ``epochs`` epochs; the threshold is calibrated.
    """

    misleads: ClassVar[bool] = True

    untouched: float = 0.95
    """Share of the validation split that is answered as before."""
    sharpness: float = 1000.0
    """How suddenly misinformation sets in, per unit of probability."""
    epochs: int = 5
    """Of the second model."""

    def __post_init__(self) -> None:
        require(0 < self.untouched <= 1, f"the share of untouched answers lies in (0, 1]; given {self.untouched}")
        require(
            0 < self.sharpness < math.inf,
            f"AdaptiveMisinformation needs a finite sharpness above 0; given {self.sharpness}",
        )
        require(self.epochs >= 1, f"the misinforming model needs at least 1 epoch; given {self.epochs}")

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` unless answers are probabilities of classes."""
        require_classes(self, task, places=False)

    def serve(self, victim: Victim) -> Victim:
        """The victim with its misinforming twin, trained here; `NotApplicable` behind encryption."""
        require_open(self, victim)
        for claim in victim.claims:
            if claim.stage == "training":
                raise NotApplicable(
                    f"AdaptiveMisinformation trains a second model on the training data, which voids {claim.short}"
                )
        require(
            len(victim.splits.validation) > 0,
            f"AdaptiveMisinformation sets its threshold on the validation split, of which {victim.task.name} has none",
        )
        other = misinformer(victim, self.epochs)
        sure = probabilities(victim.served(victim.splits.validation.inputs)).amax(-1)
        lowest = float(sure.sort().values[math.floor((1 - self.untouched) * len(sure) + 1e-9)])

        def change(shares: Tensor, inputs: Tree) -> Tensor:
            share = self.switch(shares.amax(-1), lowest)[:, None]
            return (1 - share) * shares + share * probabilities(other(inputs))

        return replace(victim, served=Altered(victim.served, change, keep=False))

    def switch(self, sure: Tensor, lowest: float) -> Tensor:
        """The share ``(N,)`` of misinformation in answers of these largest probabilities, 0 from ``lowest`` on."""
        threshold = lowest - math.log(1 / OFF - 1) / self.sharpness
        share = (self.sharpness * (threshold - sure)).sigmoid()
        return torch.where(sure >= lowest, 0.0, share)

    @classmethod
    def tiny(cls) -> AdaptiveMisinformation:
        """One epoch."""
        return cls(epochs=1)


def misinformer(victim: Victim, epochs: int) -> Served:
    """A model of the task's own architecture that has learnt to avoid the classes that are served.

    Its loss is minus the logarithm of the probability it leaves to all other classes.
    """
    task, output = victim.task, victim.task.output
    assert isinstance(output, Classes)
    known = victim.splits.train
    data = Batch(known.inputs, output.decide(victim.served(known.inputs)))
    none = data.take(slice(0, 0))

    def avoidance(predictor: Predictor, batch: Batch) -> Tensor:
        outputs = predictor(batch.inputs)
        logits = torch.stack([torch.zeros_like(outputs), outputs], 1) if outputs.ndim == 1 else outputs
        assert isinstance(batch.target, Tensor)
        served = torch.nn.functional.one_hot(batch.target, logits.shape[1]).bool()
        return logits.logsumexp(1) - logits.masked_fill(served, -math.inf).logsumexp(1)

    student = replace(
        task,
        name=f"{task.name}_misinformation",
        data=lambda _: Splits(data, none, none, none),
        loss=avoidance,
        renew=None,
        augment=unchanged if task.renew else task.augment,
        recipe=replace(task.recipe, epochs=epochs, patience=None),
    )
    return fit(student, seed=derive(victim.seed, "misinformation"), device=victim.device).served
