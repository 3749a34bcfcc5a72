"""The laws that every part obeys because it exists, each a function that raises `AssertionError` where it is broken."""

import dataclasses
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn

import secure_ml as sm
from secure_ml.attack import Attack, Result
from secure_ml.batch import leaves
from secure_ml.defense import Defense
from secure_ml.discovery import methods, task_builders
from secure_ml.families.audit import MEASURE, Audit, privacy_claim
from secure_ml.families.evasion import Evasion, attack_batch
from secure_ml.families.extraction import Extraction
from secure_ml.families.membership import Membership, Questioned
from secure_ml.families.poisoning import Poisoning
from secure_ml.families.reconstruction import Reconstruction
from secure_ml.randomness import seeded
from secure_ml.rows import TIMES
from secure_ml.training import Loader, Plan, make_plan, train

ATTACKS = methods("attacks", Attack)
DEFENSES = methods("defenses", Defense)
TASKS = list(task_builders())
CPU = torch.device("cpu")


@cache
def tiny_task(name: str) -> sm.Task:
    """The tiny variant of a document model."""
    return sm.task(name, tiny=True)


@cache
def tiny_victim(name: str, defense: Defense | None = None) -> sm.Victim:
    """A tiny victim, trained once a process."""
    return sm.fit(tiny_task(name), [defense] if defense else [], seed=0, device="cpu")


def applies(method: Attack | Defense, task: sm.Task) -> bool:
    """Whether a method has a meaning for a task."""
    try:
        method.check(task, None) if isinstance(method, Attack) else method.check(task)
    except sm.NotApplicable:
        return False
    return True


# -- attacks and defenses -------------------------------------------------------------------------------------------


def law_settings_are_values(cls: type) -> None:
    """A frozen, keyword-only, default-constructible, hashable dataclass whose repr makes it again."""
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen, "not frozen"
    assert all(field.kw_only for field in dataclasses.fields(cls)), "settings are keywords"
    names = {known.__name__: known for known in (*ATTACKS.values(), *DEFENSES.values(), cls)}
    made = [cls(), cls.tiny()]
    if issubclass(cls, Defense) and cls.neutral() is not None:
        made.append(cls.neutral())
    for value in made:
        assert eval(repr(value), names) == value
        hash(value)


def law_documented(cls: type) -> None:
    """The docstring cites its paper, names shapes and errors; every setting is explained beneath it."""
    from experiments.list import field_texts

    text = cls.__doc__ or ""
    assert re.search(r"arxiv\.org/abs/|eprint\.iacr\.org/|doi\.org/", text), "no paper"
    assert re.search(r"\((B|queries), ", text), "no shape"
    assert re.search(r"Raises\s+`", text), "no errors"
    missing = {field.name for field in dataclasses.fields(cls)} - field_texts(cls).keys()
    assert not missing, f"settings without a word: {missing}"


def snapshot(module: nn.Module) -> list[object]:
    """Everything about a module and the global random stream that an attack or a report must leave alone."""
    state: list[object] = [value.clone() for value in module.state_dict().values()]
    for part in module.modules():
        state += [part.training, len(part._forward_hooks), len(part._forward_pre_hooks), len(part._backward_hooks)]
    for parameter in module.parameters():
        grad = parameter.grad
        state += [parameter.requires_grad, None if grad is None else grad.clone(), sorted(vars(parameter))]
    return [*state, torch.get_rng_state(), torch.is_grad_enabled()]


def same(first: object, second: object) -> bool:
    """Equality that looks into tensors."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.equal(first, second)
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Assert that the block leaves no trace."""
    before = snapshot(module)
    yield
    assert same(before, snapshot(module)), "weights, gradients, flags, hooks or the global stream were touched"


def timeless(result: Result) -> tuple[object, ...]:
    """A result without its seconds."""
    rows = [dataclasses.replace(row, seconds=0.0) for row in result.rows if row.unit not in TIMES]
    return rows, [result.evidence[name] for name in sorted(result.evidence)]


def outcome(attack: Attack, victim: sm.Victim, seed: int) -> Result:
    """What an attack finds; nothing, where it learns from the victim that it has no meaning."""
    try:
        return attack.evaluate(victim, threat=None, seed=seed, examples=20)
    except sm.NotApplicable as why:
        return Result((), obstacle=str(why))


