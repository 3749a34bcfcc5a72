"""Parts that are broken on purpose: each breaks one law and only one, and the law must say so."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import secure_ml as sm
from secure_ml.access import BlackBox, WhiteBox
from secure_ml.attack import Result
from secure_ml.batch import Batch, Tree
from secure_ml.families.audit import Bound, Laboratory
from secure_ml.imitation import Imitation
from secure_ml.surfaces import Surface
from secure_ml.task import Predictor
from secure_ml.threats import Threat
from secure_ml.training import Plan
from secure_ml.victim import Plain


@dataclass
class NotFrozen(sm.Evasion):
    """Can be changed after it was made. (B, *shape) Raises `UsageError`. https://arxiv.org/abs/0000.00000"""

    surfaces: ClassVar[tuple[type[Surface], ...]] = (sm.Box,)

    def perturb(self, access: WhiteBox, batch: Batch, threat: Threat, rng: torch.Generator) -> Tree:
        return batch.inputs


@dataclass(frozen=True, kw_only=True)
class Undocumented(sm.Defense):
    """Protects, somehow."""

    strength: float = 1.0


@dataclass(frozen=True, kw_only=True)
class GlobalNoise(sm.Evasion):
    """Draws from the global random stream instead of the generator that it is handed."""

    surfaces: ClassVar[tuple[type[Surface], ...]] = (sm.Box,)

    def perturb(self, access: WhiteBox, batch: Batch, threat: Threat, rng: torch.Generator) -> Tree:
        assert isinstance(batch.inputs, Tensor)
        return batch.inputs + torch.rand_like(batch.inputs).round() - 0.5


@dataclass(frozen=True, kw_only=True)
class LeavesGradients(sm.Evasion):
    """Differentiates with ``backward``, which adds to the weights' gradients."""

    surfaces: ClassVar[tuple[type[Surface], ...]] = (sm.Box,)

    def perturb(self, access: WhiteBox, batch: Batch, threat: Threat, rng: torch.Generator) -> Tree:
        access.task.loss(access.module, batch).sum().backward()
        return batch.inputs


@dataclass(frozen=True, kw_only=True)
class TrainsTheVictim(sm.Evasion):
    """Leaves the module in training mode: while it attacks, which the family mends, and after it was judged."""

    surfaces: ClassVar[tuple[type[Surface], ...]] = (sm.Box,)

    def perturb(self, access: WhiteBox, batch: Batch, threat: Threat, rng: torch.Generator) -> Tree:
        access.module.train()
        return batch.inputs

    def evaluate(self, victim: sm.Victim, **settings: Any) -> Result:
        result = super().evaluate(victim, **settings)
        victim.module.train()
        return result


@dataclass(frozen=True, kw_only=True)
class Descends(sm.Evasion):
    """Goes down the loss: the sign error that every attack had once."""

    surfaces: ClassVar[tuple[type[Surface], ...]] = (sm.Box,)

    def perturb(self, access: WhiteBox, batch: Batch, threat: Threat, rng: torch.Generator) -> Tree:
        surface = access.task.surface(threat)
        gradient = access.ascend(batch, surface).gradient
        return surface.put(batch.inputs, surface.get(batch.inputs) - gradient.sign())


@dataclass(frozen=True, kw_only=True)
class Cheats(sm.Evasion):
    """Returns inputs far outside the threat and the box; the family must bring them back."""

    surfaces: ClassVar[tuple[type[Surface], ...]] = (sm.Box,)

    def perturb(self, access: WhiteBox, batch: Batch, threat: Threat, rng: torch.Generator) -> Tree:
        assert isinstance(batch.inputs, Tensor)
        return batch.inputs + torch.tensor([1e9, -1e9, torch.nan])[torch.arange(batch.inputs.numel()) % 3].reshape(
            batch.inputs.shape
        )


@dataclass(frozen=True, kw_only=True)
class JudgesTheModule(sm.Evasion):
    """Scores on the weights instead of the served answers."""

    surfaces: ClassVar[tuple[type[Surface], ...]] = (sm.Box,)

    def perturb(self, access: WhiteBox, batch: Batch, threat: Threat, rng: torch.Generator) -> Tree:
        return batch.inputs

    def evaluate(self, victim: sm.Victim, **settings: Any) -> Result:
        return super().evaluate(replace(victim, served=Plain(victim.module, victim.task.chunk)), **settings)


