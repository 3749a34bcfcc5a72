"""Images that went through JPEG."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from defenses._jpeg import RoundTrip
from defenses._probe import box_of, example
from defenses._wrappers import Preprocessed
from secure_ml.defense import Defense
from secure_ml.errors import NotApplicable, require
from secure_ml.task import Task


@dataclass(frozen=True, kw_only=True)
class JPEGCompression(Defense):
    """A weak baseline: JPEG before the model (Guo et al. 2018, https://arxiv.org/abs/1711.00117), kept to be broken.

    Images ``(B, C, H, W)`` in [0, 1], grey or of three colours, are compressed and decompressed, in training as in
    use. The rounding has no gradient: an attack that follows the module's stays where it started and reports
    robustness that is not there. ``BPDA(module.transform, module.inner)`` takes it away (Athalye et al. 2018,
    https://arxiv.org/abs/1802.00420). Covers: changes that JPEG removes and that were not chosen with it in view. Does
    not cover: anybody who knows of it; other risks.

    Differs from a file: colours are not subsampled, and the entropy coding, which loses nothing, is left out. Raises
    `NotApplicable` for anything but such images, `UsageError` for a quality out of range.
    """

    quality: int = 75
    """From 1 to 100, as libjpeg counts it."""

    def __post_init__(self) -> None:
        require(1 <= self.quality <= 100, f"JPEG has a quality of 1 to 100; given {self.quality}")

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` unless the inputs are grey or colour images in [0, 1]."""
        box = box_of(task, "JPEGCompression")
        shape = tuple(box.get(example(task).inputs).shape[1:])
        if not (len(shape) == 3 and shape[0] in (1, 3) and (box.low, box.high) == (0, 1)):
            raise NotApplicable(
                f"JPEGCompression needs images of 1 or 3 channels in [0, 1]; {task.name} has shape {shape} "
                f"in [{box.low:g}, {box.high:g}]"
            )

    def adapt(self, module: nn.Module) -> nn.Module:
        """The module behind the compression."""
        return Preprocessed(RoundTrip(self.quality), module)
