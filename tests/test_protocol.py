"""Key recovery from shown decryptions, the ring that it computes in, and the rounding that stops it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import secure_ml as sm
from attacks import KeyRecovery
from defenses import Homomorphic
from defenses.homomorphic import stream
from defenses.homomorphic.levels import make_context
from defenses.homomorphic.parameters import Parameters
from defenses.homomorphic.release import most_decimals, released
from defenses.homomorphic.wire import Files, sealapi
from secure_ml.families.protocol import Conversation, Exchange, Transcript
from secure_ml.ring import Ring

PRIME = 12289  # 1 modulo 2 * 2048
RNG = torch.Generator()


# -- the ring ---------------------------------------------------------------------------------------------------------


def naive_product(a: Any, b: Any, degree: int, q: int) -> list[int]:
    """Modulo X^N + 1, by its definition."""
    found = [0] * degree
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            sign = -1 if i + j >= degree else 1
            found[(i + j) % degree] = (found[(i + j) % degree] + sign * int(x) * int(y)) % q
    return found


@pytest.mark.parametrize("degree", [2, 4, 32])
def test_products_of_values_are_products_of_polynomials(degree: int) -> None:
    rng, ring = np.random.default_rng(0), Ring(degree, PRIME)
    a, b = (rng.integers(-PRIME // 2 + 1, PRIME // 2, degree) for _ in range(2))
    assert ring.coefficients(ring.values(a)).tolist() == a.tolist()
    product = ring.coefficients(ring.values(a) * ring.values(b)) % PRIME
    assert product.tolist() == naive_product(a, b, degree, PRIME)
    conjugate = np.concatenate([a[:1], -a[:0:-1]])
    assert ring.values(conjugate).tolist() == ring.values(a)[::-1].tolist()


def test_the_ring_is_that_of_seal() -> None:
    """Encoding and values, number for number."""
    parameters = Parameters(4096, 42, 20, 1, 43)
    seal, files, context = sealapi(), Files(), make_context(parameters)
    modulus = context.key_context_data().parms().coeff_modulus()[0].value()
    slots = np.random.default_rng(0).normal(size=2048)
    plain = seal.Plaintext()
    seal.CKKSEncoder(context).encode(slots.tolist(), parameters.scale, plain)
    blob = files.to_bytes(plain)
    body = stream._decompressed(blob, 8 * 4096 * 3) if blob[5] == stream.ZSTD else blob[stream.HEADER.size :]
    theirs = np.frombuffer(body, "<u8", offset=len(body) - 8 * 4096 * 2)[:4096]
    ring = Ring(4096, modulus)
    assert ring.values(ring.encoded(slots, parameters.scale)).tolist() == theirs.tolist()


def test_rings_that_are_none() -> None:
    with pytest.raises(sm.UsageError, match="power of two"):
        Ring(3, 7)
    with pytest.raises(sm.UsageError, match="1 modulo 8"):
        Ring(4, 7)


# -- the attack -------------------------------------------------------------------------------------------------------


def made(degree: int, scale: float, step: float = 0.0, seed: int = 0) -> tuple[Transcript, torch.Tensor]:
    """A toy conversation without any library: a ternary key, two ciphertexts, and decryptions rounded to a step."""
    rng, ring = np.random.default_rng(seed), Ring(degree, (1 << 40) + _offset(degree))
    key = rng.integers(-1, 2, degree)
    exchanges = []
    for _ in range(2):
        message = ring.encoded(rng.normal(size=degree // 2), scale) + rng.integers(-3, 4, degree)
        c1 = np.array([int(v) for v in rng.integers(0, 1 << 39, degree)], dtype=object)
        c0 = (ring.values(message) - c1 * ring.values(key)) % ring.modulus
        powers = np.array([pow(3, j, 2 * degree) for j in range(degree // 2)])
        roots = np.exp(1j * np.pi * np.outer(powers, np.arange(degree)) / degree)
        shown = (roots @ message.astype(np.float64)).real / scale
        shown = np.round(shown / step) * step if step else shown
        exchanges.append(Exchange(c0, c1, scale, torch.tensor(shown)))
    return Transcript(degree, ring.modulus, tuple(exchanges)), torch.tensor(key)


def _offset(degree: int) -> int:
    """From 2^40 to the next prime that is 1 modulo twice the degree."""
    import sympy

    return next(k for k in range(1, 1 << 30, 2 * degree) if sympy.isprime((1 << 40) + k))


@pytest.mark.parametrize("degree", [8, 64, 256])
def test_the_whole_key_from_full_precision(degree: int) -> None:
    transcript, key = made(degree, 2.0**24)
    assert torch.equal(KeyRecovery().attack(transcript, RNG), key)


def test_nothing_from_rounded_numbers_or_another_key() -> None:
    """No more than a guess of zeros, a third, finds; nor from ciphertexts whose numbers are another's."""
    transcript, key = made(256, 2.0**24, step=1e-3)
    found = KeyRecovery().attack(transcript, RNG)
    assert (found == key).float().mean() < 0.5
    assert (found == 0).all()
    first, other = made(256, 2.0**24)[0], made(256, 2.0**24, seed=1)[0]
    swapped = [replace(a, shown=b.shown) for a, b in zip(first.exchanges, other.exchanges, strict=True)]
    assert (KeyRecovery().attack(replace(first, exchanges=tuple(swapped)), RNG) == 0).all()


