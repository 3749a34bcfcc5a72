"""Queries made from few inputs, along the copy's own gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.extraction._learned import Asked, Learned, shuffled
from secure_ml.access import BlackBox, WhiteBox
from secure_ml.adaptive import log_probabilities
from secure_ml.batch import Batch, Tree
from secure_ml.errors import NotApplicable, require
from secure_ml.imitation import Imitation, Net
from secure_ml.outputs import Classes, Output, Reveal
from secure_ml.surfaces import Box
from secure_ml.task import Predictor, Task


@dataclass(frozen=True, kw_only=True)
class JacobianAugmentation(Learned):
    """Jacobian-based data set augmentation (Papernot et al. 2017, https://arxiv.org/abs/1602.02697).

    Asks about ``seeds`` inputs ``(B, *shape)`` of the pool and trains a copy; then each input asked about makes a new
    one, a step along the sign of the copy's gradient in the score of the answered class, or, ``targeted``, several
    towards a random other class (JBDA-TR of PRADA, Juuti et al. 2019, https://arxiv.org/abs/1805.02628); a copy is
    trained, and so on until the ``queries`` are spent. For an adversary who has hardly any inputs. Raises `UsageError`
    for settings out of range, `NotApplicable` unless answers are classes and some input is real numbers.

    Differs from the paper: the first steps lead away from the answered class, towards a boundary, and later ones back;
    the last generations are thinned by the budget, at random, and not by a reservoir; copies have the victim's recipe.
    """

    outputs: ClassVar[tuple[type[Output], ...]] = (Classes,)

    queries: int = 300
    """The budget."""
    budgets: tuple[int, ...] = ()
    """Smaller budgets at which the copy is judged on the way."""
    reveal: Reveal = "probabilities"
    """How much of each answer the adversary sees."""
    source: str = ""
    """The document model whose training inputs are the first; the victim's auxiliary split unless given."""
    varied: bool = False
    """Whether every image of the pool is turned, zoomed, stretched and moved at random before it is asked about."""
    seeds: int = 100
    """Inputs of the pool that are asked about first."""
    step: float = 0.1
    """How far each number is moved in a generation, as a share of its range."""
    targeted: bool = False
    """Whether inputs are moved towards a random other class, in several steps."""
    iterations: int = 5
    """In how many steps, where targeted."""
    period: int = 3
    """After how many generations the step changes its sign, where not targeted."""
    net: Net = "same"
    """Architecture of the copy."""
    epochs: int | None = None
    """Of each copy, over the answers; as many steps as the victim had unless given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.seeds >= 1, f"JacobianAugmentation needs at least 1 input to begin with; given {self.seeds}")
        require(0 < self.step <= 1, f"JacobianAugmentation needs a step in (0, 1]; given {self.step}")
        require(self.iterations >= 1, f"JacobianAugmentation needs at least 1 iteration; given {self.iterations}")
        require(self.period >= 1, f"JacobianAugmentation needs a period of at least 1; given {self.period}")

    def check_task(self, task: Task) -> None:
        """Raise `NotApplicable` where no input is real numbers."""
        if not any(isinstance(surface, Box) for surface in task.surfaces):
            raise NotApplicable(f"JacobianAugmentation moves real numbers along a gradient; {task.name} takes none")

    def steal(self, access: BlackBox, pool: Batch, train: Imitation, rng: torch.Generator) -> Iterator[nn.Module]:
        """A copy at each budget, from the answers so far."""
        pool = self.wide(pool, self.seeds, rng)
        first = pool.take(shuffled(len(pool), min(self.seeds, self.queries), rng))
        asked, copy, generation = Asked(access), None, 0
        for budget in self.stages:
            while copy is None or (len(asked) < budget and not asked.refused):
                new = first.take(slice(len(asked), budget)).inputs
                if copy is not None and len(asked) >= len(first):
                    parents = asked.data.take(shuffled(len(asked), budget - len(asked), rng))
                    sign = -((-1) ** (generation // self.period))
                    new = self.moved(WhiteBox(train.task, copy), parents, sign, rng)
                    generation += 1
                asked.ask(new)
                copy = self.learn(train, asked.data)
            yield copy
            if asked.refused:
                return

    def moved(self, access: WhiteBox, parents: Batch, sign: int, rng: torch.Generator) -> Tree:
        """Inputs moved from their parents by the copy's gradient; the parents' targets are the victim's answers."""
        kind, surface = access.task.output, next(s for s in access.task.surfaces if isinstance(s, Box))
        assert isinstance(kind, Classes)
        assert isinstance(parents.target, Tensor)
        classes, clean = kind.decide(parents.target), surface.get(parents.inputs)
        number = 2 if parents.target.ndim == 1 else parents.target.shape[1]
        if self.targeted:
            others = torch.randint(1, number, (len(parents),), generator=rng).to(classes)
            classes, sign = (classes + others) % number, 1
        steps = self.iterations if self.targeted else 1
        length, point = sign * self.step * (surface.high - surface.low) / steps, clean
        for _ in range(steps):
            here = Batch(surface.put(parents.inputs, point), classes)
            point = surface.clamp(clean, point + length * access.ascend(here, surface, lead).gradient.sign())
        return surface.put(parents.inputs, surface.snap(clean, point))

    @classmethod
    def tiny(cls) -> JacobianAugmentation:
        """Two inputs and eight queries."""
        return cls(queries=8, budgets=(4,), seeds=2, epochs=2)


def lead(predictor: Predictor, batch: Batch) -> Tensor:
    """How far the target's score is above the mean of all, ``(B,)``: unlike a probability, it never levels off."""
    assert isinstance(batch.target, Tensor)
    scores = log_probabilities(predictor(batch.inputs))
    return scores.gather(1, batch.target[:, None])[:, 0] - scores.mean(1)
