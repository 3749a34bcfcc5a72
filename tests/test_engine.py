"""Book-keeping against a loop over examples: every layer, every document model, and what must be refused."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import secure_ml as sm
from defenses.dp_sgd import DPSGD
from defenses.dp_sgd.engine import Engine, is_private
from defenses.dp_sgd.layers import Ghost, Kept, of_linear
from secure_ml.randomness import seeded
from secure_ml.training import make_plan
from tests.laws import TASKS, applies, tiny_task


def clipped(module: nn.Module, losses: Callable[[nn.Module], Tensor], clip: float, group: int = 1) -> list[Tensor]:
    """The engine's clipped sums."""
    module = deepcopy(module)
    engine = Engine(module, clip, group)
    with seeded(0, "test"):
        found = losses(module)
    engine.expect(len(found))
    found.sum().backward()
    engine.gather()
    return engine.take()


def looped(module: nn.Module, one: Callable[[nn.Module, int], Tensor], examples: int, clip: float) -> list[Tensor]:
    """The same from a loop: each example alone, clipped by hand."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in parameters]
    for i in range(examples):
        with seeded(0, "test"):
            grads = torch.autograd.grad(one(module, i), parameters, allow_unused=True, materialize_grads=True)
        norm = torch.cat([g.flatten() for g in grads]).norm()
        for part, grad in zip(total, grads, strict=True):
            part += grad * min(1.0, clip / (norm.item() + 1e-6))
    return total


def apart(mine: list[Tensor], loop: list[Tensor]) -> float:
    """Relative distance of two sums."""
    a, b = (torch.cat([t.flatten() for t in part]) for part in (mine, loop))
    return ((a - b).norm() / b.norm()).item()


PRIVATE = [name for name in TASKS if applies(DPSGD(), tiny_task(name))]


@pytest.mark.parametrize("name", PRIVATE)
def test_every_document_model(name: str) -> None:
    """To 1e-5 of the loop's sum, with a clip that about half of the examples reach."""
    task = tiny_task(name)
    plan = make_plan(task, [], 0, torch.device("cpu"))
    module = plan.module
    for layer in module.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.p = 0.0
    batch = plan.splits.train.take(slice(0, 6))
    norms = []
    for i in range(6):
        parameters = [p for p in module.parameters() if p.requires_grad]
        grads = torch.autograd.grad(task.loss(module, batch.take(slice(i, i + 1))).sum(), parameters)
        norms.append(torch.cat([g.flatten() for g in grads]).norm().item())
    clip = sorted(norms)[3]
    mine = clipped(module, lambda m: task.loss(m, batch), clip)
    assert apart(mine, looped(module, lambda m, i: task.loss(m, batch.take(slice(i, i + 1))).sum(), 6, clip)) < 1e-5


class Scaled(nn.Module):
    """A layer that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(6))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.scale


class Tied(nn.Module):
    """The table of the inputs is the matrix of the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        self.out.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.table(tokens)).flatten(1)


