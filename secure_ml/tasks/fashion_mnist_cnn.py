"""The small convolutional network of the differential-privacy literature, wider and on clothes."""

from __future__ import annotations

from functools import partial

from secure_ml.augmentation import Chain, Crop, Flip
from secure_ml.errors import require
from secure_ml.task import Recipe, Task, unchanged
from secure_ml.tasks.mnist_cnn import Activation, enlarged_digits, images_28, small_network
from secure_ml.threats import Linf


def fashion_mnist_cnn(
    *, activation: Activation = "relu", width: int = 32, epochs: int = 20, augment: bool = True, tiny: bool = False
) -> Task:
    """Fashion-MNIST (60,000 and 10,000 images), two convolutions and two dense layers, images moved and mirrored.

    The 26,010-parameter network of https://arxiv.org/abs/2007.14191 as it is trained for ``mnist_cnn``:
    ``width=16, epochs=10, augment=False``.

    Args:
        activation: tanh trains better under DP-SGD.
        width: channels of the first convolution; the second has twice as many.
        epochs: passes over the training images.
        augment: whether images are mirrored and moved by up to two pixels.
        tiny: 160 images of scikit-learn's digits, enlarged to 28x28, width 16, 1 epoch.
    """
    require(width >= 1, f"fashion_mnist_cnn needs a width of at least 1; given {width}")
    require(epochs >= 1, f"fashion_mnist_cnn needs at least 1 epoch; given {epochs}")
    settings = {
        "activation": (activation, "relu"),
        "width": (width, 32),
        "epochs": (epochs, 20),
        "augment": (augment, True),
        "tiny": (tiny, False),
    }
    return Task(
        name="fashion_mnist_cnn",
        build=partial(small_network, activation, 16 if tiny else width),
        data=enlarged_digits if tiny else partial(images_28, "FashionMNIST"),
        threat=Linf(0.1),
        recipe=Recipe(
            epochs=1 if tiny else epochs,
            batch_size=20 if tiny else 128,
            learning_rate=0.05,
            schedule="cosine",
        ),
        augment=Chain((Flip(), Crop(2))) if augment and not tiny else unchanged,
        options=", ".join(f"{key}={value!r}" for key, (value, default) in settings.items() if value != default),
    )
