"""Many models trained as one are the models that are trained one by one."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secure_ml as sm
from defenses.dp_sgd import DPSGD
from defenses.feature_squeezing import FeatureSqueezing
from defenses.label_only import LabelOnly
from defenses.label_smoothing import LabelSmoothing
from secure_ml import vectorised
from secure_ml.augmentation import Crop
from secure_ml.batch import Batch, Splits
from secure_ml.shadows import train_shadows
from secure_ml.stacked import Unstackable, stack_modules
from secure_ml.training import Plan, fit_many
from tests.laws import tiny_task, tiny_victim

CPU = torch.device("cpu")
SEEDS = (3, 1, 4)


def stacked_only(tasks: Sequence[sm.Task], *stack: sm.Defense, seeds: Sequence[int] = SEEDS) -> list[sm.Victim]:
    """What is trained as one: all of the tasks."""
    done = vectorised.fit_stacks(tasks, stack, seeds, CPU)
    assert sorted(done) == list(range(len(tasks)))
    return [done[i] for i in range(len(tasks))]


def turned_down(tasks: Sequence[sm.Task], *stack: sm.Defense) -> bool:
    return not vectorised.fit_stacks(tasks, stack, SEEDS, CPU)


def apart(mine: sm.Victim, other: sm.Victim) -> float:
    """The largest difference between two victims' weights."""
    pairs = zip(mine.module.state_dict().values(), other.module.state_dict().values(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def assert_same(task: sm.Task, *stack: sm.Defense) -> None:
    for victim, seed in zip(stacked_only([task] * 3, *stack), SEEDS, strict=True):
        assert apart(victim, sm.fit(task, stack, seed=seed, device="cpu")) < 1e-4


def built(module: Callable[[], nn.Module], **settings: Any) -> sm.Task:
    """The tiny digits under another module."""
    return replace(tiny_task("digits_cnn"), build=module, **settings)


@pytest.mark.parametrize(
    "name",
    [
        "digits_mlp",
        "digits_cnn",
        "linear_regression",
        "logistic_regression",
        "xor_perceptron",
        "table_mlp",
        "mnist_cnn",
    ],
)
def test_each_is_the_model_of_its_own_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectorised, "SMALL", 10**9)
    assert_same(tiny_task(name))


def test_large_convolutions_run_in_turn() -> None:
    """Side by side they are slower on a CPU: 20 images of 28x28 are many windows, those of 8x8 are few."""
    assert turned_down([tiny_task("mnist_cnn")] * 3)
    assert not turned_down([tiny_task("digits_cnn")] * 3)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_recipes(optimizer: Any, schedule: Any) -> None:
    recipe = sm.Recipe(
        epochs=2, optimizer=optimizer, learning_rate=0.01, weight_decay=0.1, schedule=schedule, batch_size=30
    )
    assert_same(replace(tiny_task("digits_mlp"), recipe=recipe))


def test_momentum_and_weight_decay_count() -> None:
    recipe = sm.Recipe(epochs=2, learning_rate=0.05, momentum=0.9, weight_decay=0.01)
    plain = replace(recipe, momentum=0.0, weight_decay=0.0)
    task = tiny_task("digits_mlp")
    (one, _), (two, _) = (stacked_only([replace(task, recipe=r)] * 2, seeds=(0, 1)) for r in (recipe, plain))
    assert apart(one, two) > 1e-2


@pytest.mark.parametrize(
    "module",
    [
        lambda: nn.Linear(64, 10),
        lambda: nn.Sequential(nn.Linear(64, 8, bias=False), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 10)),
        lambda: nn.Sequential(
            nn.Unflatten(1, (4, 16)), nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2), nn.Tanh(), nn.Flatten(),
            nn.Linear(48, 10),
        ),
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, (3, 2), padding=(0, 1), bias=False), nn.GroupNorm(2, 4),
            nn.Tanh(), nn.Conv2d(4, 2, 3, dilation=2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 10),
        ),
    ],
)  # fmt: skip
def test_layers(module: Callable[[], nn.Module]) -> None:
    assert_same(built(lambda: nn.Sequential(nn.Flatten(), module()), recipe=sm.Recipe(epochs=2, learning_rate=0.01)))


