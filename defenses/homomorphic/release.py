"""What of a decrypted answer may be shown to others: not its last digits, which hold the key."""

from __future__ import annotations

from math import floor, log10, sqrt

import torch
from torch import Tensor

from defenses.homomorphic.parameters import Parameters
from secure_ml.errors import UsageError

MARGIN = 8
"""Bits by which rounding moves each coefficient of the message beyond the integer that it is."""


def most_decimals(parameters: Parameters) -> int:
    """Decimals of a number from which the message's integers cannot be computed exactly any more.

    Numbers that are rounded to ``step`` are off by ``step / sqrt(12)``, and a coefficient, a mean over all slots, by
    that times ``scale * sqrt(2 / N)``: it is made to be ``2 ** MARGIN``, where half a unit would do.
    """
    step = 2.0**MARGIN * sqrt(12 / 2) * sqrt(parameters.degree) / parameters.scale
    return floor(-log10(step))


def released(answers: Tensor, parameters: Parameters, decimals: int | None = None) -> Tensor:
    """Answers rounded so that the exact key recovery of https://eprint.iacr.org/2020/1533 fails.

    This is no proof of security: it stops the attack that solves linear equations without errors, while rounded
    answers remain equations with small errors, of which many together tell something. Flooding with noise has a proof
    (https://eprint.iacr.org/2022/816) and costs precision. Best is to show decisions alone. Raises
    `UsageError` for more decimals than are safe from the exact attack.
    """
    most = most_decimals(parameters)
    if decimals is not None and decimals > most:
        raise UsageError(f"{decimals} decimals of decrypted answers may give the key away: show at most {most} of them")
    return torch.round(answers.double(), decimals=most if decimals is None else decimals)
