"""What bounds need to know of a layer: intervals through it, and linear bounds back through it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

Lines: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
"""Ends of intervals to slope and intercept of a line below and of a line above."""


@dataclass(frozen=True, eq=False)
class Interval:
    """Two tensors ``(B, *shape)`` between which every value lies."""

    lower: Tensor
    upper: Tensor

    def largest(self) -> Tensor:
        """The largest absolute value inside, ``(B, *shape)``."""
        return torch.maximum(self.lower.abs(), self.upper.abs())

    def halves(self) -> tuple[Tensor, Tensor]:
        """The middle and half the width."""
        return (self.lower + self.upper) / 2, (self.upper - self.lower) / 2


@dataclass(frozen=True, eq=False)
class Rows:
    """S linear functions of a layer's values, ``coefficients (S, B, *shape)`` and ``constant (S, B)``.

    They are lower bounds of what is asked of the network; going back through a layer keeps them so.
    """

    coefficients: Tensor
    constant: Tensor

    def lowest(self, box: Interval) -> Tensor:
        """The least value on a box, ``(S, B)``."""
        middle, half = box.halves()
        return self.constant + _total(self.coefficients * middle - self.coefficients.abs() * half)


class Layer(ABC):
    """One step of a network. ``unit`` is the rounding unit of the arithmetic to be covered, 0 for exact numbers."""

    affine = False
    """Whether going back through it loses nothing."""

    @abstractmethod
    def interval(self, box: Interval, unit: float) -> Interval:
        """Where the layer's values lie if its inputs lie in ``box``."""

    @abstractmethod
    def back(self, rows: Rows, box: Interval, unit: float) -> Rows:
        """Lower bounds in the layer's inputs, valid on ``box``, of lower bounds in its values."""


@dataclass(frozen=True, eq=False)
class Weighted(Layer):
    """Products with weights, summed, plus a bias; sums of ``terms`` products, in any order."""

    forward: Callable[[Tensor, Tensor], Tensor]
    """The layer without its bias: values and weights to values."""
    backward: Callable[[Tensor, Tensor, torch.Size], Tensor]
    """Its transpose: coefficients ``(N, *shape)``, weights and the shape of the inputs to coefficients."""
    weight: Tensor
    bias: Tensor
    """Of a shape that stands beside the values of one example."""
    terms: int
    affine = True

    def interval(self, box: Interval, unit: float) -> Interval:
        """The middle through the weights, half the width through their absolute values."""
        middle, half = box.halves()
        middle = self.forward(middle, self.weight) + self.bias
        half = self.forward(half, self.weight.abs())
        if unit:
            half = half + self._rounding(box, unit)
        return Interval(middle - half, middle + half)

    def back(self, rows: Rows, box: Interval, unit: float) -> Rows:
        """The transpose; what rounding may take away is taken away."""
        c = rows.coefficients
        constant = rows.constant + _total(c * self.bias)
        if unit:
            constant = constant - _total(c.abs() * self._rounding(box, unit))
        inputs = self.backward(c.flatten(0, 1), self.weight, box.lower.shape)
        return Rows(inputs.unflatten(0, c.shape[:2]), constant)

    def _rounding(self, box: Interval, unit: float) -> Tensor:
        """By how much floating-point sums of ``terms`` products may miss the exact ones (Higham 2002, section 3.1).

        Twice that, so that what is lost in computing the bounds themselves is covered too.
        """
        share = 2 * (self.terms + 2) * unit / (1 - (self.terms + 2) * unit)
        return share * (self.forward(box.largest(), self.weight.abs()) + self.bias.abs())


@dataclass(frozen=True, eq=False)
class Averaged(Layer):
    """The mean of each window of an image, without padding."""

    pool: nn.AvgPool2d
    affine = True

    def interval(self, box: Interval, unit: float) -> Interval:
        """The mean of each end."""
        slack = self._rounding(box, unit)
        return Interval(self.pool(box.lower) - slack, self.pool(box.upper) + slack)

    def back(self, rows: Rows, box: Interval, unit: float) -> Rows:
        """Each coefficient, shared by its window."""
        c, shape = rows.coefficients, box.lower.shape
        constant = rows.constant - _total(c.abs() * self._rounding(box, unit))
        height, width = _pair(self.pool.kernel_size)
        share = c.new_full((shape[1], 1, height, width), 1 / (height * width))
        flat: Tensor = conv2d_input(
            [c.shape[0] * c.shape[1], *shape[1:]], share, c.flatten(0, 1), self.pool.stride, groups=shape[1]
        )
        return Rows(flat.unflatten(0, c.shape[:2]), constant)

    def _rounding(self, box: Interval, unit: float) -> Tensor:
        height, width = _pair(self.pool.kernel_size)
        mean: Tensor = self.pool(box.largest())
        return 2 * (height * width + 2) * unit * mean


@dataclass(frozen=True, eq=False)
class Scaled(Layer):
    """Each value times a factor, plus a shift, in at most four rounded operations (normalisation by fixed numbers)."""

    factor: Tensor
    shift: Tensor
    affine = True

    def interval(self, box: Interval, unit: float) -> Interval:
        """Both ends, in their new order."""
        ends = box.lower * self.factor + self.shift, box.upper * self.factor + self.shift
        slack = self._rounding(box, unit)
        return Interval(torch.minimum(*ends) - slack, torch.maximum(*ends) + slack)

    def back(self, rows: Rows, box: Interval, unit: float) -> Rows:
        """The same factor."""
        c = rows.coefficients
        constant = rows.constant + _total(c * self.shift) - _total(c.abs() * self._rounding(box, unit))
        return Rows(c * self.factor, constant)

    def _rounding(self, box: Interval, unit: float) -> Tensor:
        return 16 * unit * (box.largest() * self.factor.abs() + self.shift.abs())


