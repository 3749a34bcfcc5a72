"""Whether an encrypted service can be believed: each check with its evidence, and what to do where it fails.

It sees both ends, as whoever sets a service up does. Decisions alone would pass with logits that are wrong by any
constant, so it compares the numbers themselves with the plaintext twin's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

import torch
from torch import Tensor

from defenses.homomorphic.circuit import rows_of
from defenses.homomorphic.client import Client
from defenses.homomorphic.parameters import GUIDELINE, MARGIN, STANDARD
from defenses.homomorphic.program import Program
from defenses.homomorphic.server import Server
from defenses.homomorphic.wire import sealapi
from secure_ml.batch import Tree
from secure_ml.errors import SecureMLError, UsageError
from secure_ml.families.scrutiny import Finding

TIMES = 8.0
"""How much larger than expected an error may be: the expectation is of usual inputs."""
SLOPE = 6.0
"""Standard errors by which a common factor of all answers may differ from 1."""


@dataclass
class Service:
    """A program with both ends, and inputs to try them on."""

    program: Program
    client: Client
    server: Server
    inputs: Tree

    @cached_property
    def rows(self) -> Tensor:
        """The inputs ``(B, in)``."""
        return rows_of(self.inputs)

    @cached_property
    def query(self) -> bytes:
        """The first batch of them, encrypted."""
        return self.client.encrypt(self.rows[: self.program.contract.batch])

    @cached_property
    def answer(self) -> bytes:
        """What the server answers to it."""
        return self.server.answer(self.query)

    @cached_property
    def answers(self) -> Tensor:
        """Decrypted answers ``(B, out)`` to all of the inputs."""
        pieces = self.rows.split(self.program.contract.batch)
        found = [self.client.decrypt(self.answer)]
        found += [self.client.decrypt(self.server.answer(self.client.encrypt(piece))) for piece in pieces[1:]]
        return torch.cat(found).reshape(len(self.rows), -1)

    @cached_property
    def twin(self) -> Tensor:
        """What the circuit answers in the clear, ``(B, out)``."""
        return self.program.circuit.run(self.rows).reshape(len(self.rows), -1)


def audit(service: Service) -> Iterator[Finding]:
    """One finding for each check, in order; one that cannot run fails with its reason."""
    for name, check in CHECKS:
        try:
            yield check(service)
        except (SecureMLError, RuntimeError, ValueError) as error:
            yield Finding(name, "FAIL", f"it could not be looked at: {error}", "set the service up again")


def secret(service: Service) -> Finding:
    """Nothing that decrypts can be reached from the server object."""
    holders, seen = _holders(service.server)
    if holders:
        remedy = "build the server from bytes that were saved without the secret key, in another process"
        return Finding(SECRET, "FAIL", f"the server reaches {', '.join(holders)}", remedy)
    return Finding(SECRET, "PASS", f"none of {seen} objects that the server reaches can decrypt")


def security(service: Service) -> Finding:
    """Both tables and SEAL itself grant 128 bits."""
    parameters, context = service.program.contract.parameters, service.server.machine.inside
    bits = context.key_context_data().total_coeff_modulus_bit_count()
    level = sealapi().SEC_LEVEL_TYPE.TC128
    if service.program.contract.engine != "reference":  # which has no way to ask SEAL for less
        level = context.key_context_data().qualifiers().sec_level
    limit, other = GUIDELINE.get(parameters.degree, 0), STANDARD.get(parameters.degree, 0)
    evidence = (
        f"log2 Q = {bits} at N = {parameters.degree}; allowed {other} (2018) and {limit} (2024), SEAL says {level.name}"
    )
    good = level == sealapi().SEC_LEVEL_TYPE.TC128 and bits <= min(limit, other)
    return Finding(SECURITY, "PASS" if good else "FAIL", evidence, "" if good else "use a larger ring or less depth")


def logits(service: Service) -> Finding:
    """Every number against the plaintext twin's, not only the decisions."""
    errors = (service.answers - service.twin).abs()
    largest, expected = float(errors.max()), service.program.expected_error
    same = int((service.answers.argmax(1) == service.twin.argmax(1)).sum())
    evidence = (
        f"largest error {largest:.2g}, mean {float(errors.mean()):.2g}, expected at most {expected:.2g}; {same} of "
        f"{len(errors)} decisions equal, {_close(service.twin, largest)} with a margin below twice the error"
    )
    if not largest <= TIMES * expected:
        return Finding(LOGITS, "FAIL", evidence, "look at biases between layers, scales and headroom")
    return Finding(LOGITS, "PASS" if same == len(errors) else "WARN", evidence)


def headroom(service: Service) -> Finding:
    """Answers stay clear of where they wrap, which no one would notice."""
    room = service.program.contract.parameters.headroom
    size = max(float(service.twin.abs().max()), service.program.largest)
    turns = ((service.answers - service.twin) / (2 * room)).round()
    evidence = f"answers up to {size:.3g}, they wrap beyond {room:.3g}"
    if turns.any():
        evidence += f"; {int((turns != 0).sum())} of {turns.numel()} are off by a multiple of {2 * room:.3g}"
    if turns.any() or size > room:
        return Finding(HEADROOM, "FAIL", evidence, "give the first prime more bits")
    enough = size * MARGIN <= room
    remedy = "" if enough else f"leave {MARGIN:g} times the largest answer"
    return Finding(HEADROOM, "PASS" if enough else "WARN", evidence, remedy)


