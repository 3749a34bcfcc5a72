"""What an encrypted program costs under one engine and ring, and how far its answers are right."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from defenses.homomorphic import Homomorphic
from defenses.homomorphic.audit import Service, audit
from defenses.homomorphic.circuit import rows_of
from defenses.homomorphic.client import Client
from defenses.homomorphic.contract import Engine
from defenses.homomorphic.program import Program
from defenses.homomorphic.server import Server
from secure_ml.attack import Attack, Result
from secure_ml.batch import Batch, Tree
from secure_ml.errors import NotApplicable, require
from secure_ml.families.scrutiny import VERDICTS
from secure_ml.outputs import Classes, Output
from secure_ml.randomness import generator
from secure_ml.rows import Row, make_row, pool_rows
from secure_ml.stats import Estimate, clopper_pearson
from secure_ml.task import Task
from secure_ml.threats import Threat
from secure_ml.victim import Victim

T = TypeVar("T")
ACCURACY, CLEAR, EQUAL = "encrypted accuracy", "accuracy in the clear", "equal decisions"
ERROR, LATENCY, AMORTISED = "largest logit error", "latency", "server seconds a query"
UP, DOWN, KEYS, MODULUS = "bytes up", "bytes down", "bytes of keys", "log2 Q"


@dataclass(frozen=True, kw_only=True)
class EncryptionCost(Attack):
    """Accuracy, errors, seconds and bytes of a trained model in one encrypted program, and the audit of both ends.

    No attack. The ``throughput`` engine encrypts every test input ``(B, *shape)``. The others encrypt ``spot`` of them,
    and the rest are simulated: the program in the clear, with normal noise as large as those showed; a note says so.
    Seconds are of the processor, on one thread: what a query takes where nothing else runs. Shares of a batch are those
    of a full one. Raises `NotApplicable` where the victim is not trained for encryption, and where no parameters at
    128 bits keep ``precision``.
    """

    family: ClassVar[str] = "encryption"
    outputs: ClassVar[tuple[type[Output], ...]] = (Classes,)
    engine: Engine = "throughput"
    """How the program is computed."""
    degree: int | None = None
    """The ring's degree N; the smallest that keeps the precision unless given."""
    precision: float = 1.0
    """The largest error allowed of an answer."""
    spot: int = 8
    """Queries that are encrypted by engines that take one at a time."""
    checks: bool = True
    """Whether to audit both ends."""

    def __post_init__(self) -> None:
        require(self.spot >= 1, f"EncryptionCost needs at least 1 query to encrypt; given {self.spot}")
        Homomorphic(engine=self.engine, degree=self.degree, precision=self.precision)

    def evaluate(self, victim: Victim, *, threat: Threat | None, seed: int, examples: int) -> Result:
        """Measure on at most ``examples`` test inputs."""
        program, tested = self.program(victim), victim.tested(examples)
        rows = rows_of(tested.inputs)
        client = Client(program.contract)
        server = Server.from_bytes(program.to_bytes(), client.public_bytes())
        trial = _Trial(program, client, server)
        answers, encrypted = self._answers(trial, rows, seed)
        found = [*self._fidelity(victim, program, tested, answers, encrypted), *self._costs(victim, trial, encrypted)]
        if self.checks:
            found += self._audited(victim, trial.service(tested.take(slice(0, encrypted)).inputs, answers[:encrypted]))
        return Result(tuple(found))

    def program(self, victim: Victim) -> Program:
        """The victim's program under this engine and ring."""
        mine = [defense for defense in victim.defenses if isinstance(defense, Homomorphic)]
        if not mine:
            raise NotApplicable(f"{victim.task.name} was not trained for encryption here: list homomorphic")
        return replace(mine[0], engine=self.engine, degree=self.degree, precision=self.precision).program(victim)

    def _answers(self, trial: _Trial, rows: Tensor, seed: int) -> tuple[Tensor, int]:
        """Answers ``(B, *shape)`` to all inputs, and how many were encrypted."""
        circuit, many = trial.program.circuit, trial.program.contract.batch > 1
        pieces = rows.split(trial.program.contract.batch) if many else rows[: self.spot].split(1)
        answers = torch.cat([trial.ask(piece) for piece in pieces])
        rest = circuit.run(rows[len(answers) :])
        spread = float((answers - circuit.run(rows[: len(answers)])).square().mean().sqrt())
        noise = torch.randn(rest.shape, generator=generator(seed, "noise"), dtype=rest.dtype)
        return torch.cat([answers, rest + spread * noise]), len(answers)

    def _fidelity(self, victim: Victim, program: Program, tested: Batch, answers: Tensor, encrypted: int) -> list[Row]:
        twin, score, n = program.circuit.run(rows_of(tested.inputs)), victim.task.score, len(answers)
        note = f"{encrypted} of {n} encrypted, the others simulated" if encrypted < n else ""
        target = tested.target.cpu() if isinstance(tested.target, Tensor) else tested.target
        same = int((_decided(answers) == _decided(twin)).sum())
        error = float((answers[:encrypted] - twin[:encrypted]).abs().max())
        return [
            self._row(victim, ACCURACY, score.aggregate(score.per_example(answers, target)), score.unit, note),
            self._row(victim, CLEAR, score.aggregate(score.per_example(twin, target)), score.unit),
            self._row(victim, EQUAL, clopper_pearson(same, n), "share", note),
            self._row(victim, ERROR, _exactly(error, encrypted), "logits"),
        ]

    def _costs(self, victim: Victim, trial: _Trial, encrypted: int) -> list[Row]:
        batch, parameters = trial.program.contract.batch, trial.program.contract.parameters
        whole = min(a + b + c for a, b, c in trial.seconds)
        server, n = min(b for _, b, _ in trial.seconds), len(trial.seconds)
        note = f"of a batch of {batch:,}, however few queries are in it" if batch > 1 else ""
        return [
            self._row(victim, LATENCY, _exactly(whole, n), "seconds", note),
            self._row(victim, AMORTISED, _exactly(server / batch, n), "seconds"),
            self._row(victim, UP, _exactly(max(trial.up), n), "count", note),
            self._row(victim, DOWN, _exactly(max(trial.down), n), "count", note),
            self._row(victim, KEYS, _exactly(len(trial.client.public_bytes()), 1), "count"),
            self._row(victim, MODULUS, _exactly(parameters.log_q, 1), "count", str(parameters)),
        ]

    def _audited(self, victim: Victim, service: Service) -> list[Row]:
        return [
            self._row(victim, found.check, _exactly(VERDICTS.index(found.verdict), 1), "verdict", str(found))
            for found in audit(service)
        ]

    def _row(self, victim: Victim, measure: str, estimate: Estimate, unit: str, note: str = "") -> Row:
        return make_row(victim, measure, estimate, attack=repr(self), unit=unit, note=note)

    @classmethod
    def pool(cls, task: Task, attempts: Sequence[tuple[Attack, Result]]) -> list[Row]:
        """The mean over victims of each measure."""
        return [pool_rows(rows) for rows in zip(*(result.rows for _, result in attempts), strict=True)]