@dataclass(frozen=True, eq=False)
class Reshaped(Layer):
    """The same values in another shape."""

    reshape: Callable[[Tensor], Tensor]
    affine = True

    def interval(self, box: Interval, unit: float) -> Interval:
        """The interval in the other shape."""
        return Interval(self.reshape(box.lower), self.reshape(box.upper))

    def back(self, rows: Rows, box: Interval, unit: float) -> Rows:
        """The coefficients in the first shape."""
        return Rows(rows.coefficients.reshape(len(rows.constant), *box.lower.shape), rows.constant)


@dataclass(frozen=True, eq=False)
class Bend(Layer):
    """A monotone function of each value, between two lines on each interval."""

    function: Callable[[Tensor], Tensor]
    lines: Lines
    ulps: int = 0
    """By how many rounding units of 1 a computed value may miss the exact one."""
    relative: int = 0
    """By how many rounding units of itself."""

    def interval(self, box: Interval, unit: float) -> Interval:
        """The function of both ends."""
        values, slack = Interval(self.function(box.lower), self.function(box.upper)), self._rounding(box, unit)
        return Interval(values.lower - slack, values.upper + slack)

    def back(self, rows: Rows, box: Interval, unit: float) -> Rows:
        """The line below where a coefficient is positive, the line above where it is negative."""
        k_below, c_below, k_above, c_above = self.lines(box.lower, box.upper)
        up, down = rows.coefficients.clamp(min=0), rows.coefficients.clamp(max=0)
        slack = self._rounding(box, unit)
        constant = _total(up * (c_below - slack) + down * (c_above + slack))
        return Rows(up * k_below + down * k_above, rows.constant + constant)

    def _rounding(self, box: Interval, unit: float) -> Tensor | float:
        return unit * (self.ulps + self.relative * box.largest()) if self.relative and unit else self.ulps * unit


@dataclass(frozen=True, eq=False)
class Largest(Layer):
    """The largest value of each window of an image."""

    pool: nn.MaxPool2d

    def interval(self, box: Interval, unit: float) -> Interval:
        """The largest of each end."""
        return Interval(self.pool(box.lower), self.pool(box.upper))

    def back(self, rows: Rows, box: Interval, unit: float) -> Rows:
        """Below: the value whose lower end is largest. Above: that value where no other can reach it, else a number."""
        index, rivals, near = self._windows(box)
        up, down = rows.coefficients.clamp(min=0), rows.coefficients.clamp(max=0)
        top = torch.maximum(rivals, near)
        alone = rivals <= self.pool(box.lower)
        moved = (up + torch.where(alone, down, 0.0)).flatten(3)
        inputs = rows.coefficients.new_zeros(*rows.coefficients.shape[:2], *box.lower.shape[1:]).flatten(3)
        inputs = inputs.scatter_add(3, index.flatten(2).expand(len(moved), -1, -1, -1), moved)
        constant = rows.constant + _total(torch.where(alone, 0.0, down * top))
        return Rows(inputs.unflatten(3, box.lower.shape[2:]), constant)

    def _windows(self, box: Interval) -> tuple[Tensor, Tensor, Tensor]:
        """Which value of each window is surely largest from below; the best of the others' upper ends; its own."""
        pool = self.pool
        _, index = F.max_pool2d(box.lower, pool.kernel_size, pool.stride, pool.padding, return_indices=True)
        height, width = box.lower.shape[2:]
        (ph, pw), size, stride = _pair(pool.padding), _pair(pool.kernel_size), _pair(pool.stride)
        place = torch.arange(height * width, device=box.lower.device).reshape(height, width)
        places = F.pad(place, (pw, pw, ph, ph), value=-1).unfold(0, size[0], stride[0]).unfold(1, size[1], stride[1])
        uppers = F.pad(box.upper, (pw, pw, ph, ph), value=-torch.inf)
        uppers = uppers.unfold(2, size[0], stride[0]).unfold(3, size[1], stride[1])
        mine = places == index[..., None, None]
        rivals = uppers.masked_fill(mine, -torch.inf).amax((-2, -1))
        return index, rivals, uppers.masked_fill(~mine, -torch.inf).amax((-2, -1))


def relu_lines(lower: Tensor, upper: Tensor, leak: float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The chord above; below, whichever of the two slopes leaves the smaller area (Zhang et al. 2018)."""
    mixed = (lower < 0) & (upper > 0)
    straight = torch.where(lower >= 0, 1.0, leak).to(lower)
    width = torch.where(mixed, upper - lower, 1.0)
    chord = torch.where(mixed, (upper - leak * lower) / width, straight)
    above = torch.where(mixed, (leak - chord) * lower, 0.0)
    below = torch.where(mixed, torch.where(upper > -lower, 1.0, leak).to(lower), straight)
    return below, torch.zeros_like(lower), chord, above


def s_lines(function: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> Lines:
    """Lines for a rising function whose slope has one peak: through both ends, with the lesser of their slopes."""

    def lines(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        least = torch.minimum(slope(lower), slope(upper))
        return least, function(lower) - least * lower, least, function(upper) - least * upper

    return lines


def _total(values: Tensor) -> Tensor:
    """Summed over everything but rows and examples: ``(S, B, *shape)`` to ``(S, B)``."""
    return values.flatten(2).sum(2) if values.ndim > 2 else values


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