def scales(service: Service) -> Finding:
    """No factor is common to all answers: the primes' drift, where a scale is overwritten, would be one."""
    twin = service.twin - service.twin.mean(0)
    rest = (service.answers - service.twin) - (service.answers - service.twin).mean(0)
    size = float(twin.square().sum())
    slope = float((twin * rest).sum()) / max(size, 1e-300)
    left = float((rest - slope * twin).square().mean())
    error = (left / max(size, 1e-300)) ** 0.5
    floor = service.program.expected_error / max(size, 1e-300) ** 0.5
    evidence = (
        f"answers are 1 {slope:+.2g} times the twin's, within {SLOPE:g} x {max(error, floor / SLOPE):.2g} by chance"
    )
    good = abs(slope) <= SLOPE * max(error, floor / SLOPE)
    return Finding(SCALES, "PASS" if good else "FAIL", evidence, "" if good else "encode plaintexts at exact scales")


def depth(service: Service) -> Finding:
    """One product more than there are levels for raises an error."""
    engine = service.program.contract.engine
    try:
        service.server.machine.exhaust(service.answer)
    except (RuntimeError, ValueError) as error:
        return Finding(DEPTH, "PASS", f"a product beyond the last level is refused: {error}")
    return Finding(DEPTH, "FAIL", f"{engine} went on beyond its last level, silently", "check levels before products")


def keys(service: Service) -> Finding:
    """Queries under other keys, and answers to them, are refused by their marks."""
    other = Client(service.program.contract)
    tries: dict[str, Callable[[], object]] = {
        "the server a query under other keys": lambda: service.server.answer(other.encrypt(service.rows[:1])),
        "the client an answer to other keys": lambda: other.decrypt(service.answer),
    }
    taken = [what for what, attempt in tries.items() if not _refused(attempt)]
    if taken:
        remedy = "mark every message with the keys' fingerprint, and compare"
        return Finding(KEYS, "FAIL", f"not refused by {' nor by '.join(taken)}: it decrypts to garbage", remedy)
    return Finding(KEYS, "PASS", "queries and answers under other keys are refused")


def limits(service: Service) -> Finding:
    """The client refuses inputs that nobody looked at."""
    far = service.rows[:1] + 1e3 * (1 + service.rows[:1].abs())
    if _refused(lambda: service.client.encrypt(far)):
        contract = service.program.contract
        return Finding(LIMITS, "PASS", f"inputs beyond {contract.low:.3g} to {contract.high:.3g} are not encrypted")
    return Finding(LIMITS, "FAIL", "an input a thousand times too large was encrypted", "check inputs on the client")


def sizes(service: Service) -> Finding:
    """Bytes that travel."""
    each = len(service.query) / min(len(service.rows), service.program.contract.batch)
    public = len(service.client.public_bytes())
    evidence = f"keys {public:,} bytes, a query {each:,.0f}, an answering message {len(service.answer):,}"
    return Finding(SIZES, "PASS", evidence)


def revealed(service: Service) -> Finding:
    """What decrypted answers give away to those who saw the ciphertexts."""
    evidence = "answers decrypted in full precision carry the noise, from which the key follows (eprint 2020/1533)"
    return Finding(REVEALED, "WARN", evidence, "pass on decisions or rounded answers only, and never twice the same")


def _close(twin: Tensor, error: float) -> int:
    if twin.shape[1] < 2:
        return int((twin.abs() < 2 * error).sum())
    best = twin.topk(2).values
    return int((best[:, 0] - best[:, 1] < 2 * error).sum())


def _refused(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except UsageError:
        return True
    return False


def _holders(root: object) -> tuple[list[str], int]:
    """Everything reachable that holds a secret key or decrypts, by its path, and how many objects were looked at."""
    kinds = (sealapi().SecretKey, sealapi().Decryptor, sealapi().KeyGenerator, Client)
    stack: list[tuple[str, object]] = [("server", root)]
    seen: set[int] = set()
    found = []
    while stack:
        path, item = stack.pop()
        if id(item) in seen or isinstance(item, (str, bytes, int, float, Tensor, type, ModuleType)):
            continue
        seen.add(id(item))
        if isinstance(item, kinds) or _decrypts(item):
            found.append(f"{path} ({type(item).__name__})")
        if isinstance(item, dict):
            stack += [(f"{path}[{key!r}]", value) for key, value in item.items()]
        elif isinstance(item, (list, tuple, set)):
            stack += [(f"{path}[{i}]", value) for i, value in enumerate(item)]
        stack += [(f"{path}.{name}", value) for name, value in getattr(item, "__dict__", {}).items()]
    return found, len(seen)


def _decrypts(item: object) -> bool:
    """Whether it is a context of TenSEAL that still decrypts: one that was made public does, until it is rebuilt."""
    if type(item).__module__.partition(".")[0] != "tenseal" or type(item).__name__ != "Context":
        return False
    try:
        item.data.decryptor()  # type: ignore[attr-defined]
    except (RuntimeError, ValueError):
        return False
    return True


SECRET, SECURITY, LOGITS, HEADROOM = "no secret key", "128 bits", "logits", "headroom"
SCALES, DEPTH, KEYS, LIMITS, SIZES, REVEALED = "scales", "depth", "foreign keys", "input range", "sizes", "revealed"
CHECKS: tuple[tuple[str, Callable[[Service], Finding]], ...] = (
    (SECRET, secret),
    (SECURITY, security),
    (LOGITS, logits),
    (HEADROOM, headroom),
    (SCALES, scales),
    (DEPTH, depth),
    (KEYS, keys),
    (LIMITS, limits),
    (SIZES, sizes),
    (REVEALED, revealed),
)
