"""The server: a program and a client's public keys, built from bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from defenses.homomorphic.latency import Latency
from defenses.homomorphic.levels import check_marks
from defenses.homomorphic.program import Program
from defenses.homomorphic.reference import Reference
from defenses.homomorphic.throughput import Throughput
from defenses.homomorphic.wire import fingerprint, frame, unframe
from secure_ml.errors import UsageError


class Machine(Protocol):
    """An engine with a program and public keys."""

    @property
    def inside(self) -> Any:
        """SEAL's context."""

    def run(self, blobs: Sequence[bytes]) -> list[bytes]:
        """Serialised ciphertexts of queries to those of their answers."""

    def exhaust(self, answer: bytes) -> None:
        """Go on with an answer beyond the last level, which must raise an error."""


class Server:
    """Answers queries without being able to read them; there is no way to hand it a secret key.

    One server answers one client's keys. It is built from bytes in the process that answers: a context that was made
    where the keys were would still decrypt.
    """

    def __init__(self, program: Program, public: bytes, device: str = "cpu") -> None:
        about, blobs = unframe("keys", public)
        self.program, self.contract = program, program.contract
        self.keys = fingerprint(*blobs)
        check_marks(about, self.contract.id, self.keys)
        self.machine = _machine(program, blobs, device)

    @classmethod
    def from_bytes(cls, program: bytes, public: bytes, device: str = "cpu") -> Server:
        """The server of a program's bytes and a client's public ones; raises `UsageError` where they do not fit.

        The matrix products of the ``throughput`` engine run on the device.
        """
        return cls(Program.from_bytes(program), public, device)

    def answer(self, query: bytes) -> bytes:
        """The encrypted answers to a query; raises `UsageError` for one under other keys or of another shape."""
        about, blobs = unframe("query", query)
        check_marks(about, self.contract.id, self.keys)
        queries = about.get("queries")
        throughput = self.contract.engine == "throughput"
        wanted = self.contract.inputs if throughput and queries else queries
        if not isinstance(queries, int) or not queries >= 0 or len(blobs) != wanted:
            raise UsageError(f"{len(blobs)} ciphertexts of {queries} queries were given; expected {wanted}")
        answers = self.machine.run(blobs) if blobs else []
        return frame("answer", {"contract": self.contract.id, "keys": self.keys, "queries": queries}, answers)


def _machine(program: Program, blobs: list[bytes], device: str) -> Machine:
    """The engine that the contract names."""
    if program.contract.engine == "throughput":
        return Throughput(program, blobs, device)
    if program.contract.engine == "reference":
        return Reference(program, blobs)
    return Latency(program, blobs)
