"""Training examples from the gradient of one training step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secure_ml.batch import Batch
from secure_ml.errors import require, unknown
from secure_ml.families.reconstruction import Reconstruction
from secure_ml.images import variation
from secure_ml.modes import evaluating
from secure_ml.secrets.base import count_classes
from secure_ml.secrets.one_step import OneStep, Release

Labels = Literal["inferred", "known"]
Match = Literal["cosine", "squared"]
EXACT = 1e-7
"""A mismatch below which there is nothing left to improve."""


@dataclass(frozen=True, kw_only=True)
class GradientInversion(Reconstruction[Release]):
    """Inputs whose gradient is the released one (Geiping et al. 2020, https://arxiv.org/abs/2003.14053).

    Seeks ``(B, *shape)`` inputs in their box from noise, by steps along the sign of the gradient with Adam's averages,
    that turn their own gradient into the direction of the released one (cosine) and vary little between neighbours.
    With ``match='squared'`` the distance is made small, as in DLG (Zhu et al. 2019, https://arxiv.org/abs/1906.08935);
    it presumes that nothing was clipped. Labels are read off the gradient of the last layer's bias, as in iDLG (Zhao et
    al. 2020, https://arxiv.org/abs/2001.02610), for a batch by counting, or they are ``known``. Of one example whose
    first layer is linear, the layer's gradient is the example times that of its bias, and no search is needed. Raises
    `UsageError` for settings out of range, `NotApplicable` for inputs that are not one box of numbers, or answers that
    are not one class.

    Differs from the papers: 400 iterations where Geiping et al. have 4,800 and more; Adam in the place of L-BFGS; the
    adversary's model is in evaluation mode, and knows no dropout masks or statistics of the batch. Where the last layer
    has no bias, the labels are guessed to be the commonest ones.
    """

    batch: int = 1
    """Examples in a training step."""
    batches: int = 8
    """Training steps that are attacked, each on its own."""
    trained: bool = False
    """Whether the steps start at the trained weights; at the first ones unless so, where more is revealed."""
    labels: Labels = "inferred"
    """Whether the labels of a step are known, or inferred from its gradient."""
    match: Match = "cosine"
    """How gradients are compared."""
    smooth: float = 1e-3
    """Weight of the total variation of images."""
    steps: int = 400
    """Iterations of each search."""
    rate: float = 0.1
    """Length of a first iteration, over the width of the box; it falls to 0 along a cosine."""
    restarts: int = 1
    """Searches from different noise, of which the best match counts."""

    def __post_init__(self) -> None:
        for name in ("batch", "batches", "steps", "restarts"):
            given = getattr(self, name)
            require(given >= 1, f"GradientInversion needs {name} of at least 1; given {given}")
        require(self.rate > 0, f"GradientInversion needs a rate above 0; given {self.rate}")
        require(self.smooth >= 0, f"GradientInversion needs a smooth of at least 0; given {self.smooth}")
        for name, kinds in (("labels", Labels), ("match", Match)):
            if getattr(self, name) not in get_args(kinds):
                raise unknown(f"{name} of GradientInversion", getattr(self, name), get_args(kinds))

    @property
    def secret(self) -> OneStep:
        """The examples of some steps."""
        return OneStep(batch=self.batch, steps=self.batches, trained=self.trained, labels=self.labels)

    def recover(self, access: Release, rng: torch.Generator) -> Tensor:
        """The inputs of each step, ``(steps, batch, *shape)``."""
        found = []
        with evaluating(access.module):
            for index, released in enumerate(access.released):
                labels = infer_labels(access, released) if access.labels is None else access.labels[index]
                found.append(self._invert(access, released, labels, rng))
        return torch.stack(found)

    def _invert(self, access: Release, released: tuple[Tensor, ...], labels: Tensor, rng: torch.Generator) -> Tensor:
        best = read_off(access, released)
        least = torch.inf if best is None else self._mismatch(access, best, labels, released, 0.0).item()
        for _ in range(self.restarts if least > EXACT else 0):
            inputs = self._search(access, released, labels, rng)
            mismatch = self._mismatch(access, inputs, labels, released, 0.0).item()
            if best is None or mismatch < least:
                best, least = inputs, mismatch
        assert best is not None
        return best.detach()

    def _search(self, access: Release, released: tuple[Tensor, ...], labels: Tensor, rng: torch.Generator) -> Tensor:
        """One search, from noise."""
        assert isinstance(access.aux.inputs, Tensor)
        box, like = access.box, access.aux.inputs
        width = box.high - box.low
        noise = torch.rand(access.size, *like.shape[1:], generator=rng).to(like)
        inputs = box.low + width * noise
        mean, square = torch.zeros_like(inputs), torch.zeros_like(inputs)
        for step, pace in enumerate((1 + torch.linspace(0, torch.pi, self.steps).cos()).tolist(), 1):
            inputs.requires_grad_()
            mismatch = self._mismatch(access, inputs, labels, released, self.smooth / width)
            slope = torch.autograd.grad(mismatch, inputs)[0].sign()
            mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope * slope
            move = mean / (1 - 0.9**step) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
            inputs = (inputs.detach() - self.rate * width * pace / 2 * move).clamp(box.low, box.high)
        return inputs

    def _mismatch(
        self, access: Release, inputs: Tensor, labels: Tensor, released: tuple[Tensor, ...], smooth: float
    ) -> Tensor:
        """How far the gradient of these inputs is from the released one, and how rough they are: a number."""
        access.gradients += len(inputs)
        losses = access.task.loss(access.module, Batch(inputs, labels))
        mine = torch.autograd.grad(losses.mean(), access.parameters, create_graph=inputs.requires_grad)
        one, other = (torch.cat([part.flatten() for part in parts]) for parts in (mine, released))
        if self.match == "cosine":
            apart = 1 - F.cosine_similarity(one, other, dim=0)
        else:
            apart = (one - other).square().sum() / other.square().sum().clamp(min=1e-30)
        return apart + smooth * variation(inputs).mean() if smooth else apart

    @classmethod
    def tiny(cls) -> GradientInversion:
        """Two steps on two examples, few iterations."""
        return cls(batch=2, batches=2, steps=3)


def read_off(access: Release, released: tuple[Tensor, ...]) -> Tensor | None:
    """The one example ``(1, *shape)`` whose first layer is linear: the gradient of weights is it times the bias's.

    Least squares over the rows, so that noise is averaged. None where there are several examples or no such layer.
    """
    assert isinstance(access.aux.inputs, Tensor)
    like = access.aux.inputs[:1]
    place = {id(parameter): i for i, parameter in enumerate(access.parameters)}
    for layer in access.module.modules() if access.size == 1 else ():
        if not (isinstance(layer, nn.Linear) and layer.bias is not None and layer.in_features == like.numel()):
            continue
        if not {id(layer.weight), id(layer.bias)} <= place.keys() or not _sees_the_input(access, layer, like):
            continue
        weight, bias = released[place[id(layer.weight)]], released[place[id(layer.bias)]]
        found = (bias @ weight / bias.square().sum().clamp(min=1e-30)).reshape(like.shape)
        return found.clamp(access.box.low, access.box.high)
    return None


def _sees_the_input(access: Release, layer: nn.Linear, like: Tensor) -> bool:
    """Whether a layer is given the inputs as they are."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        access(like)
    finally:
        handle.remove()
    return len(seen) == 1 and torch.equal(seen[0].flatten(), like.flatten())


def infer_labels(access: Release, released: tuple[Tensor, ...]) -> Tensor:
    """The labels ``(b,)`` of a step: those of which the bias's gradient, minus what others add to it, is lowest."""
    assert isinstance(access.aux.target, Tensor)
    answers = access(access.aux.inputs)
    classes = count_classes(answers)
    place = {id(parameter): i for i, parameter in enumerate(access.parameters)}
    last = [layer for layer in access.module.modules() if isinstance(layer, nn.Linear)][-1:]
    outputs = 1 if answers.ndim == 1 else classes
    if not last or last[0].bias is None or last[0].out_features != outputs or id(last[0].bias) not in place:
        counts = torch.bincount(access.aux.target, minlength=classes).double() / len(access.aux) * access.size
        return _counted(counts, access.size)
    gradient = released[place[id(last[0].bias)]].double()
    if answers.ndim == 1:
        if access.size == 1:
            return (gradient < 0).long()
        ones = access.size * (answers.double().sigmoid().mean() - gradient[0])
        return _counted(torch.stack([access.size - ones, ones]), access.size)
    if access.size == 1:
        return gradient.argmin()[None]
    return _counted(access.size * (answers.double().softmax(1).mean(0) - gradient), access.size)


def _counted(counts: Tensor, size: int) -> Tensor:
    """``size`` labels, one at a time of which most are still missing."""
    counts, labels = counts.clone(), []
    for _ in range(size):
        labels.append(counts.argmax())
        counts[labels[-1]] -= 1
    return torch.stack(labels).sort().values