@pytest.fixture(scope="module")
def victim() -> sm.Victim:
    return sm.fit(sm.task("digits_mlp", tiny=True), [Homomorphic(precision=1e-4)], device="cpu")


def test_a_client_that_shows_all_digits_gives_its_key_away(victim: sm.Victim) -> None:
    """Through TenSEAL: all of the 8,192 coefficients; shown in single precision or rounded, no more than by chance."""
    shares = {}
    for shown in ("full", "float32", "released"):
        rows = KeyRecovery(shown=shown).evaluate(victim, threat=None, seed=0, examples=20).rows  # type: ignore[arg-type]
        shares[shown] = [row.value for row in rows]
    assert shares["full"][0] == 1.0
    for shown in ("float32", "released"):
        assert shares[shown][0] == pytest.approx(1 / 3, abs=0.05)
    assert all(blind == pytest.approx(1 / 3, abs=0.05) for _, blind in shares.values())


def test_how_many_decimals_are_too_many(victim: sm.Victim) -> None:
    """The rule for rounding keeps a margin from where the attack begins to work."""
    served = victim.served
    assert isinstance(served, Conversation)
    transcript, key = served.overheard(victim.splits.test.inputs, "full")
    parameters = served.program.contract.parameters  # type: ignore[attr-defined]
    most = most_decimals(parameters)
    shares = {}
    for decimals in (most, most + 2, most + 6):
        rounded = tuple(replace(e, shown=torch.round(e.shown, decimals=decimals)) for e in transcript.exchanges)
        found = KeyRecovery().attack(replace(transcript, exchanges=rounded), RNG)
        shares[decimals] = float((found == key).float().mean())
    assert shares[most] < 0.4
    assert shares[most + 6] == 1.0
    answers = torch.rand(5, dtype=torch.float64)
    assert (released(answers, parameters) - answers).abs().max() <= 0.5 * 10.0**-most + 1e-15


def test_where_there_is_nothing_to_hear(victim: sm.Victim) -> None:
    bare = sm.fit(sm.task("digits_mlp", tiny=True), device="cpu")
    with pytest.raises(sm.NotApplicable, match="none travel"):
        KeyRecovery().evaluate(bare, threat=None, seed=0, examples=20)
    latency = Homomorphic(engine="latency", mode="simulate", encrypt=0).serve(replace(victim, served=bare.served))
    with pytest.raises(sm.NotApplicable, match="few slots"):
        KeyRecovery().evaluate(latency, threat=None, seed=0, examples=20)
