"""A server of encrypted queries as a served model: what anybody who may ask it can measure, or attack."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from defenses.homomorphic.circuit import rows_of
from defenses.homomorphic.client import Client
from defenses.homomorphic.lookup import looked_up
from defenses.homomorphic.service.remote import Remote
from secure_ml.batch import Tree
from secure_ml.victim import Served


class Endpoint(Served):
    """Every answer is asked for over HTTP, as a ciphertext, and decrypted here; nothing stands in for it.

    ``table`` is what the client looks tokens up in, where the model begins with one.
    """

    decrypted_by_client = True

    def __init__(self, remote: Remote, client: Client, table: nn.Module | None = None) -> None:
        self.remote, self.client, self.table = remote, client, table
        self.queries = 0

    def __call__(self, inputs: Tree) -> Tensor:
        """Answers ``(B, *shape)`` in the inputs' precision and on their device."""
        assert isinstance(inputs, Tensor)
        rows = rows_of(looked_up(self.table, inputs))
        contract = self.client.contract
        parts = [self.remote.ask(self.client, part) for part in rows.split(contract.batch) if len(part)]
        self.queries += len(rows)
        empty = torch.zeros(0, *contract.shape, dtype=torch.float64)
        kind = inputs.dtype if inputs.is_floating_point() else torch.float32
        return torch.cat([empty, *parts]).to(kind).to(inputs.device)

    def usage(self) -> Mapping[str, int]:
        """Queries so far, all of them encrypted, and the bytes that they took."""
        return {"queries encrypted": self.queries, "bytes up": self.remote.sent, "bytes down": self.remote.received}
