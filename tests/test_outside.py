"""Models and data from outside: whatever form they come in, they answer as they did where they came from."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import secure_ml as sm
from secure_ml.errors import UsageError
from secure_ml.outside.adapted import Manner, Scale, call_of, read
from secure_ml.outside.boxes import boxed, normalised
from secure_ml.outside.estimator import Function
from secure_ml.outside.examples import as_classes
from secure_ml.outside.examples import read as read_data
from secure_ml.outside.kinds import kind_of, per_example
from secure_ml.outside.words import worded
from secure_ml.surfaces import Box, Tokens

X = torch.linspace(-1, 2, 24).reshape(6, 4)


def net(outputs: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, outputs)).eval()


class Rows(Dataset[Any]):
    """Examples of any form."""

    def __init__(self, make: Callable[[int], Any], n: int = 6) -> None:
        self.make, self.n = make, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        return self.make(i)


# Data


@pytest.mark.parametrize(
    "data",
    [
        (X, torch.arange(6)),
        [X.numpy(), np.arange(6)],
        TensorDataset(X, torch.arange(6)),
        DataLoader(TensorDataset(X, torch.arange(6)), batch_size=2, shuffle=True),
        Rows(lambda i: (X[i], i)),
        Rows(lambda i: (X[i].numpy(), torch.tensor(i))),
        Rows(lambda i: {"x": X[i], "text": "left out", "label": i}),
        [(X[i], i) for i in range(6)],
        sm.Batch(X, torch.arange(6)),
    ],
    ids="pair arrays tensors loader tuples numpy dictionaries list batch".split(),
)
def test_every_form_of_data_is_the_same(data: object) -> None:
    inputs, target = read_data(data, "test", [])
    assert isinstance(inputs, Tensor)
    assert torch.equal(inputs.float(), X)
    assert torch.equal(torch.as_tensor(target), torch.arange(6))


def test_dictionaries_and_tuples_stay_trees() -> None:
    inputs, _ = read_data(Rows(lambda i: {"ids": [1, 2, i], "mask": [1, 1, 0], "labels": i}), "test", [])
    assert isinstance(inputs, dict)
    assert inputs["ids"].shape == (6, 3)  # type: ignore[union-attr]
    several, target = read_data(TensorDataset(X, X + 1, torch.arange(6)), "test", [])
    assert isinstance(several, tuple)
    assert torch.equal(several[1], X + 1)  # type: ignore[arg-type]
    assert target.tolist() == list(range(6))


def test_a_large_part_is_read_in_part_and_said() -> None:
    found: list[Any] = []
    inputs, _ = read_data(Rows(lambda i: (X[i % 6], i), n=100), "train", found, most=16 * 10)
    assert len(inputs) == 10
    assert found[0].verdict == "WARN"
    assert "10 of 100 examples of train" in found[0].evidence


def test_random_augmentation_is_seen() -> None:
    found: list[Any] = []
    read_data(Rows(lambda i: (torch.rand(4), i)), "train", found)
    assert "answers differently each time" in found[0].evidence


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield X[0], 0


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (Stream(), "train is a Stream; expected a map-style dataset"),
        (7, "train is a int; expected"),
        (Rows(lambda i: X[i]), "holds examples of type Tensor; expected"),
        (Rows(lambda i: {"x": X[i]}), "expected a key called labels"),
        (Rows(lambda i: (torch.zeros(i + 1), 0)), "pad texts to one length"),
        (Rows(lambda i: (object(), 0)), "turn images into tensors"),
        ((np.array([["a"], ["b"]]), np.arange(2)), "no numbers: encode them"),
        (Rows(lambda i: (X[i], i), n=0), "train is empty"),
    ],
    ids="stream number bare untargeted ragged objects words empty".split(),
)
def test_data_that_cannot_be_read(data: object, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        read_data(data, "train", [])


def test_labels_become_places() -> None:
    (a, b), said = as_classes([np.array(["dog", "cat"]), np.array(["eel", "cat"])], None)
    assert a.tolist() == [1, 0]
    assert b.tolist() == [2, 0]
    assert "0 = cat, 1 = dog, 2 = eel" in said
    (rows,), said = as_classes([torch.eye(3)[[2, 0]]], None)
    assert rows.tolist() == [2, 0]
    (column,), _ = as_classes([torch.tensor([[1.5], [2.5]])], None)
    assert column.tolist() == [1.5, 2.5]


# What answers are


@pytest.mark.parametrize(
    ("answers", "target", "output", "reads", "flat"),
    [
        (torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([1]), sm.Classes, "as they are", False),
        (torch.tensor([[0.2, 0.5, 0.3]]), torch.tensor([1]), sm.Classes, "probabilities", False),
        (torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([1]), sm.Classes, "labels", False),
        (torch.tensor([[2.0], [-1.0]]), torch.tensor([1, 0]), sm.Classes, "as they are", True),
        (torch.tensor([0.9, 0.1]), torch.tensor([1.0, 0.0]), sm.Classes, "chance", False),
        (torch.tensor([[3.1], [0.2]]), torch.tensor([2.9, 0.1]), sm.Values, "as they are", True),
        (torch.tensor([[3.1, 1.0]]), torch.tensor([[2.9, 0.1]]), sm.Values, "as they are", False),
        (torch.zeros(2, 5, 7), torch.zeros(2, 5, dtype=torch.long), sm.NextToken, "as they are", False),
    ],
    ids="logits probabilities labels logit chance value values symbols".split(),
)
def test_kinds_of_answers(answers: Tensor, target: Tensor, output: type, reads: str, flat: bool) -> None:
    kind = kind_of(answers, target, [])
    assert (type(kind.output), kind.reads, kind.flat) == (output, reads, flat)


@pytest.mark.parametrize(
    ("answers", "target", "sentence"),
    [
        (torch.tensor([[torch.nan, 1.0]]), torch.tensor([0]), "NaN or infinite"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]), "expected logits"),
        (torch.tensor([1.0, 2.0]), torch.tensor([0, 3]), "one number cannot tell"),
        (torch.randn(2, 3), torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]), "several classes at once"),
        (torch.randn(2, 3), torch.tensor([0.5, 0.1]), "meet targets"),
    ],
    ids="nan maps binary multilabel mismatch".split(),
)
def test_answers_of_no_kind(answers: Tensor, target: Tensor, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        kind_of(answers, target, [])


def test_probabilities_become_logits_of_the_same_distribution() -> None:
    shares = net()(X).softmax(-1)
    assert torch.allclose(read(shares, "probabilities").softmax(-1), shares, atol=1e-6)
    chance = net(1)(X)[:, 0].sigmoid()
    assert torch.allclose(read(chance, "chance"), torch.logit(chance), atol=1e-4)
    sure = read(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), "probabilities")
    assert sure.isfinite().all()
    assert read(torch.eye(3), "labels").argmax(1).tolist() == [0, 1, 2]


def test_who_only_answers_is_not_told_to_give_a_module() -> None:
    found: list[Any] = []
    kind_of(torch.tensor([[0.2, 0.5, 0.3]]), torch.tensor([1]), found, blind=True)
    assert (found[0].verdict, found[0].remedy) == ("PASS", "")


def test_a_criterion_of_torch_gives_a_loss_for_each() -> None:
    batch = sm.Batch(X, torch.tensor([0, 1, 2, 0, 1, 2]))
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    losses = per_example(criterion)(net(), batch)
    assert losses.shape == (6,)
    assert torch.allclose(losses.mean(), criterion(net()(X), batch.target))
    assert criterion.reduction == "mean"
    with pytest.raises(UsageError, match="a loss is a function"):
        per_example("hinge")


# How a module is asked


class Named(nn.Module):
    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"loss": ids.sum(), "logits": (ids * mask).float()}


class Placed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, one: Tensor, two: Tensor) -> tuple[Tensor, str]:
        return self.inner(one + two), "and more"


def test_modules_are_called_by_name_by_place_or_with_the_tree() -> None:
    tree = {"ids": torch.ones(2, 3), "mask": torch.zeros(2, 3)}
    assert call_of(Named(), tree, False) == "names"
    assert call_of(net(), tree, False) == "one"
    assert call_of(Placed(), (X, X), False) == "places"
    assert Manner(call="names").wrap(Named())(tree).shape == (2, 3)
    assert torch.equal(Manner(call="places").wrap(Placed())((X, X)), Placed().inner(2 * X))


def test_a_wrapped_module_is_the_same_module() -> None:
    module = net().train()
    module[0].eval()
    wrapped = Manner(scale=Scale(torch.tensor(2.0), torch.tensor(-1.0))).wrap(module)
    assert [part.training for part in module.modules()] == [True, False, True, True]
    assert torch.allclose(wrapped(X), module(2 * X - 1))
    assert wrapped(X[:0]).shape == (0, 3)
    assert wrapped.inner is module


# What may be changed


@pytest.mark.parametrize(
    ("values", "box"),
    [
        (torch.rand(20, 3, 8, 8), (0, 1)),
        (torch.rand(20, 3, 8, 8) * 2 - 1, (-1, 1)),
        (torch.rand(20, 3, 8, 8) * 255, (0, 255)),
        (torch.linspace(-2.1, 2.6, 48).reshape(1, 3, 4, 4), (-2.1, 2.6)),
    ],
    ids="unit signed bytes normalised".split(),
)
def test_the_box_is_seen(values: Tensor, box: tuple[float, float]) -> None:
    found: list[Any] = []
    (surface,) = boxed((), values, None, found).surfaces
    assert isinstance(surface, Box)
    assert (surface.low, surface.high) == pytest.approx(box)
    assert found[0].verdict == "WARN"
    assert any("normalised outside" in finding.evidence for finding in found) == (box == (-2.1, 2.6))


def test_inputs_outside_a_given_box_are_refused() -> None:
    with pytest.raises(UsageError, match=r"outside the declared Box\(0.0, 0.5\)"):
        boxed((), torch.rand(5, 3, 4, 4), (0, 0.5), [])
    with pytest.raises(UsageError, match=r"columns \[1\] hold values outside"):
        boxed((), torch.tensor([[0.0, 5.0], [1.0, 6.0]]), ([0, 0], [1, 5.5]), [])
    with pytest.raises(UsageError, match="box has 3 numbers for 2 columns"):
        boxed((), torch.rand(5, 2), ([0, 0, 0], [1, 1, 1]), [])
    with pytest.raises(UsageError, match="NaN or infinite"):
        boxed((), torch.full((5, 3, 4, 4), torch.nan), None, [])


def test_columns_are_scaled_by_their_own_range() -> None:
    rows = torch.tensor([[10.0, 0.0, 7.0], [30.0, 1.0, 7.0], [20.0, 1.0, 7.0]])
    found: list[Any] = []
    change = boxed((), rows, None, found)
    scaled = change.of(rows)
    assert torch.equal(scaled, torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.5, 1.0, 0.0]]))
    assert change.scale is not None
    assert torch.allclose(scaled * change.scale.factor + change.scale.shift, rows)
    assert change.public == ("the range of each column, read off the data",)
    assert "1 do not vary" in found[0].evidence
    assert "columns 1 hold 0 and 1" in found[1].evidence


def test_normalisation_goes_into_the_module_whichever_way_the_data_come() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    raw = torch.rand(10, 3, 4, 4)
    by = [torch.tensor(part)[:, None, None] for part in (mean, std)]
    done = (raw - by[0]) / by[1]
    for values in (raw, done):
        change = normalised((), values, None, (mean, std), [])
        assert change.scale is not None
        assert torch.allclose(change.of(values), raw, atol=1e-6)
        assert torch.allclose(change.of(values) * change.scale.factor + change.scale.shift, done, atol=1e-5)
    with pytest.raises(UsageError, match="neither fits the box"):
        normalised((), done * 3, None, (mean, std), [])


class Reader(nn.Module):
    """Looks up words and, in a larger table, places."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 4), nn.Embedding(50, 4)

    def forward(self, ids: Tensor, mask: Tensor, kinds: Tensor, places: Tensor) -> Tensor:
        return ((self.words(ids) + self.places(places)) * mask[..., None]).sum(1)


