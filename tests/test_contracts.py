"""Scores, outputs and threats beyond images, against references."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, ndcg_score, r2_score, roc_auc_score

import secure_ml as sm
from attacks import PGD
from secure_ml.access import WhiteBox
from secure_ml.batch import Batch
from secure_ml.scores import GroupAccuracy, rank
from tests import evasion_laws

RNG = np.random.default_rng(0)


def rand(*shape: int) -> torch.Tensor:
    return torch.tensor(RNG.normal(size=shape), dtype=torch.float32)


def test_auc_is_sklearns() -> None:
    logits, target = rand(200).round(decimals=1), torch.tensor(RNG.integers(0, 2, 200))
    value = sm.AUC().aggregate(sm.AUC().per_example(logits, target))
    assert value.value == pytest.approx(roc_auc_score(target, logits), abs=1e-6)
    assert value.low < value.value < value.high
    two = torch.stack([torch.zeros(200), logits], 1)
    assert sm.AUC().aggregate(sm.AUC().per_example(two, target)).value == pytest.approx(value.value)


def test_auc_of_one_class_has_no_number() -> None:
    values = sm.AUC().per_example(rand(5), torch.ones(5, dtype=torch.long))
    assert np.isnan(sm.AUC().aggregate(values).value)


@pytest.mark.parametrize("classes", [2, 4])
def test_f1_is_sklearns(classes: int) -> None:
    logits, target = rand(100, classes), torch.tensor(RNG.integers(0, classes, 100))
    average = "binary" if classes == 2 else "macro"
    value = sm.F1().aggregate(sm.F1().per_example(logits, target)).value
    assert value == pytest.approx(f1_score(target, logits.argmax(1), average=average))


def test_r2_is_sklearns() -> None:
    guesses, target = rand(50), rand(50)
    assert sm.R2().aggregate(sm.R2().per_example(guesses, target)).value == pytest.approx(r2_score(target, guesses))


def test_ndcg_is_sklearns_and_hits_are_counted() -> None:
    scores, target = rand(40, 30), torch.tensor(RNG.integers(0, 30, 40))
    truth = torch.nn.functional.one_hot(target, 30).numpy()
    assert sm.NDCG().aggregate(sm.NDCG().per_example(scores, target)).value == pytest.approx(
        ndcg_score(truth, scores.numpy(), k=10), abs=1e-6
    )
    hits = [int(int(t) in row.argsort(descending=True)[:10].tolist()) for row, t in zip(scores, target, strict=True)]
    assert sm.HitRate().aggregate(sm.HitRate().per_example(scores, target)).value == np.mean(hits)
    assert rank(torch.zeros(1, 30), torch.tensor([3])).item() == 29, "a constant must not score"


def test_group_accuracy_is_that_of_the_worse_group() -> None:
    inputs = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    target = torch.tensor([1, 1, 1, 1])
    score = GroupAccuracy(0, "side")
    logits = torch.tensor([1.0, 1.0, 1.0, -1.0])
    assert score.measure(lambda _: logits, Batch(inputs, target)).value == 0.5


def test_nats_of_a_uniform_guess() -> None:
    assert sm.Nats().per_example(torch.zeros(3, 5, 7), torch.zeros(3, 5, dtype=torch.long)) == pytest.approx(np.log(7))
    with pytest.raises(sm.UsageError, match="expected"):
        sm.Nats().per_example(torch.zeros(3, 5, 7), torch.zeros(3, 4, dtype=torch.long))


def test_the_worse_of_two_keeps_what_belongs_together() -> None:
    first, second = torch.tensor([[0.2, 7.0], [0.9, 7.0]]), torch.tensor([[0.5, 7.0], [0.1, 7.0]])
    assert torch.equal(sm.AUC().worse(first, second), torch.tensor([[0.2, 7.0], [0.1, 7.0]]))
    assert torch.equal(sm.RMSE().worse(first[:, 0], second[:, 0]), torch.tensor([0.5, 0.9]))


@pytest.mark.parametrize(("kind", "shape"), [(sm.NextToken(), (6, 4, 9)), (sm.Ranking(), (6, 40))])
def test_labels_keep_the_decision_and_nothing_else(kind: sm.NextToken, shape: tuple[int, ...]) -> None:
    outputs = rand(*shape)
    label = kind.reveal(outputs, "label")
    assert kind.fidelity(label, outputs).value == 1.0
    assert kind.fidelity(rand(*shape), outputs).value < 1.0
    assert len(label[0].round(decimals=4).unique()) <= 11 or label.ndim == 3
    assert kind.imitate(outputs, label).shape == (6,)
    kind.check(label, 6)
    with pytest.raises(sm.UsageError):
        kind.check(outputs, 5)


def test_ranking_label_keeps_the_order_of_the_ten() -> None:
    outputs = rand(3, 40)
    label = sm.Ranking().reveal(outputs, "label")
    assert torch.equal(label.topk(10).indices, outputs.topk(10).indices)


# -- threats ----------------------------------------------------------------------------------------------------------

TABLE = sm.Table(frozen=(0, 8, 9), steps=((1, 0.1),), groups=((3, 4, 5), (6, 7), (8, 9)))


def rows(n: int) -> torch.Tensor:
    """Three numbers (the second on a grid) and three one-hot groups, the last of them frozen."""
    numbers = torch.tensor(RNG.random((n, 3)), dtype=torch.float32)
    numbers[:, 1] = (numbers[:, 1] * 10).round() / 10
    codes = [torch.eye(k)[torch.tensor(RNG.integers(0, k, n))].reshape(n, k) for k in (3, 2, 2)]
    return torch.cat([numbers, *codes], 1)


@pytest.mark.parametrize("threat", [sm.Features(0.25, 1), sm.Features(0.25, 0), sm.Features(0.0, 0), sm.Linf(0.25)])
@pytest.mark.parametrize("n", [0, 1, 50])
def test_tables_project(threat: sm.Features, n: int) -> None:
    clean = rows(n)
    TABLE.check(clean)
    evasion_laws.law_projects(threat, TABLE, clean)


def test_a_table_keeps_its_rules() -> None:
    clean = rows(200)
    wild = clean + 3 * rand(200, 10)
    changed = sm.Features(0.25, 1).project(TABLE, clean, wild)
    assert torch.equal(changed[:, [0, 8, 9]], clean[:, [0, 8, 9]]), "frozen columns moved"
    flipped = sum((changed[:, list(g)] != clean[:, list(g)]).any(1).long() for g in TABLE.groups)
    assert int(flipped.max()) == 1, "one category may be replaced, and somewhere one is"
    assert (changed[:, 1] - clean[:, 1]).abs().max() <= 0.2 + 1e-6, "0.25 on a grid of 0.1 is 0.2"
    with pytest.raises(sm.UsageError, match="no one-hot code"):
        TABLE.check(torch.full((1, 10), 0.5))
    off = clean[:1].clone()
    off[:, 1] += 0.05
    with pytest.raises(sm.UsageError, match="no whole multiples"):
        TABLE.check(off)


def linear(weight: torch.Tensor) -> tuple[sm.Task, torch.nn.Module]:
    """A model of rows with one logit, whose worst change is known exactly."""
    module = torch.nn.Sequential(torch.nn.Linear(len(weight), 1), torch.nn.Flatten(0))
    with torch.no_grad():
        module[0].weight.copy_(weight[None])
        module[0].bias.zero_()
    batch = Batch(rows(20), torch.ones(20, dtype=torch.long))
    task = sm.Task(
        name="rows",
        build=lambda: module,
        data=lambda _: sm.Splits(batch, batch, batch, batch),
        surfaces=(TABLE,),
        threat=sm.Features(0.25, 1),
        score=sm.AUC(),
    )
    return task, module.eval()


def test_pgd_finds_the_best_change_of_a_linear_table() -> None:
    """Numbers go down their weights as far as the grid allows, and the one flip that costs most is made."""
    weight = torch.tensor([5.0, 1.0, -1.0, 2.0, 0.0, 1.0, 0.0, 3.0, 9.0, 0.0]) / 4
    task, module = linear(weight)
    clean = task.draw(0).test
    changed = sm.families.evasion.attack_batch(
        PGD(steps=20), WhiteBox(task, module), clean, task.threat, torch.Generator().manual_seed(0)
    )
    best = []
    for row in clean.inputs:
        drop = [0.2 if row[1] >= 0.2 - 1e-6 else float(row[1]), min(0.25, 1 - float(row[2]))]
        flips = [float(weight[list(g)][row[list(g)].bool()] - weight[list(g)].min()) for g in TABLE.groups[:2]]
        best.append(float(row @ weight) - sum(drop) / 4 - max(flips))
    reached = changed.inputs @ weight
    assert reached.numpy() == pytest.approx(np.array(best), abs=1e-4)


@pytest.mark.parametrize("decibels", [10.0, 30.0, float("inf")])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_noise_stays_below_its_ratio(decibels: float, n: int) -> None:
    evasion_laws.law_projects(sm.SNR(decibels), sm.Box(-1, 1), rand(n, 50).clamp(-1, 1) / 2)


def test_decibels() -> None:
    clean = rand(4, 1000) / 10
    noisy = clean + 0.1 * clean.flip(0) * (clean.norm(dim=1) / clean.flip(0).norm(dim=1))[:, None]
    assert sm.SNR(20).radius == pytest.approx(0.1)
    assert sm.SNR(0).size(clean, noisy).numpy() == pytest.approx(0.1, rel=1e-4)
    assert sm.SNR(20).within(0.01).decibels == pytest.approx(40)
    silent = torch.zeros(1, 10)
    assert torch.equal(sm.SNR(20).project(sm.Box(-1, 1), silent, silent + 1), silent), "silence hides no noise"


def test_joint_threats() -> None:
    joint = sm.Joint((sm.Linf(0.2), sm.Edits(3)))
    assert joint.scaled(0.5) == sm.Joint((sm.Linf(0.1), sm.Edits(2)))
    assert joint.within(0) == sm.Joint((sm.Linf(0.0), sm.Edits(0)))
    with pytest.raises(sm.UsageError, match="at least 2"):
        sm.Joint((sm.Linf(0.1),))
    assert eval(repr(joint), vars(sm)) == joint
    assert dataclasses.replace(joint) == joint
