"""Training examples, of which the gradient of one training step is released."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from secure_ml.access import WhiteBox
from secure_ml.batch import Batch, Tree
from secure_ml.errors import require
from secure_ml.images import are_images, psnr, ssim
from secure_ml.randomness import generator, seeded
from secure_ml.secrets.base import Hidden, Measured, Secret, Verdict, averaged, require_box, require_class, withheld
from secure_ml.stats import clopper_pearson
from secure_ml.surfaces import Box
from secure_ml.task import Task
from secure_ml.training import Loader, make_plan, train
from secure_ml.victim import Victim, build

DECOYS = 2000
"""Members among which a guess must name the right one, at most."""


class Release(WhiteBox):
    """The weights before a step, and what was released of it: a gradient for each of several steps at these weights."""

    def __init__(
        self, task: Task, module: nn.Module, released: list[tuple[Tensor, ...]], labels: Tensor | None, aux: Batch
    ) -> None:
        super().__init__(task, module)
        self.released, self.labels, self.aux = released, labels, aux
        self.size = 0
        """Examples in a step."""
        self.box = Box()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the released gradients are gradients in, in their order."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]


@dataclass(frozen=True)
class OneStep(Secret[Release]):
    """The examples of ``steps`` training steps on ``batch`` examples each, as the victim's own stack takes them.

    A released gradient is the change of the weights in one step of plain gradient descent through the plan that the
    victim's defenses make: bare, or clipped, noisy and divided by the expected batch where DP-SGD trains.
    """

    batch: int
    steps: int
    trained: bool
    labels: Literal["inferred", "known"]

    def check(self, name: str, task: Task) -> None:
        """Raise `NotApplicable` for inputs that are not one box, or answers that are not one class."""
        require_box(name, task)
        require_class(name, task)

    def hide(self, victim: Victim, examples: int, seed: int) -> Hidden[Release]:
        """Take the steps; the guess has shape ``(steps, batch, *shape)``."""
        batch = min(self.batch, examples, len(victim.splits.train))
        steps = max(1, min(self.steps, examples // batch, len(victim.splits.train) // batch))
        module, truth, released = _step(victim, batch, steps, self.trained, seed)
        assert isinstance(truth.target, Tensor)
        assert isinstance(truth.inputs, Tensor)
        labels = truth.target.reshape(steps, batch) if self.labels == "known" else None
        access = Release(withheld(victim.task), module, released, labels, victim.splits.aux)
        access.size, access.box = batch, require_box("", victim.task)
        shape = (steps, batch, *truth.inputs.shape[1:])
        judge = partial(self._judge, access.box, truth, victim.splits.train.inputs, victim.splits.aux, shape, seed)
        return Hidden(access, shape, judge)

    def _judge(
        self, box: Box, truth: Batch, members: Tree, aux: Batch, shape: tuple[int, ...], seed: int, guess: Tensor
    ) -> Verdict:
        assert isinstance(truth.inputs, Tensor)
        assert isinstance(members, Tensor)
        span = box.high - box.low
        guess = _matched(guess.clamp(box.low, box.high), truth.inputs.reshape(shape)).flatten(0, 1)
        blind = _without_access(truth, aux, self.labels == "known", seed)
        psnrs, prior = psnr(guess, truth.inputs, span), _best(psnr, blind, truth.inputs, span)
        measured = [
            Measured("PSNR gain", averaged(psnrs - prior), "dB", "over the best image without access"),
            Measured("PSNR", averaged(psnrs), "dB"),
            Measured("PSNR without access", averaged(prior), "dB"),
        ]
        evidence = {"psnr": psnrs, "psnr without access": prior}
        if are_images(guess):
            alike, likeness = ssim(guess, truth.inputs, span), _best(ssim, blind, truth.inputs, span)
            measured.append(Measured("SSIM", averaged(alike), "SSIM"))
            measured.append(Measured("SSIM without access", averaged(likeness), "SSIM"))
            evidence |= {"ssim": alike, "ssim without access": likeness}
        crowd = torch.cat([truth.inputs, members[: DECOYS - len(truth)]])
        named, distinct = _named(guess, truth.inputs, crowd)
        note = f"by chance 1 of {distinct}"
        measured.append(Measured("identified", clopper_pearson(int(named.sum()), len(named)), note=note))
        return Verdict(measured, {**evidence, "identified": named})


def _step(
    victim: Victim, batch: int, steps: int, trained: bool, seed: int
) -> tuple[nn.Module, Batch, list[tuple[Tensor, ...]]]:
    """The module before a step, the examples ``(steps * batch, ...)`` of all steps, and each step's release."""
    recipe = replace(
        victim.task.recipe, optimizer="SGD", learning_rate=1.0, momentum=0.0, weight_decay=0.0, patience=None
    )
    task = replace(victim.task, data=lambda _: victim.splits, recipe=recipe)
    before = victim.module if trained else build(victim.task, victim.defenses, victim.seed).to(victim.device)
    module = build(victim.task, victim.defenses, victim.seed).to(victim.device).eval()
    module.load_state_dict(before.state_dict())
    with seeded(seed, "step"), warnings.catch_warnings():
        plan = make_plan(task, victim.defenses, seed % 2**31, victim.device)
        require(isinstance(plan.loader, Loader), f"{victim.task} has no fixed training examples")
        chosen = torch.randperm(len(plan.loader.data), generator=generator(seed, "examples"))[: steps * batch]
        keeper = _Keeper(plan.module, module, list(chosen.split(batch)), plan.optimizer.param_groups[0]["lr"])
        truth = plan.loader.data.take(chosen.to(victim.device))
        loader = Loader(plan.loader.data, keeper, steps)
        train(replace(plan, loader=loader, epochs=1, schedule=lambda _: 1.0, patience=None, finish=()))
    return module, truth, keeper.released


