"""Vectors that a client looks up itself, since no product or sum of ciphertexts chooses a row of a table."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from secure_ml.batch import Tree
from secure_ml.errors import NotApplicable

TABLES = (nn.Embedding, nn.EmbeddingBag)


def split(module: nn.Module) -> tuple[nn.Module | None, nn.Module]:
    """The table at the front of a Sequential, which the client is handed, and the rest, which can be compiled.

    None where there is no table. The client then encrypts ``looked_up(table, tokens)``: it learns those weights, and
    the server, which computes what is behind them, learns no token.
    """
    if isinstance(module, nn.Sequential) and len(module) and isinstance(module[0], TABLES):
        return deepcopy(module[0]).cpu().eval(), module[1:]
    return None, module


def looked_up(table: nn.Module | None, inputs: Tree) -> Tree:
    """Vectors of tokens ``(B, L)``: ``(B, L, D)``, or ``(B, D)`` of bags; inputs as they are where there is no table.

    Raises `NotApplicable` for tokens without a table, with what to do.
    """
    if table is None:
        if isinstance(inputs, Tensor) and not inputs.is_floating_point():
            raise NotApplicable(
                "tokens cannot be encrypted: the client looks their vectors up, and encrypts those; "
                "defenses.homomorphic.lookup.split gives the client's table and the rest, which can be compiled"
            )
        return inputs
    with torch.no_grad():
        assert isinstance(inputs, Tensor)
        found: Tensor = table(inputs.cpu())
    return found