def law_same_seed_same_result(attack: Attack, victim: sm.Victim, first: Result | None = None) -> None:
    """Equal seeds, equal rows and evidence, wherever the global random stream stands, and as ``first`` had them."""
    first = outcome(attack, victim, seed=3) if first is None else first
    torch.rand(7)
    second = outcome(attack, victim, seed=3)
    assert same(timeless(first), timeless(second))
    if isinstance(attack, Evasion):
        threat, test = victim.task.threat, victim.splits.test.take(slice(0, 20))
        assert threat is not None
        raw = []
        for _ in range(2):
            rng = torch.Generator().manual_seed(1)
            access = attack.open(victim, victim.task, len(test))
            inputs = attack_batch(attack, access, test, threat, rng).inputs
            raw.append(list(leaves(inputs)))
            torch.rand(7)
        assert same(*raw), "the inputs depend on the global stream"


def law_leaves_no_trace(attack: Attack, victim: sm.Victim) -> Result:
    """The victim is as it was, even one whose parts were in different modes; what came out."""
    next(iter(victim.module.children())).train()
    try:
        with untouched(victim.module):
            return outcome(attack, victim, seed=3)
    finally:
        victim.module.eval()


def law_obeys_budget(attack: Extraction, victim: sm.Victim) -> None:
    """No more queries than the budget, and a budget of one is enough to run."""
    for budget in (1, attack.queries):
        rows = dataclasses.replace(attack, queries=budget).evaluate(victim, threat=None, seed=0, examples=20).rows
        assert all(row.queries <= budget for row in rows)


def law_scores_each_example(attack: Membership, victim: sm.Victim) -> None:
    """One finite score an example, batches of 0 and 1 included; the rows lie in [0, 1]."""
    for n in (0, 1, 10):
        batch = victim.splits.test.take(slice(0, n))
        access = Questioned(victim, attack.reveal, batch)
        scores = attack.score(access, batch, victim.splits.aux, torch.Generator())
        assert scores.shape == (n,)
        assert bool(scores.isfinite().all())
    rows = attack.evaluate(victim, threat=None, seed=0, examples=20).rows
    assert all(row.value is None or 0 <= row.value <= 1 for row in rows)


def law_obeys_its_share(attack: Poisoning, victim: sm.Victim) -> None:
    """What it returns, unchecked: no more examples than allowed, train alone, inside the surface, labels kept or not.

    A share that allows nothing leaves the victim that was there; the trigger takes batches of 0 and 1.
    """
    task, parts = victim.task, victim.splits
    found = parts.fingerprint()
    for share in (1e-9, attack.share, 0.5):
        tried = dataclasses.replace(attack, share=share)
        access = tried.open(victim, 0)
        given = tried.poison(access, parts, torch.Generator().manual_seed(0))
        before, after = ([*leaves(p.train.inputs), *leaves(p.train.target)] for p in (parts, given))
        changed = sum((a != b).reshape(len(a), -1).any(1).long() for a, b in zip(before, after, strict=True)) > 0
        assert int(changed.sum()) <= access.allowed == int(share * len(parts.train)), "more than its share"
        access.surface.check(given.train.inputs)
        assert not attack.keeps_labels or torch.equal(parts.train.target, given.train.target), "a label was changed"
        rest = [dataclasses.replace(p, train=p.test).fingerprint() for p in (parts, given)]
        assert rest[0] == rest[1], "another part than train was changed"
    assert parts.fingerprint() == found, "the data that it was handed were changed in place"
    for n in (0, 1, 12):
        clean = access.surface.get(parts.test.take(slice(0, n)).inputs)
        assert attack.trigger(access.surface, clean).shape == clean.shape
    idle = dataclasses.replace(attack, share=1e-9).evaluate(victim, threat=None, seed=0, examples=20)
    assert torch.equal(idle.evidence["hits"], idle.evidence["control"]), "without poison the victim is another"
    test = victim.splits.test.take(slice(0, 20))
    value = task.score.measure(victim.served, test).value
    assert idle.rows[2].value == (value if math.isfinite(value) else None)


