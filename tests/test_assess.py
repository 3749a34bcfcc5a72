"""A report card in one call: for whatever model, as it is, with every guess said; and broken models are caught."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import secure_ml as sm
from attacks import (
    PGD,
    EvasionChecks,
    Knockoff,
    LiRA,
    LossThreshold,
    TokenSwap,
)
from attacks.suite import ReportCard
from defenses import DPSGD, LabelOnly
from secure_ml.assess import assess
from secure_ml.errors import UsageError
from secure_ml.randomness import generator
from secure_ml.rows import TIMES
from secure_ml.victim import Plain, Victim

Pair = tuple[Tensor, Tensor]


def points(n: int, seed: int) -> Pair:
    """Two classes that the first of four numbers in [0, 1] tells apart."""
    x = torch.rand(n, 4, generator=generator(seed, "points"))
    return x, (x[:, 0] > 0.5).long()


def simple() -> nn.Module:
    """A module that is right about nearly all of them, without training."""
    module = nn.Sequential(nn.Linear(4, 2))
    with torch.no_grad():
        module[0].weight.zero_()
        module[0].weight[1, 0] = 20.0
        module[0].weight[1, 1] = 2.0
        module[0].bias.copy_(torch.tensor([0.0, -11.0]))
    return module


TRAIN, TEST = points(60, 0), points(120, 1)
QUICK = (PGD(steps=3), LossThreshold(), Knockoff(queries=30, net="dense", epochs=5))


def quick(model: Any, train: Any = TRAIN, test: Any = TEST, **settings: Any) -> sm.Assessment:
    return assess(model, train, test, **{"attacks": QUICK, "defenses": (), **settings})


def finding(card: sm.Assessment, check: str) -> Any:
    (found,) = [line for line in card.findings if line.check == check]
    return found


def value(card: sm.Assessment, measure: str) -> Any:
    (row,) = [row for row in card.card if row.measure == measure]
    return row.value


# The card is right


def test_the_numbers_are_those_of_the_parts() -> None:
    """The same task put together by hand gives the same rows."""
    module, rng = simple(), torch.randperm(120, generator=generator(0, "pool"))
    card = quick(module, box=(0, 1), threat=sm.Linf(0.1))
    both = sm.Batch(*TEST)
    splits = sm.Splits(sm.Batch(*TRAIN), both.take(rng[:0]), both.take(rng[60:]), both.take(rng[:60]))
    task = sm.Task(name="model", build=simple, data=lambda _: splits, threat=sm.Linf(0.1), recipe=card.task.recipe)
    victim = Victim(task=task, module=module, served=Plain(module, 1000), splits=splits)
    known = {(row.attack, row.measure): row.value for row in sm.evaluate(victim, QUICK)}
    mine = {(row.attack, row.measure): row.value for row in card.rows if row.unit not in TIMES}
    shared = known.keys() & mine.keys()
    assert len(shared) > 8
    assert {key: mine[key] for key in shared} == {key: known[key] for key in shared}
    assert value(card, "accuracy on members") == pytest.approx(
        (module(TRAIN[0]).argmax(1) == TRAIN[1]).double().mean().item()
    )


def test_the_same_card_twice() -> None:
    cards = (quick(simple()).rows for _ in range(2))
    first, second = (
        [replace(row, seconds=0.0) for row in rows if row.attack != "assumptions" and row.unit not in TIMES]
        for rows in cards
    )
    assert first == second


def test_nothing_is_touched() -> None:
    module = nn.Sequential(simple(), nn.Dropout(0.5), nn.BatchNorm1d(2))
    module[2].eval()
    module[0][0].weight.grad = torch.ones(2, 4)
    module[0][0].bias.requires_grad_(False)
    calls: list[int] = []
    module[0].register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    before = {name: part.clone() for name, part in module.state_dict().items()}
    quick(module, attacks=(*QUICK, EvasionChecks(points=10)))
    drawn = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    assert drawn == (torch.rand(1), random.random(), np.random.rand())
    assert [part.training for part in module] == [True, True, False]
    assert torch.equal(module[0][0].weight.grad, torch.ones(2, 4))
    assert not module[0][0].bias.requires_grad
    assert len(module[0]._forward_hooks) == 1
    assert calls
    assert all(torch.equal(part, before[name]) for name, part in module.state_dict().items())


def test_training_mode_with_dropout_is_asked_in_evaluation_mode() -> None:
    module = nn.Sequential(simple(), nn.Dropout(0.9)).train()
    card = quick(module, attacks=(LossThreshold(), EvasionChecks(points=10)))
    assert "training mode" in finding(card, "mode").evidence
    assert value(card, "accuracy") == quick(simple(), attacks=()).card[-1].value or value(card, "accuracy") > 0.9
    assert value(card, "determinism") == 0


def test_normalised_data_and_raw_data_give_one_card() -> None:
    mean, std = (0.2, 0.5, 0.6), (0.2, 0.25, 0.3)
    by = [torch.tensor(part)[:, None, None] for part in (mean, std)]
    x, y = torch.rand(80, 3, 4, 4, generator=generator(0, "images")), torch.arange(80) % 2
    x[y == 1, 0] *= 0.3
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 2, bias=False))
    with torch.no_grad():
        module[1].weight.zero_()
        module[1].weight[0, :16], module[1].weight[1, :16] = 1.0, -1.0
    data = {"raw": x, "normalised": (x - by[0]) / by[1]}
    cards = {name: quick(module, (v[:40], y[:40]), (v[40:], y[40:]), normalize=(mean, std)) for name, v in data.items()}
    raw, done = ({row.measure: row.value for row in card.card if row.unit != "verdict"} for card in cards.values())
    assert raw.keys() == done.keys()
    for name in raw:
        assert raw[name] == pytest.approx(done[name], abs=0.06), name
    assert "raw, and are normalised" in finding(cards["raw"], "normalisation").evidence
    assert "turned back" in finding(cards["normalised"], "normalisation").evidence
    assert isinstance(cards["raw"].task.threat, sm.Linf)
    assert cards["raw"].task.threat.radius == pytest.approx(8 / 255, rel=1e-3)


# Other models can be trained, or not


def test_without_build_a_row_says_what_to_give() -> None:
    card = quick(simple(), attacks=(LiRA(shadows=2), Knockoff(queries=20)), defenses=None)
    assert card.missing == (
        "LiRA(shadows=2) (none): this trains models of the same kind: give build= and recipe=",
        "Knockoff(queries=20) (none): this trains models of the same kind: give build= and recipe=",
    )
    full = quick(simple(), attacks=(), defenses=("dp_sgd",))
    assert full.missing == ("accuracy (DPSGD()): this trains models of the same kind: give build= and recipe=",)


def test_with_build_and_recipe_there_are_shadows_and_defenses() -> None:
    recipe = sm.Recipe(epochs=2, batch_size=20)
    attacks = (LiRA(shadows=2), Knockoff(queries=20))
    private = DPSGD(epsilon=8.0)
    card = quick(simple(), build=simple, recipe=recipe, attacks=attacks, defenses=(private, "label_only"))
    assert not card.missing
    assert {row.defenses for row in card.card} == {"none", "DPSGD(epsilon=8.0)", "LabelOnly()"}
    assert [row for row in card.rows if row.attack == "LiRA(shadows=2)" and row.defenses == repr(LabelOnly())]
    with pytest.raises(UsageError, match="did you mean dp_sgd"):
        quick(simple(), defenses=("dp_sdg",))


class Mixing(nn.Module):
    """Answers about each example by way of all of a batch, which DP-SGD refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = simple()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 1e-3 * self.inner(x).mean(0)


