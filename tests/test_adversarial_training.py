"""Training against an adversary: each method against its formula, its collapse made to happen, its state kept."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secure_ml as sm
from attacks.evasion.pgd import PGD
from defenses._collapse import Guard
from defenses.adversarial_training import AdversarialTraining
from defenses.dp_sgd import DPSGD
from defenses.fast_training import FastTraining
from defenses.free_training import FreeTraining
from defenses.mart import MART, mart_loss
from defenses.trades import TRADES
from defenses.weight_averaging import WeightAveraging
from defenses.weight_perturbation import WeightPerturbation
from secure_ml.access import WhiteBox
from secure_ml.adaptive import log_probabilities
from secure_ml.batch import Batch
from secure_ml.checkpoint import Checkpoint
from secure_ml.climb import climb, divergence
from secure_ml.randomness import generator
from secure_ml.training import Plan, Step, make_plan, train
from tests.laws import tiny_task

CPU = torch.device("cpu")


def planned(defenses: list[sm.Defense], name: str = "digits_mlp", epochs: int = 3, **recipe: object) -> Plan:
    task = tiny_task(name)
    return make_plan(replace(task, recipe=replace(task.recipe, epochs=epochs, **recipe)), defenses, 0, CPU)


def weights(plan: Plan) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in plan.module.parameters()]


# -- what is climbed, and what is minimised ------------------------


def test_divergence_is_kullback_leibler() -> None:
    rng = torch.Generator().manual_seed(0)
    p, q = torch.randn(5, 4, generator=rng), torch.randn(5, 4, generator=rng)
    expected = [
        sum(a * (a / b).log() for a, b in zip(x.softmax(0), y.softmax(0), strict=True))
        for x, y in zip(p, q, strict=True)
    ]
    assert torch.allclose(divergence(tiny_task("digits_mlp"), p, q), torch.stack(expected), atol=1e-6)


def test_divergence_of_one_logit_is_that_of_two() -> None:
    p, q = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])
    a, b = p.sigmoid(), q.sigmoid()
    expected = a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log()
    assert torch.allclose(divergence(tiny_task("logistic_regression"), p, q), expected, atol=1e-6)


def test_divergence_of_values_and_of_places() -> None:
    assert divergence(tiny_task("linear_regression"), torch.tensor([1.0]), torch.tensor([3.0])).tolist() == [4.0]
    p, q = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    task = tiny_task("digits_mlp")
    places = torch.stack([divergence(task, p[:, t], q[:, t]) for t in range(3)], 1)
    assert torch.allclose(divergence(task, p, q), places.mean(1), atol=1e-6)


def test_the_climb_is_pgd_written_by_hand() -> None:
    """Its last point, from its start, by signed steps clipped to ball and box."""
    task = tiny_task("digits_mlp")
    module, batch = task.build(), task.draw(0).train.take(slice(0, 6))
    clean, target = batch.inputs, batch.target
    assert isinstance(clean, Tensor)
    assert isinstance(target, Tensor)
    threat = sm.Linf(0.2)
    found = climb(WhiteBox(task, module), batch, threat, None, generator(1, "t"), steps=3, step_size=0.05)
    rng = generator(1, "t")
    point = threat.start(task.surfaces[0], clean, rng)
    for _ in range(3):
        leaf = point.clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(module(leaf), target), leaf)
        point = torch.clamp((point + 0.05 * slope.sign()).clamp(clean - 0.2, clean + 0.2), 0, 1)
    assert torch.allclose(found, point, atol=1e-6)


def test_trades_loss_is_the_naive_one() -> None:
    plan = planned([TRADES(beta=3.0, radius=0.2, steps=2)])
    batch = plan.loader.data.take(slice(0, 8))
    torch.manual_seed(0)
    seen = plan.transform(plan.module, batch)
    assert torch.equal(seen.inputs, batch.inputs)
    pairs = next(observer for observer in plan.observers if hasattr(observer, "twin"))
    attacked = pairs.twin(seen)
    assert 0.1 < (attacked - batch.inputs).abs().max() <= 0.2 + 1e-6
    p, q = plan.module(batch.inputs), plan.module(attacked)
    kl = F.kl_div(q.log_softmax(1), p.softmax(1), reduction="none").sum(1)
    expected = F.cross_entropy(p, batch.target, reduction="none") + 3.0 * kl
    assert torch.allclose(plan.loss(plan.module, seen), expected, atol=1e-6)
    grads = [
        torch.autograd.grad(v.sum(), list(plan.module.parameters())) for v in (plan.loss(plan.module, seen), expected)
    ]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads, strict=True))


def test_trades_climbs_the_divergence_and_not_the_loss() -> None:
    """Where the label is wrong, more loss and more change of the answer are different things."""
    plan = planned([TRADES(radius=0.3, steps=10)])
    train(plan)
    batch = plan.loader.data.take(slice(0, 40))
    pairs = next(observer for observer in plan.observers if hasattr(observer, "twin"))
    attacked = pairs.twin(plan.transform(plan.module, batch))
    random = batch.inputs + 0.3 * torch.randn(batch.inputs.shape, generator=generator(0, "r")).sign()
    with torch.no_grad():
        answers = plan.module(batch.inputs)
        moved = [
            divergence(plan.task, answers, plan.module(inputs)).mean() for inputs in (attacked, random.clamp(0, 1))
        ]
    assert moved[0] > moved[1]


def test_mart_loss_is_the_naive_one() -> None:
    rng = torch.Generator().manual_seed(0)
    clean, attacked = torch.randn(6, 4, generator=rng), torch.randn(6, 4, generator=rng)
    target = torch.tensor([0, 1, 2, 3, 0, 1])
    found = mart_loss(clean, attacked, target, 5.0)
    for i, y in enumerate(target.tolist()):
        p, q = clean[i].softmax(0), attacked[i].softmax(0)
        rest = max(float(q[k]) for k in range(4) if k != y)
        kl = float((p * (p / q).log()).sum())
        expected = -float(q[y].log()) - float(torch.tensor(1 - rest).log()) + 5.0 * kl * (1 - float(p[y]))
        assert float(found[i]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("defense", [TRADES(steps=5), MART(steps=5), FastTraining(guard=0), FreeTraining(replays=4)])
def test_they_buy_robustness(defense: sm.Defense) -> None:
    task = replace(sm.task("digits_cnn"), recipe=sm.Recipe(epochs=15, batch_size=64, learning_rate=0.1))
    bare, hard = (sm.fit(task, stack, seed=0, device="cpu") for stack in ([], [defense]))
    robust = [PGD(steps=10).evaluate(v, threat=None, seed=0, examples=300).rows[0].value for v in (bare, hard)]
    assert robust[1] > robust[0] + 0.1
    assert hard.score().value > 0.8


# -- collapse ------------------------


def collapsing(guard: int) -> tuple[Plan, list[str]]:
    """A single step so long that every change ends in a corner, in a radius too large for it."""
    task = sm.task("digits_cnn")
    task = replace(task, recipe=sm.Recipe(epochs=30, batch_size=32, optimizer="Adam", learning_rate=0.01))
    plan = make_plan(task, [FastTraining(radius=0.3, step=5.0, guard=guard)], 0, CPU)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(plan)
    return plan, [str(warning.message) for warning in caught]


def survivors(plan: Plan, steps: int) -> float:
    guard = next(observer for observer in plan.observers if isinstance(observer, Guard))
    return guard.right(plan.module, plan.splits.validation, steps)


@pytest.mark.slow
def test_a_collapse_is_noticed_and_undone() -> None:
    """A model that never sees many steps, at a length of step that is known to collapse; without guard it stays so."""
    plan, said = collapsing(guard=100)
    guard = next(observer for observer in plan.observers if isinstance(observer, Guard))
    assert len(guard.collapses) == 1
    assert len(said) == 1
    assert "survive one step" in said[0]
    assert guard.steps == 10
    unguarded, silence = collapsing(guard=0)
    assert not silence
    gap = survivors(unguarded, 1) - survivors(unguarded, 10)
    assert gap > 0.2, "nothing collapsed: this test shows nothing"
    assert survivors(plan, 1) - survivors(plan, 10) < gap
    assert survivors(plan, 10) > survivors(unguarded, 10)


def test_the_last_sound_weights_return_and_no_update_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned([FastTraining(guard=20)], epochs=2, optimizer="Adam", learning_rate=0.1)
    guard = next(observer for observer in plan.observers if isinstance(observer, Guard))
    looks: list[list[Tensor]] = []
    shares = iter([0.8, 0.8, 0.9, 0.1])

    def right(module: nn.Module, data: Batch, steps: int) -> float:
        looks.append(weights(plan))
        return next(shares)

    monkeypatch.setattr(guard, "right", right)
    with pytest.warns(UserWarning, match="90% of 20 training examples survive one step and 10% survive 10"):
        train(plan)
    assert guard.history == [(0, 0.8, 0.8), (1, 0.9, 0.1)]
    assert guard.collapses == [1]
    for ended, before, last in zip(weights(plan), looks[0], looks[-1], strict=True):
        assert torch.equal(ended, before)
        assert not torch.equal(ended, last)


@pytest.mark.parametrize(
    ("one", "many", "done", "best", "expected"),
    [
        (0.9, 0.1, 0.3, 0.6, True),
        (0.9, 0.1, 0.3, 0.1, False),
        (0.9, 0.1, 0.8, 0.1, True),
        (0.9, 0.8, 0.8, 0.95, False),
        (0.5, 0.35, 0.8, 0.5, False),
    ],
    ids=["fell", "learned little yet", "never", "sound", "worse but honest"],
)
def test_what_counts_as_a_collapse(one: float, many: float, done: float, best: float, expected: bool) -> None:
    guard = Guard("X", tiny_task("digits_mlp"), sm.Linf(0.1), 10, generator(0, "g"))
    guard.history = [(0, best, best), (1, one, many)]
    assert guard.collapsed(one, many, done) is expected


def test_one_step_is_fgsm_from_a_random_start() -> None:
    plan = planned([FastTraining(radius=0.1, guard=0)])
    batch = plan.loader.data.take(slice(0, 5))
    plan.rng.manual_seed(3)
    found = plan.transform(plan.module, batch).inputs
    threat = sm.Linf(0.1)
    leaf = threat.start(plan.task.surfaces[0], batch.inputs, torch.Generator().manual_seed(3)).requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(plan.module(leaf), batch.target), leaf)
    moved = leaf.detach() + 0.125 * slope.sign()
    assert torch.allclose(found, moved.clamp(batch.inputs - 0.1, batch.inputs + 0.1).clamp(0, 1), atol=1e-6)


def test_free_training_moves_inputs_by_the_update_s_own_gradient() -> None:
    """Three times the same images, each time moved by a radius along the sign of the gradient of the update before."""
    seen: list[Tensor] = []
    slopes: list[Tensor] = []

    def observe(step: Step) -> None:
        seen.append(step.batch.inputs.detach())
        fresh = step.batch.inputs.detach().clone().requires_grad_()
        slopes.append(torch.autograd.grad(F.cross_entropy(step.plan.module(fresh), step.batch.target), fresh)[0])

    plan = planned([FreeTraining(radius=0.1, replays=3, guard=0)], epochs=7, batch_size=50)
    assert plan.epochs == 3
    order = torch.randperm(len(plan.splits.train), generator=copy.deepcopy(plan.loader.sampler.sampler.rng))
    images = [plan.splits.train.take(part).inputs for part in order.split(50)]
    train(replace(plan, epochs=1, observers=(*plan.observers, observe)))
    change = torch.zeros_like(images[0])
    for step, found in enumerate(seen):
        clean = images[step // 3]
        here = change[: len(clean)]
        point = (clean + here).clamp(clean - 0.1, clean + 0.1).clamp(0, 1)
        assert torch.allclose(found, point, atol=1e-6)
        moved = (point + 0.1 * slopes[step].sign()).clamp(clean - 0.1, clean + 0.1).clamp(0, 1) - clean
        change = torch.cat([moved, change[len(clean) :]])


# -- weights ------------------------


@pytest.mark.parametrize(("decay", "start"), [(0.9, 0.0), (None, 0.5), (0.0, 0.0)], ids=["EMA", "SWA", "last"])
def test_the_average_is_that_of_a_loop(decay: float | None, start: float) -> None:
    path: list[list[Tensor]] = []

    def observe(step: Step) -> None:
        path.append([p.detach().clone() for p in step.plan.module.parameters()])

    task = tiny_task("digits_mlp")
    task = replace(task, recipe=replace(task.recipe, epochs=4))
    last = sm.fit(task, [], seed=0, device="cpu", observers=[observe])
    path.append([p.detach() for p in last.module.parameters()])
    kept = path[int(start * (len(path) - 1)) :]
    expected = kept[0]
    for n, now in enumerate(kept[1:], 2):
        share = 1 / n if decay is None else 1 - min(decay, n / (n + 9))
        expected = [(1 - share) * average + share * fresh for average, fresh in zip(expected, now, strict=True)]
    averaged = sm.fit(task, [WeightAveraging(decay=decay, start=start)], seed=0, device="cpu")
    for found, wanted in zip(averaged.module.parameters(), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)
    same = all(torch.equal(a, b) for a, b in zip(averaged.module.parameters(), last.module.parameters(), strict=True))
    assert same is (decay == 0.0)


def test_weights_are_perturbed_for_the_gradient_only() -> None:
    """The update is that of the gradient at ``w + gamma |w| g / |g|``, layer by layer, applied to ``w``."""
    plan = planned([WeightPerturbation(gamma=0.1)], epochs=1, learning_rate=0.1, momentum=0.0)
    batch = plan.loader.data.take(slice(0, 30))
    plan = replace(plan, loader=replace(plan.loader, sampler=[torch.arange(30)], steps=1))
    module = copy.deepcopy(plan.module)
    before = [p.detach().clone() for p in module.parameters()]
    slopes = torch.autograd.grad(plan.task.loss(module, batch).mean(), list(module.parameters()))
    with torch.no_grad():
        for p, slope in zip(module.parameters(), slopes, strict=True):
            if p.ndim > 1:
                p.add_(0.1 * p.norm() * slope / slope.norm())
    there = torch.autograd.grad(plan.task.loss(module, batch).mean(), list(module.parameters()))
    train(plan)
    for found, start, slope in zip(plan.module.parameters(), before, there, strict=True):
        assert torch.allclose(found, start - 0.1 * slope, atol=1e-6)


def test_perturbed_weights_raise_the_loss() -> None:
    plan = planned([WeightPerturbation(gamma=0.05)])
    batch = plan.loader.data.take(slice(0, 30))
    bare = plan.task.loss(plan.module, batch).mean()
    plan.transform(plan.module, batch)
    assert plan.task.loss(plan.module, batch).mean() > bare


# -- checkpoints, stacks, requests that make no sense ------------------------


class PowerCutError(Exception):
    """The power goes."""


STACKS = [
    [TRADES(steps=2, warmup=0.5), WeightAveraging(decay=0.9)],
    [MART(steps=2, warmup=0.5)],
    [FastTraining(guard=20), WeightPerturbation(gamma=0.01, start=0.3)],
    [FreeTraining(replays=2, guard=20)],
]


@pytest.mark.parametrize("stack", STACKS, ids=repr)
def test_a_killed_run_ends_at_the_same_weights(stack: list[sm.Defense], tmp_path: Path) -> None:
    def run(die: bool) -> Plan:
        plan = planned(stack, epochs=6)
        kept = Checkpoint(tmp_path / "kept", {"of": "this"}, every=0)

        def kill(step: Step) -> None:
            if die and step.epoch == 2:
                raise PowerCutError

        plan = replace(plan, observers=(*plan.observers, kill))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train(plan, kept)
        return plan

    with pytest.raises(PowerCutError):
        run(die=True)
    resumed = run(die=False)
    straight = run(die=False)
    assert all(map(torch.equal, weights(resumed), weights(straight)))
    averages = [
        [part.weights for part in plan.state.values() if hasattr(part, "decay")] for plan in (resumed, straight)
    ]
    for one, other in zip(*averages, strict=True):
        assert all(map(torch.equal, one, other))


@pytest.mark.parametrize(
    ("stack", "match"),
    [
        ([TRADES(steps=1), AdversarialTraining()], "list TRADES after it"),
        ([MART(steps=1), AdversarialTraining()], "list MART after it"),
        ([TRADES(steps=1), MART(steps=1)], "list MART first"),
        ([FreeTraining(guard=0), AdversarialTraining()], "list FreeTraining after it"),
        ([WeightPerturbation(), DPSGD(noise=1.0)], "does not go with DP-SGD"),
        ([DPSGD(noise=1.0), WeightPerturbation()], "does not go with DP-SGD"),
        ([FastTraining(), DPSGD(noise=1.0)], "reads training examples that no budget counts"),
        ([FreeTraining(guard=0), DPSGD(noise=1.0)], "another defense replaced the sampler"),
        ([DPSGD(noise=1.0, multiplicity=2), TRADES(steps=1)], "list TRADES first"),
        ([DPSGD(noise=1.0), FreeTraining(guard=0)], "more often than its sampling is accounted for"),
    ],
)
def test_stacks_that_make_no_sense(stack: list[sm.Defense], match: str) -> None:
    with pytest.raises(sm.UsageError, match=match):
        sm.fit(tiny_task("digits_mlp"), stack, device="cpu")


@pytest.mark.parametrize("first", [True, False])
def test_private_trades_keeps_its_claim(first: bool) -> None:
    """Its loss is each example's own: DP-SGD bounds it, and promises what it promises alone."""
    private, robust = DPSGD(noise=1.0, epochs=1), TRADES(steps=1)
    stack = [private, robust] if first else [robust, private]
    alone, both = (sm.fit(tiny_task("digits_mlp"), s, device="cpu").claims for s in ([private], stack))
    assert [claim.short for claim in both] == [claim.short for claim in alone]