@dataclass(frozen=True, kw_only=True)
class Overspends(sm.Extraction):
    """Asks about one input more than its budget allows."""

    queries: int = 4
    reveal: str = "label"

    def steal(self, access: BlackBox, pool: Batch, train: Imitation, rng: torch.Generator) -> Iterator[nn.Module]:
        for _ in range(self.queries + 1):
            access(pool.take(slice(0, 1)).inputs)
        yield nn.Linear(1, 1)


@dataclass(frozen=True, kw_only=True)
class ScoresOnce(sm.Membership):
    """Gives one score for the whole batch."""

    reveal: str = "probabilities"

    def score(self, access: BlackBox, batch: Batch, aux: Batch, rng: torch.Generator) -> Tensor:
        return access.loss(batch).mean()


@dataclass(frozen=True, kw_only=True)
class ImpossibleBound(sm.Audit):
    """Shows more than anything could."""

    delta: float = 1e-5

    def bounds(self, lab: Laboratory, rng: torch.Generator) -> list[Bound]:
        return [Bound(name="all", epsilon=float("inf"), delta=self.delta, method="none", n=1)]


@dataclass(frozen=True, kw_only=True)
class NoBound(sm.Audit):
    """Shows nothing."""

    delta: float = 1e-5

    def bounds(self, lab: Laboratory, rng: torch.Generator) -> list[Bound]:
        return []


@dataclass(frozen=True, kw_only=True)
class AuditsInPlace(sm.Audit):
    """Plants into the victim's own data."""

    delta: float = 1e-5

    def bounds(self, lab: Laboratory, rng: torch.Generator) -> list[Bound]:
        lab.splits.train.inputs.add_(1)
        return [Bound(name="all", epsilon=1.0, delta=self.delta, method="none", n=1)]


@dataclass(frozen=True)
class Leaky(sm.Linf):
    """A ball that does not hold what is projected onto it."""

    def shrink(self, delta: Tensor) -> Tensor:
        return delta.clamp(-2 * self.radius, 2 * self.radius)


@dataclass(frozen=True, kw_only=True)
class AlwaysNeutral(sm.Defense):
    """Protects nothing, whatever its setting."""

    @classmethod
    def neutral(cls) -> "AlwaysNeutral":
        return cls()


@dataclass(frozen=True, kw_only=True)
class NeverNeutral(sm.Defense):
    """Halves the learning rate even in its neutral setting."""

    def prepare(self, plan: Plan) -> Plan:
        return replace(plan, schedule=lambda done: 0.5)

    @classmethod
    def neutral(cls) -> "NeverNeutral":
        return cls()


@dataclass(frozen=True, kw_only=True)
class LeavesHooks(sm.Defense):
    """Forgets a hook on the module that it served."""

    def serve(self, victim: sm.Victim) -> sm.Victim:
        victim.module.register_forward_hook(lambda *_: None)
        return victim


@dataclass(frozen=True, kw_only=True)
class AdaptsInPlace(sm.Defense):
    """Changes the architecture that it was handed."""

    def adapt(self, module: nn.Module) -> nn.Module:
        module.add_module("extra", nn.Identity())
        return module


@dataclass(frozen=True, kw_only=True)
class Unseeded(sm.Defense):
    """Trains with a rate that differs from run to run."""

    def prepare(self, plan: Plan) -> Plan:
        rate = torch.rand((), generator=CLOCK).item()
        return replace(plan, schedule=lambda done: rate)


CLOCK = torch.Generator().manual_seed(0)


@dataclass(frozen=True, kw_only=True)
class ServesAnother(sm.Defense):
    """Answers with the negated logits."""

    def serve(self, victim: sm.Victim) -> sm.Victim:
        return replace(victim, served=Negated(victim.served))


class Negated(sm.victim.Served):
    """Minus another's answers."""

    def __init__(self, inner: Callable[[Tree], Tensor]) -> None:
        self.inner = inner

    def __call__(self, inputs: Tree) -> Tensor:
        return -self.inner(inputs)


def mixing_loss(predictor: Predictor, batch: Batch) -> Tensor:
    """The loss of each example after subtracting the batch's mean output: no example stands alone."""
    outputs = predictor(batch.inputs)
    return nn.functional.cross_entropy(outputs - outputs.mean(0), batch.target, reduction="none")


def averaged_loss(predictor: Predictor, batch: Batch) -> Tensor:
    """One loss for the whole batch."""
    return sm.cross_entropy(predictor, batch).mean()


class Halved(nn.Module):
    """A layer whose per-example gradients no sampler of Opacus gets right: its second use is hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return self.inner(flat) + nn.functional.linear(flat, self.inner.weight)
