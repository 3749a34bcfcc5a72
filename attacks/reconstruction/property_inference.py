"""Whether a model's training set was skewed."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from secure_ml.errors import require
from secure_ml.families.reconstruction import Reconstruction
from secure_ml.outputs import Classes, Output, Reveal, check_reveal
from secure_ml.secrets.skew import Skew, Suspects


@dataclass(frozen=True, kw_only=True)
class PropertyInference(Reconstruction[Suspects]):
    """A classifier of models by their answers (Ateniese et al. 2015, https://doi.org/10.1504/IJSN.2015.071829).

    Shadow models are trained on auxiliary data with either share of one class, like the suspects and with the victim's
    defenses; logistic regression learns to tell them apart by what they answer to ``(B, *shape)`` probes, and is asked
    about the suspects, half of which have the higher share. A property of the whole training set is not what
    differential privacy of single records hides. Raises `UsageError` for settings out of range, `NotApplicable`
    where an answer is not one class, or the data have too few of the class for both shares.

    Differs from the paper, and from Ganju et al. 2018 (https://doi.org/10.1145/3243734.3243834), in that the classifier
    of models sees answers and no weights; the property is the share of a class.
    """

    outputs: ClassVar[tuple[type[Output], ...]] = (Classes,)

    label: int = 0
    """The class whose share is in question."""
    low: float = 0.2
    """Its share in the one kind of training set."""
    high: float = 0.5
    """Its share in the other."""
    suspects: int = 32
    """Models to be judged, half of each kind."""
    shadows: int = 32
    """Models to learn from, half of each kind."""
    probes: int = 100
    """Auxiliary inputs that all models are asked about, at most."""
    reveal: Reveal = "probabilities"
    """How much of each answer the adversary sees."""

    def __post_init__(self) -> None:
        check_reveal(self.reveal)
        require(
            0 <= self.low < self.high <= 1,
            f"PropertyInference tells a low share from a high one, within [0, 1]; given {self.low} and {self.high}",
        )
        require(self.label >= 0, f"PropertyInference needs a label of at least 0; given {self.label}")
        require(self.probes >= 1, f"PropertyInference needs probes of at least 1; given {self.probes}")
        for name in ("suspects", "shadows"):
            given = getattr(self, name)
            require(given >= 2 and given % 2 == 0, f"PropertyInference needs an even number of {name}; given {given}")

    @property
    def secret(self) -> Skew:
        """Which of the suspects saw the higher share."""
        return Skew(label=self.label, shares=(self.low, self.high), suspects=self.suspects, reveal=self.reveal)

    def recover(self, access: Suspects, rng: torch.Generator) -> Tensor:
        """The log-odds of the higher share for each suspect, ``(suspects,)``."""
        inputs = access.aux.take(slice(0, self.probes)).inputs
        answers, high = access.shadows(self.shadows, inputs)
        known, asked = (_features(part) for part in (answers, access(inputs)))
        centre, spread = known.mean(0), known.std(0) + 1e-9
        odds = _log_odds((known - centre) / spread, high.numpy(), (asked - centre) / spread)
        return torch.as_tensor(odds, dtype=torch.float32)

    @classmethod
    def tiny(cls) -> PropertyInference:
        """Two suspects and two shadows."""
        return cls(suspects=2, shadows=2, probes=10, low=0.05, high=0.1)


def _features(answers: Tensor) -> np.ndarray:
    """Answers ``(M, B, ...)`` as log-probabilities cut at -10, a row of numbers for each model."""
    logs = answers.log_softmax(-1) if answers.ndim == 3 else torch.nn.functional.logsigmoid(answers)
    flat = logs.clamp(min=-10.0).flatten(1).double().cpu().numpy()
    return np.asarray(flat)


def _log_odds(known: np.ndarray, high: np.ndarray, asked: np.ndarray) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convergence
        return np.asarray(LogisticRegression(C=0.1, max_iter=500).fit(known, high).decision_function(asked))