class Bag(nn.Module):
    """The mean of vectors of the pixels' shades, of which the darkest has none."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(5, 6, padding_idx=0), nn.Linear(6, 10)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.out(self.table((images.flatten(1) * 4).long()).mean(1))
        return out


class Undropped(nn.Module):
    """A module of the tiny texts without its dropout."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.inner(tokens)
        return out


def test_tables() -> None:
    assert_same(built(Bag, recipe=sm.Recipe(epochs=2, optimizer="Adam", learning_rate=0.01)))
    text = tiny_task("text_embedding")
    assert_same(replace(text, build=lambda: Undropped(text.build())))


def test_what_is_frozen_stays() -> None:
    def frozen() -> nn.Module:
        module = tiny_task("digits_cnn").build()
        module[0].weight.requires_grad_(False)
        return module

    task = built(frozen)
    assert_same(task)
    (victim, _) = stacked_only([task] * 2, seeds=(0, 1))
    with sm.randomness.seeded(0, "build"):
        assert torch.equal(victim.module[0].weight, frozen()[0].weight)


def test_augmentation_draws_from_each_models_own_stream() -> None:
    task = replace(tiny_task("digits_cnn"), augment=Crop(1))
    assert_same(task)
    bare = stacked_only([tiny_task("digits_cnn")] * 3)
    assert all(apart(a, b) > 1e-3 for a, b in zip(bare, stacked_only([task] * 3), strict=True))


@pytest.mark.parametrize("stack", [(LabelOnly(),), (FeatureSqueezing.tiny(), LabelOnly())])
def test_defenses_that_serve_or_adapt(stack: tuple[sm.Defense, ...]) -> None:
    task = tiny_task("digits_cnn")
    assert_same(task, *stack)
    mine, other = stacked_only([task] * 3, *stack)[0], sm.fit(task, stack, seed=SEEDS[0], device="cpu")
    assert type(mine.served) is type(other.served)
    assert torch.allclose(mine.served(other.splits.test.inputs), other.served(other.splits.test.inputs), atol=1e-4)


def test_victims_are_complete() -> None:
    task, stack = tiny_task("digits_cnn"), [LabelOnly()]
    for victim, seed in zip(fit_many([task] * 3, stack, seeds=SEEDS, device="cpu"), SEEDS, strict=True):
        other = sm.fit(task, stack, seed=seed, device="cpu")
        assert (victim.task, victim.defenses, victim.seed, victim.claims) == (task, (LabelOnly(),), seed, ())
        assert victim.splits.fingerprint() == other.splits.fingerprint()
        assert victim.seconds > 0
        assert not victim.module.training
        assert all(p.grad is None and p.is_leaf and p.requires_grad for p in victim.module.parameters())
        assert [type(part) for part in victim.module.modules()] == [type(part) for part in other.module.modules()]
        assert all(p.untyped_storage().nbytes() == 4 * p.numel() for p in victim.module.parameters())


def test_nothing_global_is_touched() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    fit_many([tiny_task("digits_mlp")] * 2, seeds=(0, 1), device="cpu")
    assert torch.equal(before, torch.get_rng_state())


def sized(task: sm.Task, count: int) -> sm.Task:
    """A task on its first training examples."""

    def data(rng: torch.Generator) -> Splits:
        parts = task.data(rng)
        return replace(parts, train=parts.train.take(slice(0, count)))

    return replace(task, data=data)


