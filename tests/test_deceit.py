"""A server that lies: what its client's decisions tell it, and which lies the client's checks catch."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import secure_ml as sm
from attacks import FalseCiphertexts, FalsePrograms
from defenses import Homomorphic
from defenses.homomorphic import stream
from defenses.homomorphic.client import Client
from defenses.homomorphic.program import compile_module
from defenses.homomorphic.served import Encrypted
from defenses.homomorphic.server import Server
from defenses.homomorphic.wire import frame, unframe
from secure_ml.errors import BudgetExceeded
from secure_ml.families.deceit import Dupe, Line, thresholded
from secure_ml.ring import GENERATOR

RNG = torch.Generator()


def test_the_largest_line_tells_the_interval() -> None:
    """In every column, at values between its outer edges; none exceeds the size."""
    edges = torch.tensor([[-1.0, 5.0], [0.0, 5.5], [0.3, 5.6], [2.0, 7.0]]).double()
    slopes, offsets = thresholded(edges, 3.0)
    for place in np.linspace(0.001, 0.999, 97):
        u = edges[0] + place * (edges[-1] - edges[0])
        lines = slopes[:, None] * u + offsets
        assert lines.argmax(0).tolist() == [int((edges[1:-1, j] < u[j]).sum()) for j in range(2)]
        assert lines.abs().max() <= 3.0 + 1e-12


class Toy(Dupe):
    """A client without any library: a ternary key, and numbers that are decrypted exactly."""

    def __init__(self, degree: int, outputs: int, answers: int) -> None:
        line = Line(degree=degree, modulus=0, queries=4, scale=2.0**30, room=64.0, inputs=3, outputs=outputs, low=-0.5,
                    high=1.5)  # fmt: skip
        super().__init__(line, answers)
        rng = np.random.default_rng(0)
        self.key, self.rows = rng.integers(-1, 2, degree), torch.tensor(rng.random((4, 3)))
        powers = np.array([pow(GENERATOR, j, 2 * degree) for j in range(degree // 2)])
        self.roots = np.exp(1j * np.pi * np.outer(powers, np.arange(degree)) / degree)

    def _substituted(self, weights: torch.Tensor, biases: torch.Tensor) -> torch.Tensor:
        rows = self.rows.repeat(self.line.degree // 8, 1)
        return (weights @ rows.T + biases).argmax(0)

    def _forged(self, c0: Any, c1: Any) -> torch.Tensor:
        at = [self.roots @ np.asarray(part, dtype=float).T for part in (c0, c1)]
        slots = (at[0] + at[1] * (self.roots @ self.key)[:, None]).real / self.line.scale
        assert np.abs(slots).max() < self.line.room
        return torch.tensor(slots.argmax(1))


@pytest.fixture
def ring_of_any_modulus(monkeypatch: pytest.MonkeyPatch) -> None:
    from secure_ml.ring import Ring

    monkeypatch.setattr(Ring, "__post_init__", lambda self: None)


@pytest.mark.usefixtures("ring_of_any_modulus")
@pytest.mark.parametrize(("outputs", "rounds", "least"), [(10, 1, 0.95), (10, 2, 1.0), (2, 5, 1.0)])
def test_the_key_from_decisions_on_a_toy(outputs: int, rounds: int, least: float) -> None:
    dupe = Toy(256, outputs, 2 * rounds)
    found = FalseCiphertexts(rounds=rounds, answers=2 * rounds).deceive(dupe, RNG)
    assert float((found.numpy() == dupe.key).mean()) >= least
    with pytest.raises(BudgetExceeded, match="asked"):
        dupe.substituted(torch.zeros(2, 3), torch.zeros(2, 128))


def test_inputs_from_decisions_on_a_toy() -> None:
    """Each number to within half an interval; those beyond the budget stay in the middle."""
    for rounds, answers in ((1, 3), (2, 6), (2, 4)):
        dupe = Toy(64, 10, answers)
        found = FalsePrograms(rounds=rounds, answers=answers).deceive(dupe, RNG)
        known = answers // rounds
        assert found.shape == (4, 3)
        assert (found - dupe.rows)[:, :known].abs().max() <= 1.0 / 10**rounds + 1e-9
        assert (found[:, known:] == 0.5).all()


@pytest.fixture(scope="module")
def victim() -> sm.Victim:
    return sm.fit(sm.task("digits_mlp", tiny=True), [Homomorphic(precision=1e-3)], device="cpu")


def test_a_lying_server_learns_the_key_and_the_inputs(victim: sm.Victim) -> None:
    """Through TenSEAL, from decisions alone, past every check of the client's."""
    key, guessed = FalseCiphertexts(rounds=1, answers=2).evaluate(victim, threat=None, seed=0, examples=20).rows
    assert key.value is not None
    assert guessed.value is not None
    assert key.value > 0.97
    assert guessed.value < 0.4
    read, blind = FalsePrograms(rounds=2, answers=12).evaluate(victim, threat=None, seed=0, examples=20).rows
    none, _ = FalsePrograms(rounds=1, answers=0).evaluate(victim, threat=None, seed=0, examples=20).rows
    assert read.value is not None
    assert none.value is not None
    assert read.queries == 12
    assert read.value - none.value > 0.05
    assert blind.n == 20 * 64


