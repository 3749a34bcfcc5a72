"""The networks that are run on ciphertexts: trained by the shared loop, once, and kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

import secure_ml as sm
from defenses import Homomorphic
from secure_ml.augmentation import Crop, Flip
from secure_ml.defense import Defense
from secure_ml.task import Recipe, Task
from secure_ml.victim import Victim

FRIENDLY = Homomorphic(span=4.0, activation="learned", range_penalty=0.1, products=5_000_000, encrypt=0)
"""How all of them are trained; what they are served by is chosen in the benchmark."""


@dataclass(frozen=True)
class Net:
    """A network of one or two hidden layers on 28x28 images, and how it is trained."""

    task: str
    channels: int
    """Of a first convolution, 7x7 in strides of 3; none where it is 0."""
    hidden: int
    epochs: int
    relu: bool = False
    """Trained as it is, for comparison."""

    @property
    def defenses(self) -> tuple[Defense, ...]:
        """What it is trained with."""
        return () if self.relu else (FRIENDLY,)

    def build(self) -> nn.Module:
        """Images ``(B, 1, 28, 28)`` to logits ``(B, 10)``."""
        first: list[nn.Module] = [nn.Conv2d(1, self.channels, 7, stride=3), nn.ReLU()] if self.channels else []
        width = 64 * self.channels if self.channels else 784
        return nn.Sequential(*first, nn.Flatten(), nn.Linear(width, self.hidden), nn.ReLU(), nn.Linear(self.hidden, 10))

    def made(self) -> Task:
        """The task: 56,000 images to train on, moved by up to 2 pixels, or mirrored where they show clothes."""
        task = sm.task(self.task, whole=True)
        recipe = Recipe(epochs=self.epochs, batch_size=128, optimizer="Adam", learning_rate=4e-3, schedule="cosine")
        augment = Crop(2) if self.task == "mnist_cnn" else Flip()
        return replace(task, build=self.build, recipe=recipe, augment=augment, options=repr(self))


NETS = {
    "tutorial CNN": Net("mnist_cnn", 4, 64, 12),
    "dense": Net("mnist_cnn", 0, 128, 40),
    "wide CNN": Net("mnist_cnn", 16, 128, 16),
    "wide CNN, clothes": Net("fashion_mnist_cnn", 16, 128, 16),
    "wide CNN, clothes, ReLU": Net("fashion_mnist_cnn", 16, 128, 16, relu=True),
}


def trained(name: str, run: Path) -> Victim:
    """The victim of that name, from the run if it is there."""
    net, folder = NETS[name], run / "victims" / name.replace(", ", "-").replace(" ", "-")
    if folder.exists():
        return Victim.load(folder, net.made(), net.defenses, device="cpu")
    victim = sm.fit(net.made(), net.defenses, device="cpu", checkpoint=run / "checkpoints" / folder.name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    victim.save(folder)
    return victim
