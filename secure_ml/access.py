"""What an adversary holds. Limits are enforced here, not by an attack's good manners."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from secure_ml.batch import Batch, Tree, leaves
from secure_ml.errors import BudgetExceeded, NotApplicable, Refused
from secure_ml.modes import evaluating
from secure_ml.outputs import Reveal, Values
from secure_ml.outside.opaque import opaque
from secure_ml.victim import Served

if TYPE_CHECKING:
    from secure_ml.surfaces import Surface
    from secure_ml.task import Loss, Task
    from secure_ml.victim import Victim


@dataclass(frozen=True)
class Ascent:
    """One look at a module: losses ``(B,)``, outputs, and the losses' gradient in the surface's tensor."""

    losses: Tensor
    outputs: Tensor
    gradient: Tensor


class Access(ABC):
    """What every adversary can do: ask, and be counted."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.queries = 0
        self.gradients = 0

    @abstractmethod
    def __call__(self, inputs: Tree) -> Tensor:
        """Answers to inputs, without gradients."""


class WhiteBox(Access):
    """The module itself, differentiable: what an adversary who holds the weights can do with it.

    Who holds the weights can also ask what is served: ``served``, or the module where nothing is served yet. Raises
    `NotApplicable` for a module that is a black box itself.
    """

    def __init__(self, task: Task, module: nn.Module, served: Callable[[Tree], Tensor] | None = None) -> None:
        super().__init__(task)
        blind = opaque(module)
        if blind is not None:
            raise NotApplicable(f"{task.name} is {blind.what}, which only answers: it has no weights to look into")
        self.module = module
        self._served = served

    @classmethod
    def open(cls, victim: Victim) -> WhiteBox:
        """The access of an adversary who holds a victim's weights."""
        return cls(victim.task, victim.module, victim.served.stand_in().session())

    def __call__(self, inputs: Tree) -> Tensor:
        """Outputs of the module, in evaluation mode, without gradients."""
        self.queries += len(next(leaves(inputs)))
        with evaluating(self.module), torch.no_grad():
            return cast("Tensor", self.module(inputs))

    def ascend(self, batch: Batch, surface: Surface, loss: Loss | None = None) -> Ascent:
        """Losses, outputs and input gradients of a batch; the task's own loss unless another is given."""
        self.queries += len(batch)
        self.gradients += len(batch)
        objective = self.task.loss if loss is None else loss
        with evaluating(self.module), _outputs(self.module) as seen:

            def run(inputs: Tree) -> Tensor:
                return objective(self.module, Batch(inputs, batch.target))

            losses, gradient = surface.gradient(self.module, batch.inputs, run)
        return Ascent(losses, self._answers(batch, seen), gradient)

    def observe(self, batch: Batch, loss: Loss | None = None) -> tuple[Tensor, Tensor]:
        """Losses ``(B,)`` and outputs of a batch, without gradients."""
        self.queries += len(batch)
        objective = self.task.loss if loss is None else loss
        with evaluating(self.module), torch.no_grad(), _outputs(self.module) as seen:
            losses = objective(self.module, batch)
        return losses, self._answers(batch, seen)

    def ask(self, reveal: Reveal = "logits", budget: int | None = None) -> BlackBox:
        """The served model behind a meter of its own; what it counts is counted here too."""
        if self._served is None:
            return BlackBox(self.task, self, reveal, budget)

        def served(inputs: Tree) -> Tensor:
            assert self._served is not None
            answers = self._served(inputs)
            self.queries += len(answers)
            return answers

        return BlackBox(self.task, served, reveal, budget)

    def _answers(self, batch: Batch, seen: list[Tensor]) -> Tensor:
        """The outputs that a loss saw, asked for again where it looked more than once."""
        return seen[0] if len(seen) == 1 and len(seen[0]) == len(batch) else self(batch.inputs)


class BlackBox(Access):
    """The served model behind a meter: it counts, stops at the budget, and reveals no more than it says.

    Whoever holds it is one client of what is served.
    """

    def __init__(
        self, task: Task, served: Callable[[Tree], Tensor], reveal: Reveal = "logits", budget: int | None = None
    ) -> None:
        super().__init__(task)
        self.reveal: Reveal = reveal
        self.budget = budget
        self._served = served.session() if isinstance(served, Served) else served

    def __call__(self, inputs: Tree) -> Tensor:
        """What is revealed about each input; `BudgetExceeded`, and no answer, where the budget does not last.

        Raises `Refused`, with the answers there are, where the served model answers fewer; only those are counted.
        """
        return self._counted(inputs, lambda answers: self.task.output.reveal(answers, self.reveal))

    def biased(self, inputs: Tree, bias: Tensor, top: int) -> tuple[Tensor, Tensor]:
        """The ``top`` likeliest classes ``(B, top)`` after ``bias`` ``(B, K)`` is added to logits, and their log-odds.

        These are log-probabilities; of a generator, at the last place of each input. Every input counts, as for other
        questions. Raises `NotApplicable` where there are no several classes, or only labels are revealed.
        """
        if isinstance(self.task.output, Values) or self.reveal == "label":
            raise NotApplicable(f"a bias on classes needs probabilities; {self.task.name} reveals none here")

        def likely(answers: Tensor) -> Tensor:
            last = answers[:, -1] if answers.ndim == 3 else answers
            if last.ndim != 2:
                raise NotApplicable(f"a bias on classes needs a logit for each; {self.task.name} has one for two")
            shares = (last + bias[: len(last)].to(last)).log_softmax(-1)
            found = shares.topk(min(top, shares.shape[1]), dim=1)
            return torch.stack([found.indices.to(shares), found.values])

        classes, shares = self._counted(inputs, likely)
        return classes.long(), shares

    def _counted(self, inputs: Tree, show: Callable[[Tensor], Tensor]) -> Tensor:
        n = len(next(leaves(inputs)))
        if self.budget is not None and self.queries + n > self.budget:
            raise BudgetExceeded(f"{n} queries after {self.queries} exceed the budget of {self.budget}")
        answers = self._served(inputs)
        self.queries += len(answers)
        shown = show(answers)
        if len(answers) < n:
            raise Refused(f"the served model refused its client after {self.queries} queries", shown)
        return shown

    def observe(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The task's losses ``(B,)`` and the answers they are computed from, which are asked for once."""
        answers = self(batch.inputs)

        def known(inputs: Tree) -> Tensor:
            return answers if inputs is batch.inputs else self(inputs)

        with torch.no_grad():
            return self.task.loss(known, batch), answers

    def loss(self, batch: Batch) -> Tensor:
        """The task's loss ``(B,)`` computed from what is revealed."""
        with torch.no_grad():
            return self.task.loss(self, batch)


@contextmanager
def _outputs(module: nn.Module) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, __, out: seen.append(out.detach()))
    try:
        yield seen
    finally:
        handle.remove()
