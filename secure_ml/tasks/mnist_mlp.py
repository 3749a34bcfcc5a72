"""A multilayer perceptron of sigmoid units by back-propagation, on MNIST."""

from __future__ import annotations

from functools import partial

from torch import nn

from secure_ml.errors import require
from secure_ml.task import Recipe, Task
from secure_ml.tasks.mnist_cnn import enlarged_digits, images_28
from secure_ml.threats import Linf


def mnist_mlp(*, hidden: int = 128, tiny: bool = False) -> Task:
    """MNIST (60,000 and 10,000 images), one hidden layer of sigmoid units, stochastic gradient descent.

    Args:
        hidden: units in the hidden layer.
        tiny: 160 images of scikit-learn's digits, enlarged to 28x28, 4 hidden units, 2 epochs.
    """
    require(hidden >= 1, f"mnist_mlp needs at least 1 hidden unit; given {hidden}")
    hidden = 4 if tiny else hidden

    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(784, hidden), nn.Sigmoid(), nn.Linear(hidden, 10))

    return Task(
        name="mnist_mlp",
        build=build,
        data=enlarged_digits if tiny else partial(images_28, "MNIST"),
        threat=Linf(0.1),
        recipe=Recipe(epochs=2 if tiny else 20, batch_size=64, learning_rate=0.1, schedule="cosine"),
        options="tiny=True" if tiny else f"hidden={hidden}" if hidden != 128 else "",
    )
