"""Answers computed on ciphertexts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from defenses.homomorphic.branches import traced
from defenses.homomorphic.circuit import circuit_of
from defenses.homomorphic.contract import ENGINES, Engine
from defenses.homomorphic.lookup import looked_up, split
from defenses.homomorphic.parameters import GUIDELINE, Parameters, candidates
from defenses.homomorphic.polynomial import instead, is_chain, make_polynomial, unsupported, within
from defenses.homomorphic.program import Program, compile_module
from defenses.homomorphic.served import Encrypted, Mode
from secure_ml.defense import Defense
from secure_ml.errors import NotApplicable, UsageError, require
from secure_ml.task import Task
from secure_ml.training import Plan
from secure_ml.victim import Claim, Plain, Victim, build

CALIBRATION = 1000
"""Validation inputs whose values choose scale and headroom."""
SPOT = 8
"""Queries that are encrypted in a simulation."""


@dataclass(frozen=True, kw_only=True)
class Homomorphic(Defense):
    """Inference on CKKS ciphertexts through TenSEAL (Cheon et al. 2017, https://eprint.iacr.org/2016/421).

    Before training, activations become a quadratic, which fits ReLU on ``[-span, span]`` or is learned from there,
    and max pooling becomes average pooling; after it, the module is compiled to affine maps and squares on inputs
    ``(B, *shape)``. A client encrypts, a server built from bytes without the secret key computes, the client decrypts.

    Covers: inputs and answers, against a semi-honest server, at 128 bits. Does not cover: the weights, the training
    data, or the answers' recipients: extraction and membership inference work on decrypted answers as on any
    others, and whoever publishes decrypted answers in full precision may give the key away. Client and server run in
    one process here; answers carry noise, so repeated runs agree in their decisions and to that noise in their values.
    Where not every query is encrypted there is no claim.

    Raises `NotApplicable` for layers other than Linear, Conv1d/2d, BatchNorm, average pooling, Flatten, Dropout and
    activations, one behind the other or in sums of branches (an Embedding in front is looked up by the client), and for
    programs deeper or less precise than 128 bits allow, or larger than ``products``; `UsageError` if it is not the
    first to serve.
    """

    span: float = 8.0
    """Half the range on which the quadratic fits ReLU."""
    activation: Literal["fixed", "learned"] = "fixed"
    """Whether the quadratic's coefficients stay, or are trained with the weights."""
    range_penalty: float = 0.0
    """On the loss of an example: times the mean square by which inputs of its activations leave the span."""
    learning_rate_factor: float = 0.5
    """On the recipe's learning rate: quadratics grow where the activations that recipes are made for do not."""
    engine: Engine = "throughput"
    """throughput: many queries in the slots; latency: one at a time; reference: TenSEAL's own products."""
    precision: float = 1e-3
    """The largest error wanted of an answer: the smallest ring that is expected to keep it is taken."""
    degree: int | None = None
    """The ring's degree, if it is not to be chosen: 4096, 8192, 16384 or 32768."""
    compact: bool = False
    """Fewer rotation keys, and a few more rotations (latency)."""
    mode: Mode = "encrypted"
    """simulate: after the first ``encrypt`` queries (8 unless given), the circuit in the clear with such noise."""
    encrypt: int | None = None
    """Queries to encrypt; later ones are answered by the same program in the clear, and nothing is claimed. All of
    them unless given."""
    products: int = 50_000
    """The most products of a number and a weight that a program may need for an input; no limit to ``latency``."""

    def __post_init__(self) -> None:
        for name in ("span", "learning_rate_factor", "precision"):
            value = getattr(self, name)
            require(value > 0, f"Homomorphic needs a {name.replace('_', ' ')} above 0; given {value}")
        require(self.range_penalty >= 0, f"Homomorphic needs a range penalty of at least 0; given {self.range_penalty}")
        require(
            self.encrypt is None or self.encrypt >= 0,
            f"Homomorphic needs a number of queries of at least 0 to encrypt; given {self.encrypt}",
        )
        require(
            self.degree is None or self.degree in GUIDELINE,
            f"Homomorphic needs a degree of {', '.join(map(str, GUIDELINE))}; given {self.degree}",
        )
        require(self.engine in ENGINES, f"Homomorphic needs an engine of {', '.join(ENGINES)}; given {self.engine!r}")

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` for layers that no encrypted program has."""
        _, module = split(build(task, (), seed=0))
        layers = unsupported(module)
        if layers:
            names = ", ".join(type(layer).__name__ for layer in layers)
            raise NotApplicable(f"Homomorphic cannot encrypt {names}, which {task.name} has: {instead(layers[0])}")
        if not is_chain(module):
            traced(self.adapt(module))

    def adapt(self, module: nn.Module) -> nn.Module:
        """The module with polynomial activations and average pooling."""
        return make_polynomial(module, self.span, self.activation == "learned")

    def prepare(self, plan: Plan) -> Plan:
        """The plan at a lower learning rate; raises `NotApplicable` before training where the program would not fit."""
        table, module = split(self.adapt(build(plan.task, (), plan.seed)))
        circuit = circuit_of(module, looked_up(table, plan.loader.data.take(slice(0, 1)).inputs))
        depth = circuit.depth + (self.engine == "reference" and circuit.windows is not None)
        next(candidates(depth, lambda _: 1.0, self.degree))
        if self.engine != "latency" and circuit.products > self.products:
            raise NotApplicable(
                f"{plan.task.name} needs {circuit.products:,} products of a ciphertext and a weight for each batch, "
                f"more than the {self.products:,} allowed: raise products, or choose the latency engine"
            )
        loss = within(plan.loss, self.range_penalty) if self.range_penalty else plan.loss
        return replace(plan, loss=loss, schedule=lambda done: self.learning_rate_factor * plan.schedule(done))

    def program(self, victim: Victim) -> Program:
        """The victim's encrypted program, behind its table if it has one; validation inputs are its calibration."""
        table, module = split(victim.module)
        return compile_module(
            module,
            looked_up(table, victim.splits.train.take(slice(0, 1)).inputs),
            calibration=looked_up(table, victim.splits.validation.take(slice(0, CALIBRATION)).inputs),
            engine=self.engine,
            precision=self.precision,
            degree=self.degree,
            compact=self.compact,
        )

    def serve(self, victim: Victim) -> Victim:
        """The victim answering through ciphertexts, with the claim that comes with them."""
        if not isinstance(victim.served, Plain):
            raise UsageError("Homomorphic computes the module's own answers: list it before defenses that change them")
        program = self.program(victim)
        simulated = self.mode == "simulate"
        limit = SPOT if simulated and self.encrypt is None else self.encrypt
        table, _ = split(victim.module)
        served = Encrypted(program, encrypt=limit, twin=victim.served, mode=self.mode, table=table)
        claims = (_claim(program.contract.parameters),) if limit is None else ()
        return replace(victim, served=served, claims=(*victim.claims, *claims))

    @classmethod
    def tiny(cls) -> Homomorphic:
        """Eight encrypted queries."""
        return cls(encrypt=8)


def _claim(parameters: Parameters) -> Claim:
    return Claim(
        kind="encryption",
        short=f"CKKS 128-bit, N={parameters.degree}",
        statement=(
            f"CKKS, ring degree {parameters.degree}, log2 Q = {parameters.log_q}, ternary secret: 128 bits by the 2018 "
            "standard and the 2024 guidelines; a semi-honest server sees ciphertexts only"
        ),
        values={
            "security bits": 128,
            "N": parameters.degree,
            "log2 Q": parameters.log_q,
            "scale bits": parameters.scale_bits,
            "depth": parameters.depth,
        },
        stage="serving",
    )