def test_tokens_and_their_table_are_found() -> None:
    ids = torch.tensor([[1, 5, 6, 2, 0], [1, 7, 2, 0, 0], [1, 9, 8, 7, 2]])
    places = torch.arange(5).expand_as(ids)
    tree = {"places": places, "kinds": torch.zeros_like(ids), "ids": ids, "mask": (ids > 0).long()}
    slots = {(name,): leaf for name, leaf in tree.items()}
    (surface,) = worded(Reader(), tree, "names", slots, []).surfaces
    assert surface == Tokens(20, "words", (0, 1, 2), ("ids",))


def test_tokens_of_a_model_that_only_answers_are_whole_numbers() -> None:
    ids = torch.tensor([[1, 5, 6, 2, 0], [1, 7, 2, 0, 0], [1, 9, 8, 7, 2]])
    slots = {("ids",): ids, ("mask",): (ids > 0).long()}
    found: list[Any] = []
    only = Function(lambda inputs: inputs["ids"])
    (surface,) = worded(only, {"ids": ids, "mask": slots[("mask",)]}, "one", slots, found).surfaces
    assert surface == Tokens(10, "", (0, 1, 2), ("ids",))
    assert found[0].verdict == "WARN"
    negative = worded(only, {"ids": -ids}, "one", {("ids",): -ids}, found)
    assert not negative.surfaces, "whole numbers below 0 are no tokens"