def test_a_stack_that_refuses_is_a_row() -> None:
    recipe = sm.Recipe(epochs=1, batch_size=20)
    card = quick(Mixing(), build=Mixing, recipe=recipe, attacks=(), defenses=("dp_sgd", "label_only"))
    (refused,) = card.missing
    assert refused.startswith("accuracy (DPSGD()): model(): the gradient of an example")
    assert not card.failed
    assert next(row.value for row in card.card if (row.measure, row.defenses) == ("accuracy", "LabelOnly()"))


def test_a_task_is_trained_first() -> None:
    task = sm.task("digits_cnn", tiny=True)
    card = assess(task, attacks=(PGD(steps=2),), defenses=(), seeds=2, seed=3)
    assert {row.seeds for row in card.card if row.measure == "accuracy"} == {(3, 4)}
    with pytest.raises(UsageError, match="brings its own data"):
        assess(task, TRAIN, TEST)
    with pytest.raises(UsageError, match="seeds are for a Task"):
        quick(simple(), seeds=2)


# Broken ones


def test_nan_is_refused() -> None:
    module = simple()
    with torch.no_grad():
        module[0].bias.fill_(torch.nan)
    with pytest.raises(UsageError, match="NaN or infinite"):
        quick(module)


def test_shuffled_labels_are_seen() -> None:
    x, y = TEST
    assert finding(quick(simple()), "labels").verdict == "PASS"
    other = finding(quick(simple(), test=(x, y.roll(7))), "labels")
    assert other.verdict == "FAIL"
    assert "shuffled labels" in other.remedy