def law_guesses_in_the_dark(attack: Reconstruction, victim: sm.Victim) -> None:
    """The guess has its shape and is finite; the access holds no data; one example will do; nothing is no discovery.

    A guess of no number is judged as one without content: its shares lie in [0, 1], as those of the attack do.
    """
    for examples in (1, 20):
        try:
            hidden = attack.secret.hide(victim, examples, seed=0)
        except sm.NotApplicable:
            return
        with raises_usage():
            hidden.access.task.draw(victim.seed)
        with torch.random.fork_rng():
            guess = attack.recover(hidden.access, torch.Generator().manual_seed(0))
        assert tuple(guess.shape) == hidden.shape
        assert bool(guess.isfinite().all())
        assert not guess.requires_grad
        for tried in (guess, torch.zeros(hidden.shape)):
            verdict = hidden.judge(tried)
            assert verdict.measured
            for found in verdict.measured:
                assert found.estimate is None or math.isfinite(found.estimate.value)
                assert found.unit != "share" or found.estimate is None or 0 <= found.estimate.value <= 1
    rows = attack.evaluate(victim, threat=None, seed=0, examples=20).rows
    assert [row.measure for row in rows] == [found.measure for found in verdict.measured]


@contextmanager
def raises_usage() -> Iterator[None]:
    """Assert that the block is refused."""
    try:
        yield
    except sm.UsageError:
        return
    raise AssertionError("an adversary holds the data")


def law_bounds_from_below(attack: Audit, victim: sm.Victim) -> None:
    """Bounds of at least 0, each beside what is claimed or nothing, then one verdict; the victim's data stay."""
    found = victim.splits.fingerprint()
    *rows, verdict = attack.evaluate(victim, threat=None, seed=0, examples=20).rows
    assert victim.splits.fingerprint() == found, "the victim's data were changed in place"
    assert rows[0].measure.startswith(MEASURE)
    for row in rows:
        assert row.value is not None
        assert 0 <= row.value == row.low < math.inf
        assert row.interval
        assert row.n >= 1
        assert "at delta" in row.note
        assert (row.high is None) == (privacy_claim(victim) is None), "a bound must stand beside what is claimed"
    assert verdict.unit == "verdict"
    assert verdict.note.startswith("SKIP" if privacy_claim(victim) is None else "PASS"), verdict.note


# -- defenses ---------------------------------------------------------------------------------------------------------


def law_served_well(defense: Defense, name: str) -> None:
    """Answers are well-formed, agree with the module's, return after saving, and the module is left clean."""
    victim = tiny_victim(name, defense)
    test = victim.splits.test
    answers = victim.served(test.inputs)
    victim.task.output.check(answers, len(test))
    with torch.no_grad():
        twin = victim.module(test.inputs)
    if not defense.misleads:
        assert victim.task.output.fidelity(answers, twin).value > 0.999, "the served answers are not the module's"
    for part in victim.module.modules():
        assert not {**part._forward_hooks, **part._backward_hooks, **part._forward_pre_hooks}, "hooks were left behind"
        assert not part.training
    for parameter in victim.module.parameters():
        assert parameter.grad is None, "gradients were left behind"
        assert not any("grad_sample" in key for key in vars(parameter)), "per-example gradients were left behind"


def law_training_leaves_no_trace(defense: Defense, name: str) -> None:
    """Training moves neither the global stream nor what it was given; equal seeds give equal weights."""
    probe = nn.Linear(1, 1)
    with untouched(probe):
        first = sm.fit(tiny_task(name), [defense], seed=5, device="cpu")
    torch.rand(3)
    second = sm.fit(tiny_task(name), [defense], seed=5, device="cpu")
    assert same(list(first.module.state_dict().values()), list(second.module.state_dict().values()))


def law_adapts_a_copy(defense: Defense, name: str) -> None:
    """The module handed to ``adapt`` stays as it was."""
    module = tiny_task(name).build()
    before, kinds = repr(module), list(module.state_dict())
    defense.adapt(module)
    assert (repr(module), list(module.state_dict())) == (before, kinds)


def trained_on(defenses: list[Defense], name: str, batches: list[Tensor]) -> list[Tensor]:
    """The weights after training on these batches, whatever sampler a defense asks for.

    By plain gradient descent: Adam divides a gradient by its own size, which where it ought to be 0 is rounding error.
    """
    import warnings

    task = tiny_task(name)
    recipe = dataclasses.replace(task.recipe, optimizer="SGD", learning_rate=min(task.recipe.learning_rate, 0.1))
    task = dataclasses.replace(task, recipe=recipe)
    with seeded(1, "law"), warnings.catch_warnings():
        plan: Plan = make_plan(task, defenses, 0, CPU)
        fixed = Loader(plan.loader.data, batches, len(batches))
        plan = dataclasses.replace(plan, loader=fixed, epochs=2, patience=None)
        train(plan)
    return [value.detach().clone() for value in plan.module.parameters()]


