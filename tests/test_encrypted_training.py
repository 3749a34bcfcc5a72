"""Regression on encrypted data, against the same polynomial in the clear, closed forms and autograd."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import secure_ml as sm
from defenses.homomorphic.trainer import Trainer, train
from defenses.homomorphic.training import (
    Agreement,
    Kind,
    Owner,
    agreement_from,
    design,
    plain_gradient,
    start,
    stepped,
)
from defenses.homomorphic.wire import Files, fingerprint, frame, unframe

KINDS: list[Kind] = ["linear", "logistic"]


def examples(n: int, d: int, kind: Kind, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    x = np.tanh(rng.normal(size=(n, d)))
    y = x @ np.linspace(-1, 1, d) + 0.3 + 0.1 * rng.normal(size=n)
    return torch.tensor(x), torch.tensor(y if kind == "linear" else (y > 0).astype(float))


def clear(agreement: Agreement, rows: Tensor, steps: int, rate: float, momentum: float) -> Tensor:
    """The twin: every step in the clear."""
    weights = start(agreement)
    velocity = torch.zeros_like(weights)
    for _ in range(steps):
        gradient = plain_gradient(agreement, rows, weights)
        weights, velocity = stepped(agreement, weights, velocity, gradient, rate, momentum)
    return weights


@pytest.fixture(scope="module", params=KINDS)
def sides(request: pytest.FixtureRequest) -> tuple[Owner, Trainer]:
    """Two ciphertexts of examples, the second not full."""
    owner = Owner(*examples(700, 6, request.param), kind=request.param)
    return owner, Trainer(owner.public_bytes(), owner.data_bytes())


# -- in the clear -----------------------------------------------------------------------------------------------------


def test_the_cubic_is_the_best_one() -> None:
    """Its error is orthogonal to m and m^3 on the span, and it is the sigmoid to a few hundredths."""
    agreement = replace(Owner(*examples(5, 2, "logistic"), kind="logistic").agreement, span=8.0)
    a, k = agreement.cubic
    m = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    error = 0.5 + a * m * ((a * m) ** 2 - k) - torch.sigmoid(-m)
    assert abs(float((error * m).mean())) < 1e-9
    assert abs(float((error * m**3).mean())) < 1e-7
    assert float(error.abs().max()) < 0.13


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_autograd(kind: Kind) -> None:
    """Of half the squared residual, or of the cubic's integral, summed over examples one by one."""
    x, y = examples(20, 3, kind)
    owner = Owner(x, y, kind=kind)
    weights = torch.linspace(-0.5, 0.5, owner.agreement.columns, dtype=torch.float64, requires_grad=True)
    total = torch.zeros((), dtype=torch.float64)
    a, k = owner.agreement.cubic
    for row in owner.rows:
        m = row @ weights
        total = total + (m**2 / 2 if kind == "linear" else m / 2 + a**3 * m**4 / 4 - a * k * m**2 / 2)
    (expected,) = torch.autograd.grad(total, weights)
    assert torch.allclose(plain_gradient(owner.agreement, owner.rows, weights.detach()), expected)


def test_linear_regression_finds_least_squares() -> None:
    x, y = examples(60, 3, "linear")
    owner = Owner(x, y, kind="linear")
    found = clear(owner.agreement, owner.rows, 500, 0.5, 0.5)
    exact = torch.linalg.lstsq(torch.cat([x, torch.ones(60, 1, dtype=torch.float64)], 1), y[:, None]).solution[:, 0]
    assert torch.allclose(found[:-1], exact, atol=1e-8)
    assert found[-1] == -1


# -- encrypted --------------------------------------------------------------------------------------------------------


def test_encrypted_gradients_are_those_in_the_clear(sides: tuple[Owner, Trainer]) -> None:
    owner, trainer = sides
    agreement = owner.agreement
    assert len(owner.rows) > agreement.height
    assert agreement.parameters.secure
    for weights in (start(agreement), torch.linspace(-1, 1, agreement.columns, dtype=torch.float64)):
        gradient = owner.gradient(trainer.gradient(owner.weights_bytes(weights)))
        expected = plain_gradient(agreement, owner.rows, weights)
        assert (gradient - expected).abs().max() / agreement.rows < 1e-4


def test_encrypted_training_is_training(sides: tuple[Owner, Trainer]) -> None:
    owner, trainer = sides
    weights = train(owner, trainer, steps=3, rate=0.3, momentum=0.5)
    expected = clear(owner.agreement, owner.rows, 3, 0.3, 0.5)
    assert (weights - expected).abs().max() < 1e-4
    assert (weights - start(owner.agreement)).abs().max() > 0.05


