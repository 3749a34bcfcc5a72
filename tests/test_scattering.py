"""Scattering coefficients are what the formulas say, image by image and pixel by pixel."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

import secure_ml as sm
from secure_ml.scattering import CHANNELS, scatter
from tests.laws import tiny_victim


def wavelet(scale: int, angle: float) -> Tensor:
    """A Morlet wavelet on a grid of 41x41, from its formula."""
    rows, columns = torch.meshgrid(*(torch.arange(-20.0, 21.0, dtype=torch.float64),) * 2, indexing="ij")
    along = rows * math.cos(angle) + columns * math.sin(angle)
    across = columns * math.cos(angle) - rows * math.sin(angle)
    spread = 0.8 * scale
    hill = torch.exp(-(along**2 + across**2 / 4) / (2 * spread**2)) / (4 * math.pi * spread**2)
    wave = hill * torch.exp(0.75j * math.pi / scale * along)
    return wave - wave.sum() / hill.sum() * hill


def convolved(image: Tensor, kernel: Tensor) -> Tensor:
    """Circular convolution, one shift of the image at a time."""
    out = torch.zeros_like(image, dtype=torch.complex128)
    for i, j in product(range(41), range(41)):
        if abs(kernel[i, j]) > 1e-9:
            out += kernel[i, j] * image.roll((i - 20, j - 20), (-2, -1))
    return out


def window() -> Tensor:
    rows, columns = torch.meshgrid(*(torch.arange(-20.0, 21.0, dtype=torch.float64),) * 2, indexing="ij")
    return (torch.exp(-(rows**2 + columns**2) / (2 * 1.6**2)) / (2 * math.pi * 1.6**2)).to(torch.complex128)


def averaged(image: Tensor) -> Tensor:
    """Averages at every fourth pixel within the margins."""
    return convolved(image.to(torch.complex128), window()).real[4:-4:4, 4:-4:4]


def test_first_order_is_the_naive_sum() -> None:
    image = torch.rand(1, 1, 16, 12, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4), mode="reflect")[0, 0].double()
    found = scatter(image)[0].double()
    assert found.shape == (CHANNELS, 4, 3)
    assert torch.allclose(found[0], averaged(padded), atol=1e-5)
    for k in (0, 3, 6):
        modulus = convolved(padded.to(torch.complex128), wavelet(1, (3 - k) * math.pi / 8)).abs()
        assert torch.allclose(found[1 + k], averaged(modulus), atol=1e-5)


def test_second_order_is_the_first_of_a_modulus() -> None:
    image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4), mode="reflect")[0, 0].double()
    found = scatter(image)[0].double()
    for k, m in ((0, 0), (2, 5), (7, 3)):
        once = convolved(padded.to(torch.complex128), wavelet(1, (3 - k) * math.pi / 8)).abs()
        twice = convolved(once.to(torch.complex128), wavelet(2, (3 - m) * math.pi / 8)).abs()
        exact = averaged(twice)
        assert torch.allclose(found[17 + 8 * k + m], exact, rtol=0.05, atol=2e-4)  # moduli at every second pixel


def test_shifts_change_little_and_constants_nothing() -> None:
    assert scatter(torch.full((1, 1, 16, 16), 0.5))[0, 1:].abs().max() < 1e-5
    assert torch.allclose(scatter(torch.full((1, 1, 16, 16), 0.5))[0, 0], torch.tensor(0.5), atol=1e-3)
    few = torch.rand(1, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(few, (28, 28))
    moved = image.roll(1, -1)
    assert (scatter(moved) - scatter(image)).norm() < 0.5 * (moved - image).norm()


def test_channels_and_examples_are_independent() -> None:
    images = torch.rand(3, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    whole = scatter(images)
    assert whole.shape == (3, 2 * CHANNELS, 3, 3)
    assert torch.allclose(whole[1, CHANNELS:], scatter(images[1:2, 1:])[0], atol=1e-6)


def test_bad_sides_are_refused() -> None:
    with pytest.raises(sm.UsageError, match="multiples of 4; given 30x28"):
        scatter(torch.zeros(1, 1, 30, 28))


def test_the_task_trains_on_features() -> None:
    victim = tiny_victim("mnist_scattering")
    assert victim.splits.train.inputs.shape[1:] == (81, 7, 7)
    victim.task.surfaces[0].check(victim.splits.train.inputs)
