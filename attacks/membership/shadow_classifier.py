"""A classifier that learned on shadow models how a member is answered."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.membership._signals import log_odds, names_class
from secure_ml.access import BlackBox
from secure_ml.batch import Batch
from secure_ml.errors import NotApplicable, require
from secure_ml.families.membership import Membership, Questioned
from secure_ml.outputs import Reveal, check_reveal
from secure_ml.randomness import derive


@dataclass(frozen=True, kw_only=True)
class ShadowClassifier(Membership):
    """A net that was trained to tell shadows' answers about their own examples from others (Shokri et al. 2017, https://arxiv.org/abs/1610.05820).

    The attack model (one hidden layer of 64 units) sees, of an example of inputs ``(B, *shape)``, its class, the
    log-odds of it and the largest logits, sorted and set against the largest; where there are no classes, the loss. It
    learns on auxiliary examples that shadows were trained on, and as many that they were not. Raises `UsageError` for
    a number of shadows that is not even, and `NotApplicable` without auxiliary data to learn from.

    Differs from the paper: one attack model that is told the class instead of one for each class; shadows are trained
    on real auxiliary data of which each leaves out a fifth, not on synthetic data.
    """

    reveal: Reveal = "probabilities"
    """How much of each answer the adversary sees."""
    shadows: int = 16
    """Shadow models, an even number."""
    examples: int = 2000
    """Examples of each shadow to learn from, at most, of each kind."""
    rounds: int = 100
    """Times that the attack model sees each of them, at most."""

    def __post_init__(self) -> None:
        check_reveal(self.reveal)
        require(self.examples >= 1, f"ShadowClassifier needs at least 1 example; given {self.examples}")
        require(self.rounds >= 1, f"ShadowClassifier needs at least 1 round; given {self.rounds}")

    def score(self, access: Questioned, batch: Batch, aux: Batch, rng: torch.Generator) -> Tensor:
        """How sure the attack model is of each example, ``(B,)``, in log-odds."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        known, labels = self._lessons(access, aux, rng)
        seed = derive(int(torch.randint(2**31, (1,), generator=rng)), "attack model") % 2**32
        net = MLPClassifier(64, max_iter=self.rounds, early_stopping=len(known) > 200, random_state=seed)
        model = make_pipeline(StandardScaler(), net)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(known.numpy(), labels.numpy())
        if not len(batch):
            return torch.zeros(0)
        log_p = torch.from_numpy(model.predict_log_proba(features(access, batch).numpy()))
        return (log_p[:, 1] - log_p[:, 0]).nan_to_num(posinf=_SURE, neginf=-_SURE)

    def _lessons(self, access: Questioned, aux: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Features of shadows' answers ``(n, F)``, and whether each was about an example that it was trained on."""
        shadows = access.shadows(self.shadows, online=False)
        lessons, labels = [], []
        for shadow, saw in zip(shadows.victims, shadows.saw_aux, strict=True):
            seen, unseen = (part[torch.randperm(len(part), generator=rng)] for part in _both(saw))
            n = min(len(seen), len(unseen), self.examples)
            chosen = torch.cat([seen[:n], unseen[:n]])
            place = next(shadow.module.parameters()).device
            lessons.append(features(access.like(shadow), aux.take(chosen.to(place))))
            labels.append(saw[chosen])
        if not any(map(len, labels)):
            raise NotApplicable("ShadowClassifier needs at least 2 auxiliary examples, one that shadows leave out")
        return torch.cat(lessons), torch.cat(labels)

    @classmethod
    def tiny(cls) -> ShadowClassifier:
        """Two shadows, five rounds."""
        return cls(shadows=2, rounds=5)


def features(access: BlackBox, batch: Batch) -> Tensor:
    """What the attack model sees of each answer, ``(B, F)``, on the CPU."""
    if not names_class(access.task, batch):
        return access.loss(batch).double().cpu()[:, None]
    outputs, target = access(batch.inputs).double().cpu(), batch.target
    assert isinstance(target, Tensor)
    target = target.long().cpu()
    if outputs.ndim == 1:
        outputs = torch.stack([torch.zeros_like(outputs), outputs], 1)
    logits = outputs.topk(min(outputs.shape[1], _LARGEST), dim=1).values
    parts = [log_odds(outputs, target)[:, None], logits[:, 1:] - logits[:, :1]]
    if outputs.shape[1] <= _NAMED:
        parts.append(F.one_hot(target, outputs.shape[1]).double())
    return torch.cat(parts, 1).nan_to_num(posinf=_SURE, neginf=-_SURE)


def _both(saw: Tensor) -> tuple[Tensor, Tensor]:
    return saw.nonzero()[:, 0], (~saw).nonzero()[:, 0]


_LARGEST, _NAMED = 10, 100
"""Logits that are looked at, at most, and classes of which one is named."""
_SURE = 1e3
"""What stands for an infinite log-odds."""
