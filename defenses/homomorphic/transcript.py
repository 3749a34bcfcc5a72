"""What an eavesdropper holds of an encrypted conversation, and the key that the attack is judged by."""

from __future__ import annotations

from math import ceil

import numpy as np
import torch
from torch import Tensor

from defenses.homomorphic import stream
from defenses.homomorphic.client import Client, SealSecrets
from defenses.homomorphic.levels import _ids, make_context
from defenses.homomorphic.release import released
from defenses.homomorphic.server import Server
from defenses.homomorphic.wire import Files, unframe
from secure_ml.errors import NotApplicable, require
from secure_ml.families.protocol import Exchange, Shown, Transcript
from secure_ml.ring import Ring


def overhear(client: Client, server: Server, rows: Tensor, shown: Shown) -> tuple[Transcript, Tensor]:
    """The ciphertexts of a full batch of answers with the numbers that the client shows, and its secret key ``(N,)``.

    Inputs ``(B, in)`` are asked again until the batch is full. Raises `NotApplicable` for engines whose answers show
    only a few of a ciphertext's slots: this transcript would not determine the key.
    """
    contract, parameters = client.contract, client.contract.parameters
    if contract.engine != "throughput":
        raise NotApplicable(
            f"an answer of the {contract.engine} engine shows few slots of its ciphertext: too few equations for a key"
        )
    require(len(rows) > 0, "at least one input is needed to fill a batch")
    filled = rows.repeat(ceil(contract.batch / len(rows)), 1)[: contract.batch]
    answer = server.answer(client.encrypt(filled))
    columns = _shown(client.decrypt(answer), client, shown).flatten(1).T
    context = make_context(parameters)
    modulus = context.key_context_data().parms().coeff_modulus()[0].value()
    exchanges = []
    for blob, column in zip(unframe("answer", answer)[1], columns, strict=True):
        c0, c1 = stream.read(blob, _ids(context)[-1], (2, 1, parameters.degree)).residues[:, 0]
        exchanges.append(Exchange(c0, c1, parameters.scale, column.clone()))
    require(len(exchanges) >= 2, "one answer is one equation: the key follows from models of two outputs or more")
    return Transcript(parameters.degree, modulus, tuple(exchanges)), secret_key(client, modulus)


def secret_key(client: Client, modulus: int) -> Tensor:
    """The coefficients ``(N,)`` of the secret key: -1, 0 or 1; for the judge alone."""
    degree, secrets = client.contract.parameters.degree, client._secrets
    assert isinstance(secrets, SealSecrets)
    files = Files()
    blob = files.to_bytes(secrets._keys.secret_key())
    files.path.unlink()
    size = 8 * degree * len(client.contract.parameters.bits)
    body = stream._decompressed(blob, size + 256) if blob[5] == stream.ZSTD else blob[stream.HEADER.size :]
    values = np.frombuffer(body, dtype="<u8", offset=len(body) - size)[:degree]
    return torch.tensor(Ring(degree, modulus).coefficients(values).astype(np.int64))


def _shown(answers: Tensor, client: Client, shown: Shown) -> Tensor:
    if shown == "float32":
        return answers.float().double()
    return answers if shown == "full" else released(answers, client.contract.parameters)
