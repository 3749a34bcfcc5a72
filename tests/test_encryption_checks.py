"""Services that are broken on purpose are caught, each by the checks that are named, and a sound one by none."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

import secure_ml as sm
from attacks.scrutiny.encryption_checks import EncryptionChecks
from defenses.homomorphic import Homomorphic, audit, levels
from defenses.homomorphic.audit import CHECKS, Service
from defenses.homomorphic.client import Client
from defenses.homomorphic.contract import Contract, Engine
from defenses.homomorphic.parameters import Parameters
from defenses.homomorphic.polynomial import make_polynomial
from defenses.homomorphic.program import Program, compile_module
from defenses.homomorphic.reference import Reference
from defenses.homomorphic.server import Server
from tests.laws import tiny_task

ROWS = torch.rand(12, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def program(engine: Engine, hidden: int = 2, precision: float = 0.1) -> Program:
    """Of a small net with so many hidden layers."""
    layers: list[nn.Module] = []
    for _ in range(hidden):
        layers += [nn.Linear(6, 6), nn.ReLU()]
    last = nn.Linear(6, 3)
    nn.init.normal_(last.weight, std=20.0)
    module = make_polynomial(nn.Sequential(*layers, last), 2.0)
    return compile_module(module, ROWS[:1], calibration=ROWS, engine=engine, degree=8192, precision=precision)


def service(made: Program) -> Service:
    """Both ends."""
    client = Client(made.contract)
    return Service(made, client, Server.from_bytes(made.to_bytes(), client.public_bytes()), ROWS)


def failed(checked: Service) -> set[str]:
    return {finding.check for finding in audit.audit(checked) if finding.verdict == "FAIL"}


@pytest.mark.parametrize("engine", ["latency", "throughput"])
def test_a_sound_service_passes_all(engine: Engine) -> None:
    found = list(audit.audit(service(program(engine))))
    assert [finding.check for finding in found] == [name for name, _ in CHECKS]
    assert {finding.verdict for finding in found[:-1]} == {"PASS"}, [str(finding) for finding in found]
    assert found[-1].verdict == "WARN"


def test_plain_biases_after_the_librarys_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tutorial's way, which fills the first slots only; the decisions hide it."""
    sound = service(program("reference", 1))
    assert not failed(sound)

    def mapped(self: Reference, step: object, vector: object, drift: float) -> object:
        return vector.mm((step.matrix.T * drift).tolist()) + step.bias.tolist()  # type: ignore[attr-defined]

    monkeypatch.setattr(Reference, "_mapped", mapped)
    broken = Service(sound.program, sound.client, sound.server, ROWS)
    assert "logits" in failed(broken)


def test_a_context_that_kept_its_key() -> None:
    """`make_context_public` leaves a decryptor in the object; so does a server that was handed the client."""
    made = program("reference", 0)
    kept = service(made)
    context = kept.client._secrets._context  # type: ignore[attr-defined]
    secret = kept.client._secrets.decrypt
    answers = kept.answers
    context.make_context_public()
    assert not context.has_secret_key()
    kept.server.machine.context = context  # type: ignore[attr-defined]
    assert audit.secret(kept).verdict == "FAIL"
    assert "decrypt" in str(audit.secret(service(program("latency", 0))))
    careless = service(program("latency", 0))
    careless.server.notes = {"of": [careless.client]}  # type: ignore[attr-defined]
    assert audit.secret(careless).verdict == "FAIL"
    assert secret
    assert answers.shape == (12, 3)


@pytest.mark.parametrize("engine", ["latency", "throughput"])
def test_scales_that_are_only_written_over(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What TenSEAL does after each rescaling, whatever prime was dropped: every answer is off by one factor."""
    monkeypatch.setattr(levels.Levels, "factor", lambda self, level, scale: self.parameters.scale)
    monkeypatch.setattr(levels.Levels, "check", lambda self, ciphertext: None)
    assert failed(service(program(engine, precision=1.0))) >= {"scales"}


def test_scales_are_looked_at_as_they_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels.Levels, "factor", lambda self, level, scale: self.parameters.scale)
    broken = service(program("latency"))
    with pytest.raises(sm.SecureMLError, match="its values are off"):
        _ = broken.answer


@pytest.mark.parametrize("engine", ["latency", "throughput"])
def test_a_first_prime_that_is_too_small(engine: Engine) -> None:
    """Answers wrap, by one and the same number in every slot, so that decisions may well be right."""
    made = program(engine)
    small = replace(made.contract.parameters, first=made.contract.parameters.scale_bits + 3)
    broken = replace(made, contract=replace(made.contract, parameters=small))
    assert "headroom" in failed(service(broken))


def test_less_than_128_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A set that SEAL takes only if it is told not to look."""
    made = program("throughput", 0)
    large = replace(made.contract.parameters, first=60, scale_bits=40, depth=1, special=60, degree=4096)
    with pytest.raises(sm.UsageError, match="exceeds the modulus"):
        replace(made.contract, parameters=large)
    monkeypatch.setattr(Parameters, "secure", True)
    with pytest.raises(sm.UsageError, match="does not grant 128 bits"):
        Client(replace(made.contract, parameters=large))
    monkeypatch.setattr(levels, "LEVEL", "NONE")
    assert failed(service(replace(made, contract=replace(made.contract, parameters=large)))) == {"128 bits"}


BREAKS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "depth": lambda patch: patch.setattr(levels.Levels, "exhaust", lambda self, blob: None),
    "foreign keys": lambda patch: (
        [patch.setattr(f"defenses.homomorphic.{end}.check_marks", lambda *_: None) for end in ("client", "server")]
        and None
    ),
    "input range": lambda patch: patch.setattr(Contract, "check_inputs", lambda self, rows: None),
}


@pytest.mark.parametrize("check", BREAKS)
def test_what_is_not_refused(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BREAKS[check](monkeypatch)
    assert failed(service(program("latency", 1))) == {check}


def test_a_check_that_cannot_run_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = service(program("throughput", 0))
    monkeypatch.setattr(broken.server.machine, "run", lambda blobs: [b"nothing"] * 3)
    assert failed(broken) >= {"logits", "headroom", "scales"}


def test_as_a_scrutiny() -> None:
    task = tiny_task("digits_mlp")
    victim = sm.fit(task, [Homomorphic(engine="latency", encrypt=0)], device="cpu")
    rows = EncryptionChecks(queries=3).evaluate(victim, threat=None, seed=0, examples=100).rows
    assert [row.measure for row in rows] == [name for name, _ in CHECKS]
    assert [row.value for row in rows] == [0.0] * 9 + [2.0]
    with pytest.raises(sm.NotApplicable, match="in the clear"):
        EncryptionChecks().evaluate(sm.fit(task, device="cpu"), threat=None, seed=0, examples=10)
    with pytest.raises(sm.UsageError, match="at least 1 query"):
        EncryptionChecks(queries=0)