def test_a_wrong_box_is_refused() -> None:
    with pytest.raises(UsageError, match="outside the declared Box"):
        quick(simple(), box=(0, 0.5))


def test_few_examples_are_said_and_fewer_refused() -> None:
    few = points(20, 2)
    assert "20 examples: a share has an interval of" in finding(quick(simple(), test=few), "test examples").evidence
    with pytest.raises(UsageError, match="test has 3 examples"):
        quick(simple(), test=points(3, 2))
    with pytest.raises(UsageError, match="give test="):
        assess(simple(), TRAIN)


class Masked(nn.Module):
    """Right, and without a gradient: its inputs are cut to sixteen levels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = simple()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x * 16).round().detach() / 16 + 0 * x)


def test_masked_gradients_make_the_checks_fire() -> None:
    card = quick(Masked(), attacks=(PGD(steps=3), EvasionChecks(points=30)))
    assert value(card, "zero gradients") == 3
    honest = quick(simple(), attacks=(EvasionChecks(points=30),), box=(0, 1), threat=sm.Linf(0.1))
    assert value(honest, "zero gradients") == 0
    assert value(honest, "pointwise worst case") == 0


class Bare(nn.Module):
    """Without a parameter, and with two inputs of which one is no number."""

    def forward(self, x: Tensor, left: Tensor) -> Tensor:
        return torch.stack([0.5 - x[:, 0], x[:, 0] - 0.5], 1) * torch.where(left, 1.0, 2.0)[:, None]


def test_a_module_without_parameters_and_with_several_inputs() -> None:
    side = torch.arange(120) % 2 == 0
    train, test = (TensorDataset(x, side[: len(x)], y) for x, y in (TRAIN, TEST))
    card = quick(Bare(), train, test, attacks=QUICK[:2])
    assert value(card, "accuracy") == 1.0
    assert "0 is what attacks change; 1 stay" in finding(card, "inputs").evidence
    assert card.task.surfaces == (sm.Box(0.0, 1.0, (0,)),)
    assert not card.missing


def test_members_among_the_others_are_counted_out() -> None:
    x, y = (torch.cat(parts) for parts in zip(points(40, 3), TRAIN, strict=True))
    card = quick(simple(), test=(x, y), aux=points(30, 4))
    assert "60 of 100 test examples are training examples" in finding(card, "members").evidence
    everything = quick(simple(), test=TRAIN, aux=points(30, 4))
    assert any("no members and non-members" in line for line in everything.missing)
    assert everything.failed


def test_without_the_training_set_there_is_no_membership() -> None:
    card = assess(simple(), None, TEST, suite=ReportCard(examples=20), minutes=0.01, defenses=())
    assert finding(card, "members").verdict == "WARN"
    assert "accuracy on members" not in {row.measure for row in card.card}
    assert not [row for row in card.rows if "embership" in row.measure]


def test_one_attack_that_goes_wrong_does_not_end_the_others() -> None:
    class Tired(nn.Module):
        """Fails for anything that is not in the data."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = simple()

        def forward(self, x: Tensor) -> Tensor:
            if (x < 0.001).any() and x.requires_grad:
                raise RuntimeError("not today\nnor tomorrow")
            return self.inner(x)

    test = (TEST[0].clamp(min=0.01), TEST[1])
    card = quick(Tired(), (TRAIN[0].clamp(min=0.01), TRAIN[1]), test, box=(0, 1), threat=sm.Linf(0.5))
    assert card.failed
    assert "PGD(steps=3) (none): failed: RuntimeError: not today" in card.missing
    assert value(card, "membership AUC") is not None


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"minutes": 0}, "more than 0 minutes"),
        ({"model": 3}, "a model is an nn.Module"),
        ({"train": (TRAIN[0][:, :3], TRAIN[1])}, r"inputs of train have shapes \[\(3,\)\]"),
        ({"test": (TEST[0], TEST[1][:5])}, "120\\] examples and 5 targets"),
        ({"test": (TEST[0], TEST[1] + 1)}, "targets lie in"),
        ({"box": (0, 1), "surfaces": (sm.Box(),)}, "either surfaces, or box"),
        ({"surfaces": (sm.Box(),)}, "give threat= with surfaces="),
        ({"model": nn.Linear(3, 2)}, r"cannot be asked about the inputs of test, \(120, 4\)"),
        ({"model": nn.Linear(4, 2).double()}, "cannot be asked about the inputs of test"),
        ({"output": sm.Ranking()}, "needs score= and loss="),
    ],
    ids="minutes model shapes lengths classes surfaces threat width precision output".split(),
)
def test_requests_that_make_no_sense(settings: dict[str, Any], sentence: str) -> None:
    given = {"model": simple(), "train": TRAIN, "test": TEST, "attacks": QUICK, **settings}
    with pytest.raises(UsageError, match=sentence):
        assess(**given)


