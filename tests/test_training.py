"""The one loop, victims on disk, and requests that make no sense."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secure_ml as sm
from attacks.evasion.pgd import PGD
from attacks.extraction.knockoff import Knockoff
from defenses.adversarial_training import AdversarialTraining
from defenses.dp_sgd import DPSGD
from defenses.homomorphic import Homomorphic
from defenses.label_only import LabelOnly
from secure_ml.batch import Batch, Splits
from secure_ml.training import Step
from tests.laws import tiny_task, tiny_victim


def test_sgd_equals_a_loop_written_by_hand() -> None:
    """Full batches and no momentum: w <- w - rate * mean gradient."""
    task = replace(
        tiny_task("linear_regression"),
        recipe=sm.Recipe(epochs=5, batch_size=1000, learning_rate=0.1, momentum=0.0, schedule="linear"),
    )
    victim = sm.fit(task, seed=0, device="cpu")
    with sm.randomness.seeded(0, "build"):
        weight, bias = (p.detach().clone() for p in task.build().parameters())
    x, y = victim.splits.train.inputs, victim.splits.train.target
    for epoch in range(5):
        error = x @ weight[0] + bias - y
        weight = weight - 0.1 * (1 - epoch / 5) * 2 * (error[:, None] * x).mean(0)
        bias = bias - 0.1 * (1 - epoch / 5) * 2 * error.mean()
    assert torch.allclose(victim.module[0].weight, weight, atol=1e-6)
    assert torch.allclose(victim.module[0].bias, bias, atol=1e-6)


def test_linear_regression_reaches_least_squares() -> None:
    victim = sm.fit(replace(sm.task("linear_regression"), recipe=sm.Recipe(epochs=600, batch_size=64)), device="cpu")
    train, test = victim.splits.train, victim.splits.test
    design = torch.cat([train.inputs, torch.ones(len(train), 1)], 1)
    solution = torch.linalg.lstsq(design, train.target[:, None]).solution[:, 0]
    best = (torch.cat([test.inputs, torch.ones(len(test), 1)], 1) @ solution - test.target).square().mean().sqrt()
    assert victim.score().value == pytest.approx(best.item(), rel=0.03)


@pytest.mark.parametrize(
    ("name", "least"),
    [("xor_perceptron", 0.94), ("digits_mlp", 0.93), ("digits_cnn", 0.94), ("logistic_regression", 0.94)],
)
def test_tasks_learn(name: str, least: float) -> None:
    assert sm.fit(sm.task(name), seed=0, device="cpu").score().value >= least


def test_adversarial_training_buys_robustness() -> None:
    task = replace(sm.task("digits_cnn"), recipe=sm.Recipe(epochs=15, batch_size=64, learning_rate=0.1))
    bare, hard = (sm.fit(task, stack, seed=0, device="cpu") for stack in ([], [AdversarialTraining()]))
    robust = [PGD().evaluate(v, threat=None, seed=0, examples=300).rows[0].value for v in (bare, hard)]
    assert robust[1] > robust[0] + 0.1


def test_early_stopping_returns_the_best_weights() -> None:
    seen: list[float] = []

    class Watched(sm.Accuracy):
        def aggregate(self, values: Tensor) -> object:
            estimate = super().aggregate(values)
            seen.append(estimate.value)
            return estimate

    recipe = sm.Recipe(epochs=200, batch_size=16, learning_rate=0.5, patience=3)
    victim = sm.fit(replace(tiny_task("digits_mlp"), recipe=recipe, score=Watched()), seed=0, device="cpu")
    epochs = len(seen)
    assert epochs < 200
    reached = sm.Accuracy().measure(victim.served, victim.splits.validation).value
    assert reached == max(seen)
    assert seen.index(max(seen)) == epochs - 4


def test_augmentation_comes_before_the_attack() -> None:
    batches: list[Batch] = []
    task = replace(tiny_task("digits_mlp"), augment=lambda batch, rng: Batch(batch.inputs * 0 + 0.5, batch.target))
    observers = [lambda step: batches.append(step.batch)]
    sm.fit(task, [AdversarialTraining(radius=0.1)], device="cpu", observers=observers)
    assert all((batch.inputs - 0.5).abs().max() <= 0.1 + 1e-6 for batch in batches)


def test_observers_see_every_step() -> None:
    steps: list[Step] = []
    victim = sm.fit(tiny_task("digits_mlp"), device="cpu", observers=[steps.append])
    n, size = len(victim.splits.train), victim.task.recipe.batch_size
    assert len(steps) == 3 * -(-n // size)
    assert all(step.losses.shape == (len(step.batch),) for step in steps)


@pytest.mark.parametrize("stack", [(), (DPSGD(noise=1.0),), (LabelOnly(),), (DPSGD(noise=1.0), Homomorphic(encrypt=0))])
def test_victims_on_disk(stack: tuple[sm.Defense, ...], tmp_path: Path) -> None:
    """The same answers and claims after saving and loading, and nothing but weights and JSON on disk."""
    task = tiny_task("digits_mlp")
    victim = sm.fit(task, stack, seed=4, device="cpu")
    victim.save(tmp_path / "v")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["v", "victim.json", "weights.safetensors"]
    again = sm.Victim.load(tmp_path / "v", task, stack, device="cpu")
    test = victim.splits.test
    assert torch.equal(again.served(test.inputs), victim.served(test.inputs))
    assert (again.claims, again.seed, again.defenses) == (victim.claims, 4, stack)
    assert again.splits.fingerprint() == victim.splits.fingerprint()


def test_loading_what_is_not_there(tmp_path: Path) -> None:
    task = tiny_task("digits_mlp")
    with pytest.raises(sm.UsageError, match="holds no saved model"):
        sm.Victim.load(tmp_path, task)
    tiny_victim("digits_mlp").save(tmp_path / "v")
    with pytest.raises(sm.UsageError, match="expected DPSGD"):
        sm.Victim.load(tmp_path / "v", task, [DPSGD()])
    with pytest.raises(sm.UsageError, match="holds a model of task digits_mlp"):
        sm.Victim.load(tmp_path / "v", tiny_task("digits_cnn"))
    with pytest.raises(sm.UsageError, match="trained on other data"):
        sm.Victim.load(tmp_path / "v", replace(task, data=with_inputs(lambda x: x / 2).data))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(sm.UsageError, match="holds other things"):
        tiny_victim("digits_mlp").save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    weights = tmp_path / "v" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(sm.UsageError, match="is corrupt"):
        sm.Victim.load(tmp_path / "v", task)


def with_inputs(change: object) -> sm.Task:
    """The tiny digits with changed training inputs."""
    task = tiny_task("digits_mlp")

    def data(rng: torch.Generator) -> Splits:
        parts = task.data(rng)
        return replace(parts, train=Batch(change(parts.train.inputs), parts.train.target))

    return replace(task, data=data)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (with_inputs(lambda x: x * 255), r"outside the declared Box\(0.0, 1.0\)"),
        (with_inputs(lambda x: x * torch.nan), "outside the declared Box"),
        (
            replace(tiny_task("digits_mlp"), build=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 1))),
            "expects logits",
        ),
        (replace(tiny_task("digits_mlp"), loss=lambda m, b: sm.cross_entropy(m, b).mean()), "one per example"),
        (
            replace(tiny_task("digits_mlp"), loss=lambda m, b: sm.cross_entropy(m, b) * torch.tensor(torch.nan)),
            "training loss is nan in epoch 1",
        ),
        (replace(tiny_task("linear_regression"), build=lambda: nn.Unflatten(1, (2, 5))), "no parameters to train"),
        (replace(tiny_task("linear_regression"), build=lambda: nn.Linear(10, 1)), "meet targets of shape"),
        (
            replace(tiny_task("digits_mlp"), build=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 9))),
            "tells 9 classes",
        ),
        (
            replace(
                tiny_task("digits_mlp"),
                recipe=sm.Recipe(epochs=1, batch_size=1000, learning_rate=1e38, weight_decay=1e3),
            ),
            "not finite after training",
        ),
    ],
)
def test_tasks_that_do_not_fit_together(task: sm.Task, message: str) -> None:
    with pytest.raises(sm.UsageError, match=message):
        sm.fit(task, device="cpu")


def test_settings_out_of_range() -> None:
    for make, message in (
        (lambda: sm.Recipe(epochs=0), "at least 1 epoch"),
        (lambda: sm.Recipe(batch_size=0), "batch size of at least 1"),
        (lambda: sm.Recipe(learning_rate=0), "learning rate above 0"),
        (lambda: sm.Recipe(learning_rate=float("inf")), "finite learning rate"),
        (lambda: sm.Recipe(optimizer="sgd"), "no optimizer of a recipe is called 'sgd'; did you mean SGD"),
        (lambda: Knockoff(reveal="probs"), "no way of answering is called 'probs'"),
        (lambda: AdversarialTraining(radius=float("inf")), "radius >= 0"),
        (lambda: sm.Box(1.0, 1.0), "low < high"),
        (lambda: AdversarialTraining(radius=-1.0), "radius >= 0"),
        (lambda: Knockoff(queries=0), "at least 1 query"),
        (lambda: sm.fit(tiny_task("digits_mlp"), device="tpu9"), "no device"),
    ):
        with pytest.raises(sm.UsageError, match=message):
            make()


def test_defenses_without_meaning() -> None:
    with pytest.raises(sm.NotApplicable, match="linear_regression answers Values"):
        sm.fit(tiny_task("linear_regression"), [LabelOnly()], device="cpu")
    with pytest.raises(sm.NotApplicable, match="PGD changes Box inputs; text_embedding has SpelledTokens"):
        sm.fit(tiny_task("text_embedding"), [AdversarialTraining(attack=PGD())], device="cpu")
    with pytest.raises(sm.NotApplicable, match="no threat to train against"):
        sm.fit(replace(tiny_task("digits_mlp"), threat=None), [AdversarialTraining()], device="cpu")


class TwoInputs(nn.Module):
    """Sums two named inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(3, 2)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.dense(inputs["left"] + inputs["right"])


