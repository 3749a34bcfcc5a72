"""Images: what augmentation does to each, the residual network against torchvision's, and the tasks' own data."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secure_ml as sm
from secure_ml import data
from secure_ml.augmentation import Chain, Crop, Flip, Rotation, Shift, Zoom
from secure_ml.batch import Batch
from secure_ml.task import Augment
from secure_ml.tasks import _cifar10, mnist_binary_dense, transfer_resnet18
from secure_ml.tasks._resnet import ResNet, Standardize

STEPS = [Flip(), Crop(3), Shift(0.2), Rotation(40), Zoom(0.3), Chain((Flip(), Crop(1)))]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some(n: int = 7, height: int = 9, width: int = 12) -> Batch:
    return Batch(torch.rand(n, 3, height, width, generator=rng(1)), torch.arange(n))


def images(batch: Batch) -> Tensor:
    assert isinstance(batch.inputs, Tensor)
    return batch.inputs


@pytest.mark.parametrize("step", STEPS)
def test_augmentation_follows_its_generator(step: Augment) -> None:
    clean = some()
    first, again, other = step(clean, rng()), step(clean, rng()), step(clean, rng(5))
    assert torch.equal(images(first), images(again))
    assert not torch.equal(images(first), images(other))
    assert torch.equal(images(clean), images(some()))
    assert images(first).shape == images(clean).shape
    assert first.target is clean.target
    sm.Box().check(first.inputs)
    assert images(step(some(0), rng())).shape == (0, 3, 9, 12)


@pytest.mark.parametrize("step", [Flip(0.0), Crop(0), Shift(0.0), Rotation(0.0), Zoom(0.0)])
def test_augmentation_of_nothing_changes_nothing(step: Augment) -> None:
    assert torch.allclose(images(step(some(), rng())), images(some()), atol=1e-5)


def test_flip_and_crop_equal_a_loop() -> None:
    clean = images(some(50))
    chosen = torch.rand(50, generator=rng()) < 0.5
    flipped = images(Flip()(some(50), rng()))
    top, left = torch.randint(7, (2, 50), generator=rng())
    moved = images(Crop(3)(some(50), rng()))
    for i in range(50):
        assert torch.equal(flipped[i], clean[i].flip(-1) if chosen[i] else clean[i])
        padded = torch.zeros(3, 15, 18)
        padded[:, 3:12, 3:15] = clean[i]
        assert torch.equal(moved[i], padded[:, top[i] : top[i] + 9, left[i] : left[i] + 12])


def test_affine_changes_equal_torchvision() -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import affine

    def one(image: Tensor, angle: float = 0.0, move: tuple[int, int] = (0, 0), scale: float = 1.0) -> Tensor:
        how = InterpolationMode.BILINEAR
        return affine(image, angle, list(move), scale, [0.0, 0.0], interpolation=how)  # type: ignore[no-any-return]

    clean = images(some())
    draw = torch.rand(1, 7, generator=rng())[0] * 2 - 1
    turned, zoomed = images(Rotation(40)(some(), rng())), images(Zoom(0.3)(some(), rng()))
    for i in range(7):
        # torchvision counts degrees clockwise
        assert torch.allclose(turned[i], one(clean[i], angle=-40 * draw[i].item()), atol=1e-4)
        assert torch.allclose(zoomed[i], one(clean[i], scale=1 + 0.3 * draw[i].item()), atol=1e-4)
    down, right = torch.rand(2, 7, generator=rng()) * 2 - 1
    moved = images(Shift(0.25)(some(), rng()))
    for i in range(7):
        x, y = right[i].item() * 0.25 * 12, down[i].item() * 0.25 * 9
        corners = [(math.floor(x) + dx, math.floor(y) + dy) for dx in (0, 1) for dy in (0, 1)]
        shares = [(1 - abs(x - cx)) * (1 - abs(y - cy)) for cx, cy in corners]
        loop = sum(s * one(clean[i], move=c) for s, c in zip(shares, corners, strict=True))
        assert torch.allclose(moved[i], torch.as_tensor(loop), atol=1e-4)


def test_augmentation_refuses_what_is_no_image() -> None:
    with pytest.raises(sm.UsageError, match="one tensor"):
        Flip()(Batch(torch.zeros(3, 5), torch.zeros(3)), rng())
    for wrong in (lambda: Flip(2.0), lambda: Crop(-1), lambda: Shift(-0.1), lambda: Rotation(200), lambda: Zoom(1.0)):
        with pytest.raises(sm.UsageError, match="needs"):
            wrong()


def test_resnet_is_torchvisions() -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    theirs = resnet18(num_classes=10).eval()
    mine = ResNet(10, norm=nn.BatchNorm2d).eval()
    mine.load_state_dict(theirs.state_dict())
    few = torch.rand(2, 3, 64, 64)
    assert torch.allclose(mine(few), theirs(few), atol=1e-5)
    assert ResNet(0, width=8, stem="cifar", blocks=1)(few).shape == (2, 64)


def test_standardize_keeps_nothing_in_the_weights() -> None:
    layer = Standardize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert not layer.state_dict()
    assert layer(torch.ones(1, 3, 2, 2)).eq(1).all()


def test_one_in_ten() -> None:
    labels = torch.tensor([4] * 20 + [9] * 20 + [1] * 20)
    few = mnist_binary_dense.thin(Batch(torch.arange(60)[:, None], labels), 4, 9, 10)
    assert isinstance(few.target, Tensor)
    assert few.target.tolist() == [0] * 20 + [1] * 2
    assert images(few).flatten().tolist() == list(range(22))


def test_the_rare_class_counts_more() -> None:
    batch = Batch(torch.zeros(2, 1), torch.tensor([0, 1]))
    losses = mnist_binary_dense.weighted(3.0, lambda inputs: torch.zeros(len(inputs)), batch)
    assert torch.allclose(losses, torch.tensor([1.0, 3.0]) * math.log(2))


def test_frozen_bodies_stay_as_they_are() -> None:
    frozen = sm.task("transfer_resnet18", tiny=True)
    before = {k: v.clone() for k, v in frozen.build().state_dict().items() if k.startswith("body")}
    after = sm.fit(frozen, device="cpu").module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert {n for n, p in frozen.build().named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    assert all(p.requires_grad for p in sm.task("transfer_resnet18", tiny=True, body="thawed").build().parameters())


def test_a_body_is_trained_once_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(transfer_resnet18.CACHE, str(tmp_path))
    task = transfer_resnet18.source(8, True)
    first = transfer_resnet18._kept(task)
    monkeypatch.setattr(transfer_resnet18, "fit", None)
    again = transfer_resnet18._kept(task)
    for name, value in first.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name])


def test_mistyped_weights_are_told_in_a_sentence() -> None:
    with pytest.raises(sm.UsageError, match="no ResNet-18 weights called 'IMAGENET'; there are: IMAGENET1K_V1"):
        sm.task("transfer_resnet18", weights="IMAGENET", width=64).build()
    with pytest.raises(sm.UsageError, match="published weights have width 64; given 16"):
        sm.task("transfer_resnet18", weights="IMAGENET1K_V1")


def test_both_forms_of_cifar10_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    labels = np.array([3, 1, 2])
    monkeypatch.setenv(data.VARIABLE, str(tmp_path))
    with pytest.raises(sm.UsageError, match=r"cifar10\.npz is missing: put CIFAR-10"):
        sm.task("cifar10_cnn").draw(0)
    files = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        files.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    joined = np.frombuffer(b"".join(files), dtype=np.uint8)
    np.savez(tmp_path / "cifar10_jpegbytes.npz", train_bytes=joined, train_offsets=offsets, y_train=labels)
    np.savez(tmp_path / "cifar10_exact.npz", x_test=pixels[:1], y_test=labels[:1])
    train, test = _cifar10._images(tmp_path)
    assert np.array_equal(images(train).permute(0, 2, 3, 1).numpy(), pixels)
    assert np.array_equal(images(test).permute(0, 2, 3, 1).numpy(), pixels[:1])
    _cifar10._images.cache_clear()
    np.savez(tmp_path / "cifar10.npz", x_train=pixels[1:], y_train=labels[1:], x_test=pixels, y_test=labels)
    train, _ = _cifar10._images(tmp_path)
    assert train.target.tolist() == [1, 2]  # type: ignore[union-attr]
    (tmp_path / "cifar10.npz").write_bytes(b"no")
    _cifar10._images.cache_clear()
    with pytest.raises(sm.UsageError, match="is not whole"):
        _cifar10._images(tmp_path)
    _cifar10._images.cache_clear()


def test_the_networks_are_as_large_as_they_say() -> None:
    sizes = {"cifar10_cnn": 122_570, "fashion_mnist_cnn": 225_034, "mnist_cnn": 26_010}
    for name, size in sizes.items():
        assert sum(p.numel() for p in sm.task(name).build().parameters()) == size
    assert sum(p.numel() for p in sm.task("fashion_mnist_cnn", network="literature").build().parameters()) == 26_010


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cifar10_cnn", {"epochs": 3}),
        ("cifar10_resnet18", {"width": 16, "epochs": 5, "examples": 10000}),
        ("transfer_resnet18", {"body": "thawed", "weights": "random", "examples": 500}),
        ("mnist_binary_dense", {"data": "mnist", "rare_weight": 10.0}),
        ("fashion_mnist_cnn", {"network": "literature", "activation": "tanh"}),
    ],
)
def test_options_are_told(name: str, options: dict[str, object]) -> None:
    told = ", ".join(f"{key}={value!r}" for key, value in options.items())
    assert repr(sm.task(name, **options)) == f"{name}({told})"
    assert repr(sm.task(name)) == f"{name}()"
