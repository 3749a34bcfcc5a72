"""Adversarial examples that are worth a look: a few changed images beside the originals, as small as they can be."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from secure_ml.batch import Batch, Tree
from secure_ml.images import are_images
from secure_ml.outputs import Classes
from secure_ml.surfaces import Box
from secure_ml.task import Task

SHOWN = 8
PIXELS = 250_000
"""Values that are kept of one attack on one victim, at most; always one image."""


def exhibits(task: Task, batch: Batch, changed: Tree, answers: Tensor, worse: Tensor) -> Mapping[str, Tensor]:
    """Images ``(k, C, H, W)`` in 8 bits, those first whose answers got worst; empty where inputs are no images.

    ``answers`` are those to the clean inputs and, after them, to the changed ones, ``(2 B, K)``; ``worse`` ``(B,)``
    is the harm. The classes before and after, ``(k, 2)``, and the targets ``(k,)`` come with them.
    """
    for surface in task.surfaces:
        if isinstance(surface, Box) and are_images(clean := surface.get(batch.inputs)) and clean.shape[1] in (1, 3):
            count = max(1, min(SHOWN, PIXELS // clean[0].numel(), len(clean)))
            chosen = worse.argsort(descending=True, stable=True)[:count]
            found = {"clean": clean, "changed": surface.get(changed)}
            kept = {name: _bytes(images[chosen], surface) for name, images in found.items()}
            return {**kept, **_classes(task, batch, answers, chosen)}
    return {}


def _bytes(images: Tensor, box: Box) -> Tensor:
    scaled = (images.detach().double() - box.low) / (box.high - box.low)
    return (scaled * 255).round().clamp(0, 255).to(torch.uint8).cpu()


def _classes(task: Task, batch: Batch, answers: Tensor, chosen: Tensor) -> dict[str, Tensor]:
    if type(task.output) is not Classes or not isinstance(batch.target, Tensor):
        return {}
    decided = task.output.decide(answers).reshape(2, len(batch)).T[chosen]
    return {"decided": decided.long().cpu(), "target": batch.target[chosen].long().cpu()}
