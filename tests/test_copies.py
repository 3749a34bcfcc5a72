"""How copies are judged: against the victim itself, along the budget, and where their maker is refused."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

import secure_ml as sm
from attacks import Knockoff
from attacks.extraction._variation import nudged, turned, varied
from defenses import LabelOnly, PredictionSmoothing, RateLimit
from experiments import extraction
from secure_ml.access import BlackBox
from secure_ml.batch import Batch
from secure_ml.families.extraction import Extraction, judge, overlap
from secure_ml.imitation import Imitation
from secure_ml.outputs import Reveal
from tests.laws import tiny_task, tiny_victim


@dataclass(frozen=True, kw_only=True)
class Burglar(Extraction):
    """Takes the weights themselves: no copy is better."""

    queries: int = 4
    reveal: Reveal = "probabilities"
    module: nn.Module | None = None

    def steal(self, access: BlackBox, pool: Batch, train: Imitation, rng: torch.Generator) -> Iterator[nn.Module]:
        yield train.victim.module


@cache
def trained() -> sm.Victim:
    """A digits net that is good enough, in a second."""
    task = sm.task("digits_mlp")
    return sm.fit(replace(task, recipe=replace(task.recipe, epochs=10)), seed=0, device="cpu")


def values(result_rows: tuple[sm.Row, ...]) -> dict[str, float | None]:
    return {row.measure.split(" at ")[0]: row.value for row in result_rows}


def test_the_victim_is_its_own_best_copy() -> None:
    victim = trained()
    found = values(Burglar().evaluate(victim, threat=sm.Linf(0.2), seed=0, examples=300).rows)
    assert found["fidelity"] == 1
    assert found["copy's divergence"] == pytest.approx(0, abs=1e-6)
    assert found["copy's accuracy"] == victim.task.score.measure(victim.served, victim.tested(300)).value
    assert found["transfer"] > 0.5
    test = victim.tested(300)
    stranger = victim.task.build()
    other = {n: e.value for n, e, _ in judge(victim, stranger, test, victim.served(test.inputs), sm.Linf(0.2), 0)}
    assert other["transfer"] < found["transfer"] / 2
    assert other["copy's divergence"] > 1


def test_divergence_is_from_the_victim_to_the_copy() -> None:
    """Against the formula, on two answers that are not alike."""
    victim = tiny_victim("digits_mlp")
    test, copy = victim.tested(20), victim.task.build().eval()
    p, q = (module(test.inputs).detach().double().log_softmax(1) for module in (victim.module, copy))
    expected = float((p.exp() * (p - q)).sum(1).mean())
    found = {n: e.value for n, e, _ in judge(victim, copy, test, victim.served(test.inputs), None, 0)}
    assert found["copy's divergence"] == pytest.approx(expected, rel=1e-4)


def test_each_budget_has_its_copy() -> None:
    victim = sm.fit(sm.task("linear_regression"), seed=0, device="cpu")
    rows = Knockoff(queries=60, budgets=(20, 5, 90), epochs=20).evaluate(victim, threat=None, seed=0, examples=200).rows
    fidelity = [row for row in rows if row.measure.startswith("fidelity")]
    assert [row.measure for row in fidelity] == [f"fidelity at {n} queries" for n in (5, 20, 60)]
    assert [row.queries for row in fidelity] == [5, 20, 60]
    assert fidelity[0].value < fidelity[-1].value
    assert any(row.measure.startswith("copy's squared distance") for row in rows)


def test_a_rate_that_stays_ends_in_the_average_of_the_weights() -> None:
    victim = tiny_victim("digits_mlp")
    train, inputs = Imitation(victim, seed=1), victim.splits.test.inputs[:64]
    answers = BlackBox(victim.task, victim.served, "probabilities", 64)(inputs)
    copy = train(inputs, answers, 5, rate=0.2)
    task = train.surrogate(Batch(inputs, answers), 5)
    weights: list[torch.Tensor] = []
    plain = sm.fit(
        replace(task, recipe=replace(task.recipe, learning_rate=0.2, schedule="constant")),
        seed=1,
        device="cpu",
        observers=[lambda step: weights.append(nn.utils.parameters_to_vector(step.plan.module.parameters()).detach())],
    )
    weights.append(nn.utils.parameters_to_vector(plain.module.parameters()).detach())
    naive = weights[0]
    for n, now in enumerate(weights[1:], 2):
        naive = naive + (now - naive) * (1 - min(0.998, n / (n + 9)))
    averaged = nn.utils.parameters_to_vector(copy.parameters())
    torch.testing.assert_close(averaged, naive)
    assert not torch.allclose(averaged, weights[-1])
    with pytest.raises(sm.UsageError, match="rate above 0; given 0"):
        Knockoff(rate=0)
    with pytest.raises(sm.UsageError, match="rate above 0; given inf"):
        Knockoff(rate=float("inf"))


def test_who_is_refused_goes_on_with_less() -> None:
    """Larger budgets buy no more, and say so; a client who never saw an answer has no copy."""
    victim = sm.fit(tiny_task("digits_mlp"), [RateLimit(queries=6)], seed=0, device="cpu")
    rows = Knockoff(queries=12, budgets=(4, 8)).evaluate(victim, threat=None, seed=0, examples=20).rows
    assert [row.queries for row in rows if row.measure.startswith("fidelity")] == [4, 6, 6]
    with pytest.raises(sm.NotApplicable, match="refused"):
        Greedy().evaluate(victim, threat=None, seed=0, examples=20)


@dataclass(frozen=True, kw_only=True)
class Greedy(Extraction):
    """Wants all answers at once."""

    queries: int = 10
    reveal: Reveal = "label"

    def steal(self, access: BlackBox, pool: Batch, train: Imitation, rng: torch.Generator) -> Iterator[nn.Module]:
        access(pool.take(slice(0, 10)).inputs)
        yield train.victim.module


def test_honest_users_are_remembered() -> None:
    """A label keeps every decision and moves the probabilities; a temperature likewise; nothing moves nothing."""
    bare = trained()
    moved = []
    for defense in (None, PredictionSmoothing(temperature=2.0), LabelOnly()):
        victim = defense.serve(bare) if defense else bare
        found = values(Burglar().evaluate(victim, threat=None, seed=0, examples=200).rows)
        assert found["answers kept"] == 1
        moved.append(found["answers moved (L1)"])
    truth = bare.served(bare.tested(200).inputs).softmax(1)
    assert moved[0] == 0
    assert moved[2] == pytest.approx(float((2 * (1 - truth.amax(1))).mean()), rel=1e-3)


def test_a_pool_of_members_is_told() -> None:
    victim = tiny_victim("digits_mlp")
    assert overlap(victim.splits.aux, victim.splits.train) == ""
    assert overlap(victim.splits.train.take(slice(0, 7)), victim.splits.train).startswith("7 of 7 inputs")
    careless = replace(victim, splits=replace(victim.splits, aux=victim.splits.train))
    rows = Knockoff(queries=5).evaluate(careless, threat=None, seed=0, examples=20).rows
    assert "overstated" in rows[0].note


def test_a_pool_of_another_domain() -> None:
    victim = tiny_victim("mnist_cnn")
    rows = Knockoff(queries=8, source="fashion_mnist_cnn").evaluate(victim, threat=None, seed=0, examples=20).rows
    assert rows[0].value is not None
    with pytest.raises(sm.UsageError, match="choose another pool"):
        Knockoff(queries=8, source="digits_mlp").evaluate(victim, threat=None, seed=0, examples=20)
    with pytest.raises(sm.UsageError, match="no task is called"):
        Knockoff(queries=8, source="fashion").evaluate(victim, threat=None, seed=0, examples=20)
    with pytest.raises(sm.UsageError, match="only a pool of images"):
        Knockoff(queries=8, varied=True).evaluate(tiny_victim("adult_mlp"), threat=None, seed=0, examples=20)


def test_images_are_turned_within_bounds() -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(6, 1, 12, 12, generator=rng)
    same = turned(images, rng, angle=0.0, zoom=(1.0, 1.0), wide=0.0, move=0.0)
    assert torch.allclose(same, images, atol=1e-5)
    quarter = torch.rot90(images, 1, (2, 3))
    assert nudged(Batch(images, torch.zeros(6)), rng).inputs.shape == images.shape
    assert not torch.allclose(turned(images, rng), quarter)
    many = varied(Batch(images, ()), 15, rng)
    assert many.shape == (15, 1, 12, 12)
    assert 0 <= many.min() <= many.max() <= 1
    assert varied(Batch(images[:0], ()), 3, rng).shape[0] == 0


@pytest.mark.parametrize(
    ("net", "name"), [("dense", "digits_mlp"), ("convolutional", "mnist_cnn"), ("dense", "linear_regression")]
)
def test_copies_of_another_architecture(net: str, name: str) -> None:
    victim = tiny_victim(name)
    rows = Knockoff(queries=20, net=net).evaluate(victim, threat=None, seed=0, examples=20).rows
    assert rows[0].value is not None


def test_architectures_that_do_not_fit() -> None:
    with pytest.raises(sm.UsageError, match="no architecture of a copy is called 'resnet'"):
        Knockoff(net="resnet")
    with pytest.raises(sm.NotApplicable, match="at least 4x4"):
        Knockoff(queries=4, net="convolutional").evaluate(tiny_victim("adult_mlp"), threat=None, seed=0, examples=5)
    with pytest.raises(sm.NotApplicable, match="one tensor of numbers"):
        Knockoff(queries=4, net="dense").evaluate(tiny_victim("text_embedding"), threat=None, seed=0, examples=5)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--task", "digits_mlp(tiny=True)", "--defense", "none", "label_only", "--seeds", "1", "--queries", "4", "8"]
    argv += ["--workers", "1", "--device", "cpu", "--examples", "20", "--price", "2.0", "--out", str(tmp_path / "run")]
    assert extraction.main(argv) == 0
    said = capsys.readouterr().out
    assert "LabelOnly()" in said
    assert "0.02" in said
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"table.md", "rows.jsonl", "extraction.png"}
    assert extraction.main([*argv, "--json"]) == 0
    assert '"measure": "fidelity at 8 queries"' in capsys.readouterr().out
    with pytest.raises(sm.UsageError, match="--queries must be at least 1"):
        extraction.main([*argv, "--queries", "0"])
    with pytest.raises(sm.UsageError, match="no extraction attack"):
        extraction.main([*argv, "--attack", "pgd"])
    with pytest.raises(sm.UsageError, match="none of these attacks makes a copy"):
        extraction.main([*argv, "--defense", "none", "--task", "char_rnn(tiny=True)", "--attack", "head_extraction"])
