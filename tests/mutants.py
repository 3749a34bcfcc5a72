"""DP-SGD broken on purpose, each in one way that has been found in the wild, and the checks that must say so."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import secure_ml as sm
from attacks.scrutiny import _books as books
from attacks.scrutiny import _mechanism as mechanism
from defenses.dp_sgd import DPSGD
from secure_ml.randomness import generator
from secure_ml.training import Loader, Plan, Shuffled, Step


def noisy(plan: Plan, change: Callable[[list[Tensor]], list[Tensor]]) -> Plan:
    """The plan, whose noise in each step, a tensor for each weight, is changed first."""
    optimizer: Any = plan.optimizer
    add = optimizer.add_noise

    def add_noise() -> None:
        sums = [p.summed_grad.clone() for p in optimizer.params]
        add()
        drawn = [p.grad - total for p, total in zip(optimizer.params, sums, strict=True)]
        for p, total, noise in zip(optimizer.params, sums, change(drawn), strict=True):
            p.grad = total + noise

    optimizer.add_noise = add_noise
    return plan


@dataclass(frozen=True, kw_only=True)
class NoNoise(DPSGD):
    """Accounts for noise that it does not add."""

    def prepare(self, plan: Plan) -> Plan:
        return noisy(super().prepare(plan), lambda noise: [torch.zeros_like(n) for n in noise])


@dataclass(frozen=True, kw_only=True)
class HalfTheNoise(DPSGD):
    """Adds half of the noise that it accounts for."""

    def prepare(self, plan: Plan) -> Plan:
        return noisy(super().prepare(plan), lambda noise: [n / 2 for n in noise])


@dataclass(frozen=True, kw_only=True)
class UniformNoise(DPSGD):
    """Adds noise of the right size and the wrong shape."""

    def prepare(self, plan: Plan) -> Plan:
        made = super().prepare(plan)
        size = made.optimizer.noise_multiplier * self.clip
        return noisy(made, lambda noise: [torch.erf(n / (size * 2**0.5)) * 3**0.5 * size for n in noise])


@dataclass(frozen=True, kw_only=True)
class NoTableNoise(DPSGD):
    """Leaves out the noise of embedding tables, most of whose rows no batch uses."""

    def prepare(self, plan: Plan) -> Plan:
        made = super().prepare(plan)
        tables = [p for layer in made.module.modules() if isinstance(layer, nn.Embedding) for p in layer.parameters()]
        spared = [any(p is table for table in tables) for p in made.optimizer.params]
        return noisy(made, lambda noise: [n * (not none) for n, none in zip(noise, spared, strict=True)])


@dataclass(frozen=True, kw_only=True)
class NoisePerEpoch(DPSGD):
    """Adds noise once in an epoch."""

    def prepare(self, plan: Plan) -> Plan:
        first = [True]

        def look(step: Step) -> None:
            first[0] = step.index == 0

        made = noisy(super().prepare(plan), lambda noise: [n * first[0] for n in noise])
        return replace(made, observers=(*made.observers, look))


@dataclass(frozen=True, kw_only=True)
class NoiseByBatchSize(DPSGD):
    """Scales the noise by the size of the batch that was drawn."""

    def prepare(self, plan: Plan) -> Plan:
        size = [0]

        def look(step: Step) -> None:
            size[0] = len(step.batch)

        made = super().prepare(plan)
        expected = made.optimizer.expected_batch_size
        made = noisy(made, lambda noise: [n * size[0] / expected for n in noise])
        return replace(made, observers=(*made.observers, look))


@dataclass(frozen=True, kw_only=True)
class NoiseReplayed(DPSGD):
    """Seeds the noise anew in each epoch."""

    def prepare(self, plan: Plan) -> Plan:
        made = super().prepare(plan)

        def look(step: Step) -> None:
            if step.index == 0:
                made.optimizer.generator.manual_seed(7)

        return replace(made, observers=(*made.observers, look))


@dataclass(frozen=True, kw_only=True)
class NoiseReplayedOnResume(DPSGD):
    """Does not keep where its noise stands."""

    def prepare(self, plan: Plan) -> Plan:
        made = super().prepare(plan)
        return replace(made, state={name: part for name, part in made.state.items() if name != "dp noise"})


@dataclass(frozen=True, kw_only=True)
class BudgetLostOnResume(DPSGD):
    """Does not keep what was spent."""

    def prepare(self, plan: Plan) -> Plan:
        made = super().prepare(plan)
        return replace(made, state={name: part for name, part in made.state.items() if name != "dp accountant"})


@dataclass(frozen=True, kw_only=True)
class ClipsTheMean(DPSGD):
    """Clips after averaging."""

    def prepare(self, plan: Plan) -> Plan:
        size = [0]

        def look(step: Step) -> None:
            size[0] = max(len(step.batch), 1)

        made = super().prepare(plan)
        optimizer: Any = made.optimizer
        optimizer.engine.clip = 1e30
        add = optimizer.add_noise

        def add_noise() -> None:
            means = [p.summed_grad / size[0] for p in optimizer.params]
            factor = min(1.0, self.clip / (torch.cat([m.flatten() for m in means]).norm().item() + 1e-6))
            for p, mean in zip(optimizer.params, means, strict=True):
                p.summed_grad = mean * factor * optimizer.expected_batch_size
            add()

        optimizer.add_noise = add_noise
        return replace(made, observers=(*made.observers, look))


@dataclass(frozen=True, kw_only=True)
class _OwnClipping(DPSGD):
    """Sums gradients by a rule of its own."""

    trusts: bool = False

    def factors(self, found: list[Any], squares: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def prepare(self, plan: Plan) -> Plan:
        made = super().prepare(plan)
        engine = made.optimizer.engine

        def gather() -> None:
            if not engine.rows:
                for book in engine.books:
                    book.calls.clear()
                return
            found, squares = engine.read()
            for (book, kept), factors in zip(found, self.factors(found, squares), strict=True):
                for parameter, value in engine.sums([(book, kept)], factors, clean=self.trusts).items():
                    engine.total[parameter] = engine.total.get(parameter, 0) + value

        return replace(made, gather=gather)


@dataclass(frozen=True, kw_only=True)
class ClipsLayers(_OwnClipping):
    """Clips the gradient of each layer to the whole clip."""

    def factors(self, found: list[Any], squares: Tensor) -> list[Tensor]:
        return [self._of(kept.squares()) for _, kept in found]

    def _of(self, squares: Tensor) -> Tensor:
        return torch.where(squares.isfinite(), (self.clip / (squares.sqrt() + 1e-6)).clamp(max=1), 0)


@dataclass(frozen=True, kw_only=True)
class ClipsLargest(_OwnClipping):
    """Clips the largest number of a gradient instead of its length."""

    def factors(self, found: list[Any], squares: Tensor) -> list[Tensor]:
        largest = (
            torch.stack([r.flatten(1).abs().max(1).values for _, k in found for r in k.rows().values()]).max(0).values
        )
        return [torch.where(squares.isfinite(), (self.clip / (largest + 1e-6)).clamp(max=1), 0)] * len(found)


@dataclass(frozen=True, kw_only=True)
class TrustsNumbers(_OwnClipping):
    """Takes every gradient for finite."""

    trusts: bool = True

    def factors(self, found: list[Any], squares: Tensor) -> list[Tensor]:
        return [(self.clip / (squares.sqrt() + 1e-6)).clamp(max=1) + 0 * squares] * len(found)


@dataclass(frozen=True, kw_only=True)
class DividesByBatchSize(DPSGD):
    """Divides by the size of the batch that was drawn, instead of the expected one."""

    def prepare(self, plan: Plan) -> Plan:
        size = [1]

        def look(step: Step) -> None:
            size[0] = max(len(step.batch), 1)

        made = super().prepare(plan)
        optimizer: Any = made.optimizer

        def scale_grad() -> None:
            for p in optimizer.params:
                p.grad /= size[0]

        optimizer.scale_grad = scale_grad
        return replace(made, observers=(*made.observers, look))


@dataclass(frozen=True, kw_only=True)
class WrongRate(DPSGD):
    """Tells the accountant half of the rate at which it samples."""

    def prepare(self, plan: Plan) -> Plan:
        made = super().prepare(plan)
        rate = made.optimizer.expected_batch_size / len(made.loader.data)
        hook = made.state["dp accountant"].get_optimizer_hook_fn(sample_rate=rate / 2)
        made.optimizer.attach_step_hook(hook)
        return made


@dataclass(frozen=True, kw_only=True)
class ShuffledBatches(DPSGD):
    """Shuffles, and accounts for Poisson sampling."""

    def prepare(self, plan: Plan) -> Plan:
        made = super().prepare(plan)
        n, size = len(made.loader.data), made.optimizer.expected_batch_size
        return replace(
            made, loader=Loader(made.loader.data, Shuffled(n, size, generator(0, "order")), made.loader.steps)
        )


@dataclass(frozen=True, kw_only=True)
class SkipsEmptyBatches(DPSGD):
    """Takes no step where nobody was drawn."""

    def prepare(self, plan: Plan) -> Plan:
        size = [1]

        def look(step: Step) -> None:
            size[0] = len(step.batch)

        made = super().prepare(plan)
        optimizer: Any = made.optimizer
        whole = optimizer.pre_step
        optimizer.pre_step = lambda closure=None: size[0] > 0 and whole(closure)
        return replace(made, observers=(*made.observers, look))


@dataclass(frozen=True, kw_only=True)
class ClaimsAnyway(DPSGD):
    """Claims what was asked for, whatever was done."""

    def _finish(self, accountant: Any, engine: Any, victim: sm.Victim) -> sm.Victim:
        accountant.history = [(self.noise, rate, steps) for _, rate, steps in accountant.history]
        return super()._finish(accountant, engine, victim)


@dataclass(frozen=True, kw_only=True)
class ClaimsLess(DPSGD):
    """Claims nine tenths of what was spent, as a central limit would have it."""

    def _finish(self, accountant: Any, engine: Any, victim: sm.Victim) -> sm.Victim:
        done = super()._finish(accountant, engine, victim)
        claims = (replace(c, values={**c.values, "epsilon": 0.9 * c.values["epsilon"]}) for c in done.claims)
        return replace(done, claims=tuple(claims))


@dataclass(frozen=True, kw_only=True)
class StopsEarly(DPSGD):
    """Chooses the best epoch on the validation split."""

    def prepare(self, plan: Plan) -> Plan:
        return replace(super().prepare(plan), patience=100)


class Remembers(nn.Module):
    """Keeps a running mean of what it has seen."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        leaf = inputs["example"] if isinstance(inputs, dict) else inputs
        if self.training and len(leaf):
            self.mean.lerp_(leaf.mean(), 0.1)
        return self.inner(inputs)


