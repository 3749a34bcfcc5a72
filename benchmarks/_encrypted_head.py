"""A linear head on encrypted features of a frozen ResNet-18: the part of `encrypted_training` that needs data sets.

The backbone is trained here, on public data (CIFAR-10, 10,000 images) by this library's own loop: a quarter of
ResNet-18's width, since no pretrained weights can be had offline. The private data are 1,000 digits of MNIST and their
labels. Their owner computes the 128 features and projects them on the public data's first 62 principal components;
mean, spread and components are public. What is encrypted are the projected features with the labels, one class
against all others in turn; the server computes each step's gradient, and the owner, who refreshes the weights, lets
them decay a little (ridge). The same steps in the clear, and scikit-learn's softmax regression on the same features,
stand beside it; the test are 2,000 other digits.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defenses.homomorphic.trainer import Trainer
from defenses.homomorphic.training import Owner, plain_gradient, start, stepped
from secure_ml.batch import Batch
from secure_ml.data import images
from secure_ml.discovery import task
from secure_ml.training import fit
from secure_ml.victim import Victim

COMPONENTS, TRAIN, TEST, CLASSES = 62, 1000, 2000, 10
WIDTH = 16
"""Channels of the first stage, a quarter of ResNet-18's."""
STEPS, RATE, MOMENTUM, DECAY, SPAN = 20, 0.25, 0.6, 0.01, 8.0
Pair = tuple[Tensor, Tensor]


def backbone(folder: Path) -> Victim:
    """The public network, trained once and kept in the folder."""
    public = task("cifar10_resnet18", width=WIDTH, epochs=4, examples=10000)
    if folder.exists():
        return Victim.load(folder, public, (), device="cpu")
    victim = fit(public, device="cpu")
    victim.save(folder)
    return victim


def features(module: nn.Module, pixels: Tensor) -> Tensor:
    """What the last layer is applied to: images ``(B, 3, 32, 32)`` to ``(B, D)`` in float64."""
    layers = list(module)  # type: ignore[call-overload]
    body = layers[1]
    last, body.fc = body.fc, nn.Identity()
    try:
        with torch.no_grad():
            return torch.cat([body(layers[0](part)) for part in pixels.split(200)]).double()
    finally:
        body.fc = last


def coloured(digits: Batch) -> Tensor:
    """Digits ``(B, 1, 28, 28)`` as the photographs' size and colours."""
    assert isinstance(digits.inputs, Tensor)
    return F.pad(digits.inputs, (2, 2, 2, 2)).expand(-1, 3, -1, -1)


def private_data(victim: Victim) -> tuple[Pair, Pair]:
    """Projected features and labels of MNIST digits: to train, and to test."""
    public = victim.splits.train.take(slice(0, 2000)).inputs
    assert isinstance(public, Tensor)
    known = features(victim.module, public)
    mean = known.mean(0)
    axes = torch.linalg.svd(known - mean, full_matrices=False).Vh[:COMPONENTS].T
    found = []
    for part, n in zip(images("MNIST"), (TRAIN, TEST), strict=True):
        some = part.take(slice(0, n))
        assert isinstance(some.target, Tensor)
        found.append(((features(victim.module, coloured(some)) - mean) @ axes, some.target))
    (x, y), (probe, truth) = found
    centre, spread = x.mean(0), 2 * x.std(0)
    return ((x - centre) / spread, y), ((probe - centre) / spread, truth)


def descend(owner: Owner, gradient: Any) -> Tensor:
    """Ridge weights after all steps, along gradients from anywhere."""
    weights = start(owner.agreement)
    velocity = torch.zeros_like(weights)
    for _ in range(STEPS):
        weights, velocity = stepped(owner.agreement, weights, velocity, gradient(weights), RATE, MOMENTUM)
        weights = torch.cat([weights[:-1] * (1 - DECAY), weights[-1:]])
    return weights


def head(folder: Path) -> dict[str, Any]:
    """Accuracy of the head trained on ciphertexts, beside the same steps in the clear and softmax regression."""
    from sklearn.linear_model import LogisticRegression

    victim = backbone(folder)
    (x, y), (probe, truth) = private_data(victim)
    seconds: list[float] = []
    columns: dict[str, list[Tensor]] = {"encrypted": [], "same steps": []}
    for k in range(CLASSES):
        owner = Owner(x, 2.0 * (y == k) - 1, kind="linear", span=SPAN)
        trainer = Trainer(owner.public_bytes(), owner.data_bytes())

        def encrypted(weights: Tensor, owner: Owner = owner, trainer: Trainer = trainer) -> Tensor:
            message = owner.weights_bytes(weights)
            begin = time.process_time()
            answer = trainer.gradient(message)
            seconds.append(time.process_time() - begin)
            return owner.gradient(answer)

        columns["encrypted"].append(descend(owner, encrypted))
        columns["same steps"].append(descend(owner, lambda w, o=owner: plain_gradient(o.agreement, o.rows, w)))
    probes = torch.cat([probe, torch.ones(len(probe), 1, dtype=torch.float64)], 1)
    weights = {name: torch.stack(found)[:, :-1] for name, found in columns.items()}
    decided = {name: (probes @ w.T).argmax(1) for name, w in weights.items()}
    softmax = LogisticRegression(max_iter=1000).fit(x.numpy(), y.numpy())
    return {
        "backbone": repr(victim.task),
        "backbone's accuracy on its own data": victim.score().value,
        "private": f"{len(x)} digits of MNIST, {COMPONENTS} components of {8 * WIDTH} features",
        "tested on": len(truth),
        "accuracy": (decided["encrypted"] == truth).double().mean().item(),
        "same steps in the clear": (decided["same steps"] == truth).double().mean().item(),
        "softmax regression in the clear": float(softmax.score(probe.numpy(), truth.numpy())),
        "equal decisions": int((decided["encrypted"] == decided["same steps"]).sum()),
        "weights off by": float((weights["encrypted"] - weights["same steps"]).abs().max()),
        "parameters": str(owner.agreement.parameters),
        "steps": STEPS,
        "seconds a step and class": round(median(seconds), 4),
        "bytes of data, a class": len(owner.data_bytes()),
        "bytes of keys, a class": len(owner.public_bytes()),
    }
