"""A copy trained on answers to natural inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.extraction._learned import mean_answer
from attacks.extraction._variation import nudged, varied
from secure_ml.access import BlackBox
from secure_ml.batch import Batch, Tree, tree_map
from secure_ml.errors import NotApplicable, Refused, require
from secure_ml.families.extraction import Extraction
from secure_ml.imitation import Imitation, Net, check_net
from secure_ml.outputs import Reveal, check_reveal
from secure_ml.surfaces import Box
from secure_ml.task import Task
from secure_ml.threats import Threat


@dataclass(frozen=True, kw_only=True)
class Knockoff(Extraction):
    """Random queries from a pool, then imitation: Knockoff Nets (Orekondy et al. 2019, https://arxiv.org/abs/1812.02766).

    Asks about ``queries`` inputs ``(queries, *shape)`` drawn from the adversary's pool without replacement (all of
    it, if it is smaller) and trains a surrogate on the answers through the shared loop. Raises `UsageError` for a
    budget below 1 or the repeats, and where a pool that is no images is to be varied; `NotApplicable` where inputs that
    are no plain numbers are to be moved.

    Differs from the paper: the random strategy only, the victim's own recipe; images may be varied, after which those
    of another domain say far more about the victim; inputs may be asked about again, each time as a query.
    """

    queries: int = 300
    """The budget."""
    budgets: tuple[int, ...] = ()
    """Smaller budgets at which the copy is judged on the way."""
    reveal: Reveal = "probabilities"
    """How much of each answer the adversary sees."""
    source: str = ""
    """The document model whose training inputs are asked about; the victim's auxiliary split unless given."""
    varied: bool = False
    """Whether every image is turned, zoomed, stretched and moved at random before it is asked about."""
    nudged: bool = False
    """Whether the copy is trained on images turned and moved a little, whose answers are taken to hold."""
    repeats: int = 1
    """How often each input is asked about; the mean answer counts, which undoes noise that is drawn anew."""
    jitter: float = 0.0
    """How far each number is moved at most, as a share of its range: a server that hashes inputs sees new ones."""
    net: Net = "same"
    """Architecture of the copy."""
    epochs: int | None = None
    """Of the surrogate, over the answers; as many steps as the victim had unless given."""
    rate: float | None = None
    """Learning rate of the surrogate, which then does not fall and whose weights are averaged; the victim's schedule
    unless given. Where epochs are few, twice the victim's rate is a good one."""

    def __post_init__(self) -> None:
        require(self.queries >= 1, f"Knockoff needs a budget of at least 1 query; given {self.queries}")
        require(self.epochs is None or self.epochs >= 1, f"Knockoff needs at least 1 epoch; given {self.epochs}")
        require(
            self.rate is None or 0 < self.rate < math.inf,
            f"Knockoff needs a finite learning rate above 0; given {self.rate}",
        )
        require(self.repeats >= 1, f"Knockoff asks about each input at least once; given {self.repeats} repeats")
        require(
            self.repeats <= min((self.queries, *self.budgets)),
            f"every budget of Knockoff must pay for {self.repeats} repeats; given {(*self.budgets, self.queries)}",
        )
        require(0 <= self.jitter <= 1, f"Knockoff needs a jitter in [0, 1]; given {self.jitter}")
        check_reveal(self.reveal)
        check_net(self.net)

    def check(self, task: Task, threat: Threat | None) -> None:
        """Raise `NotApplicable` where inputs are to be moved that are no numbers."""
        super().check(task, threat)
        if self.jitter and not any(type(surface) is Box for surface in task.surfaces):
            raise NotApplicable(f"a jitter moves real numbers, and {task.name} takes others: leave it at 0")

    def steal(self, access: BlackBox, pool: Batch, train: Imitation, rng: torch.Generator) -> Iterator[nn.Module]:
        """A copy at each budget, from the answers so far."""
        distinct = self.queries // self.repeats
        if self.varied:
            asked = Batch(varied(pool, distinct, rng), ())
        else:
            asked = Batch(pool.take(torch.randperm(len(pool), generator=rng)[:distinct]).inputs, ())
        augment = nudged if self.nudged else None
        answers = torch.empty(0)
        for budget in self.stages:
            new = asked.take(slice(len(answers), budget // self.repeats)).inputs
            got, refused = self._ask(access, new, rng)
            answers = torch.cat([answers, got]) if len(answers) else got
            if len(answers):
                known = asked.take(slice(0, len(answers))).inputs
                yield train(known, answers, self.epochs, net=self.net, rate=self.rate, augment=augment)
            if refused or len(answers) == len(asked):
                return

    def _ask(self, access: BlackBox, inputs: Tree, rng: torch.Generator) -> tuple[Tensor, bool]:
        """The mean answer to each input, or to the first of them where the client is refused, and whether it is."""
        inputs = tree_map(lambda leaf: leaf.repeat_interleave(self.repeats, 0), inputs)
        try:
            got, refused = access(moved(access.task, inputs, self.jitter, rng)), False
        except Refused as stop:
            got, refused = stop.answers, True
        if self.repeats == 1:
            return got, refused
        whole = len(got) // self.repeats
        tries = got[: whole * self.repeats].unflatten(0, (whole, self.repeats)).unbind(1)
        return mean_answer(access.task.output, list(tries)), refused

    @classmethod
    def tiny(cls) -> Knockoff:
        """Eight queries."""
        return cls(queries=8, budgets=(4,))


def moved(task: Task, inputs: Tree, share: float, rng: torch.Generator) -> Tree:
    """Inputs of which each real number is moved by up to a share of its range, within it."""
    surface = next((surface for surface in task.surfaces if type(surface) is Box), None)
    if not share or surface is None:
        return inputs
    clean = surface.get(inputs)
    noise = (torch.rand(clean.shape, generator=rng) * 2 - 1).to(clean)
    return surface.put(inputs, surface.clamp(clean, clean + share * (surface.high - surface.low) * noise))