@dataclass(frozen=True, kw_only=True)
class KeepsStatistics(DPSGD):
    """Lets the module keep a running mean of its inputs, which is given away with the weights."""

    def adapt(self, module: nn.Module) -> nn.Module:
        return Remembers(module)


@dataclass(frozen=True, kw_only=True)
class AnyDelta(DPSGD):
    """Accepts a delta that publishing one example would meet."""

    delta: float = 0.05

    def _count(self, plan: Plan) -> int:
        return len(plan.loader.data)


N, S, L, A = mechanism.NOISE, mechanism.SENSITIVITY, mechanism.LEAKAGE, books.AUDIT
MUTANTS: dict[type[DPSGD], set[str]] = {
    NoNoise: {N, A},
    HalfTheNoise: {N, A},
    UniformNoise: {N},
    NoTableNoise: {A},
    NoisePerEpoch: {N, A},
    NoiseByBatchSize: {N, A},
    NoiseReplayed: {N, mechanism.RESUME},
    NoiseReplayedOnResume: {mechanism.RESUME},
    BudgetLostOnResume: {mechanism.RESUME},
    ClipsTheMean: {S, L, A},
    ClipsLayers: {S},
    ClipsLargest: {S},
    TrustsNumbers: {S},
    DividesByBatchSize: {S, L, N},
    WrongRate: {books.BOOKS, A},
    ShuffledBatches: {mechanism.SAMPLING},
    SkipsEmptyBatches: {mechanism.SAMPLING},
    ClaimsAnyway: {books.WITHDRAWN},
    ClaimsLess: {books.ACCOUNTANTS},
    StopsEarly: {books.STOPPING},
    KeepsStatistics: {L},
    AnyDelta: {books.DELTA},
}
"""Every mutant, and the checks that fail on it."""
SETTINGS: dict[str, Any] = {"noise": 1.0, "batch_size": 20, "epochs": 4}