def test_training_sets_of_unequal_size() -> None:
    """Equal sizes are trained together, whatever lies between them; one that is left is trained alone."""
    task = tiny_task("digits_mlp")
    tasks = [sized(task, n) for n in (40, 64, 40, 50, 64)]
    assert sorted(vectorised.fit_stacks(tasks, (), range(5), CPU)) == [0, 1, 2, 4]
    for i, victim in enumerate(fit_many(tasks, seeds=range(5), device="cpu")):
        assert len(victim.splits.train) == len(tasks[i].draw(i).train)
        assert apart(victim, sm.fit(tasks[i], seed=i, device="cpu")) < 1e-4


def test_tasks_of_several_kinds() -> None:
    names = ["digits_mlp", "digits_cnn", "digits_mlp", "linear_regression", "digits_cnn"]
    tasks = [tiny_task(name) for name in names]
    assert sorted(vectorised.fit_stacks(tasks, (), range(5), CPU)) == [0, 1, 2, 4]
    victims = fit_many(tasks, seeds=range(5), device="cpu")
    for i, (victim, task) in enumerate(zip(victims, tasks, strict=True)):
        assert apart(victim, sm.fit(task, seed=i, device="cpu")) < 1e-4


def test_shadows() -> None:
    victim = tiny_victim("digits_cnn")
    shadows = train_shadows(victim, victim.splits.train.take(slice(0, 20)), 4)
    for shadow in shadows.victims:
        assert apart(shadow, sm.fit(shadow.task, seed=shadow.seed, device="cpu")) < 1e-4


def test_a_stack_has_only_so_much_room(monkeypatch: pytest.MonkeyPatch) -> None:
    task = tiny_task("digits_mlp")
    whole = stacked_only([task] * 3)
    sizes: list[int] = []
    fit_stack = vectorised.fit_stack

    def watched(plans: Sequence[Plan], *rest: Any) -> list[sm.Victim]:
        sizes.append(len(plans))
        return fit_stack(plans, *rest)

    monkeypatch.setattr(vectorised, "ROOM", 15_000)
    monkeypatch.setattr(vectorised, "fit_stack", watched)
    parts = fit_many([task] * 3, seeds=SEEDS, device="cpu")
    assert sizes == [2, 1]
    assert all(apart(a, b) < 1e-4 for a, b in zip(whole, parts, strict=True))


# -- what cannot be trained as one ------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """A weight that no known layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = tiny_task("digits_cnn").build(), nn.Parameter(torch.ones(10))

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.inner(images) * self.scale
        return out


class Tied(nn.Module):
    """One weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.two.weight = self.one.weight

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.out(self.two(self.one(images.flatten(1)).tanh()))
        return out


class Counts(nn.Module):
    """Changes while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_task("digits_cnn").build()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.inner(images)
        return out


