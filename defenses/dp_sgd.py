"""Differentially private training through Opacus."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from secure_ml.defense import Defense
from secure_ml.errors import UsageError, require
from secure_ml.randomness import generator, seeded
from secure_ml.training import Loader, Plan
from secure_ml.victim import Claim, Victim

if TYPE_CHECKING:
    from opacus import GradSampleModule
    from opacus.accountants import IAccountant
    from opacus.optimizers import DPOptimizer


@dataclass(frozen=True, kw_only=True)
class DPSGD(Defense):
    """Clipped per-example gradients plus Gaussian noise, DP-SGD (Abadi et al. 2016, https://arxiv.org/abs/1607.00133).

    Opacus clips the gradient of each example's whole loss (however often that calls the module on ``(B, *shape)``
    inputs) to length ``clip``, draws batches by Poisson sampling and accounts by PRV (Gopi et al. 2021,
    https://arxiv.org/abs/2106.02848). Steps, sampling rate and noise of the claim are those of the run.

    Covers: what the weights, all of them and at every step, reveal about any one example (add/remove-one).
    Does not cover: examples in the validation split, hyperparameters chosen by looking at the data, floating-point
    attacks on the noise, which is seeded and meant for research. Early stopping is switched off.
    Without noise, or without a finite clip, there is no claim.

    Raises `UsageError` for a budget out of range or out of reach, a delta of at least 1/n, and modules whose
    layers mix examples (BatchNorm).
    """

    epsilon: float = 3.0
    """The budget, spent exactly over the whole training; ignored where ``noise`` is given."""
    delta: float = 1e-5
    """Chance that the guarantee fails; below 1/n."""
    clip: float = 1.0
    """Length to which the gradient of each example's loss is clipped."""
    noise: float | None = None
    """Standard deviation of the noise over ``clip``, instead of a budget."""
    batch_size: int | None = None
    """Expected size of a Poisson batch; four times the recipe's unless given, since noise is paid once a step."""
    epochs: int | None = None
    """The recipe's unless given."""
    learning_rate: float | None = None
    """The recipe's unless given."""

    def __post_init__(self) -> None:
        require(self.epsilon > 0, f"DP-SGD needs an epsilon above 0; given {self.epsilon}")
        require(0 < self.delta < 1, f"DP-SGD needs a delta between 0 and 1; given {self.delta}")
        require(self.clip > 0, f"DP-SGD needs a clip above 0; given {self.clip}")
        require(self.noise is None or self.noise >= 0, f"DP-SGD needs a noise of at least 0; given {self.noise}")
        require(self.epochs is None or self.epochs >= 1, f"DP-SGD needs at least 1 epoch; given {self.epochs}")
        require(
            self.batch_size is None or self.batch_size >= 1,
            f"DP-SGD needs a batch size of at least 1; given {self.batch_size}",
        )
        require(
            self.learning_rate is None or self.learning_rate > 0,
            f"DP-SGD needs a learning rate above 0; given {self.learning_rate}",
        )

    def prepare(self, plan: Plan) -> Plan:
        """The plan with Opacus's module and optimizer, and Poisson batches."""
        from opacus import GradSampleModule
        from opacus.accountants import PRVAccountant
        from opacus.optimizers import DPOptimizer

        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        require(
            not isinstance(plan.optimizer, DPOptimizer),
            "DP-SGD stands twice in the stack: its noise would be accounted for once; list it once",
        )
        n = len(plan.loader.data)
        require(
            self.delta < 1 / n,
            f"delta {self.delta} is not below 1/n = {1 / n:.2g}: a mechanism that publishes one of the {n} "
            f"examples would pass; use {10 ** -math.ceil(math.log10(n) + 1):.0e}",
        )
        _refuse_layers(plan)
        _refuse_mixing(plan)
        size = min(self.batch_size or 4 * plan.task.recipe.batch_size, n)
        steps, epochs = math.ceil(n / size), self.epochs or plan.epochs
        noise = self.noise
        if noise is None:
            noise = noise_for(self.epsilon, self.delta, size / n, steps * epochs)
        module = GradSampleModule(plan.module, loss_reduction="mean")
        optimizer = _finite_optimizer()(
            plan.optimizer,
            noise_multiplier=noise,
            max_grad_norm=self.clip,
            expected_batch_size=size,
            generator=generator(plan.seed, "dp-noise", device=plan.device),
        )
        accountant = PRVAccountant()
        optimizer.attach_step_hook(accountant.get_optimizer_hook_fn(sample_rate=size / n))
        if self.learning_rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate
        sampler = Poisson(n, size / n, steps, generator(plan.seed, "poisson"))
        return replace(
            plan,
            module=cast("nn.Module", module),
            optimizer=cast("torch.optim.Optimizer", optimizer),
            loader=Loader(plan.loader.data, sampler, steps),
            epochs=epochs,
            patience=None,
            crafting=without_hooks,
            finish=(*plan.finish, partial(self._finish, accountant)),
        )

    @classmethod
    def tiny(cls) -> DPSGD:
        """One epoch, with its noise given so that none has to be searched for."""
        return cls(noise=1.0, epochs=1)

    @classmethod
    def neutral(cls) -> DPSGD:
        """No noise, and a clip that no gradient reaches."""
        return cls(noise=0.0, clip=1e20)

    def _finish(self, accountant: IAccountant, victim: Victim) -> Victim:
        """The victim with its plain module back, and the claim that the accountant's own history supports."""
        module = cast("GradSampleModule", victim.module).to_standard_module()
        for parameter in module.parameters():
            for name in ("grad_sample", "summed_grad", "_forward_counter", "_current_grad_sample"):
                vars(parameter).pop(name, None)
            parameter.grad = None
        victim = replace(victim, module=module)
        ((noise, rate, steps),) = accountant.history
        if noise == 0 or self.clip >= 1e20:
            return victim
        return replace(victim, claims=(*victim.claims, self._claim(victim, noise, rate, steps)))

    def _claim(self, victim: Victim, noise: float, rate: float, steps: int) -> Claim:
        epsilon, bound = epsilon_of([(noise, rate, steps)], self.delta)
        unit, given = victim.task.unit, "".join(f"; given that {fact}" for fact in victim.task.assumes)
        return Claim(
            kind="differential privacy",
            short=f"({epsilon:.2f}, {self.delta:g})-DP",
            statement=(
                f"({epsilon:.4g}, {self.delta:g})-differential privacy of the training {unit}s: add/remove-one, "
                f"Poisson sampling at rate {rate:.4g}, {steps} steps, noise {noise:.4g}, clip {self.clip:g}, {bound} "
                f"accountant's upper bound; seeded noise, for research{given}"
            ),
            values={
                "epsilon": epsilon,
                "delta": self.delta,
                "unit": unit,
                "relation": "add/remove-one",
                "sampling": "Poisson",
                "accountant": bound,
                "steps": steps,
                "q": rate,
                "sigma": noise,
                "clip": self.clip,
            },
        )


@cache
def _finite_optimizer() -> type[DPOptimizer]:
    """Opacus's optimizer, with what is not finite in an example's gradient counted as 0 before it is clipped.

    Otherwise one example could make the whole update NaN: more than any clip allows it.
    """
    from opacus.optimizers import DPOptimizer

    class FiniteDPOptimizer(DPOptimizer):  # type: ignore[misc]
        def clip_and_accumulate(self) -> None:
            for gradient in self.grad_samples:
                gradient.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
            super().clip_and_accumulate()

    return FiniteDPOptimizer


class Poisson:
    """Batches into which every example goes independently at one rate; some are empty. Opacus draws them."""

    def __init__(self, n: int, rate: float, steps: int, rng: torch.Generator) -> None:
        from opacus.utils.uniform_sampler import UniformWithReplacementSampler

        self.draw = UniformWithReplacementSampler(num_samples=n, sample_rate=rate, generator=rng, steps=steps)

    def __iter__(self) -> Iterator[Tensor]:
        for chosen in self.draw:
            yield torch.tensor(chosen, dtype=torch.long)


@cache
def noise_for(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The least noise multiplier, to 0.1 % of epsilon, whose upper bound stays within the budget."""
    from scipy.optimize import brentq

    def excess(noise: float) -> float:
        return epsilon_of([(noise, rate, steps)], delta)[0] - 0.9995 * epsilon

    high = 1.0
    while excess(high) > 0:
        high *= 2
        if high > 1e5:
            raise UsageError(
                f"epsilon {epsilon:g} at delta {delta:g} is out of reach in {steps} steps at sampling rate {rate:.3g}: "
                "allow more, train for fewer epochs, or use smaller batches"
            )
    low = high / 2
    while excess(low) < 0:
        low /= 2
    noise = float(brentq(excess, low, high, xtol=1e-4 * low, rtol=1e-5))
    while excess(noise) > 0.0005 * epsilon:
        noise *= 1.0001
    return noise


def epsilon_of(history: list[tuple[float, float, int]], delta: float) -> tuple[float, str]:
    """An upper bound on epsilon for a history of (noise, sampling rate, steps), and the accountant that gives it.

    PRV's; of budgets that protect nothing (RDP says above 100), RDP's, since PRV's grid would not fit in memory.
    """
    from opacus.accountants import PRVAccountant, RDPAccountant

    with _quiet_orders():
        loose = RDPAccountant()
        loose.history = history
        epsilon = float(loose.get_epsilon(delta))
        if epsilon > 100:
            return epsilon, "RDP"
        tight = PRVAccountant()
        tight.history = history
        return float(tight.get_epsilon(delta, eps_error=_grid(epsilon))), "PRV"


def _grid(epsilon: float) -> float:
    """The error that PRV may make: 0.3 % of epsilon, between 0.0001 (what memory allows) and 0.01."""
    return min(0.01, max(0.0001, 0.003 * epsilon))


@contextmanager
def _quiet_orders() -> Iterator[None]:
    """PRV brackets epsilon by RDP first, whose advice to try more orders does not concern the result."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the")
        warnings.filterwarnings("ignore", message="divide by zero", category=RuntimeWarning)  # at sampling rate 1
        yield


@contextmanager
def without_hooks(module: nn.Module) -> Iterator[None]:
    """Inside it, running the module leaves no trace on Opacus's per-example gradients."""
    wrapped = cast("GradSampleModule", module)
    wrapped.disable_hooks()
    try:
        yield
    finally:
        wrapped.enable_hooks()


def _refuse_layers(plan: Plan) -> None:
    """Raise `UsageError` for layers that Opacus cannot train with a guarantee."""
    from opacus.validators import ModuleValidator

    errors: list[Any] = ModuleValidator.validate(plan.module, strict=False)
    if errors:
        layers = ", ".join(sorted({type(layer).__name__ for layer in plan.module.modules() if _mixes(layer)}))
        raise UsageError(
            f"{plan.task}: DP-SGD cannot train {layers or 'this module'}: {str(errors[0]).split('.')[0]}; "
            "use GroupNorm, or no normalisation"
        )


def _refuse_mixing(plan: Plan) -> None:
    """Raise `UsageError` unless Opacus's gradient of each of a few examples is that example's own.

    It is not where a loss or a module compares examples, where one example takes several rows of a layer's batch,
    or where a weight is used behind Opacus's back; each would break the bound on what one example contributes.
    """
    from opacus import GradSampleModule

    few = plan.loader.data.take(slice(0, 3))
    alone, together = (_without_dropout(deepcopy(plan.module)) for _ in range(2))
    loop = []
    for i in range(len(few)):
        with seeded(plan.seed, "check"):
            loss = plan.loss(alone, few.take(slice(i, i + 1))).sum()
        weights = [p for p in alone.parameters() if p.requires_grad]
        loop.append(torch.autograd.grad(loss, weights, allow_unused=True))
    wrapped = GradSampleModule(together, loss_reduction="sum")
    with seeded(plan.seed, "check"):
        losses = plan.loss(wrapped, few)
    trained = [(name, p) for name, p in together.named_parameters() if p.requires_grad]
    torch.autograd.grad(losses.sum(), [p for _, p in trained], allow_unused=True)  # the hooks write grad_sample
    for (name, parameter), own in zip(trained, zip(*loop, strict=True), strict=True):
        rows = getattr(parameter, "grad_sample", None)
        if own[0] is None or rows is None:
            raise UsageError(
                f"{plan.task}: {name} takes no part in the loss; freeze it (requires_grad=False) for DP-SGD"
            )
        expected = torch.stack([grad for grad in own if grad is not None])
        if rows.shape != expected.shape or not torch.allclose(rows, expected, rtol=1e-2, atol=1e-5):
            raise UsageError(
                f"{plan.task}: the gradient of an example in {name} is not its own: the loss or the module mixes "
                "examples, or spreads one over several rows; DP-SGD could not bound what it contributes"
            )


def _without_dropout(module: nn.Module) -> nn.Module:
    """The module in training mode with dropout switched off, whose masks a loop draws differently."""
    for layer in module.train().modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.eval()
    return module


def _mixes(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.batchnorm._BatchNorm)
