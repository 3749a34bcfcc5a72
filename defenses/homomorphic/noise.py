"""How far an encrypted answer is from the circuit's own, before any key is made."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from torch import Tensor

from defenses.homomorphic.circuit import Circuit
from defenses.homomorphic.packing import Packed
from defenses.homomorphic.parameters import Parameters

SPREAD = 3.2
"""Standard deviation of the error that SEAL samples for each coefficient."""
TAIL = 6.0
"""Standard deviations that the largest error of many answers is taken to reach."""


def predicted_error(
    circuit: Circuit, rows: Tensor, parameters: Parameters, packed: Sequence[Packed] | None = None, early: bool = False
) -> float:
    """The largest error to be expected of answers to inputs like ``rows (B, in)``.

    Variances are carried through maps and squares with the values that calibration inputs take: of an encryption with
    the secret key, each rescaling's rounding, each key switch's digits and rounding. Errors are taken as independent
    (the central-limit analysis of https://eprint.iacr.org/2022/162). The first of the folds behind a packed map is
    summed as often as there are terms; before rescaling (``early``) that is drowned by the scale.
    """
    degree, scale = parameters.degree, parameters.scale
    rounding = (degree / 6 / scale) ** 2
    noise = circuit.maps[0].bias.new_full((circuit.maps[0].matrix.shape[1],), SPREAD**2 * degree / 2 / scale**2)
    layers = circuit.layers(rows)
    for index, (step, values) in enumerate(zip(circuit.maps, layers, strict=True)):
        left = parameters.depth + 1 - 2 * index
        if packed is not None:
            noise = noise + (len(packed[index].babies) - 1) * _switch(parameters, left)
        noise = step.matrix.square() @ noise + rounding
        if packed is not None and packed[index].folds and not early:
            noise = noise + 2 ** len(packed[index].folds) * _switch(parameters, left - 1)
        if index < len(layers) - 1:
            noise = 4 * values.square().mean(0) * noise + rounding + _switch(parameters, left - 1, scale)
    return TAIL * sqrt(float(noise.max()))


def _switch(parameters: Parameters, primes: int, times: float = 1.0) -> float:
    """The variance that a key switch adds to a value, at so many primes: its digits, and the rounding in the end.

    ``times`` the scale larger is what is switched before it is rescaled.
    """
    degree, scale = parameters.degree, parameters.scale * times
    digits = [*[parameters.scale_bits] * (primes - 1), parameters.first]
    summed = sum(4.0 ** (bits - parameters.special) for bits in digits)
    return (degree**2 * SPREAD**2 / 6 * summed + (degree / 6) ** 2) / scale**2
