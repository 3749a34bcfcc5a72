"""Rows of tables changed by asking: against exhaustive search, on trees, and where there is nothing to ask with."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn

import secure_ml as sm
from attacks import APGD, ColumnQueries
from secure_ml.access import BlackBox
from secure_ml.batch import Batch
from secure_ml.families.evasion import attack_batch
from secure_ml.outside.estimator import Estimator
from secure_ml.surfaces import Table

NUMBERS, GROUPS = 3, ((3, 4, 5), (6, 7, 8, 9))
RADIUS = 0.2


class Linear(nn.Module):
    """Rows ``(B, 10)`` to logits ``(B, 2)``, its weights drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(10, 2)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(2, 10, generator=torch.Generator().manual_seed(1)))

    def forward(self, rows: Tensor) -> Tensor:
        return self.layer(rows)


def rows_of(n: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    codes = [nn.functional.one_hot(torch.randint(len(g), (n,), generator=rng), len(g)).float() for g in GROUPS]
    return torch.cat([torch.rand(n, NUMBERS, generator=rng), *codes], 1)


def task_of(module: nn.Module, rows: Tensor, flips: int) -> tuple[sm.Task, Batch]:
    """A task on a table whose labels are the module's own answers."""
    with torch.no_grad():
        batch = Batch(rows, module(rows).argmax(1))
    task = sm.Task(
        name="table",
        build=Linear,
        data=lambda _: sm.Splits(*[batch] * 4),
        surfaces=(Table(0.0, 1.0, groups=GROUPS),),
        threat=sm.Features(RADIUS, flips=flips),
    )
    return task, batch


def highest(module: nn.Module, row: Tensor, label: int, flips: int) -> float:
    """The highest margin of all corners and categories that a threat allows, one by one."""
    best = -torch.inf
    for signs in product((-1, 1), repeat=NUMBERS):
        for codes in product(*(range(len(group)) for group in GROUPS)):
            other = row.clone()
            other[:NUMBERS] = (row[:NUMBERS] + RADIUS * torch.tensor(signs)).clamp(0, 1)
            changed = 0
            for group, code in zip(GROUPS, codes, strict=True):
                changed += int(row[list(group)].argmax()) != code
                other[list(group)] = nn.functional.one_hot(torch.tensor(code), len(group)).float()
            if changed <= flips:
                logits = module(other[None])[0]
                best = max(best, float(logits[1 - label] - logits[label]))
    return best


@pytest.mark.parametrize("flips", [0, 1, 2])
def test_a_linear_model_is_brought_to_the_optimum(flips: int) -> None:
    module = Linear().eval()
    task, batch = task_of(module, rows_of(24), flips)
    assert task.threat is not None

    def margins(queries: int) -> Tensor:
        access = BlackBox(task, module)
        rng = torch.Generator().manual_seed(0)
        found = attack_batch(ColumnQueries(queries=queries), access, batch, task.threat, rng).inputs
        assert (task.threat.size(batch.inputs, found) <= RADIUS + 1e-6).all()
        logits = module(found)
        own = logits.gather(1, batch.target[:, None])[:, 0]
        return logits.gather(1, 1 - batch.target[:, None])[:, 0] - own

    with torch.no_grad():
        found, few = margins(400), margins(1)
        best = torch.tensor(
            [highest(module, r, int(t), flips) for r, t in zip(batch.inputs, batch.target, strict=True)]
        )
    beaten = best > 0
    assert 0 < beaten.sum() < len(best), "an example that can be broken, and one that cannot"
    assert ((found > 0) == beaten).all()
    assert torch.allclose(found[~beaten], best[~beaten], atol=1e-4), "what stands is at its worst"
    assert not (few > 0).any(), "one query is the clean row's"


def test_trees_have_no_gradient_and_are_searched() -> None:
    from sklearn.ensemble import RandomForestClassifier

    rows = rows_of(400, seed=2)
    labels = (rows[:, 0] + rows[:, 3] + 0.5 * rows[:, 7] > 1.0).long()
    forest = Estimator(RandomForestClassifier(20, random_state=0).fit(rows.numpy(), labels.numpy()))
    task, _ = task_of(Linear(), rows, 1)
    held, target = rows[:60], labels[:60]
    batch = Batch(held, target)
    access = BlackBox(task, forest)
    assert task.threat is not None
    before = (forest(held).argmax(1) == target).float().mean()
    attack = ColumnQueries(queries=200)
    found = attack_batch(attack, access, batch, task.threat, torch.Generator().manual_seed(0)).inputs
    after = (forest(found).argmax(1) == target).float().mean()
    assert before > 0.95
    assert after < 0.2
    weak = ColumnQueries(queries=3)
    found = attack_batch(weak, access, batch, task.threat, torch.Generator().manual_seed(0)).inputs
    assert (forest(found).argmax(1) == target).float().mean() > after + 0.2, "the search is what finds them"


def test_asking_finds_what_the_gradient_finds_on_a_smooth_model() -> None:
    victim = sm.fit(sm.task("adult_mlp", tiny=True), seed=0, device="cpu")
    rows = sm.evaluate(victim, [ColumnQueries(queries=300), APGD(steps=20)])
    under = {
        row.attack.partition("(")[0]: row.value for row in rows if " under " in row.measure and row.value is not None
    }
    assert under["ColumnQueries"] <= under["APGD"] + 0.05


def test_settings_out_of_range() -> None:
    with pytest.raises(sm.UsageError, match="at least 1 query; given 0"):
        ColumnQueries(queries=0)
