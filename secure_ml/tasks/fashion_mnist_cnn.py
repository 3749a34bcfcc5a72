"""The small convolutional network of the differential-privacy literature, on clothes."""

from __future__ import annotations

from secure_ml.task import Task
from secure_ml.tasks.mnist_cnn import Activation, small_cnn
from secure_ml.threats import Linf


def fashion_mnist_cnn(*, activation: Activation = "relu", tiny: bool = False) -> Task:
    """Fashion-MNIST (60,000 and 10,000 images), the 26,010-parameter network of https://arxiv.org/abs/2007.14191.

    Args:
        activation: tanh trains better under DP-SGD.
        tiny: 160 images of scikit-learn's digits, enlarged to 28x28, 1 epoch.
    """
    return small_cnn("fashion_mnist_cnn", "FashionMNIST", Linf(0.1), activation, tiny)
