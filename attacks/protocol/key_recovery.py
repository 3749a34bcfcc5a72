"""The secret key from two decryptions that were shown in full precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from secure_ml.families.protocol import Exchange, Protocol, Shown, Transcript
from secure_ml.ring import Integers, Ring


@dataclass(frozen=True, kw_only=True)
class KeyRecovery(Protocol):
    """Approximate decryptions are linear equations of the key (Li and Micciancio 2021, https://eprint.iacr.org/2020/1533).

    A client decrypts answers ``(B, *shape)`` that fill the slots of two ciphertexts, and shows the numbers. Encoded
    again, they are the integers ``m + conj(m)`` with ``m = c0 + c1 * key``: two such equations for each conjugate pair
    of values of the key determine it, in the time of a few thousand divisions. Decryption by SEAL shows real parts
    only, for which the paper's one equation becomes two. The server is asked nothing; no model or data are needed.

    Rounding the numbers coarser than the integers they encode stops this attack, which solves exact equations; that is
    no proof: with rounded numbers the equations have small errors, and many of them are a lattice problem that gets
    easier. Raises `NotApplicable` where no ciphertexts travel, or answers show only a few of their slots.
    """

    shown: Shown = "full"
    """What the client shows of its answers: full, float32, or released (rounded as its own rule says)."""

    def attack(self, transcript: Transcript, rng: torch.Generator) -> Tensor:
        """The key ``(N,)``; 0 where the equations give no coefficient of a key."""
        ring = Ring(transcript.degree, transcript.modulus)
        one, other = transcript.exchanges[:2]
        found = ring.coefficients(_solved(ring, one, other))
        return torch.tensor(np.where(np.abs(found) <= 1, found, 0).astype(np.int64))


def _solved(ring: Ring, one: Exchange, other: Exchange) -> Integers:
    """Values of the key, from ``c1 * key + conj(c1 * key) = encoded - c0 - conj(c0)`` twice for each conjugate pair."""
    q = ring.modulus
    (a, r), (b, t) = ((each.c1.astype(object), _known(ring, each)) for each in (one, other))
    determinant = (a * b[::-1] - a[::-1] * b) % q
    inverse = np.array([pow(int(d), -1, q) if d else 0 for d in determinant], dtype=object)
    values: Integers = (r * b[::-1] - a[::-1] * t) * inverse % q
    return values


def _known(ring: Ring, exchange: Exchange) -> Integers:
    """The side of an equation that holds no key."""
    message = ring.values(ring.encoded(exchange.shown.numpy(), 2 * exchange.scale))
    c0 = exchange.c0.astype(object)
    side: Integers = (message - c0 - c0[::-1]) % ring.modulus
    return side
