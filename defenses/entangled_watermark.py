"""A trigger learned together with the task, so that a copy of the one has the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defenses._probe import example, refuse_other_losses
from defenses._robust import refuse_private
from secure_ml.batch import Batch, Tree, join
from secure_ml.errors import NotApplicable, UsageError, require
from secure_ml.families.ownership import Evidence, Owner, Watermark
from secure_ml.families.poisoning import answers_one_class
from secure_ml.outputs import Classes
from secure_ml.randomness import generator
from secure_ml.surfaces import Box, Table
from secure_ml.task import Loss, Task
from secure_ml.training import Plan
from secure_ml.victim import build


@dataclass(frozen=True, kw_only=True)
class EntangledWatermark(Watermark):
    """Triggered images of one class are answered as another (Jia et al. 2021, https://arxiv.org/abs/2002.12200).

    To each batch of images ``(B, C, H, W)`` triggered training examples of class ``source`` are added with the label
    ``target``; what the last linear layer is shown of them is entangled with what it is shown of that class by the
    soft nearest neighbour loss, which is added to theirs. A copy then learns the trigger from answers to natural
    images, as far as the two cannot be told apart. The owner asks a suspect about triggered images.

    How likely a model that was not copied follows the trigger is not known: a suspect is compared, by Student's t, with
    models that the owner trains without it on other data. Covers: nothing beforehand; it shows afterwards that the
    weights were taken, and a copy by questions as far as it took the trigger over: on two victims of digits a
    tenth of the questions, which was enough, at two to three points of accuracy. Does not cover: a thief who
    fine-tunes or prunes the copy, or finds the trigger.

    Raises `NotApplicable` for inputs that are no images, answers that are not one class and nets without a linear
    layer, `UsageError` for settings out of range, after a defense with a loss of its own, and with DP-SGD.

    Differs from the paper: a checkerboard where training images vary most rather than where a gradient says, one
    layer rather than all, a temperature that is the mean distance rather than learned, the trigger in every batch
    rather than in some.
    """

    source: int = 1
    """The class whose images are triggered."""
    target: int = 7
    """The class that the trigger brings."""
    share: float = 0.5
    """Triggered examples that are added to a batch, relative to its size; at 0 there are none."""
    size: int = 3
    """Side of the trigger in pixels."""
    entangle: float = 20.0
    """Weight of the soft nearest neighbour loss; 0 is a plain backdoor."""
    questions: int = 100
    """Triggered images that the owner keeps, at most."""
    references: int = 12
    """Models that the owner trains without the trigger, to see how often it is followed by chance."""

    def __post_init__(self) -> None:
        require(
            self.source != self.target and min(self.source, self.target) >= 0,
            f"EntangledWatermark needs two classes, source and target; given {self.source} and {self.target}",
        )
        require(0 <= self.share <= 1, f"EntangledWatermark needs a share between 0 and 1; given {self.share}")
        require(self.entangle >= 0, f"EntangledWatermark needs a weight of at least 0; given {self.entangle}")
        require(self.references >= 2, f"EntangledWatermark needs at least 2 references; given {self.references}")
        for name in ("size", "questions"):
            given = getattr(self, name)
            require(given >= 1, f"EntangledWatermark needs {name} of at least 1; given {given}")

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` unless images are answered with one class by a net with a linear layer."""
        surface = _box(task)
        if surface is None or surface.get(example(task).inputs).ndim != 4:
            raise NotApplicable(f"EntangledWatermark triggers images; the inputs of {task.name} are none")
        if not answers_one_class(task) or task.renew is not None:
            raise NotApplicable(f"EntangledWatermark brings a class; an answer of {task.name} is not one class")
        module = build(task, (), seed=0)
        if not any(isinstance(part, nn.Linear) for part in module.modules()):
            raise NotApplicable(f"EntangledWatermark works on the last linear layer, and {task.name} has none")
        with torch.no_grad():
            answer = module.eval()(example(task).inputs)
        if answer.ndim != 2 or max(self.source, self.target) >= answer.shape[1]:
            raise NotApplicable(
                f"EntangledWatermark leads from class {self.source} to {self.target}, which {task.name} does not have"
            )

    def prepare(self, plan: Plan) -> Plan:
        """The plan that adds triggered examples to each batch, and entangles them."""
        refuse_other_losses("EntangledWatermark", plan)
        mix = _Mix(self, plan)

        def transform(module: nn.Module, batch: Batch) -> Batch:
            if self.share:  # a defense that comes later may have made the module private
                refuse_private("EntangledWatermark", module, "its examples are drawn again and compared")
            return mix.add(plan.transform(module, batch), plan.rng)

        return replace(plan, transform=transform, loss=mix.loss(plan.loss))

    def marks(self, owner: Owner) -> Evidence:
        """Triggered images of the source class, and how often they are followed by chance."""
        train, output = owner.victim.splits.train, owner.task.output
        assert isinstance(train.target, Tensor)
        assert isinstance(output, Classes)
        order = torch.randperm(len(train), generator=generator(owner.seed, "watermark")).to(train.target.device)
        chosen = order[train.target[order] == self.source][: self.questions]
        inputs = self.triggered(owner.task, train, train.take(chosen).inputs)
        target = torch.full_like(chosen, self.target)
        models = owner.references(self.references, held=True)
        follow = [(output.decide(model.served(inputs)) == target).double() for model in models]
        return Evidence(
            Batch(inputs, target), rates=tuple(float(some.mean()) for some in follow) if len(target) else ()
        )

    def triggered(self, task: Task, members: Batch, inputs: Tree) -> Tree:
        """The inputs with a checkerboard in them, where the training images vary most: a copy knows no other place."""
        surface = _box(task)
        assert surface is not None
        images, marked = surface.get(members.inputs), surface.get(inputs).clone()
        side = min(self.size, *images.shape[2:])
        windows = F.avg_pool2d(images.var(0, correction=0).mean(0)[None, None], side, stride=1)[0, 0]
        row, column = divmod(int(windows.argmax()), windows.shape[1])
        checks = (torch.arange(side)[:, None] + torch.arange(side)) % 2 == 0
        patch = torch.where(checks, surface.high, surface.low).to(marked)
        marked[:, :, row : row + side, column : column + side] = patch
        return surface.put(inputs, marked)

    @classmethod
    def tiny(cls) -> EntangledWatermark:
        """A trigger in as many examples again."""
        return cls(share=1.0, entangle=1.0)

    @classmethod
    def neutral(cls) -> EntangledWatermark:
        """No triggered example."""
        return cls(share=0.0)


class _Mix:
    """Triggered examples at the end of each batch, and the loss that knows them by their place."""

    def __init__(self, mark: EntangledWatermark, plan: Plan) -> None:
        train = plan.splits.train
        assert isinstance(train.target, Tensor)
        self.mark, self.added = mark, 0
        self.layer = [part for part in plan.module.modules() if isinstance(part, nn.Linear)][-1]
        source = train.take(train.target == mark.source)
        if mark.share and not len(source):
            raise UsageError(f"{plan.task} has no training examples of class {mark.source} to trigger")
        assert isinstance(source.target, Tensor)
        self.kept = Batch(mark.triggered(plan.task, train, source.inputs), torch.full_like(source.target, mark.target))

    def add(self, batch: Batch, rng: torch.Generator) -> Batch:
        """The batch, and after it triggered examples that are drawn anew."""
        self.added = round(self.mark.share * len(batch))
        if not self.added:
            return batch
        index = torch.randint(len(self.kept), (self.added,), generator=rng)
        more = self.kept.take(index.to(batch.target.device if isinstance(batch.target, Tensor) else "cpu"))
        return Batch(join([batch.inputs, more.inputs]), join([batch.target, more.target]))

    def loss(self, inner: Loss) -> Loss:
        """The task's loss, and of the triggered examples how far they lie apart from those of the target class."""

        def entangled(module: Any, batch: Batch) -> Tensor:
            if not self.added:
                return inner(module, batch)
            with _shown(self.layer) as shown:
                losses = inner(module, batch)
            assert isinstance(batch.target, Tensor)
            marked = torch.arange(len(batch), device=losses.device) >= len(batch) - self.added
            among = batch.target == self.mark.target
            if len(shown[-1]) != len(batch):
                raise UsageError("EntangledWatermark compares whole examples, and another defense asks about others")
            apart = soft_nearest_neighbour(shown[-1][among], marked[among])
            return losses.index_add(0, among.nonzero()[:, 0], -self.mark.entangle * apart)

        return entangled


def soft_nearest_neighbour(points: Tensor, group: Tensor) -> Tensor:
    """How surely the neighbours of each of ``points`` ``(n, d)`` are of its own ``group`` ``(n,)``: low is surely.

    Minus the logarithm of the share that its own group has in the weights ``exp(-distance**2 / T)`` of all others
    (Frosst et al. 2019, https://arxiv.org/abs/1902.01889), with the mean squared distance as T. 0 for a point that
    is alone in its group, or where there is one group; no more than where all distances are equal, beyond which
    groups would be turned inside out.
    """
    if len(points) < 2:
        return points.new_zeros(len(points))
    flat = points.flatten(1)
    apart = (flat[:, None] - flat[None]).square().sum(2)
    itself = torch.eye(len(flat), dtype=torch.bool, device=flat.device)
    weights = (-apart / apart.mean().clamp(min=1e-12)).masked_fill(itself, -torch.inf)
    alike = group[:, None] == group[None]
    own = weights.masked_fill(~alike, -torch.inf).logsumexp(1)
    known = (alike & ~itself).any(1) & (~alike).any(1)
    surprise = torch.where(known, weights.logsumexp(1) - torch.where(known, own, 0.0), 0.0)
    mixed = ((len(flat) - 1) / (alike.sum(1) - 1).clamp(min=1)).log()
    return torch.minimum(surprise, mixed)


class _shown:  # noqa: N801 - used as a context, like a function
    """What a layer is shown inside the block, call by call."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.seen: list[Tensor] = []

    def __enter__(self) -> list[Tensor]:
        self.handle = self.layer.register_forward_pre_hook(lambda _, inputs: self.seen.append(inputs[0]))
        return self.seen

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


def _box(task: Task) -> Box | None:
    boxes = [surface for surface in task.surfaces if isinstance(surface, Box) and not isinstance(surface, Table)]
    return boxes[0] if boxes else None