class Twice(nn.Module):
    """One layer, called again on what it said."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(inputs)))


def frozen() -> nn.Module:
    """The first layer is not trained, and of the second its bias alone."""
    module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    for parameter in (module[0].weight, module[0].bias, module[2].weight):
        parameter.requires_grad_(False)
    return module


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 3), (6,)),
    "linear, many places": (lambda: nn.Sequential(nn.Linear(6, 3), nn.Flatten()), (2, 5, 6)),
    "linear, few places": (lambda: nn.Sequential(nn.Linear(40, 50), nn.Flatten()), (2, 40)),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Flatten()), (2, 7, 6)),
    "convolution, few places": (lambda: nn.Sequential(nn.Conv2d(8, 30, 3), nn.Flatten()), (8, 4, 4)),
    "convolution, groups": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.Flatten()), (4, 6, 6)),
    "convolution, dilated": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, (3, 2), dilation=(2, 1), padding=(2, 1)), nn.Flatten()),
        (2, 7, 6),
    ),
    "convolution, same": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 4, padding="same", padding_mode="reflect"), nn.Flatten()),
        (2, 7, 6),
    ),
    "convolution of a line": (lambda: nn.Sequential(nn.Conv1d(2, 3, 4, padding=2, dilation=2), nn.Flatten()), (2, 11)),
    "layer norm": (lambda: nn.Sequential(nn.LayerNorm((4, 6)), nn.Flatten()), (3, 4, 6)),
    "group norm": (lambda: nn.Sequential(nn.GroupNorm(2, 6), nn.Flatten()), (6, 3, 3)),
    "in place": (lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)), (6,)),
    "unknown": (lambda: nn.Sequential(nn.Linear(6, 6), Scaled(), nn.Linear(6, 3)), (6,)),
    "volume": (lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten()), (1, 3, 3, 3)),
    "called twice": (Twice, (6,)),
    "partly frozen": (frozen, (6,)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer(name: str) -> None:
    build, shape = LAYERS[name]
    with seeded(1, "build"):
        module, inputs = build(), torch.randn(5, *shape)
    for clip in (0.3, 1e9):
        mine = clipped(module, lambda m: m(inputs).square().sum(1), clip)
        assert apart(mine, looped(module, lambda m, i: m(inputs[i : i + 1]).square().sum(), 5, clip)) < 1e-5


def test_tables_and_tied_weights() -> None:
    """Words that come twice, words that pad, and a table that is also the last layer."""
    tokens = torch.tensor([[1, 1, 2, 0], [3, 4, 5, 0], [1, 6, 1, 1], [0, 0, 0, 0]])
    for build in (lambda: nn.Sequential(nn.Embedding(9, 3, padding_idx=0), nn.Flatten(), nn.Linear(12, 2)), Tied):
        with seeded(1, "build"):
            module = build()
        mine = clipped(module, lambda m: (m(tokens) + 1).square().sum(1), 0.2)
        assert apart(mine, looped(module, lambda m, i: (m(tokens[i : i + 1]) + 1).square().sum(), 4, 0.2)) < 1e-5


def test_both_ways_of_a_product_agree() -> None:
    """Norms and sums from inner products are those of the gradients themselves."""
    rng = torch.Generator().manual_seed(0)
    layer = nn.Linear(7, 4)
    seen, slope = torch.randn(5, 3, 7, generator=rng), torch.randn(5, 3, 4, generator=rng)
    ghost = Ghost(seen, slope, layer.weight.shape, bias=True)
    kept = Kept(ghost.rows())
    weights = torch.rand(5, generator=rng)
    assert torch.allclose(ghost.squares(), kept.squares(), rtol=1e-5)
    for name, value in kept.sums(weights).items():
        assert torch.allclose(ghost.sums(weights)[name], value, atol=1e-5)
    assert isinstance(of_linear(layer, [((seen[:, :1],), slope[:, :1])], 5), Ghost)
    assert isinstance(of_linear(layer, [((seen,), slope)], 5), Kept)


def test_rows_of_one_example_are_clipped_as_one() -> None:
    """Three rows each: the loop differentiates the mean of their losses, and clips that."""
    with seeded(1, "build"):
        module, inputs = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(12, 6)
    mine = clipped(module, lambda m: m(inputs).square().sum(1).view(4, 3).mean(1), 0.2, group=3)
    loop = looped(module, lambda m, i: m(inputs[3 * i : 3 * i + 3]).square().sum(1).mean(), 4, 0.2)
    assert apart(mine, loop) < 1e-5


def test_pieces_change_nothing() -> None:
    """A batch that is differentiated a few examples at a time ends with the same weights."""
    task = replace(tiny_task("digits_cnn"), recipe=sm.Recipe(epochs=2, batch_size=20, learning_rate=0.5))
    ends = [
        torch.cat(
            [p.flatten() for p in sm.fit(task, [DPSGD(noise=1.0, physical=size)], device="cpu").module.parameters()]
        )
        for size in (None, 1, 7)
    ]
    assert torch.allclose(ends[0], ends[1], atol=1e-5)
    assert torch.allclose(ends[0], ends[2], atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_no_example_moves_the_sum_by_more_than_the_clip(bad: float) -> None:
    """Not one whose inputs are no numbers, or huge; and the others' share stays what it is without it."""
    with seeded(1, "build"):
        module, inputs = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(5, 6)
    poisoned = inputs.clone()
    poisoned[2] = bad
    others = torch.arange(5) != 2
    mine = clipped(module, lambda m: m(poisoned).square().sum(1), 0.3)
    rest = clipped(module, lambda m: m(inputs[others]).square().sum(1), 0.3)
    assert all(part.isfinite().all() for part in mine)
    gap = torch.cat([(a - b).flatten() for a, b in zip(mine, rest, strict=True)]).norm()
    assert gap <= 0.3 * (1 + 1e-4)


def test_gradients_of_weights_are_not_computed_and_nothing_is_left() -> None:
    module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    hooks = [len(layer._forward_hooks) for layer in module.modules()]
    engine = Engine(module, 1.0)
    assert is_private(module)
    module(torch.randn(4, 6)).sum(1).sum().backward()
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    engine.detach()
    assert [len(layer._forward_hooks) for layer in module.modules()] == hooks
    assert not is_private(module)
    module(torch.randn(4, 6)).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_a_layer_that_raises_stays_trainable() -> None:
    module = nn.Sequential(nn.Linear(6, 6))
    Engine(module, 1.0)
    with pytest.raises(RuntimeError):
        module(torch.randn(4, 5))
    assert all(p.requires_grad for p in module.parameters())


class Elsewhere(nn.Module):
    """Uses a weight outside of the layer that owns it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs.flatten(1)) + nn.functional.linear(inputs.flatten(1), self.layer.weight)


class Recurrent(nn.Module):
    """Torch's own recurrent layer, whose gates no hook sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.LSTM(8, 4, batch_first=True), nn.Linear(4, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(self.layer(inputs[:, 0])[0][:, -1])


class Positions(nn.Module):
    """Looks positions up once for all examples of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.out = nn.Embedding(8, 8), nn.Linear(64, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out((inputs[:, 0] + self.places(torch.arange(8))).flatten(1))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Elsewhere, "used outside of the layer that owns it"),
        (Recurrent, "layers that take and give tensors; layer \\(LSTM\\) does not"),
        (Positions, "is not its own: Embedding was called on 8 rows for 3 examples"),
        (
            lambda: nn.Sequential(nn.Flatten(), parametrizations.weight_norm(nn.Linear(64, 10))),
            "take and give tensors",
        ),
    ],
)
def test_refusals(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(sm.UsageError, match=message):
        sm.fit(replace(tiny_task("digits_mlp"), build=build), [DPSGD(noise=1.0)], device="cpu")


def test_the_loop_is_told_from_wrong_engines() -> None:
    """The comparison fires: without clipping, clipped after averaging, or by the largest entry."""
    with seeded(1, "build"):
        module, inputs = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(5, 6)

    def losses(m: nn.Module) -> Tensor:
        return m(inputs).square().sum(1)

    loop = looped(module, lambda m, i: m(inputs[i : i + 1]).square().sum(), 5, 0.3)
    plain: Any = torch.autograd.grad(losses(module).sum(), list(module.parameters()))
    assert apart(list(plain), loop) > 0.1
    size = torch.cat([p.flatten() for p in plain]).norm()
    assert apart([p * min(1.0, 5 * 0.3 / size) for p in plain], loop) > 1e-3