def test_who_asks_twice_in_a_batch_notices_false_ciphertexts_only(victim: sm.Victim) -> None:
    """The same input in two slots gets different decisions from the one lie, and the same from the other."""
    assert isinstance(victim.served, Encrypted)
    dupe, _ = victim.served.duped(victim.splits.test.inputs[:4], 4)  # type: ignore[index]
    seen: list[torch.Tensor] = []
    for name in ("_forged", "_substituted"):
        answer = getattr(dupe, name)
        setattr(dupe, name, lambda *a, answer=answer: seen.append(answer(*a)) or seen[-1])
    FalseCiphertexts(rounds=1, answers=2).deceive(dupe, RNG)
    FalsePrograms(rounds=1, answers=1).deceive(dupe, RNG)
    alike = [bool((one.reshape(-1, 4) == one[:4]).all()) for one in seen]
    assert alike == [False, False, True]


@pytest.mark.parametrize("engine", ["latency", "throughput"])
def test_lies_that_the_client_catches(engine: Any) -> None:
    rows = torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    program = compile_module(torch.nn.Linear(6, 3), rows[:1], calibration=rows, engine=engine)
    client = Client(program.contract)
    server = Server.from_bytes(program.to_bytes(), client.public_bytes())
    honest = server.answer(client.encrypt(rows))
    about, blobs = unframe("answer", honest)
    said = {name: about[name] for name in ("contract", "keys", "queries")}
    fresh = client._secrets.encrypt([0.0] * program.contract.parameters.slots)
    if engine == "latency":  # a seed and a half: whole, as a server that wants to be believed would send it
        levels = server.machine.levels  # type: ignore[attr-defined]
        fresh = levels.files.to_bytes(levels.read(fresh))
    machine = server.machine.levels  # type: ignore[attr-defined]

    def changed(**marks: Any) -> bytes:
        ciphertext = machine.files.into(machine.seal.Ciphertext(), blobs[0], machine.context)
        if "scale" in marks:
            ciphertext.scale = ciphertext.scale * marks["scale"]
        if "size" in marks:
            other = machine.seal.Ciphertext()
            machine.evaluator.square(ciphertext, other)
            ciphertext = other
        if "add" in marks:
            place = program.contract.answers[0] if engine == "latency" else 0
            slots = [marks["add"] * (i == place) for i in range(program.contract.parameters.slots)]
            plain = machine.encoded(slots, len(machine.ids) - 1, machine.parameters.scale)
            machine.evaluator.add_plain_inplace(ciphertext, plain)
        return bytes(machine.files.to_bytes(ciphertext))

    read = stream.read(blobs[0], machine.ids[-1], (2, 1, program.contract.parameters.degree))
    bare = read.residues.copy()
    bare[1] = 0
    lies = {
        "another level or size": [fresh, *blobs[1:]],
        "at the scale": [changed(scale=2.0), *blobs[1:]],
        "hides nothing": [read.with_residues(bare), *blobs[1:]],
        "ciphertexts to 2 queries": blobs[1:],
        "no Ciphertext": [b"junk", *blobs[1:]],
        "or was made up": [changed(add=1.5 * program.contract.parameters.headroom), *blobs[1:]],
    }
    for why, parts in lies.items():
        with pytest.raises(sm.UsageError, match=why):
            client.decrypt(frame("answer", said, parts))
    with pytest.raises(sm.UsageError, match="under the keys"):
        client.decrypt(frame("answer", {**said, "keys": "0" * 16}, blobs))
    assert torch.allclose(client.decrypt(honest), program.circuit.run(rows), atol=1e-3)


def test_where_there_is_nobody_to_lie_to(victim: sm.Victim) -> None:
    bare = sm.fit(sm.task("digits_mlp", tiny=True), device="cpu")
    for attack in (FalseCiphertexts(), FalsePrograms()):
        with pytest.raises(sm.NotApplicable, match="none travel"):
            attack.evaluate(bare, threat=None, seed=0, examples=4)
    latency = Homomorphic(engine="latency", mode="simulate", encrypt=0).serve(replace(victim, served=bare.served))
    with pytest.raises(sm.NotApplicable, match="is of one query"):
        FalseCiphertexts().evaluate(latency, threat=None, seed=0, examples=4)
    for settings in ({"rounds": 0}, {"answers": -1}):
        for kind in (FalseCiphertexts, FalsePrograms):
            with pytest.raises(sm.UsageError, match="at least"):
                kind(**settings)
