"""What a server accepts: how much, how often, how many at a time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, fields

from defenses.homomorphic.contract import Contract
from secure_ml.errors import require

OVERHEAD = 4096
"""Bytes of a frame beyond its ciphertexts, and of each ciphertext beyond its residues."""
ADDRESSES = 10_000
"""Addresses whose rate is remembered; of those that asked longest ago, one that has none left starts anew."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The server's patience."""

    rate: float = 20.0
    """Requests a second from one address, beyond a burst of twice as many."""
    waiting: int = 32
    """Requests in hand at a time, from all; more are told to come back."""
    uploads: int = 2
    """Of these, sent keys, which are large."""
    clients: int = 16
    """Clients whose keys are kept; of more, those that asked longest ago must send them again."""
    queries: int = 16
    """Queries in one request, where each has a ciphertext of its own."""
    seconds: float = 60.0
    """For a body to arrive, and for an answer to be computed."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            require(value > 0, f"a server needs a limit of {field.name} above 0; given {value}")

    def most(self, contract: Contract, kind: str) -> int:
        """Bytes of the largest message that a client of this contract has a reason to send."""
        parameters = contract.parameters
        primes = len(parameters.bits)
        ciphertext = 16 * parameters.degree * (primes - 1) + OVERHEAD
        if kind == "query":
            many = contract.engine == "throughput"
            return (contract.inputs if many else self.queries) * ciphertext + OVERHEAD
        switches = (1 + len(contract.steps)) * (primes - 1)
        return switches * (16 * parameters.degree * primes + OVERHEAD) + OVERHEAD


class Rates:
    """A bucket of requests for each address, which fills at a rate and holds a burst."""

    def __init__(self, rate: float) -> None:
        self.rate, self.burst = rate, max(2 * rate, 1.0)
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, address: str, now: float) -> float:
        """Take one request at a time in seconds: 0 where there was one, or the seconds until there will be."""
        left, before = self._left.pop(address, (self.burst, now))
        left = min(self.burst, left + (now - before) * self.rate)
        allowed = left >= 1
        self._left[address] = (left - allowed, now)
        while len(self._left) > ADDRESSES:
            self._left.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self.rate
