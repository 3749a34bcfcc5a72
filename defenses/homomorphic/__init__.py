"""Answers computed on ciphertexts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from defenses.homomorphic.engine import Encrypted
from defenses.homomorphic.parameters import Parameters
from defenses.homomorphic.polynomial import make_polynomial, unsupported
from defenses.homomorphic.program import compile_module
from secure_ml.defense import Defense
from secure_ml.errors import NotApplicable, UsageError, require
from secure_ml.task import Task
from secure_ml.training import Plan
from secure_ml.victim import Claim, Plain, Victim, build


@dataclass(frozen=True, kw_only=True)
class Homomorphic(Defense):
    """Inference on CKKS ciphertexts through TenSEAL (Cheon et al. 2017, https://eprint.iacr.org/2016/421).

    Before training, activations become the quadratic that fits ReLU on ``[-span, span]`` and max pooling becomes
    average pooling; after it, the module is compiled to affine maps and squares over whole batches of inputs
    ``(B, *shape)``, one query in each slot. A client encrypts, a server built from bytes without the secret key
    computes, the client decrypts.

    Covers: inputs and answers, against a semi-honest server, at 128 bits. Does not cover: the weights, the training
    data, or the answers' recipients: extraction and membership inference work on decrypted answers as on any
    others. Client and server run in one process here; answers carry noise of about 1e-5, so repeated runs agree in
    their decisions and to that tolerance in their values. Where not every query is encrypted there is no claim.

    Raises `NotApplicable` for layers other than Linear, Conv1d/2d, average pooling, Flatten, Dropout and
    activations in a Sequential, for programs deeper than 128 bits allow or larger than ``products``; `UsageError`
    if it is not the first to serve.
    """

    span: float = 8.0
    """Half the range on which the quadratic fits ReLU."""
    learning_rate_factor: float = 0.5
    """On the recipe's learning rate: quadratics grow where the activations that recipes are made for do not."""
    encrypt: int | None = None
    """Queries to encrypt; later ones are answered by the same program in the clear, and nothing is claimed. All of
    them unless given."""
    products: int = 50_000
    """The most products of a ciphertext and a weight that a program may need for a batch."""

    def __post_init__(self) -> None:
        require(self.span > 0, f"Homomorphic needs a span above 0; given {self.span}")
        require(
            self.learning_rate_factor > 0,
            f"Homomorphic needs a learning rate factor above 0; given {self.learning_rate_factor}",
        )
        require(
            self.encrypt is None or self.encrypt >= 0,
            f"Homomorphic needs a number of queries of at least 0 to encrypt; given {self.encrypt}",
        )

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` for layers that no encrypted program has."""
        layers = unsupported(build(task, (), seed=0))
        if layers:
            raise NotApplicable(f"Homomorphic cannot encrypt {', '.join(layers)}, which {task.name} has")

    def adapt(self, module: nn.Module) -> nn.Module:
        """The module with polynomial activations and average pooling."""
        return make_polynomial(module, self.span)

    def prepare(self, plan: Plan) -> Plan:
        """The plan at a lower learning rate; raises `NotApplicable` before training where the program would not fit."""
        sample = plan.loader.data.take(slice(0, 1)).inputs
        program = compile_module(self.adapt(build(plan.task, (), plan.seed)), sample)
        Parameters.for_depth(program.depth)
        if program.products > self.products:
            raise NotApplicable(
                f"{plan.task.name} needs {program.products:,} products of a ciphertext and a weight for each batch, "
                f"more than the {self.products:,} allowed"
            )
        return replace(plan, schedule=lambda done: self.learning_rate_factor * plan.schedule(done))

    def serve(self, victim: Victim) -> Victim:
        """The victim answering through ciphertexts, with the claim that comes with them."""
        if not isinstance(victim.served, Plain):
            raise UsageError("Homomorphic computes the module's own answers: list it before defenses that change them")
        program = compile_module(victim.module, victim.splits.train.take(slice(0, 1)).inputs)
        program.check_headroom(victim.splits.validation.inputs, Parameters.for_depth(program.depth))
        served = Encrypted(program, encrypt=self.encrypt, twin=victim.served)
        claims = (_claim(served.parameters),) if self.encrypt is None else ()
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
