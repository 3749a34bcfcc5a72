"""Digits that stand upright in the middle, whatever they looked like."""

import torch
from torch import Tensor

from secure_ml.tasks._upright import Upright


def moments(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre of mass and covariance of column and row of ``(B, 1, H, W)``, by loops over pixels."""
    found = []
    for image in images[:, 0]:
        total = float(image.sum())
        y = sum(float(v) * i for i, line in enumerate(image) for v in line) / total
        x = sum(float(v) * j for line in image for j, v in enumerate(line)) / total
        lean = sum(float(v) * (i - y) * (j - x) for i, line in enumerate(image) for j, v in enumerate(line)) / total
        found.append((y, x, lean))
    y, x, lean = torch.tensor(found).T
    return y, x, lean


def slanted(n: int = 5) -> Tensor:
    """Thick strokes that lean, off the middle."""
    images = torch.zeros(n, 1, 28, 28)
    for k in range(n):
        for i in range(6, 20):
            middle = 8 + k + round((i - 13) * (0.2 * k - 0.4))
            images[k, 0, i, middle : middle + 3] = 1.0
    return images


def test_strokes_stand_upright_in_the_middle() -> None:
    images = slanted()
    before, after = moments(images), moments(Upright()(images))
    assert (before[2].abs() > 1).sum() >= 3
    assert after[2].abs().max() < 0.35
    assert (after[0] - 13.5).abs().max() < 0.2
    assert (after[1] - 13.5).abs().max() < 0.2


def test_each_image_stands_alone_and_passes_gradients() -> None:
    images = slanted().requires_grad_()
    whole = Upright()(images)
    for k in range(len(images)):
        assert torch.allclose(Upright()(images[k : k + 1]), whole[k : k + 1], atol=1e-6)
    (gradient,) = torch.autograd.grad(whole[2].square().sum(), images)
    assert gradient[2].abs().sum() > 0
    assert gradient[[0, 1, 3, 4]].abs().sum() == 0
    assert Upright()(images[:0]).shape == (0, 1, 28, 28)


def test_nothing_is_no_mass() -> None:
    assert Upright()(torch.zeros(2, 1, 28, 28)).abs().max() == 0
