"""How far an encrypted answer is from the circuit's own, before any key is made.

Variances are carried through maps and squares with the values that calibration inputs take: of an encryption with the
secret key, of each rescaling's rounding, of each key switch's digits and rounding. Errors are taken as independent
(the central-limit analysis of https://eprint.iacr.org/2022/162).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from defenses.homomorphic.circuit import Circuit
from defenses.homomorphic.packing import Layout, Packed, Values
from defenses.homomorphic.parameters import Parameters

SPREAD = 3.2
"""Standard deviation of the error that SEAL samples for each coefficient."""
USUAL = 0.9
"""Share of the calibration inputs, corners among them, whose noise is no larger than what is expected."""
TAIL = 6.0
"""Standard deviations that the largest error of many answers is taken to reach."""


def predicted_error(circuit: Circuit, rows: Tensor, parameters: Parameters) -> float:
    """The largest error to be expected of answers to inputs like ``rows (B, in)``, where nothing is rotated."""
    rows, rounding = rows.double(), _rounding(parameters)
    entering = [torch.full_like(rows, _fresh(parameters))]
    layers = circuit.layers(rows)
    for index, (step, values) in enumerate(zip(circuit.maps, layers, strict=True)):
        noise = entering[index] @ step.matrix.square().T + rounding
        for skip in circuit.into(index):
            noise = noise + entering[skip.source] @ skip.matrix.square().T + rounding
        if index < len(layers) - 1:
            switch = float(_switch(parameters, parameters.depth - 2 * index).max()) / parameters.scale**2
            entering.append(4 * values.square() * noise + rounding + switch)
    return TAIL * sqrt(float(noise.max(1).values.quantile(USUAL)))


Choice = tuple[Parameters, bool]
"""A parameter set, and whether folds come before rescaling."""


def packed_noise(steps: Sequence[Packed], values: Sequence[Values], choices: Sequence[Choice]) -> Values:
    """The variance in each slot of an answer, ``(choices, slots)``, for choices on one ring.

    ``values`` are those of `packed_values`. The first of the folds behind a map is summed as often as there are terms;
    before rescaling that is drowned by the scale. What stands beside the values that are meant is carried along.
    """
    sets, late = [one for one, _ in choices], np.array([[not early] for _, early in choices])
    rounding = np.array([[_rounding(one)] for one in sets])
    noise, entering = np.stack([np.full(one.slots, _fresh(one)) for one in sets]), []
    for index, step in enumerate(steps):
        left = sets[0].depth + 1 - 2 * index
        switch, behind = (np.stack([_switch(one, primes) for one in sets]) for primes in (left, left - 1))
        if index:
            drowned = np.stack([_switch(one, left + 1) / one.scale**2 for one in sets])
            noise = 4 * np.square(values[index - 1]).mean(0) * noise + rounding + drowned
        entering.append(noise)
        parts = [(index, step), *step.skips]
        noise = sum((_mapped(one, entering[j], switch, late * behind, rounding) for j, one in parts), 0.0 * noise)
    return noise


def _mapped(step: Packed, noise: Values, switch: Values, behind: Values, rounding: Values) -> Values:
    """The variances behind one product and its folds."""
    turned, at = [noise], 0
    for this in step.babies[1:]:
        turned.append(np.roll(turned[-1], at - this, -1) + switch)
        at = this
    noise = step.spread(dict(zip(step.babies, turned, strict=True)), noise.shape[-1]) + rounding
    for fold in step.folds:
        noise = noise + np.roll(noise, -fold, -1) + behind
    return noise


def packed_values(steps: Sequence[Packed], layout: Layout, rows: Values, slots: int) -> list[Values]:
    """What stands in each slot behind each map, ``(B, slots)``, what is not meant included."""
    entering, found = [np.tile(np.stack([layout.spread(row) for row in rows]), slots // layout.period)], []
    for index, step in enumerate(steps):
        values = step.run(entering[index])
        for source, skip in step.skips:
            values = values + skip.run(entering[source])
        found.append(values)
        entering.append(values**2)
    return found


def _rounding(parameters: Parameters) -> float:
    return (parameters.degree / 6 / parameters.scale) ** 2


def _fresh(parameters: Parameters) -> float:
    return SPREAD**2 * parameters.degree / 2 / parameters.scale**2


def _switch(parameters: Parameters, primes: int) -> Values:
    """The variance ``(slots,)`` that a key switch adds at so many primes: its digits, and the rounding in the end.

    SEAL's digits are not around 0: their mean is a polynomial of equal coefficients, which is large at the roots
    near 1, and those slots get most of the noise.
    """
    degree = parameters.degree
    digits = [*[parameters.scale_bits] * (primes - 1), parameters.first]
    summed = sum(4.0 ** (bits - parameters.special) for bits in digits)
    powers = np.array([pow(3, j, 2 * degree) for j in range(parameters.slots)])
    mean = 4 / (2 - 2 * np.cos(np.pi * powers / degree))
    found: Values = SPREAD**2 * degree * summed * (degree / 24 + mean / 8) + (degree / 6) ** 2
    return found / parameters.scale**2
