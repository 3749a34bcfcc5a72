"""A map from served answers to clean ones, learnt from pairs of both; all classes share it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secure_ml.adaptive import log_probabilities
from secure_ml.batch import Batch, Splits
from secure_ml.imitation import Imitation
from secure_ml.modes import evaluating
from secure_ml.outputs import Classes
from secure_ml.randomness import derive
from secure_ml.task import Predictor, Recipe, Task
from secure_ml.training import fit

LEAST = -14.0
"""Log-probabilities below it are taken to say no more than that."""
SAME = 1e-4
"""How far in probability served and clean answers may lie apart and count as equal."""
RECIPE = Recipe(epochs=60, batch_size=128, optimizer="Adam", learning_rate=3e-3, schedule="cosine")


class Repair(nn.Module):
    """Sorted log-probabilities ``(B, K)`` to others of the same order, from the identity on."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2 * classes, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.last = nn.Linear(64, classes)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, logs: Tensor) -> Tensor:
        """Logits ``(B, K)``."""
        repaired: Tensor = logs + 10 * self.last(self.body(torch.cat([logs.exp(), logs / -LEAST], 1)))
        return repaired


class Inverse:
    """Served answers to the mean of the clean ones that they may come from; the identity without a net."""

    def __init__(self, net: nn.Module | None) -> None:
        self.net = net

    def __call__(self, answers: Tensor) -> Tensor:
        """Clean answers, in the form of those served."""
        if self.net is None:
            return answers
        logs, order = sort(answers)
        with evaluating(self.net), torch.no_grad():
            clean = self.net(logs).log_softmax(-1)
        placed = torch.zeros_like(clean).scatter(1, order, clean)
        return (placed[:, 1] - placed[:, 0] if answers.ndim == 1 else placed).to(answers)


class Pairs:
    """What models served and what they said, in the order of what they served."""

    def __init__(self) -> None:
        self.served: list[Tensor] = []
        self.clean: list[Tensor] = []

    def add(self, served: Tensor, clean: Tensor) -> None:
        """Keep answers, and what they were made of."""
        logs, order = sort(served)
        self.served.append(logs)
        self.clean.append(log_probabilities(clean).float().gather(1, order))

    def inverse(self, train: Imitation) -> Inverse:
        """The map, trained through the shared loop; the identity where served and clean are one."""
        served, clean = torch.cat(self.served), torch.cat(self.clean)
        if not len(served) or float((served.exp() - clean.exp()).abs().max()) < SAME:
            return Inverse(None)
        data, kind = Batch(served, clean), Classes()

        def loss(predictor: Predictor, batch: Batch) -> Tensor:
            assert isinstance(batch.target, Tensor)
            return kind.imitate(predictor(batch.inputs), batch.target)

        none = data.take(slice(0, 0))
        task = Task(
            name="recovery",
            build=lambda: Repair(served.shape[1]),
            data=lambda _: Splits(data, none, none, none),
            loss=loss,
            surfaces=(),
            recipe=RECIPE,
        )
        return Inverse(fit(task, seed=derive(train.seed, "inverse"), device=train.victim.device).module)


def sort(answers: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities ``(B, K)`` in descending order, none below the least, and the class at each place."""
    logs, order = log_probabilities(answers).float().sort(dim=-1, descending=True, stable=True)
    return logs.clamp_min(LEAST), order
