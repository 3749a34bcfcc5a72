"""The extraction attacks of the Adversarial Robustness Toolbox, as a second opinion."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import cache
from io import StringIO
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from attacks.evasion.art_evasion import Setting, drawn
from attacks.extraction._learned import Learned, shuffled
from secure_ml.access import BlackBox
from secure_ml.adaptive import log_probabilities
from secure_ml.batch import Batch
from secure_ml.errors import NotApplicable, SecureMLError, UsageError, require, unknown
from secure_ml.imitation import Imitation, Net
from secure_ml.outputs import Classes, Output, Ranking, Reveal
from secure_ml.randomness import seeded
from secure_ml.surfaces import Box
from secure_ml.task import Task
from secure_ml.training import make_optimizer

NAMES = ("CopycatCNN", "KnockoffNets")
OURS = ("classifier", "batch_size_fit", "batch_size_query", "nb_epochs", "nb_stolen", "use_probability", "verbose")
"""What is not left to settings: it follows from the victim, its recipe, and the budget."""


@dataclass(frozen=True, kw_only=True)
class ArtExtraction(Learned):
    """ART's CopycatCNN or KnockoffNets by the name of the class (Nicolae et al. 2018, https://arxiv.org/abs/1807.01069).

    Inputs ``(B, *shape)`` leave as numpy arrays; ART chooses ``queries`` of them, asks an estimator behind which our
    metered access stands (an input that was asked about before is looked up), and trains the thief by its own loop,
    with the optimizer and the batch size of the victim's recipe; at a larger budget a new thief begins. Raises
    `UsageError` for an attack or a setting that ART does not have; `NotApplicable`, with ART's own words, where its
    attack cannot be run, and unless answers are classes and inputs one tensor.

    Differs from ART: probabilities are passed on (``use_probability``) where they are revealed; equal seeds give equal
    results. ART's loop has no schedule of the learning rate.
    """

    outputs: ClassVar[tuple[type[Output], ...]] = (Classes,)

    attack: str = "KnockoffNets"
    """Name of a class in ``art.attacks.extraction``."""
    settings: tuple[tuple[str, Setting], ...] = ()
    """What is passed to the class beside victim, budget, epochs and batch sizes: ``(("reward", "cert"),)``."""
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
    net: Net = "same"
    """Architecture of the copy."""
    epochs: int | None = None
    """Of the copy, over the answers; as many steps as the victim had unless given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attack not in NAMES:
            raise unknown("extraction attack of ART that is run here", self.attack, NAMES)
        for name, _ in self.settings:  # without settings there is nothing to look up, and importing ART takes seconds
            require(name not in OURS, f"{name} of ART's {self.attack} follows from victim and budget; leave it out")
            known = [
                n
                for n in inspect.signature(attack_classes()[self.attack].__init__).parameters
                if n not in (*OURS, "self")
            ]
            if name not in known:
                raise unknown(f"setting of ART's {self.attack}", name, known)

    def check_task(self, task: Task) -> None:
        """Raise `NotApplicable` unless answers are one label an input and inputs one tensor of numbers."""
        if isinstance(task.output, Ranking):
            raise NotApplicable(f"ART's thieves learn classes; {task.name} answers with lists")
        if any(surface.path or not isinstance(surface, Box) for surface in task.surfaces):
            raise NotApplicable(f"ART asks about inputs of one tensor of numbers; those of {task.name} are others")

    def steal(self, access: BlackBox, pool: Batch, train: Imitation, rng: torch.Generator) -> Iterator[nn.Module]:
        """The thief that ART trained, at each budget."""
        order = shuffled(len(pool), self.queries, rng)
        targets = pool.take(order).target
        inputs = self.wide(pool.take(order), self.queries, rng).inputs
        if not isinstance(inputs, Tensor):
            raise NotApplicable(f"ART asks about inputs of one tensor; those of {train.task.name} are several")
        memory = Remembered(access)
        for budget in self.stages:
            yield self._thief(memory, inputs[:budget], targets, train, rng)
            if budget >= len(inputs):
                return

    def _thief(
        self, memory: Remembered, inputs: Tensor, targets: object, train: Imitation, rng: torch.Generator
    ) -> nn.Module:
        """What ART makes of a budget of so many inputs."""
        surrogate = train.surrogate(Batch(inputs, ()), self.epochs, net=self.net)
        with seeded(train.seed, "build"):
            thief = Columns(surrogate.build().to(inputs.device))
        memory.logarithms = adaptive = dict(self.settings).get("sampling_strategy") == "adaptive"
        with drawn(rng), warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            try:
                classes = int(thief(inputs[:1]).shape[1])
                box = cast("Box", train.task.surfaces[0])
                estimator, stolen = (_estimator(m, surrogate, inputs, classes, box) for m in (memory, thief))
                attack = attack_classes()[self.attack](estimator, **self._arguments(surrogate, len(inputs)))
                extra = {"y": _labels(targets, len(inputs))} if adaptive else {}
                attack.extract(inputs.float().cpu().numpy(), **extra, thieved_classifier=stolen)
            except SecureMLError:
                raise
            except Exception as error:
                words = " ".join(str(error).split())
                raise NotApplicable(f"ART's {self.attack} stopped with {type(error).__name__}: {words}") from error
        return thief.inner.eval()

    def _arguments(self, surrogate: Task, budget: int) -> dict[str, Any]:
        """What the class is made with, beside the victim."""
        recipe, known = surrogate.recipe, inspect.signature(attack_classes()[self.attack].__init__).parameters
        ours = {
            "batch_size_fit": recipe.batch_size,
            "batch_size_query": surrogate.chunk,
            "nb_epochs": recipe.epochs,
            "nb_stolen": budget,
            "verbose": False,
            "use_probability": self.reveal != "label",
        }
        return {name: value for name, value in ours.items() if name in known} | dict(self.settings)

    @classmethod
    def tiny(cls) -> ArtExtraction:
        """Eight queries."""
        return cls(queries=8, budgets=(4,), epochs=2)