class _Trial:
    """Both ends, timed and weighed at each request."""

    def __init__(self, program: Program, client: Client, server: Server) -> None:
        self.program, self.client, self.server = program, client, server
        self.seconds: list[tuple[float, float, float]] = []
        """To encrypt, to answer and to decrypt."""
        self.up: list[int] = []
        self.down: list[int] = []
        self.first: tuple[bytes, bytes] | None = None
        """A query and its answer."""

    def ask(self, rows: Tensor) -> Tensor:
        """The decrypted answers to one request."""
        encrypting, query = _timed(lambda: self.client.encrypt(rows))
        answering, answer = _timed(lambda: self.server.answer(query))
        decrypting, values = _timed(lambda: self.client.decrypt(answer))
        self.seconds.append((encrypting, answering, decrypting))
        self.up.append(len(query))
        self.down.append(len(answer))
        self.first = self.first or (query, answer)
        return values

    def service(self, inputs: Tree, answers: Tensor) -> Service:
        """Both ends for an audit, which finds these inputs answered already."""
        assert self.first is not None
        made = Service(self.program, self.client, self.server, inputs)
        vars(made).update(query=self.first[0], answer=self.first[1], answers=answers.reshape(len(answers), -1))
        return made


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    start = time.process_time()
    done = work()
    return time.process_time() - start, done


def _exactly(value: float, n: int) -> Estimate:
    return Estimate(value, float("nan"), float("nan"), n, "measured")


def _decided(answers: Tensor) -> Tensor:
    return answers > 0 if answers.ndim == 1 else answers.argmax(-1)
