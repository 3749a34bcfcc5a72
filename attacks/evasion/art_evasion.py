"""The evasion attacks of the Adversarial Robustness Toolbox, as a second opinion."""

from __future__ import annotations

import inspect
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from io import StringIO
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn

from secure_ml.access import WhiteBox
from secure_ml.batch import Batch, Tree
from secure_ml.errors import NotApplicable, UsageError, require, unknown
from secure_ml.families.evasion import Evasion
from secure_ml.outputs import Classes, Output
from secure_ml.randomness import seeded
from secure_ml.surfaces import Box, Surface
from secure_ml.threats import L1, L2, Ball, Change, Linf

if TYPE_CHECKING:
    from secure_ml.task import Task

Setting: TypeAlias = bool | int | float | str | tuple[int, ...]
OURS = ("classifier", "estimator", "eps", "norm", "targeted", "batch_size", "verbose", "summary_writer")
"""What is not left to settings: it follows from victim, threat and batch."""
FIRST = ("AutoProjectedGradientDescent", "AutoConjugateGradient", "RescalingAutoConjugateGradient", "AutoAttack")
"""The attacks that shorten their steps by themselves, and begin with twice the radius."""


@dataclass(frozen=True, kw_only=True)
class ArtEvasion(Evasion):
    """Any evasion attack of ART by the name of its class (Nicolae et al. 2018, https://arxiv.org/abs/1807.01069).

    Inputs ``(B, *shape)`` leave as numpy arrays, with their true labels; radius and norm come from the threat, the
    batch size is ours, and a copy of the module is attacked. What comes back is projected and scored by the family
    like everything else. Raises `UsageError` for an attack or a setting that ART does not have, and for a package
    that it needs and that is missing; `NotApplicable`, with ART's own words, where its attack cannot be run.

    Differs from ART: labels are always passed (its default takes the answers for the truth, and counts an example
    that was wrong and is pushed to the right class as robust); the step is 2.5 times the radius over the number of
    iterations (twice the radius where it adapts itself), which ART leaves at 0.1; equal seeds give equal results.
    """

    surfaces: ClassVar[tuple[type[Surface], ...]] = (Box,)
    outputs: ClassVar[tuple[type[Output], ...]] = (Classes,)
    threats: ClassVar[tuple[type[Change], ...]] = (Linf, L2, L1)
    classifies: ClassVar[bool] = True

    attack: str = "AutoProjectedGradientDescent"
    """Name of a class in ``art.attacks.evasion``."""
    settings: tuple[tuple[str, Setting], ...] = ()
    """What is passed to the class beside victim, radius, norm and batch size: ``(("max_iter", 50),)``."""

    def __post_init__(self) -> None:
        if self.attack != type(self).attack or self.settings:  # the defaults are right, and importing ART takes seconds
            self._check_names()

    def perturb(self, access: WhiteBox, batch: Batch, threat: Ball, rng: torch.Generator) -> Tree:
        """What ART returns, of the shape of the batch's inputs."""
        clean = cast("Tensor", batch.inputs)
        box = access.task.surface(threat)
        assert isinstance(box, Box)
        if threat.radius == 0:
            return clean
        counted = Counted(access)
        with drawn(rng), warnings.catch_warnings(), redirect_stderr(StringIO()):  # progress bars that no setting stops
            warnings.simplefilter("ignore")
            found = self._generate(counted, clean, cast("Tensor", batch.target), box, threat)
        return torch.from_numpy(np.array(found, dtype=np.float32)).to(clean.device)

    @classmethod
    def tiny(cls) -> ArtEvasion:
        """Projected gradient descent of five steps."""
        return cls(attack="ProjectedGradientDescent", settings=(("max_iter", 5),))

    def check_task(self, task: Task) -> None:
        """Raise `NotApplicable` where the inputs are more than one tensor."""
        if any(surface.path for surface in task.surfaces):
            raise NotApplicable(f"ART attacks inputs of one tensor; those of {task.name} are several")

    def _check_names(self) -> None:
        known = {name: parameter for name, parameter in self._parameters().items() if name not in OURS}
        for name, _ in self.settings:
            require(
                name not in OURS,
                f"{name} of ART's {self.attack} follows from the victim, the threat and the batch; leave it out",
            )
            if name not in known:
                raise unknown(f"setting of ART's {self.attack}", name, known)
        missing = [n for n, p in known.items() if p.default is p.empty and n not in dict(self.settings)]
        require(not missing, f"ART's {self.attack} needs {' and '.join(missing)}: give it in settings")

    def _parameters(self) -> dict[str, inspect.Parameter]:
        kinds = attack_classes()
        if self.attack not in kinds:
            raise unknown("evasion attack of ART", self.attack, kinds)
        parameters = dict(inspect.signature(kinds[self.attack].__init__).parameters)
        parameters.pop("self")
        return parameters

    def _arguments(self, threat: Ball, size: int) -> dict[str, Any]:
        """What its class is made with, beside the victim: only what it knows."""
        known = self._parameters()
        given: dict[str, Any] = dict(self.settings)
        iterations = given.get("max_iter", known["max_iter"].default if "max_iter" in known else 1)
        step = 2.0 if self.attack in FIRST else min(2.5 / max(int(iterations), 1), 1.0)
        ours = {
            "eps": float(threat.radius),
            "eps_step": step * threat.radius,
            "targeted": False,
            "batch_size": size,
            "verbose": False,
        }
        arguments = {name: value for name, value in ours.items() if name in known}
        if "norm" in known and known["norm"].default in (np.inf, 1, 2):  # else it is of a kind of its own
            arguments["norm"] = {Linf: np.inf, L2: 2, L1: 1}[type(threat)]
        return arguments | given

    def _generate(self, counted: Counted, clean: Tensor, target: Tensor, box: Box, threat: Ball) -> Any:
        from art.estimators.classification import PyTorchClassifier

        known = self._parameters()
        victim = next((name for name in ("estimator", "classifier") if name in known), "")
        try:
            estimator = PyTorchClassifier(
                counted,
                nn.CrossEntropyLoss(),
                tuple(clean.shape[1:]),
                counted.classes(clean[:1]),
                clip_values=(box.low, box.high),
                device_type="gpu" if clean.is_cuda else "cpu",
            )
            attack = attack_classes()[self.attack](**{victim: estimator}, **self._arguments(threat, len(clean)))
            labels = nn.functional.one_hot(target, estimator.nb_classes)
            found = attack.generate(clean.float().cpu().numpy(), y=labels.float().cpu().numpy())
        except ModuleNotFoundError as error:
            raise UsageError(
                f"ART's {self.attack} needs {error.name}, which ART does not install: pip install {error.name}"
            ) from error
        except Exception as error:
            words = " ".join(str(error).split())
            raise NotApplicable(f"ART's {self.attack} stopped with {type(error).__name__}: {words}") from error
        if not isinstance(found, np.ndarray) or found.shape != tuple(clean.shape):
            raise NotApplicable(f"ART's {self.attack} returns no changed inputs, but a {type(found).__name__}")
        return found


