"""A program served on ciphertexts, or as a simulation of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from defenses.homomorphic.audit import Service, audit
from defenses.homomorphic.circuit import rows_of
from defenses.homomorphic.client import Client
from defenses.homomorphic.deceit import duped
from defenses.homomorphic.lookup import looked_up
from defenses.homomorphic.program import Program
from defenses.homomorphic.server import Server
from defenses.homomorphic.transcript import overhear
from secure_ml.batch import Tree
from secure_ml.errors import SecureMLError
from secure_ml.families.deceit import Dupe, Gullible, Secret
from secure_ml.families.protocol import Conversation, Shown, Transcript
from secure_ml.families.scrutiny import Finding
from secure_ml.randomness import generator
from secure_ml.victim import Served

Mode = Literal["encrypted", "simulate"]
LARGER = 16.0
"""How many times the error that is expected of the noise explains an answer's: beyond, it has wrapped."""


class Encrypted(Conversation, Gullible):
    """A program served on ciphertexts: the first ``encrypt`` queries (all, if None) are really encrypted.

    Every decrypted answer is compared with the circuit in the clear, since an overflow would be silent. Later queries
    are answered by the circuit in the clear, in the mode ``simulate`` with noise as large as those showed.
    """

    decrypted_by_client: ClassVar[bool] = True

    def __init__(
        self,
        program: Program,
        encrypt: int | None = None,
        twin: Served | None = None,
        mode: Mode = "encrypted",
        table: nn.Module | None = None,
    ) -> None:
        self.program, self.encrypt, self.twin, self.mode = program, encrypt, twin, mode
        self.table = table
        """What the client looks tokens up in, where inputs are tokens."""
        self.queries = self.encrypted = 0
        self.largest_error = 0.0
        """Of any decrypted answer so far."""
        self._squares, self._rng = 0.0, generator(0, "noise")
        self._ends: tuple[Client, Server] | None = None

    def __call__(self, inputs: Tree) -> Tensor:
        """Answers ``(B, *shape)`` in the inputs' precision and on their device."""
        assert isinstance(inputs, Tensor)
        rows = rows_of(looked_up(self.table, inputs))
        n = len(rows) if self.encrypt is None else min(len(rows), self.encrypt - self.encrypted)
        size = self.program.contract.parameters.slots
        answers = [self._through_ciphertexts(piece) for piece in rows[:n].split(size) if len(piece)]
        self.queries, self.encrypted = self.queries + len(rows), self.encrypted + n
        answers.append(self._imagined(rows[n:]))
        return torch.cat(answers).to(inputs.dtype if inputs.is_floating_point() else torch.float32).to(inputs.device)

    def stand_in(self) -> Served:
        """The module in the clear, where it is known: decrypted answers differ from its own by rounding."""
        return self.twin or Encrypted(self.program, encrypt=0, table=self.table)

    def usage(self) -> Mapping[str, int]:
        """Queries so far, and how many of them were encrypted."""
        return {"queries served": self.queries, "queries encrypted": self.encrypted}

    def findings(self, inputs: Tree) -> Iterable[Finding]:
        """An audit of both ends on these inputs, which are encrypted."""
        yield from audit(Service(self.program, *self.ends(), looked_up(self.table, inputs)))

    @property
    def spread(self) -> float:
        """Root mean square of the errors of decrypted answers; the most that noise explains, before there are any."""
        seen = self.encrypted * max(int(torch.tensor(self.program.contract.shape).prod()), 1)
        return float((self._squares / seen) ** 0.5) if seen else self.program.expected_error

    def ends(self) -> tuple[Client, Server]:
        """The client with its keys and the server built from its public bytes, made when first needed."""
        if self._ends is None:
            client = Client(self.program.contract)
            self._ends = client, Server.from_bytes(self.program.to_bytes(), client.public_bytes())
        return self._ends

    def overheard(self, inputs: Tree, shown: Shown) -> tuple[Transcript, Tensor]:
        """What travels for a batch of queries, and the secret key that it must not tell."""
        assert isinstance(inputs, Tensor)
        return overhear(*self.ends(), rows_of(looked_up(self.table, inputs)), shown)

    def duped(self, inputs: Tree, answers: int) -> tuple[Dupe, Mapping[Secret, Tensor]]:
        """A client that asks about these inputs, with what a server that lies to it is after."""
        return duped(*self.ends(), rows_of(looked_up(self.table, inputs)), answers)

    def _imagined(self, rows: Tensor) -> Tensor:
        answers = self.program.circuit.run(rows)
        if self.mode == "simulate" and len(rows):
            answers += self.spread * torch.randn(answers.shape, generator=self._rng, dtype=torch.float64)
        return answers

    def _through_ciphertexts(self, rows: Tensor) -> Tensor:
        client, server = self.ends()
        values = client.decrypt(server.answer(client.encrypt(rows)))
        twin = self.program.circuit.run(rows).reshape(values.shape)
        error, size = (values - twin).abs().max().item(), max(twin.abs().max().item(), self.program.largest)
        most = LARGER * self.program.expected_error * max(1.0, size / max(self.program.largest, 1e-9))
        if not error <= most:
            raise SecureMLError(
                f"decrypted answers differ from the program by {error:.3g} at a size of {size:.3g}: they overflow"
            )
        self.largest_error = max(self.largest_error, error)
        self._squares += (values - twin).square().sum().item()
        return values
