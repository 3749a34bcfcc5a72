"""A server that lies: well-formed ciphertexts of another program, or of no program at all."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

import numpy as np
from torch import Tensor

from defenses.homomorphic import stream
from defenses.homomorphic.client import Client
from defenses.homomorphic.server import Server
from defenses.homomorphic.throughput import Throughput
from defenses.homomorphic.transcript import secret_key
from defenses.homomorphic.wire import frame, unframe
from secure_ml.errors import NotApplicable, require
from secure_ml.families.deceit import Dupe, Line, Secret
from secure_ml.ring import Integers, Ring


class Deceived(Dupe):
    """A client of the ``throughput`` engine whose whole batch is asked at each lie; its server holds public keys only.

    The client checks marks, number, level, size, scale and range of what it is sent, as of any answer.
    """

    def __init__(self, client: Client, server: Server, rows: Tensor, answers: int) -> None:
        contract = client.contract
        if not isinstance(server.machine, Throughput):
            raise NotApplicable(
                f"a ciphertext of the {contract.engine} engine is of one query: these lies are told to a whole batch"
            )
        require(len(rows) > 0, "at least one input is needed to fill a batch")
        self._client, self._server, self._machine = client, server, server.machine
        filled = rows.repeat(ceil(contract.batch / len(rows)), 1)[: contract.batch]
        self._query = client.encrypt(filled)
        parameters = contract.parameters
        line = Line(
            degree=parameters.degree,
            modulus=server.machine.levels.primes[0],
            queries=min(len(rows), contract.batch),
            scale=parameters.scale,
            room=parameters.headroom,
            inputs=contract.inputs,
            outputs=len(server.program.circuit.maps[-1].bias),
            low=contract.low,
            high=contract.high,
        )
        super().__init__(line, answers)

    def _substituted(self, weights: Tensor, biases: Tensor) -> Tensor:
        _, blobs = unframe("query", self._query)
        return self._decided(self._machine.substituted(weights, biases, blobs))

    def _forged(self, c0: Integers, c1: Integers) -> Tensor:
        ring, levels = Ring(self.line.degree, self.line.modulus), self._machine.levels
        like = stream.read(
            unframe("answer", self._server.answer(self._query))[1][0], levels.ids[-1], (2, 1, ring.degree)
        )
        pairs = [np.stack([ring.values(half)[None] for half in pair]) for pair in zip(c0, c1, strict=True)]
        return self._decided([like.with_residues(pair.astype(np.int64)) for pair in pairs])

    def _decided(self, blobs: list[bytes]) -> Tensor:
        """What the client acts on: the class of each answer that it accepts."""
        about = {
            "contract": self._client.contract.id,
            "keys": self._client.keys,
            "queries": self._client.contract.batch,
        }
        return self._client.decrypt(frame("answer", about, blobs)).flatten(1).argmax(1)


def duped(client: Client, server: Server, rows: Tensor, answers: int) -> tuple[Dupe, Mapping[Secret, Tensor]]:
    """The client, and what it wants to hide; for the judge alone."""
    dupe = Deceived(client, server, rows, answers)
    return dupe, {"key": secret_key(client, dupe.line.modulus), "input": rows[: dupe.line.queries].double()}