# Three people


def test_a_torchvision_net_with_its_own_normalisation() -> None:
    from torchvision.models import resnet18
    from torchvision.transforms import Normalize

    by = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = resnet18(num_classes=3)
    x = torch.rand(48, 3, 16, 16, generator=generator(0, "images"))
    x[::2, 0] *= 0.2
    with torch.no_grad():
        labels = module.eval()(Normalize(*by)(x)).argmax(1)  # it is always right
    module.train()
    data = TensorDataset(Normalize(*by)(x), labels)
    train, test = (torch.utils.data.Subset(data, range(*span)) for span in ((0, 16), (16, 48)))
    attacks = (PGD(steps=2), LossThreshold(), Knockoff(queries=16, net="convolutional", epochs=1))
    card = assess(module, train, test, normalize=by, attacks=attacks, defenses=(), name="resnet18")
    assert value(card, "accuracy") == 1.0
    assert value(card, "accuracy under Linf(0.03137)") < 1.0
    assert "turned back into raw ones" in finding(card, "normalisation").evidence
    assert module.training
    assert not card.missing


def test_a_text_classifier_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=64, num_labels=2, initializer_range=1.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = transformers.BertForSequenceClassification(config).eval()
    rng = generator(0, "texts")
    ids = torch.randint(5, 40, (60, 8), generator=rng)
    ids[:, 0], lengths = 1, torch.randint(4, 9, (60,), generator=rng)
    mask = (torch.arange(8) < lengths[:, None]).long()
    ids = (ids * mask).scatter(1, lengths[:, None] - 1, 2)
    with torch.no_grad():
        labels = module(input_ids=ids, attention_mask=mask).logits.argmax(1)
    labels[:6] = 1 - labels[:6]
    texts = [
        {"input_ids": i.tolist(), "attention_mask": m.tolist(), "labels": int(y)}
        for i, m, y in zip(ids, mask, labels, strict=True)
    ]
    attacks = (TokenSwap.tiny(), LossThreshold(), PGD())
    card = assess(module, texts[:20], texts[20:], attacks=attacks, defenses=(), name="bert")
    (surface,) = card.task.surfaces
    assert surface == sm.Tokens(40, "bert.embeddings.word_embeddings", (0, 1, 2), ("input_ids",))
    assert value(card, "accuracy under Edits(2)") < value(card, "accuracy") == 1.0
    assert card.missing == ("PGD() (none): PGD changes Box inputs; bert has Tokens",)
