"""Differentially private training: Opacus's accountant, sampler and noise around an engine that clips faster."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn

from defenses.dp_sgd.accounting import epsilon_of, noise_for
from defenses.dp_sgd.checks import refuse_layers, refuse_mixing
from defenses.dp_sgd.engine import Engine, is_private
from defenses.dp_sgd.optimizer import Poisson, PoissonPersons, private_optimizer
from secure_ml.batch import Batch
from secure_ml.checkpoint import Randomness
from secure_ml.defense import Defense
from secure_ml.errors import NotApplicable, require, unknown
from secure_ml.randomness import generator
from secure_ml.task import SCHEDULES, Loss, Task
from secure_ml.training import Loader, Plan, Shuffled, Transform, named_schedule
from secure_ml.victim import Claim, Victim

if TYPE_CHECKING:
    from opacus.accountants import IAccountant


@dataclass(frozen=True, kw_only=True)
class DPSGD(Defense):
    """Clipped per-example gradients plus Gaussian noise, DP-SGD (Abadi et al. 2016, https://arxiv.org/abs/1607.00133).

    The gradient of each example's whole loss (however often that calls the module on ``(B, *shape)`` inputs) is clipped
    to length ``clip`` in one backward pass (book-keeping, Bu et al. 2022, https://arxiv.org/abs/2210.00038); Opacus
    draws batches by Poisson sampling, adds the noise and accounts by PRV (Gopi et al. 2021,
    https://arxiv.org/abs/2106.02848). Steps, sampling rate and noise of the claim are those of the run. The task's
    own optimizer is kept: SGD with momentum, Adam.

    Covers: what the weights, all of them and at every step, reveal about any one example, or with ``persons`` about any
    one person with all of their examples (add/remove-one).
    Does not cover: examples in the validation split, hyperparameters chosen by looking at the data (``secure-ml tune``
    prices that), floating-point attacks on the noise (https://arxiv.org/abs/2112.05307). Noise and batches are drawn
    from the run's seed, for research: who knows the seed can take the noise away. ``secret`` draws them from the
    operating system's randomness instead, through a generator that is no cryptographic one. Early stopping is off.
    Without noise, or without a finite clip, there is no claim.

    Raises `UsageError` for a budget out of range or out of reach, a delta of at least 1/n, modules whose layers mix
    examples (BatchNorm), and gradients that are not an example's own.
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
    schedule: Literal["constant", "cosine", "linear"] | None = None
    """Of the learning rate; the recipe's unless given."""
    multiplicity: int = 1
    """Augmented copies of each example, whose gradients are averaged before they are clipped (De et al. 2022)."""
    persons: bool = False
    """Whether persons with all of their examples are protected, where the data say whose each example is."""
    records: int = 8
    """With ``persons``: examples that a person brings to a batch, drawn anew each time."""
    physical: int | None = None
    """Examples that are differentiated at a time, which bounds memory and changes nothing else; all unless given."""
    secret: bool = False
    """Whether noise and batches are drawn from randomness that nobody knows, so that no run can be repeated."""

    def __post_init__(self) -> None:
        require(0 < self.epsilon < math.inf, f"DP-SGD needs a finite epsilon above 0; given {self.epsilon}")
        require(0 < self.delta < 1, f"DP-SGD needs a delta between 0 and 1; given {self.delta}")
        require(self.clip > 0, f"DP-SGD needs a clip above 0; given {self.clip}")
        require(self.noise is None or self.noise >= 0, f"DP-SGD needs a noise of at least 0; given {self.noise}")
        for name, what in (("epochs", "epochs"), ("batch_size", "a batch size"), ("physical", "physical")):
            given = getattr(self, name)
            require(given is None or given >= 1, f"DP-SGD needs {what} of at least 1; given {given}")
        for name in ("multiplicity", "records"):
            require(getattr(self, name) >= 1, f"DP-SGD needs {name} of at least 1; given {getattr(self, name)}")
        require(
            self.learning_rate is None or self.learning_rate > 0,
            f"DP-SGD needs a learning rate above 0; given {self.learning_rate}",
        )
        if self.schedule is not None and self.schedule not in SCHEDULES:
            raise unknown("schedule of DP-SGD", self.schedule, SCHEDULES)

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` where later examples depend on what was learned from earlier ones."""
        if task.renew is not None:
            raise NotApplicable(
                f"the examples of {task.name} are drawn anew by what the model does, epoch by epoch: there is no fixed "
                "set of them for DP-SGD to protect"
            )

    def prepare(self, plan: Plan) -> Plan:
        """The plan that differentiates through the engine, in Poisson batches, with Opacus's optimizer."""
        from opacus.accountants import PRVAccountant

        require(
            not is_private(plan.module),
            "DP-SGD stands twice in the stack: its noise would be accounted for once; list it once",
        )
        require(
            isinstance(plan.loader, Loader) and isinstance(plan.loader.sampler, Shuffled),
            "DP-SGD accounts for batches that it draws itself, and another defense replaced the sampler: leave one out",
        )
        n = self._count(plan)
        refuse_layers(plan)
        refuse_mixing(plan)
        size = min(self.batch_size or 4 * plan.task.recipe.batch_size, n)
        steps, epochs = math.ceil(n / size), self.epochs or plan.epochs
        noise = noise_for(self.epsilon, self.delta, size / n, steps * epochs) if self.noise is None else self.noise
        engine = Engine(plan.module, self.clip, self._group)
        optimizer = private_optimizer(
            engine,
            plan.optimizer,
            noise_multiplier=noise,
            max_grad_norm=self.clip,
            expected_batch_size=size,
            generator=(noise_rng := self._stream(plan, "dp-noise", plan.device)),
        )
        accountant = PRVAccountant()
        optimizer.attach_step_hook(accountant.get_optimizer_hook_fn(sample_rate=size / n))
        for group in optimizer.param_groups if self.learning_rate is not None else ():
            group["lr"] = self.learning_rate
        sampler_rng = self._stream(plan, "poisson")
        state = {"dp accountant": accountant, "dp noise": Randomness(noise_rng), "poisson": Randomness(sampler_rng)}

        def objective(losses: Tensor, _: int) -> Tensor:
            engine.expect(len(losses))
            return losses.sum()

        return replace(
            plan,
            optimizer=cast("torch.optim.Optimizer", optimizer),
            loader=Loader(plan.loader.data, self._sampler(plan, n, size, steps, sampler_rng), steps),
            loss=plan.loss if self._group == 1 else _averaged(plan.loss, self._group),
            transform=plan.transform if self.multiplicity == 1 else _copied(plan.transform, self.multiplicity),
            objective=objective,
            gather=engine.gather,
            piece=self.physical and self.physical * self._group,
            epochs=epochs,
            schedule=named_schedule(self.schedule) if self.schedule else plan.schedule,
            patience=None,
            crafting=engine.paused,
            state={**plan.state, **state},
            finish=(*plan.finish, partial(self._finish, accountant, engine)),
        )

    @classmethod
    def tiny(cls) -> DPSGD:
        """One epoch, with its noise given so that none has to be searched for."""
        return cls(noise=1.0, epochs=1)

    @classmethod
    def neutral(cls) -> DPSGD:
        """No noise, and a clip that no gradient reaches."""
        return cls(noise=0.0, clip=1e20)

    @property
    def _group(self) -> int:
        """Rows of a batch that are clipped as one."""
        return self.multiplicity * (self.records if self.persons else 1)

    def _count(self, plan: Plan) -> int:
        """Examples, or persons, of which any one may be there or not; `UsageError` where delta does not fit them."""
        owner = plan.splits.owner
        require(
            not self.persons or owner is not None,
            f"{plan.task} does not say whose each example is, so that DP-SGD cannot protect persons: set Splits.owner",
        )
        n = len(owner.unique()) if self.persons and owner is not None else len(plan.loader.data)
        require(
            self.delta < 1 / n,
            f"delta {self.delta} is not below 1/n = {1 / n:.2g}: a mechanism that publishes one of the {n} "
            f"{'persons' if self.persons else 'examples'} would pass; use {10 ** -math.ceil(math.log10(n) + 1):.0e}",
        )
        return n

    def _sampler(self, plan: Plan, n: int, size: int, steps: int, rng: torch.Generator) -> Poisson | PoissonPersons:
        if self.persons and plan.splits.owner is not None:
            return PoissonPersons(plan.splits.owner, self.records, size / n, steps, rng)
        return Poisson(n, size / n, steps, rng)

    def _stream(self, plan: Plan, use: str, device: torch.device | str = "cpu") -> torch.Generator:
        return generator(secrets.randbits(62) if self.secret else plan.seed, use, device=device)

    def _finish(self, accountant: IAccountant, engine: Engine, victim: Victim) -> Victim:
        """The victim with nothing left on its module, and the claim that the accountant's own history supports."""
        engine.detach()
        for parameter in victim.module.parameters():
            vars(parameter).pop("summed_grad", None)
            parameter.grad = None
        ((noise, rate, steps),) = accountant.history
        if noise == 0 or self.clip >= 1e20:
            return victim
        return replace(victim, claims=(*victim.claims, self._claim(victim, noise, rate, steps)))

    def _claim(self, victim: Victim, noise: float, rate: float, steps: int) -> Claim:
        epsilon, bound = epsilon_of([(noise, rate, steps)], self.delta)
        unit = "person" if self.persons else victim.task.unit
        given = "".join(f"; given that {fact}" for fact in victim.task.assumes)
        drawn = "noise from a secret seed" if self.secret else "seeded noise, for research"
        return Claim(
            kind="differential privacy",
            short=f"({epsilon:.2f}, {self.delta:g})-DP" + (" of persons" if self.persons else ""),
            statement=(
                f"({epsilon:.4g}, {self.delta:g})-differential privacy of the training {unit}s: add/remove-one, "
                f"Poisson sampling at rate {rate:.4g}, {steps} steps, noise {noise:.4g}, clip {self.clip:g}, {bound} "
                f"accountant's upper bound; {drawn}{given}"
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


def _copied(transform: Transform, copies: int) -> Transform:
    """Every example several times in turn, before it is augmented or attacked."""

    def copied(module: nn.Module, batch: Batch) -> Batch:
        return transform(module, batch.map(lambda values: values.repeat_interleave(copies, 0)))

    return copied


def _averaged(loss: Loss, group: int) -> Loss:
    """One loss for every so many rows: their mean."""

    def averaged(predictor: object, batch: Batch) -> Tensor:
        return loss(predictor, batch).view(-1, group).mean(1)

    return averaged
