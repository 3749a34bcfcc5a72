"""A multilayer perceptron of sigmoid units on scikit-learn's handwritten digits."""

from __future__ import annotations

from torch import nn

from secure_ml.errors import require
from secure_ml.task import Recipe, Task
from secure_ml.tasks.digits_cnn import digits, tiny_digits
from secure_ml.threats import Linf


def digits_mlp(*, hidden: int = 32, tiny: bool = False) -> Task:
    """Handwritten digits 8x8 (scikit-learn), one hidden layer of sigmoid units, plain gradient descent.

    Args:
        hidden: units in the hidden layer.
        tiny: 160 of the images, 3 epochs, 4 hidden units.
    """
    require(hidden >= 1, f"digits_mlp needs at least 1 hidden unit; given {hidden}")
    hidden = 4 if tiny else hidden

    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.Sigmoid(), nn.Linear(hidden, 10))

    return Task(
        name="digits_mlp",
        build=build,
        data=tiny_digits if tiny else digits,
        threat=Linf(0.1),
        recipe=Recipe(epochs=3 if tiny else 100, batch_size=32, learning_rate=1.0, momentum=0.0),
        options="tiny=True" if tiny else f"hidden={hidden}" if hidden != 32 else "",
    )
