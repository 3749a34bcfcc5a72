"""What the checks of one victim share: its examples, and which of them each attack broke."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.evasion._losses import margin, two_columns
from secure_ml.access import WhiteBox
from secure_ml.batch import Batch
from secure_ml.families.evasion import Evasion, craft
from secure_ml.randomness import generator
from secure_ml.task import Loss, Predictor
from secure_ml.threats import Ball
from secure_ml.victim import Served, Victim


class Scene:
    """A victim, its threat, some test examples, and the attacks on them so far: each is run once."""

    def __init__(self, victim: Victim, threat: Ball, examples: int, seed: int) -> None:
        self.victim, self.threat, self.seed = victim, threat, seed
        self.task = victim.task
        self.surface = victim.task.surface(threat)
        self.batch = victim.tested(examples)
        self.clean = self.surface.get(self.batch.inputs)
        self.served: Served = victim.served.stand_in()
        self.queries = self.gradients = 0
        self._crafted: dict[tuple[str, Ball], tuple[Batch, Tensor]] = {}

    def wrong(self, batch: Batch) -> Tensor:
        """Which examples ``(n,)`` are answered wrongly by what is served."""
        assert isinstance(batch.target, Tensor)
        return margin(two_columns(self.served(batch.inputs)), batch.target, None) >= 0

    def clean_wrong(self) -> Tensor:
        """Which examples ``(n,)`` are answered wrongly unchanged."""
        return self.wrong(self.batch)

    def attacked(self, attack: Evasion, threat: Ball | None = None) -> tuple[Batch, Tensor]:
        """The examples that an attack made, and which of them ``(n,)`` are wrong, changed or unchanged."""
        threat = threat or self.threat
        key = repr(attack), threat
        if key not in self._crafted:
            access = attack.open(self.victim, self.task, len(self.batch))
            changed = craft(attack, access, self.batch, threat, self.rng(*key))
            self.queries, self.gradients = self.queries + access.queries, self.gradients + access.gradients
            self._crafted[key] = changed, self.wrong(changed) | self.clean_wrong()
        return self._crafted[key]

    def broken(self, *attacks: Evasion, threat: Ball | None = None) -> Tensor:
        """Which examples ``(n,)`` at least one of the attacks broke."""
        return torch.stack([self.attacked(attack, threat)[1] for attack in attacks]).any(0)

    def crafted(self) -> list[tuple[Ball, Batch]]:
        """Everything that was made so far, with its threat."""
        return [(threat, changed) for (_, threat), (changed, _) in self._crafted.items()]

    def rng(self, *purpose: object) -> torch.Generator:
        """Randomness for one purpose."""
        return generator(self.seed, "scrutiny", *map(repr, purpose))

    def accuracy(self, broken: Tensor) -> float:
        """Share that stands."""
        return 1 - broken.double().mean().item()

    def chance(self) -> float:
        """The accuracy of the best constant answer on these examples."""
        assert isinstance(self.batch.target, Tensor)
        return self.batch.target.bincount().max().item() / len(self.batch)

    def gradient(self, batch: Batch, loss: Loss | None = None) -> tuple[Tensor, Tensor]:
        """Losses ``(n,)`` of the module and their gradients ``(n, *shape)``."""
        access = WhiteBox(self.task, self.victim.module)
        pieces = [access.ascend(piece, self.surface, loss) for piece in batch.chunks(self.task.chunk)]
        return torch.cat([piece.losses for piece in pieces]), torch.cat([piece.gradient for piece in pieces])


def margin_loss(predictor: Predictor, batch: Batch) -> Tensor:
    """How far another class leads the label, ``(n,)``."""
    assert isinstance(batch.target, Tensor)
    return margin(two_columns(predictor(batch.inputs)), batch.target, None)