class Columns(nn.Module):
    """A module that answers in columns ``(B, K)``; one logit becomes the second of two."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits."""
        outputs = self.inner(inputs)
        return torch.stack([torch.zeros_like(outputs), outputs], 1) if outputs.ndim == 1 else outputs


class Remembered(nn.Module):
    """The metered access as a module without weights; what was asked before is looked up and costs nothing."""

    def __init__(self, access: BlackBox) -> None:
        super().__init__()
        self._access = access
        self._known: dict[bytes, Tensor] = {}
        self.logarithms = False
        """Whether to answer log-probabilities instead of probabilities."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Answers ``(B, K)`` in columns."""
        keys = [row.cpu().contiguous().numpy().tobytes() for row in inputs]
        new = list({key: place for place, key in enumerate(keys) if key not in self._known}.items())
        if new:
            answers = log_probabilities(self._access(inputs[torch.tensor([place for _, place in new])]))
            self._known |= {key: answer for (key, _), answer in zip(new, answers, strict=True)}
        logs = torch.stack([self._known[key] for key in keys]).float()
        return logs if self.logarithms else logs.exp()


@cache
def attack_classes() -> dict[str, type[Any]]:
    """ART's extraction attacks by name; `UsageError` where ART cannot be imported."""
    try:
        from art.attacks import extraction
    except ModuleNotFoundError as error:
        raise UsageError(
            f"ART needs the package {error.name}, which it does not install: pip install {error.name}"
        ) from error
    return {name: getattr(extraction, name) for name in NAMES}


def _estimator(module: nn.Module, task: Task, inputs: Tensor, classes: int, box: Box) -> Any:
    """ART's view of a module; one that has weights can be trained."""
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        module,
        nn.CrossEntropyLoss(),
        tuple(inputs.shape[1:]),
        classes,
        optimizer=make_optimizer(module, task.recipe) if isinstance(module, Columns) else None,
        clip_values=(box.low, box.high),
        device_type="gpu" if inputs.is_cuda else "cpu",
    )


def _labels(targets: object, n: int) -> np.ndarray[Any, Any]:
    """The pool's own classes, which ART's adaptive strategy needs; `NotApplicable` where there are none."""
    if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point():
        raise NotApplicable("ART's adaptive strategy needs a pool with a class for each input; this one has none")
    _, classes = targets[:n].cpu().unique(return_inverse=True)  # without gaps: ART takes their number for the largest
    return np.array(classes)