@pytest.mark.parametrize("cls", [TRADES, MART])
@pytest.mark.parametrize("first", [True, False])
def test_a_piece_of_a_batch_meets_its_own_twin(cls: type[sm.Defense], first: bool) -> None:
    """Memory is bounded without a change: the weights are those of whole batches, and not those without the twins."""

    def weights(defense: sm.Defense | None, physical: int | None) -> torch.Tensor:
        stack = [d for d in (defense, DPSGD(noise=0.5, epochs=1, physical=physical)) if d]
        victim = sm.fit(tiny_task("digits_mlp"), stack if first else stack[::-1], device="cpu")
        return torch.cat([p.detach().flatten() for p in victim.module.parameters()])

    pieces, whole, alone = weights(cls.tiny(), 5), weights(cls.tiny(), None), weights(None, None)
    assert (pieces - whole).abs().max() < 1e-6
    assert (alone - whole).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: TRADES(beta=-1.0), "beta >= 0; given -1"),
        (lambda: TRADES(steps=0), "at least 1 step"),
        (lambda: MART(weight=-1.0), "weight >= 0"),
        (lambda: MART(radius=-0.1), "radius >= 0"),
        (lambda: FastTraining(step=0.0), "step size above 0"),
        (lambda: FastTraining(warmup=2.0), "warmup between 0 and 1"),
        (lambda: FastTraining(guard=-1), "guard of at least 0"),
        (lambda: FreeTraining(replays=0), "at least 1 replay"),
        (lambda: FreeTraining(guard=-1), "guard of at least 0"),
        (lambda: WeightAveraging(decay=1.0), "decay of at least 0 and below 1"),
        (lambda: WeightAveraging(start=1.0), "start of at least 0 and below 1"),
        (lambda: WeightPerturbation(gamma=-0.1), "gamma >= 0"),
        (lambda: WeightPerturbation(start=1.5), "start between 0 and 1"),
    ],
)
def test_settings_out_of_range(make: Callable[[], sm.Defense], match: str) -> None:
    with pytest.raises(sm.UsageError, match=match):
        make()


def test_tasks_that_they_cannot_train() -> None:
    with pytest.raises(sm.NotApplicable, match="follows gradients"):
        TRADES().check(tiny_task("text_embedding"))
    with pytest.raises(sm.NotApplicable, match="needs logits of classes"):
        MART().check(tiny_task("linear_regression"))
    with pytest.raises(sm.NotApplicable, match="made anew"):
        FreeTraining().check(tiny_task("policy_cartpole"))


def test_one_logit_has_two_log_probabilities() -> None:
    assert torch.allclose(log_probabilities(torch.tensor([0.0])).exp(), torch.tensor([[0.5, 0.5]]))