class Elsewhere(nn.Module):
    """Reads the weight of a layer past the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.out.weight.T + self.out.bias


def normed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 10))


def dropped() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 10))


def hooked() -> nn.Module:
    module = tiny_task("digits_cnn").build()
    module[0].register_forward_hook(lambda layer, inputs, out: out * 2)
    return module


@pytest.mark.parametrize("module", [Scaled, Tied, Counts, Elsewhere, normed, dropped, hooked])
def test_modules_that_run_in_turn(module: Callable[[], nn.Module]) -> None:
    task = built(module)
    assert turned_down([task] * 3)
    (victim, _) = fit_many([task] * 2, seeds=(0, 1), device="cpu")
    assert apart(victim, sm.fit(task, seed=0, device="cpu")) == 0


def global_noise(batch: Batch, rng: torch.Generator) -> Batch:
    return Batch(batch.inputs + torch.randn_like(batch.inputs), batch.target)


def some_of_it(batch: Batch, rng: torch.Generator) -> Batch:
    return batch.take(torch.rand(len(batch), generator=rng) < 0.7)


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": sm.Recipe(epochs=2, patience=1)},
        {"augment": global_noise},
        {"augment": some_of_it},
        {"build": tiny_task("text_rnn").build, **{k: getattr(tiny_task("text_rnn"), k) for k in ("data", "surfaces")}},
    ],
    ids=["patience", "global noise", "unequal batches", "recurrent"],
)
def test_plans_that_run_in_turn(change: dict[str, Any]) -> None:
    task = replace(tiny_task("digits_mlp"), **change)
    assert turned_down([task] * 3)
    (victim, _) = fit_many([task] * 2, seeds=(0, 1), device="cpu")
    assert apart(victim, sm.fit(task, seed=0, device="cpu")) == 0


def test_defenses_that_run_in_turn() -> None:
    task, stack = tiny_task("digits_mlp"), (LabelSmoothing(),)
    assert turned_down([task] * 3, *stack)
    (victim, _) = fit_many([task] * 2, stack, seeds=(0, 1), device="cpu")
    assert apart(victim, sm.fit(task, stack, seed=0, device="cpu")) == 0


def test_models_that_are_made_alike_and_act_differently() -> None:
    """One repr, two functions: the comparison on a batch tells."""

    class Bent(nn.Module):
        def __init__(self, slope: float) -> None:
            super().__init__()
            self.slope = slope

        def forward(self, values: Tensor) -> Tensor:
            return values * self.slope

    def network(slope: float) -> nn.Module:
        return nn.Sequential(nn.Flatten(), Bent(slope), nn.Linear(64, 10))

    assert turned_down([built(partial(network, slope)) for slope in (1.0, 1.01, 1.0)])


def test_errors_are_those_of_one_training() -> None:
    task = replace(tiny_task("linear_regression"), recipe=sm.Recipe(epochs=60, learning_rate=1e6))
    with pytest.raises(sm.UsageError, match=r"linear_regression.* lower the learning rate"):
        fit_many([task] * 2, seeds=(0, 1), device="cpu")
    with pytest.raises(sm.UsageError, match="each task needs a seed of its own; given 2 tasks, 1 seeds"):
        fit_many([task] * 2, seeds=(0,), device="cpu")
    with pytest.raises(sm.NotApplicable):
        fit_many([tiny_task("linear_regression")] * 2, [LabelOnly()], seeds=(0, 1), device="cpu")
    assert fit_many([], seeds=[], device="cpu") == []


# -- stacks that are broken on purpose ---------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["order", "loss", "start"])
def test_the_comparison_with_single_trainings_fires(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stacked = vectorised.stacked

    def wrong(plans: Sequence[Plan]) -> Plan:
        stack = stacked(plans)
        if broken == "order":
            for plan in plans[1:]:
                plan.loader.sampler.rng.set_state(plans[0].loader.sampler.rng.get_state())
        if broken == "loss":
            return replace(stack, objective=lambda losses, size: losses.sum() / size)
        if broken == "start":
            with torch.no_grad():
                for parameter in stack.module.parameters():
                    parameter.copy_(parameter.flip(0))
        return stack

    monkeypatch.setattr(vectorised, "stacked", wrong)
    with pytest.raises(AssertionError):
        assert_same(tiny_task("digits_mlp"))


def test_the_check_of_a_stack_fires() -> None:
    task = tiny_task("digits_cnn")
    plans = [vectorised._plan(task, (), seed, CPU) for seed in SEEDS]
    stack = vectorised.stacked(plans)
    with pytest.raises(Unstackable, match="do not act alike"):
        vectorised.compare(replace(stack, module=stack_modules([p.module for p in plans[::-1]])), plans)


def test_dp_sgd_runs_in_turn_or_the_same() -> None:
    task, stack = tiny_task("digits_mlp"), (DPSGD.tiny(),)
    for victim, seed in zip(fit_many([task] * 2, stack, seeds=SEEDS[:2], device="cpu"), SEEDS[:2], strict=True):
        other = sm.fit(task, stack, seed=seed, device="cpu")
        assert apart(victim, other) < 1e-4
        assert victim.claims == other.claims
