"""Answers with noise."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from defenses._answers import first_inputs, keeping, normalised, probabilities, require_classes, require_open, written
from secure_ml.batch import Tree, leaves
from secure_ml.defense import Defense
from secure_ml.errors import require
from secure_ml.outputs import Values
from secure_ml.randomness import generator
from secure_ml.task import Task
from secure_ml.victim import Served, Victim, Wrapped


@dataclass(frozen=True, kw_only=True)
class NoisyAnswers(Defense):
    """Serves probabilities with Gaussian noise (Orekondy et al. 2020, https://arxiv.org/abs/1906.10908).

    To the probabilities of answers to ``(B, *shape)`` inputs, at each place of a generator, noise of deviation
    ``scale`` is added; they are cut off at 0 and normalised again, and 0 is written as 1e-12. To the values of a
    regression it is added as it is. The noise is drawn from a keyed hash of the input: who asks again gets the same
    answer, and averages nothing away.

    Covers: exact solving; confidence, in part. Does not cover: labels, where the decision is kept; a surrogate, which
    averages the noise over neighbouring inputs, as a client does who moves an input by a rounding error. Raises
    `NotApplicable` for rankings and behind encryption, `UsageError` for a scale that is not above 0.

    Differs from the paper: noise on probabilities, not on logits, and a fixed scale instead of a budget.
    """

    scale: float = 0.05
    """Deviation of the noise, in units of probability, or of the values."""
    keep: bool = True
    """Whether the decision is kept."""
    fresh: bool = False
    """Whether each query of a client draws noise of its own: the weak variant, which averaging over repeats breaks."""
    secret: int = 0
    """The server's key; who knows it subtracts the noise."""

    def __post_init__(self) -> None:
        require(0 < self.scale < float("inf"), f"NoisyAnswers needs a finite scale above 0; given {self.scale}")

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` unless answers are values or probabilities."""
        if not isinstance(task.output, Values):
            require_classes(self, task)

    def serve(self, victim: Victim) -> Victim:
        """The victim answering with noise; `NotApplicable` behind encryption."""
        require_open(self, victim)
        return replace(victim, served=Noisy(victim.served, self, isinstance(victim.task.output, Values)))

    @classmethod
    def tiny(cls) -> NoisyAnswers:
        """Little noise."""
        return cls(scale=0.002)


class Noisy(Wrapped):
    """The answers of another predictor with noise that follows from the input and, if it is fresh, its number."""

    def __init__(self, inner: Served, settings: NoisyAnswers, values: bool) -> None:
        super().__init__(inner)
        self.settings, self.values = settings, values
        self.asked: int | None = None

    def session(self) -> Served:
        """A client's view, which counts where the noise is fresh."""
        view = super().session()
        assert isinstance(view, Noisy)
        view.asked = 0 if self.settings.fresh else None
        return view

    def __call__(self, inputs: Tree) -> Tensor:
        """The noisy answers."""
        outputs = self.inner(inputs)
        noise = self._noise(first_inputs(inputs, len(outputs)), outputs)
        if self.values:
            return (outputs.double() + noise).to(outputs.dtype)
        bare = probabilities(outputs)
        changed = normalised((bare + noise).clamp_min(0))
        return written(keeping(changed, bare) if self.settings.keep else changed, outputs)

    def _noise(self, inputs: Tree, outputs: Tensor) -> Tensor:
        shape = outputs.shape[1:] if self.values or outputs.ndim > 1 else (2,)
        noise = torch.zeros(len(outputs), *shape, dtype=torch.double)
        for i in range(len(outputs)):
            digest = hashlib.sha256()
            for leaf in leaves(inputs):
                digest.update(leaf[i].detach().cpu().contiguous().numpy().tobytes())
            number = None if self.asked is None else self.asked + i
            rng = generator(self.settings.secret, "noisy answers", digest.hexdigest(), number)
            noise[i] = torch.randn(shape, generator=rng, dtype=torch.double)
        if self.asked is not None:
            self.asked += len(outputs)
        return noise.to(outputs.device) * self.settings.scale
