"""Differentially private training through Opacus."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from defenses.dp_sgd.accounting import epsilon_of, noise_for
from defenses.dp_sgd.checks import refuse_layers, refuse_mixing
from secure_ml.checkpoint import Randomness
from secure_ml.defense import Defense
from secure_ml.errors import NotApplicable, require
from secure_ml.randomness import generator
from secure_ml.task import Task
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

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` where later examples depend on what was learned from earlier ones."""
        if task.renew is not None:
            raise NotApplicable(
                f"the examples of {task.name} are drawn anew by what the model does, epoch by epoch: there is no fixed "
                "set of them for DP-SGD to protect"
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
        refuse_layers(plan)
        refuse_mixing(plan)
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
            generator=(noise_rng := generator(plan.seed, "dp-noise", device=plan.device)),
        )
        accountant = PRVAccountant()
        optimizer.attach_step_hook(accountant.get_optimizer_hook_fn(sample_rate=size / n))
        if self.learning_rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate
        sampler = Poisson(n, size / n, steps, sampler_rng := generator(plan.seed, "poisson"))
        state = {"dp accountant": accountant, "dp noise": Randomness(noise_rng), "poisson": Randomness(sampler_rng)}
        return replace(
            plan,
            module=cast("nn.Module", module),
            optimizer=cast("torch.optim.Optimizer", optimizer),
            loader=Loader(plan.loader.data, sampler, steps),
            epochs=epochs,
            patience=None,
            crafting=without_hooks,
            state={**plan.state, **state},
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


@contextmanager
def without_hooks(module: nn.Module) -> Iterator[None]:
    """Inside it, running the module leaves no trace on Opacus's per-example gradients."""
    wrapped = cast("GradSampleModule", module)
    wrapped.disable_hooks()
    try:
        yield
    finally:
        wrapped.enable_hooks()