def test_operations_are_as_few_as_the_packing_allows(sides: tuple[Owner, Trainer]) -> None:
    """Rotations: the logarithm of the columns for each ciphertext, and once that of the examples."""
    owner, trainer = sides
    trainer.counts.clear()
    trainer.gradient(owner.weights_bytes(start(owner.agreement)))
    of = {name: sum(n for (op, _), n in trainer.counts.items() if op == name) for name, _ in trainer.counts}
    count, agreement = len(trainer.examples), owner.agreement
    assert of["rotate"] == count * len(agreement.across) + len(agreement.down)
    assert 2 ** len(agreement.across) * 2 ** len(agreement.down) == agreement.parameters.slots
    products = {"linear": 2, "logistic": 4}[agreement.kind] * count
    assert of["multiply"] + of.get("square", 0) == products
    assert of["rescale"] == of["relinearise"] == products - count + 1
    assert max(level for _, level in trainer.counts) == agreement.parameters.depth


# -- what is refused --------------------------------------------------------------------------------------------------


def test_margins_beyond_the_span_are_refused(sides: tuple[Owner, Trainer]) -> None:
    """Where they were not, the polynomial would run away in silence, as it does in the clear."""
    owner, trainer = sides
    with pytest.raises(sm.UsageError, match="leaves the span"):
        train(owner, trainer, steps=50, rate=50.0)
    if owner.agreement.kind == "logistic":
        gone = clear(owner.agreement, owner.rows, 50, 50.0, 0.9)
        assert not gone.abs().max() < 1e6


def test_messages_of_others(sides: tuple[Owner, Trainer]) -> None:
    owner, trainer = sides
    kind = owner.agreement.kind
    other = Owner(owner.rows[:700, :6], examples(700, 6, kind)[1], kind=kind)
    weights = owner.weights_bytes(start(owner.agreement))
    for message, why in (
        (weights[:-9], "cut short"),
        (owner.data_bytes(), "expected weights"),
        (other.weights_bytes(start(other.agreement)), "for the contract|under the keys"),
        (frame("weights", {"contract": owner.agreement.id, "keys": owner.keys}, []), "0 ciphertexts"),
        (frame("weights", {"contract": owner.agreement.id, "keys": owner.keys}, [b"junk"]), "no Ciphertext"),
    ):
        with pytest.raises(sm.UsageError, match=why):
            trainer.gradient(message)
    with pytest.raises(sm.UsageError, match=r"for the contract|under the keys"):
        Trainer(owner.public_bytes(), other.data_bytes())
    with pytest.raises(sm.UsageError, match=r"for the contract|under the keys"):
        other.gradient(trainer.gradient(weights))
    with pytest.raises(sm.UsageError, match="without an agreement"):
        agreement_from({})


def test_the_trainer_is_handed_no_secret(sides: tuple[Owner, Trainer]) -> None:
    """No part of the secret key is in what it is sent; with an owner that sends it, that is seen and refused."""
    owner, _ = sides
    secret = Files().to_bytes(owner._secrets._keys.secret_key())

    def leaks(sent: bytes) -> bool:
        return any(secret[at : at + 48] in sent for at in range(200, len(secret) - 48, 4096))

    assert not leaks(owner.public_bytes() + owner.data_bytes() + owner.weights_bytes(start(owner.agreement)))
    about, keys = unframe("training keys", owner.public_bytes())
    leaking = frame("training keys", {**about, "keys": fingerprint(*keys, secret)}, [*keys, secret])
    assert leaks(leaking)
    with pytest.raises(sm.UsageError, match="3 keys were given"):
        Trainer(leaking, owner.data_bytes())


def test_bad_examples() -> None:
    x, y = examples(5, 2, "logistic")
    for inputs, targets, kind, why in (
        (x, y[:4], "linear", r"examples \(n, d\) and targets"),
        (x[:0], y[:0], "linear", "are needed"),
        (x, y + 1, "logistic", "targets of 0 and 1"),
        (x / 0, y, "linear", "NaN or infinity"),
    ):
        with pytest.raises(sm.UsageError, match=why):
            design(inputs, targets, kind)  # type: ignore[arg-type]
    with pytest.raises(sm.UsageError, match="span above 0"):
        Owner(x, y, kind="logistic", span=0.0)
    with pytest.raises(sm.NotApplicable, match="standardise"):
        Owner(1e9 * x, y, kind="logistic")
    with pytest.raises(sm.UsageError, match="at least 1 step"):
        train(None, None, steps=0, rate=1.0)  # type: ignore[arg-type]