def law_neutral_is_plain(cls: type[Defense], name: str) -> None:
    """The neutral setting, on the same batches, equals plain training to 1e-6; the tiny setting does not."""
    neutral = cls.neutral()
    assert neutral is not None
    task = tiny_task(name)
    n = len(task.draw(0).train)
    size = min(4 * task.recipe.batch_size, n)  # what DP-SGD expects
    batches = [torch.arange(n).roll(shift)[:size] for shift in (0, 17, 31)]
    plain = trained_on([], name, batches)
    same_as_plain = trained_on([neutral], name, batches)
    for one, other in zip(plain, same_as_plain, strict=True):
        assert torch.allclose(one, other, atol=1e-6, rtol=1e-6), f"differs by {(one - other).abs().max():.2g}"
    moved = trained_on([cls.tiny()], name, batches)
    assert any(not torch.allclose(a, b, atol=1e-6, rtol=1e-6) for a, b in zip(plain, moved, strict=True)), (
        "a setting that should protect trains like a bare model"
    )


def law_stacks(first: Defense, second: Defense, name: str) -> None:
    """The two train and serve together, or refuse in one sentence."""
    refusal = ""
    try:
        victim = sm.fit(tiny_task(name), [first, second], seed=0, device="cpu")
    except sm.SecureMLError as error:
        refusal = str(error)
    if refusal:
        assert len(refusal) > 20
        assert "\n" not in refusal
        return
    victim.task.output.check(victim.served(victim.splits.test.inputs), len(victim.splits.test))


# -- tasks and threats ------------------------------------------------------------------------------------------------


def law_one_loss_per_example(task: sm.Task) -> None:
    """The loss of an example depends on no other, and a batch of 0 or 1 has 0 or 1 of them."""
    module = task.build().eval()
    batch = task.draw(0).train.take(slice(0, 6))
    losses = task.loss(module, batch)
    assert losses.shape == (6,)
    for n in (0, 1):
        assert task.loss(module, batch.take(slice(0, n))).shape == (n,)
    for i in range(6):
        alone = task.loss(module, batch.take(slice(i, i + 1)))
        assert torch.allclose(losses[i : i + 1], alone, atol=1e-5), "an example's loss depends on its neighbours"


def law_per_example_gradients(task: sm.Task) -> None:
    """Opacus's gradient of each example equals that of a loop over examples."""
    import warnings

    from opacus import GradSampleModule

    batch = task.draw(0).train.take(slice(0, 5))
    torch.manual_seed(0)
    module = task.build()
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0  # a loop draws other masks than a batch
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    expected = []
    for i in range(5):
        losses = task.loss(module, batch.take(slice(i, i + 1)))
        expected.append(torch.autograd.grad(losses.sum(), trained))
    wrapped = GradSampleModule(module, loss_reduction="sum")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        task.loss(wrapped, batch).sum().backward()
    for index, parameter in enumerate(p for p in wrapped.parameters() if p.requires_grad):
        loop = torch.stack([grads[index] for grads in expected])
        assert torch.allclose(parameter.grad_sample, loop, rtol=1e-4, atol=1e-6)


def law_splits(task: sm.Task) -> None:
    """Splits of one seed are equal, of two seeds not; every part is inside its surfaces; parts share no example.

    What a model that acts observes comes again: its parts may share it.
    """
    first, again, other = task.draw(0), task.draw(0), task.draw(1)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    for part in first.parts().values():
        for surface in task.surfaces:
            surface.check(part.inputs)
    seen: set[bytes] = set()
    shared = 0
    for part in first.parts().values() if task.renew is None else ():
        rows = [b"".join(leaf[i].numpy().tobytes() for leaf in leaves(part.inputs)) for i in range(len(part))]
        shared += sum(row in seen for row in rows)
        seen |= set(rows)
    assert shared <= 0.05 * len(seen), f"{shared} inputs lie in two parts"
