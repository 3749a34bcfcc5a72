"""Adversarial training with the gradients that training computes anyway."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from defenses._collapse import Guard
from defenses._robust import check_gradients, check_reach, refuse_private, threat_of
from secure_ml.batch import Batch
from secure_ml.checkpoint import Randomness, Stateful
from secure_ml.defense import Defense
from secure_ml.errors import NotApplicable, UsageError, require
from secure_ml.randomness import generator
from secure_ml.task import Task
from secure_ml.threats import Threat, Walk
from secure_ml.training import Loader, Plan, Step


@dataclass(frozen=True, kw_only=True)
class FreeTraining(Defense):
    """Each batch is replayed, and one gradient updates weights and inputs (Shafahi et al. 2019, https://arxiv.org/abs/1904.12843).

    A batch ``(B, *shape)`` is trained on ``replays`` times; after each, its inputs move by a whole radius along the
    gradient that the update left in them. The number of epochs is divided by ``replays``, so that it costs what plain
    training does. ``guard`` training examples are looked at after each epoch, as in FastTraining. Covers: evasion
    within the radius, measured, never guaranteed. Does not cover: other norms, larger radii, privacy or extraction.
    Radius 0 with a single replay is plain training.

    As in the paper, the change stays while batches come and go, by place in the batch. Differs from the paper: after a
    collapse the weights of the epoch before return, and steps are a quarter of the radius. Early stopping is switched
    off. Raises `NotApplicable` where no gradient leads to changed inputs or where examples are made anew, `UsageError`
    for settings out of range, together with DP-SGD, and for a defense after it that replaces the batch.
    """

    radius: float | None = None
    """The task's own radius unless given, in the unit of its threat."""
    replays: int = 8
    """Times that a batch is trained on in a row."""
    guard: int = 200
    """Training examples that are looked at for a collapse after each epoch; 0 for none."""

    def __post_init__(self) -> None:
        check_reach("FreeTraining", self.radius, 0.0)
        require(self.replays >= 1, f"FreeTraining needs at least 1 replay; given {self.replays}")
        require(self.guard >= 0, f"FreeTraining needs a guard of at least 0 examples; given {self.guard}")

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` where there is no one gradient to follow, or no batch to replay."""
        check_gradients("FreeTraining", task)
        if len(threat_of(task, self.radius).parts()) > 1:
            raise NotApplicable(f"FreeTraining moves one input along the gradient; the threat to {task.name} has more")
        if task.renew is not None:
            raise NotApplicable(f"FreeTraining replays batches, and those of {task.name} are made anew by what it does")

    def prepare(self, plan: Plan) -> Plan:
        """The plan with replayed batches whose inputs move with each update."""
        assert isinstance(plan.loader, Loader)
        rng = generator(plan.seed, "collapse")
        threat = threat_of(plan.task, self.radius)
        guard = Guard.over("FreeTraining", plan, threat, self.guard, rng)
        moving = Moving(plan, threat, guard)
        loader = replace(
            plan.loader, sampler=Replayed(plan.loader.sampler, self.replays), steps=plan.loader.steps * self.replays
        )
        state: dict[str, Stateful] = {"change": moving, "guard": guard, "guard rng": Randomness(rng)}
        return replace(
            plan,
            transform=moving.transform,
            observers=(*plan.observers, moving, guard),
            loader=loader,
            epochs=-(-plan.epochs // self.replays),
            state={**plan.state, **{f"{name} {len(plan.state)}": part for name, part in state.items()}},
            patience=None,
        )

    @classmethod
    def tiny(cls) -> FreeTraining:
        """Two replays, and nobody on guard."""
        return cls(replays=2, guard=0)

    @classmethod
    def neutral(cls) -> FreeTraining:
        """Radius 0, each batch once."""
        return cls(radius=0, replays=1)


@dataclass(frozen=True)
class Replayed:
    """Every batch of a sampler several times in a row."""

    sampler: Iterable[Tensor]
    times: int

    def __iter__(self) -> Iterator[Tensor]:
        for index in self.sampler:
            for _ in range(self.times):
                yield index


class Moving:
    """The change of each place in a batch, which each update's gradient moves on."""

    def __init__(self, plan: Plan, threat: Threat, guard: Guard) -> None:
        (part,) = threat.parts()
        assert isinstance(part, Walk)
        self.inner, self.part, self.guard = plan.transform, part, guard
        self.surface = plan.task.surface(part)
        self.clean = self.leaf = self.change = torch.empty(0)

    def transform(self, module: nn.Module, batch: Batch) -> Batch:
        """The batch, changed, with inputs that are a leaf in which the update's gradient is kept."""
        refuse_private("FreeTraining", module, "a replayed batch is used more often than its sampling is accounted for")
        batch = self.inner(module, batch)
        self.clean = self.surface.get(batch.inputs)
        change = self.change[: len(self.clean)].to(self.clean)
        new = torch.zeros_like(self.clean[len(change) :])
        point = self.clean + (torch.cat([change, new]) if len(change) else new)
        point = self.part.project(self.surface, self.clean, point)
        self.leaf = self.part.realise(self.surface, self.clean, point).detach().requires_grad_()
        return Batch(self.surface.put(batch.inputs, self.leaf), batch.target)

    def __call__(self, step: Step) -> None:
        """Move on along the gradient: by a radius, as in the paper, or by a quarter after a collapse."""
        gradient = self.leaf.grad
        if gradient is None or self.surface.get(step.batch.inputs) is not self.leaf:
            raise UsageError("FreeTraining moves a batch that a later defense replaces: list FreeTraining after it")
        length = self.part.radius if self.guard.steps == 1 else self.part.radius / 4
        moved = self.part.advance(self.surface, self.clean, self.leaf.detach(), gradient, length) - self.clean
        self.change = torch.cat([moved, self.change[len(moved) :].to(moved)])

    def state_dict(self) -> Tensor:
        """The change."""
        return self.change

    def load_state_dict(self, change: Tensor) -> None:
        """Go on from there."""
        self.change = change
