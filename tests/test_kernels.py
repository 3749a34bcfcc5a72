"""Faster convolutions are the same function, and leave nothing behind."""

import pytest
import torch
from torch import Tensor, nn

from secure_ml import kernels
from secure_ml.kernels import fast_convolutions
from tests.laws import untouched

LAYERS = [
    nn.Conv2d(1, 16, 8, stride=2, padding=3),
    nn.Conv2d(3, 8, 3, stride=2, padding=1),
    nn.Conv2d(3, 8, (5, 2), stride=3, padding=(0, 1)),
    nn.Conv2d(4, 6, 2, stride=4),
    nn.Conv2d(2, 6, 3, stride=2, bias=False),
]


def slopes(layer: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Answers, and their gradients in the inputs and in every weight."""
    leaf = inputs.clone().requires_grad_()
    out = layer(leaf)
    loss = (out * out.detach().sin()).sum()
    return [out.detach(), *torch.autograd.grad(loss, [leaf, *layer.parameters()])]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("size", [(19, 19), (16, 21)])
def test_same_answers_and_gradients(layer: nn.Conv2d, size: tuple[int, int]) -> None:
    inputs = torch.rand(5, layer.in_channels, *size, generator=torch.Generator().manual_seed(0))
    plain = slopes(layer, inputs)
    with untouched(layer), fast_convolutions(layer, inputs):
        assert "_conv_forward" in vars(layer)
        fast = slopes(layer, inputs)
    for one, other in zip(plain, fast, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)
    assert "_conv_forward" not in vars(layer)
    assert all(torch.equal(one, other) for one, other in zip(plain, slopes(layer, inputs), strict=True))


def test_frozen_weights_ask_for_nothing() -> None:
    layer = LAYERS[0].requires_grad_(False)
    inputs = torch.rand(2, 1, 9, 9).requires_grad_()
    with fast_convolutions(layer, inputs.detach()):
        (slope,) = torch.autograd.grad(layer(inputs).sum(), inputs)
    layer.requires_grad_(True)
    assert slope.shape == inputs.shape


def test_plain_layers_keep_their_own() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, stride=2), nn.Conv2d(8, 8, 3, stride=2, groups=2))
    with fast_convolutions(net, torch.rand(2, 3, 16, 16)):
        assert not any("_conv_forward" in vars(layer) for layer in net)


def test_a_wrong_kernel_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels._Strided, "__call__", lambda _, inputs, weight, bias: torch.zeros(2, 16, 5, 5))
    layer, inputs = LAYERS[0], torch.rand(2, 1, 10, 10)
    with fast_convolutions(layer, inputs):
        assert "_conv_forward" not in vars(layer)


def test_a_module_that_hangs_on_its_layout_is_left_alone() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 8, 3, stride=2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer(inputs).view(len(inputs), -1)

    net, inputs = Views(), torch.rand(2, 3, 9, 9)
    with fast_convolutions(net, inputs):
        assert net.layer.weight.is_contiguous()
        assert torch.isfinite(net(inputs)).all()