def test_inputs_may_be_trees() -> None:
    """A dictionary of inputs, of which the adversary may change one, through training, DP-SGD and every family."""

    def data(rng: torch.Generator) -> Splits:
        def part(n: int) -> Batch:
            left = torch.rand(n, 3, generator=rng)
            return Batch({"left": left, "right": torch.zeros(n, 3)}, (left.sum(1) > 1.5).long())

        return Splits(part(60), part(10), part(30), part(20))

    task = sm.Task(
        name="two",
        build=TwoInputs,
        data=data,
        surfaces=(sm.Box(path=("left",)),),
        threat=sm.Linf(0.1),
        recipe=sm.Recipe(epochs=2),
    )
    for stack in ([], [DPSGD(noise=1.0)], [AdversarialTraining()]):
        victim = sm.fit(task, stack, device="cpu")
        rows = sm.evaluate(victim, [PGD.tiny(), Knockoff.tiny()])
        assert all(row.value is not None for row in rows)
        assert "two()" in {row.task for row in rows}


def test_surrogates_copy_a_linear_model_exactly_enough() -> None:
    """A linear victim is recovered from its answers to (much) more than d + 1 queries."""
    victim = sm.fit(sm.task("linear_regression"), seed=0, device="cpu")
    rows = Knockoff(queries=100).evaluate(victim, threat=None, seed=0, examples=200).rows
    assert rows[0].measure == "fidelity at 100 queries"
    assert rows[0].value > 0.95
    assert rows[0].queries == 100