class Counted(nn.Module):
    """A frozen copy of an adversary's module that answers in columns and counts into the access it came from."""

    def __init__(self, access: WhiteBox) -> None:
        super().__init__()
        self.inner = deepcopy(access.module).eval().requires_grad_(False)
        self.kind = next((p.dtype for p in self.inner.parameters() if p.is_floating_point()), torch.float32)
        self._access = [access]

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(B, K)``; one logit becomes the second of two."""
        (access,) = self._access
        access.queries += len(inputs)
        outputs = self.inner(inputs.to(self.kind))
        if outputs.requires_grad:
            outputs.register_hook(self._differentiated)
        if outputs.ndim == 1:
            outputs = torch.stack([torch.zeros_like(outputs), outputs], 1)
        return cast("Tensor", outputs.float())

    def classes(self, few: Tensor) -> int:
        """How many classes the module tells."""
        with torch.no_grad():
            return int(self(few.float()).shape[1])

    def _differentiated(self, gradient: Tensor) -> None:
        self._access[0].gradients += len(gradient)


@contextmanager
def drawn(rng: torch.Generator) -> Iterator[None]:
    """Everything that draws from global streams draws from ``rng`` instead, and the streams stay as they were.

    Some of ART's attacks make generators of their own that the operating system seeds: inside, these are seeded too.
    """
    seed = int(torch.randint(2**31, (), generator=rng))
    python, numpy, fresh = random.getstate(), np.random.get_state(), np.random.RandomState

    class Seeded(fresh):  # type: ignore[misc, valid-type]
        def __init__(self, seed: Any = None) -> None:
            super().__init__(np.random.randint(2**31) if seed is None else seed)

    with seeded(seed, "art"):
        random.seed(seed)
        np.random.seed(seed)
        np.random.RandomState = Seeded  # type: ignore[misc]
        try:
            yield
        finally:
            np.random.RandomState = fresh  # type: ignore[misc]
            np.random.set_state(numpy)
            random.setstate(python)


@cache
def attack_classes() -> dict[str, type[Any]]:
    """ART's evasion attacks by name; `UsageError` where ART cannot be imported."""
    try:
        from art.attacks import EvasionAttack, evasion
    except ModuleNotFoundError as error:
        raise UsageError(
            f"ART needs the package {error.name}, which it does not install: pip install {error.name}"
        ) from error
    return {
        name: kind for name, kind in vars(evasion).items() if inspect.isclass(kind) and issubclass(kind, EvasionAttack)
    }