@dataclass
class _Keeper:
    """Hands out one batch after the other; before each the weights are as they were, after it their change is kept."""

    module: nn.Module
    origin: nn.Module
    batches: list[Tensor]
    rate: float
    released: list[tuple[Tensor, ...]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Tensor]:
        for index in self.batches:
            self._restore()
            yield index
            pairs = zip(self.origin.parameters(), self.module.parameters(), strict=True)
            changes = [(old.detach() - new.detach()) / self.rate for old, new in pairs if old.requires_grad]
            self.released.append(tuple(changes))

    def _restore(self) -> None:
        state = [*self.origin.parameters(), *self.origin.buffers()]
        with torch.no_grad():
            for mine, theirs in zip([*self.module.parameters(), *self.module.buffers()], state, strict=True):
                mine.copy_(theirs)


def _matched(guess: Tensor, truth: Tensor) -> Tensor:
    """Each step's guesses ``(S, b, *shape)`` in the order that fits the truth best: a batch has none of its own."""
    from scipy.optimize import linear_sum_assignment

    ordered = []
    for mine, theirs in zip(guess, truth, strict=True):
        cost = torch.cdist(theirs.flatten(1).double(), mine.flatten(1).double()).square()
        ordered.append(mine[torch.as_tensor(linear_sum_assignment(cost.cpu().numpy())[1], device=mine.device)])
    return torch.stack(ordered)


def _without_access(truth: Batch, aux: Batch, known: bool, seed: int) -> list[Tensor]:
    """What is guessed by who knows only the auxiliary data, and the labels where they are known."""
    assert isinstance(aux.inputs, Tensor)
    assert isinstance(aux.target, Tensor)
    assert isinstance(truth.target, Tensor)
    n, mean = len(truth), aux.inputs.mean(0)
    guesses = [mean.expand(n, *mean.shape)]
    pick = torch.randint(len(aux), (n,), generator=generator(seed, "blind"))
    guesses.append(aux.inputs[pick.to(aux.inputs.device)])
    if known:
        of_class = {int(label): aux.inputs[aux.target == label].mean(0) for label in aux.target.unique()}
        guesses.append(torch.stack([of_class.get(int(label), mean) for label in truth.target]))
    return guesses


def _best(
    measure: Callable[[Tensor, Tensor, float], Tensor], guesses: list[Tensor], truth: Tensor, span: float
) -> Tensor:
    """The values ``(n,)`` of the guess that is best on average."""
    return max((measure(guess, truth, span) for guess in guesses), key=lambda values: float(values.mean()))


def _named(guess: Tensor, truth: Tensor, crowd: Tensor) -> tuple[Tensor, int]:
    """Whether the nearest of a crowd is the true one ``(n,)``, and how many in the crowd differ."""
    crowd = crowd.flatten(1).unique(dim=0)
    nearest = crowd[torch.cdist(guess.flatten(1), crowd).argmin(1)]
    return (nearest == truth.flatten(1)).all(1), len(crowd)
