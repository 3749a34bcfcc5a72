"""Polynomials modulo ``X^N + 1`` and a prime, as ciphertexts hold them: by their values at roots of unity."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from secure_ml.errors import require

Integers: TypeAlias = NDArray[Any]
"""Of Python's integers: products of two 60-bit numbers have no other type."""
GENERATOR = 3
"""Slot ``j`` of a message is its value at the root of exponent ``3 ** j``, as in SEAL."""


@dataclass(frozen=True)
class Ring:
    """Integer polynomials of ``degree`` coefficients, a power of two, modulo a prime that is 1 modulo twice that.

    Values stand in SEAL's order: at place ``i`` that at ``psi ** (2 * reversed_bits(i) + 1)``, for the least primitive
    root ``psi``; so the values of a polynomial and of its conjugate ``m(1 / X)`` are the same backwards.
    """

    degree: int
    modulus: int

    def __post_init__(self) -> None:
        n, q = self.degree, self.modulus
        require(n >= 2 and n & (n - 1) == 0, f"a ring needs a degree that is a power of two; given {n}")
        require(q % (2 * n) == 1, f"a ring of degree {n} needs a prime that is 1 modulo {2 * n}; given {q}")

    def values(self, coefficients: Integers) -> Integers:
        """Of a polynomial ``(N,)``, at the roots (the number theoretic transform), each in ``[0, q)``."""
        found, count = coefficients.astype(object) % self.modulus, 1
        while count < self.degree:
            pairs = found.reshape(count, 2, -1)
            first, second = pairs[:, 0], pairs[:, 1] * self._roots[count : 2 * count, None] % self.modulus
            found = np.stack([first + second, first - second], 1).reshape(-1) % self.modulus
            count *= 2
        return found

    def coefficients(self, values: Integers) -> Integers:
        """The polynomial ``(N,)`` of these values, each coefficient in ``(-q/2, q/2)``."""
        found, count = values.astype(object) % self.modulus, self.degree // 2
        while count:
            pairs = found.reshape(count, 2, -1)
            total, gap = pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]
            found = np.stack([total, gap * self._inverses[count : 2 * count, None]], 1).reshape(-1) % self.modulus
            count //= 2
        found = found * pow(self.degree, -1, self.modulus) % self.modulus
        return np.where(found > self.modulus // 2, found - self.modulus, found)

    def encoded(self, slots: NDArray[np.float64], scale: float) -> Integers:
        """The integers ``(N,)`` nearest to the polynomial with these real numbers ``(N/2,)`` in its slots."""
        spread = np.zeros(2 * self.degree)
        places = np.array([pow(GENERATOR, j, 2 * self.degree) for j in range(self.degree // 2)])
        spread[places] = spread[2 * self.degree - places] = slots
        exact = np.fft.fft(spread).real[: self.degree] * (scale / self.degree)
        return np.array([int(value) for value in np.rint(exact)], dtype=object)

    @cached_property
    def _root(self) -> int:
        """The least primitive root of order ``2 N``."""
        q, order = self.modulus, 2 * self.degree
        tried = (pow(base, (q - 1) // order, q) for base in range(2, q))
        root = next(one for one in tried if pow(one, self.degree, q) == q - 1)
        square, least, power = root * root % q, root, root
        for _ in range(self.degree):
            least, power = min(least, power), power * square % q
        return least

    @cached_property
    def _roots(self) -> Integers:
        return self._powers(self._root)

    @cached_property
    def _inverses(self) -> Integers:
        return self._powers(pow(self._root, -1, self.modulus))

    def _powers(self, root: int) -> Integers:
        bits = self.degree.bit_length() - 1
        exponents = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(self.degree)]
        return np.array([pow(root, e, self.modulus) for e in exponents], dtype=object)
