"""Encrypted answers against the plaintext twin, for every engine, and what must be refused."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

import secure_ml as sm
from defenses.dp_sgd import DPSGD
from defenses.homomorphic import Homomorphic
from defenses.homomorphic.circuit import Affine, Circuit, circuit_of, rows_of
from defenses.homomorphic.client import Client
from defenses.homomorphic.contract import ENGINES, Contract, Engine
from defenses.homomorphic.packing import pack
from defenses.homomorphic.parameters import GUIDELINE, STANDARD, candidates
from defenses.homomorphic.polynomial import Quadratic, make_polynomial
from defenses.homomorphic.program import Program, choose, compile_module, composed
from defenses.homomorphic.residues import modular_product
from defenses.homomorphic.served import Encrypted
from defenses.homomorphic.server import Server
from defenses.label_only import LabelOnly
from tests.laws import tiny_task

RNG = torch.Generator().manual_seed(0)


def network(*layers: nn.Module, learned: bool = False) -> nn.Sequential:
    """Polynomial twin of a Sequential, in evaluation mode."""
    torch.manual_seed(0)
    return make_polynomial(nn.Sequential(*layers), 8.0, learned).eval()


def normalised() -> nn.Module:
    """A batch normalisation that has seen something."""
    norm = nn.BatchNorm2d(3)
    norm(torch.rand(20, 3, 4, 4, generator=RNG) * 3)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    return norm


VECTORS = {
    "linear": network(nn.Linear(6, 3)),
    "one logit": network(nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 1), nn.Flatten(0)),
    "two activations": network(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)),
    "starts and ends with an activation": network(nn.ReLU(), nn.Linear(6, 3), nn.ReLU()),
    "wider behind": network(nn.Linear(6, 2), nn.ReLU(), nn.Dropout(0.5), nn.Linear(2, 40)),
    "learned, and upside down": network(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3), learned=True),
}
nn.init.constant_(VECTORS["learned, and upside down"][1].c2, -0.3)
IMAGES = {
    "convolution": network(nn.Conv2d(1, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4)),
    "pooling": network(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(12, 4)),
    "batch normalisation": network(nn.Conv2d(1, 3, 3, 2, 1), normalised(), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)),
    "pooling first": network(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2)),
}


def encrypted(module: nn.Module, inputs: torch.Tensor, engine: Engine = "throughput", **settings: object) -> Encrypted:
    """What serves a module on ciphertexts."""
    return Encrypted(compile_module(module, inputs[:1], calibration=inputs, engine=engine, **settings))  # type: ignore[arg-type]


def for_engines(names: Iterable[str]) -> list[tuple[str, Engine]]:
    """All names for the fast engines, one for the reference, whose keys take seconds."""
    names = list(names)
    return [*product(names, ("latency", "throughput")), (names[0], "reference")]


@pytest.mark.parametrize(("name", "engine"), for_engines(VECTORS))
def test_encrypted_answers_equal_the_twin(name: str, engine: Engine) -> None:
    module = VECTORS[name]
    rows = torch.rand(5, 6, generator=RNG)
    served = encrypted(module, rows, engine, precision=1e-4)
    with torch.no_grad():
        twin = module(rows)
    answers = served(rows)
    assert answers.shape == twin.shape
    assert (answers - twin).abs().max() < 1e-4
    assert served.largest_error <= 2 * served.program.expected_error
    assert served.usage() == {"queries served": 5, "queries encrypted": 5}


@pytest.mark.parametrize(("name", "engine"), for_engines(IMAGES))
def test_images(name: str, engine: Engine) -> None:
    module, images = IMAGES[name], torch.rand(2, 1, 8, 8, generator=RNG)
    with torch.no_grad():
        twin = module(images)
    assert (encrypted(module, images, engine, precision=1e-3)(images) - twin).abs().max() < 1e-3


def test_one_dimension() -> None:
    module = network(nn.Conv1d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(12, 2))
    signals = torch.rand(3, 2, 8, generator=RNG)
    with torch.no_grad():
        assert (encrypted(module, signals)(signals) - module(signals)).abs().max() < 1e-4


@pytest.mark.parametrize("compact", [False, True])
def test_fewer_keys_give_the_same_answers(compact: bool) -> None:
    module, rows = VECTORS["two activations"], torch.rand(2, 6, generator=RNG)
    program = compile_module(module, rows[:1], calibration=rows, engine="latency", compact=compact, degree=8192)
    assert set(program.contract.steps) <= {4**i if compact else 2**i for i in range(12)}
    with torch.no_grad():
        assert (Encrypted(program)(rows) - module(rows)).abs().max() < 1e-3


def test_folds_before_rescaling_take_the_noise_out() -> None:
    module, rows = VECTORS["wider behind"], torch.rand(3, 6, generator=RNG)
    program = compile_module(module, rows[:1], calibration=rows, engine="latency", degree=8192)
    late, early = (Encrypted(replace(program, early=flag)) for flag in (False, True))
    late(rows)
    early(rows)
    assert early.largest_error < late.largest_error < 1e-4


# -- closed forms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tall", "wide"), [(1, 1), (10, 64), (64, 10), (5, 100), (100, 3)])
def test_packed_product_is_the_product(tall: int, wide: int) -> None:
    """For every number of diagonals that the search may choose, on a vector repeated in the slots."""
    from defenses.homomorphic.packing import _choices, _padded, _spread

    rng = np.random.default_rng(0)
    step = Affine(torch.from_numpy(rng.normal(size=(tall, wide))), torch.from_numpy(rng.normal(size=tall)))
    rows, columns = _padded(np.arange(tall)), _padded(np.arange(wide))
    values = rng.normal(size=wide)
    slots = np.tile(np.where(columns >= 0, values[np.maximum(columns, 0)], 0.0), 1024 // len(columns))
    expected = step.matrix.numpy() @ values + step.bias.numpy()
    choices = _choices(_spread(step, rows, columns), step, rows, 1024)
    assert choices
    for packed in choices:
        result, index = packed.run(slots), np.tile(packed.output.index, 1024 // packed.output.period)
        assert np.allclose(result[index >= 0], expected[index[index >= 0]])
        assert set(index[index >= 0]) == set(range(tall))


def test_a_convolution_is_a_few_diagonals() -> None:
    """As many as it has channels, since the client lays the windows."""
    module = network(
        nn.Conv2d(1, 4, 7, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    layout, steps = pack(circuit_of(module, torch.zeros(1, 1, 28, 28)), 4096)
    assert layout.period == 64 * 64
    assert len(steps[0].diagonals) == 4
    assert sum(len(step.babies) + len(step.giants) - 2 + len(step.folds) for step in steps) <= 30


@pytest.mark.parametrize("prime", [1009, (1 << 30) - 35, (1 << 44) - 17, (1 << 60) - 93])
@pytest.mark.parametrize("bits", [3, 30, 55])
@pytest.mark.parametrize("terms", [1, 200])
def test_residue_products_are_exact(prime: int, bits: int, terms: int) -> None:
    """Against Python's integers, at both ends of the range, of full matrices and of those with few numbers in a row."""
    rng = np.random.default_rng(0)
    weights = rng.integers(-(2**bits), 2**bits, size=(3, terms), endpoint=True)
    residues = rng.integers(0, prime, size=(terms, 5))
    weights[0], residues[:, 0], residues[:, 1] = 2**bits, prime - 1, prime // 2
    if terms > 1:
        weights = np.concatenate([weights, np.eye(terms, dtype=np.int64) * 2**bits])
    expected = (weights.astype(object) @ residues.astype(object)) % prime
    result = modular_product(torch.from_numpy(weights), torch.from_numpy(residues), prime)
    assert result.tolist() == expected.tolist()


def test_residue_products_where_all_rows_leave_out_the_same_numbers() -> None:
    rng = np.random.default_rng(0)
    weights, residues = rng.integers(-(2**40), 2**40, size=(3, 300)), rng.integers(0, 2**40, size=(300, 4))
    weights[:, ::4] = 0
    expected = (weights.astype(object) @ residues.astype(object)) % ((1 << 44) - 17)
    result = modular_product(torch.from_numpy(weights), torch.from_numpy(residues), (1 << 44) - 17)
    assert result.tolist() == expected.tolist()


def test_a_wide_layer_takes_a_larger_ring() -> None:
    torch.manual_seed(0)
    rows = torch.rand(2, 2500, generator=RNG)
    program = compile_module(nn.Linear(2500, 2), rows[:1], calibration=rows, engine="latency")
    assert program.contract.parameters.degree == 8192
    assert program.packed[0].period == 4096


def test_composed_steps() -> None:
    assert composed(13, {1, 2, 4, 8}) == [8, 4, 1]
    assert composed(2, {1, 4}) == [1, 1]
    with pytest.raises(sm.UsageError, match="no keys add up"):
        composed(3, {2})


def test_quadratic_fits_relu_best() -> None:
    """No quadratic is closer to ReLU on the span, in the mean square."""
    x = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    design = torch.stack([x**2, x, torch.ones_like(x)], 1)
    fitted = torch.linalg.lstsq(design, x.relu()[:, None]).solution.flatten()
    mine = Quadratic(8.0)
    assert torch.allclose(fitted, torch.tensor([mine.c2, mine.c1, mine.c0], dtype=torch.float64), atol=1e-3)


def test_parameters_are_within_both_tables() -> None:
    """Depths 1 to 16 fit; SEAL itself accepts each set, and refuses one beyond its own limit."""
    for depth in range(1, 17):
        for sets in candidates(depth, lambda _: 10.0):
            for chosen in sets:
                assert chosen.secure
                assert chosen.log_q <= GUIDELINE[chosen.degree] < STANDARD[chosen.degree]
                assert len(chosen.bits) == depth + 2
                assert chosen.headroom >= 40.0
    with pytest.raises(sm.NotApplicable, match="depth of 60"):
        next(candidates(60, lambda _: 10.0))


# -- the service ----------------------------------------------------------------------------------------------------


def test_extreme_inputs() -> None:
    """All 0, all 1, and corners of the box."""
    module = VECTORS["two activations"]
    rows = torch.stack([torch.zeros(6), torch.ones(6), torch.tensor([0.0, 1.0] * 3)])
    with torch.no_grad():
        assert (encrypted(module, rows)(rows) - module(rows)).abs().max() < 1e-4


def test_batches_larger_than_the_slots_and_empty_ones() -> None:
    module = VECTORS["linear"]
    rows = torch.rand(4096 + 7, 6, generator=RNG)
    served = encrypted(module, rows, degree=8192)
    with torch.no_grad():
        assert (served(rows) - module(rows)).abs().max() < 1e-4
    assert served(rows[:0]).shape == (0, 3)
    client, server = served.ends()
    for engine in ("latency", "throughput"):
        client, server = encrypted(module, rows, engine).ends()
        assert client.decrypt(server.answer(client.encrypt(torch.zeros(0, 6)))).shape == (0, 3)


def test_a_limit_on_encrypted_queries() -> None:
    """The first ones are encrypted, the rest answered in the clear, and the count says so."""
    rows = torch.rand(10, 6, generator=RNG)
    served = encrypted(VECTORS["linear"], rows)
    served.encrypt = 4
    answers = served(rows).double()
    exact = served.program.circuit.run(rows)
    assert served.usage()["queries encrypted"] == 4
    assert torch.equal(answers[4:].float(), exact[4:].float())


def test_simulated_noise_is_like_real_noise() -> None:
    rows = torch.rand(64, 6, generator=RNG, dtype=torch.float64)
    program = compile_module(VECTORS["two activations"], rows[:1], calibration=rows, degree=8192)
    served = Encrypted(program, encrypt=32, mode="simulate")
    errors = (served(rows) - program.circuit.run(rows)).abs()
    real, imagined = errors[:32].mean(), errors[32:].mean()
    assert 0.3 < real / imagined < 3
    assert served.usage() == {"queries served": 64, "queries encrypted": 32}


def test_programs_and_contracts_travel() -> None:
    rows = torch.rand(3, 6, generator=RNG)
    program = compile_module(VECTORS["two activations"], rows[:1], calibration=rows, engine="latency")
    again = Program.from_bytes(program.to_bytes())
    assert again.contract == program.contract
    assert Contract.from_json(program.contract.to_json()) == program.contract
    assert torch.equal(again.circuit.run(rows), program.circuit.run(rows))
    text = program.describe()
    assert "128 bits" in text
    assert f"N={program.contract.parameters.degree}" in text
    assert "diagonals" in text


def test_the_server_holds_no_secret() -> None:
    rows = torch.rand(3, 6, generator=RNG)
    program = compile_module(VECTORS["linear"], rows[:1], engine="reference")
    client = Client(program.contract)
    server = Server.from_bytes(program.to_bytes(), client.public_bytes())
    assert not server.machine.context.has_secret_key()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"(?i)secret|private|decrypt"):
        server.machine.context.data.decryptor()  # type: ignore[attr-defined]
    keeping = bytes(client._secrets._context.serialize(save_secret_key=True))  # type: ignore[attr-defined]
    client._public = [keeping]
    client.keys = sm.__dict__.get("unused") or __import__(
        "defenses.homomorphic.wire", fromlist=["fingerprint"]
    ).fingerprint(keeping)
    with pytest.raises(sm.UsageError, match="handed a secret key"):
        Server(program, client.public_bytes())


def test_foreign_keys_and_other_models_are_refused() -> None:
    rows = torch.rand(3, 6, generator=RNG)
    program = compile_module(VECTORS["linear"], rows[:1], calibration=rows, engine="latency")
    other = compile_module(VECTORS["wider behind"], rows[:1], calibration=rows, engine="latency")
    mine, foreign = Client(program.contract), Client(program.contract)
    server = Server(program, mine.public_bytes())
    with pytest.raises(sm.UsageError, match="under the keys"):
        server.answer(foreign.encrypt(rows.double()))
    with pytest.raises(sm.UsageError, match="under the keys"):
        foreign.decrypt(server.answer(mine.encrypt(rows)))
    with pytest.raises(sm.UsageError, match="for the contract"):
        Server(other, mine.public_bytes())
    foreign.keys = mine.keys  # who forges the mark gets garbage, which is far beyond any answer
    with pytest.raises(sm.UsageError, match="it is under another key"):
        foreign.decrypt(server.answer(mine.encrypt(rows)))


@pytest.mark.parametrize("engine", ENGINES)
def test_bad_messages(engine: Engine) -> None:
    rows = torch.rand(2, 6, generator=RNG)
    program = compile_module(VECTORS["linear"], rows[:1], calibration=rows, engine=engine)
    client = Client(program.contract)
    server = Server(program, client.public_bytes())
    query = client.encrypt(rows)
    for message, why in (
        (query[:-5], "cut short"),
        (b"junk" * 100, "no message"),
        (b"", "no message"),
        (query + b"more", "too many"),
        (client.public_bytes(), "expected query"),
        (query.replace(query[-600:-400], bytes(200)), "no|damaged|level"),
    ):
        with pytest.raises(sm.UsageError, match=why):
            server.answer(message)
    with pytest.raises(sm.UsageError, match="has 6 numbers"):
        client.encrypt(torch.rand(2, 5))
    with pytest.raises(sm.UsageError, match="calibrated range"):
        client.encrypt(torch.full((1, 6), 100.0))
    with pytest.raises(sm.UsageError, match="NaN"):
        client.encrypt(torch.full((1, 6), float("nan")))
    assert torch.allclose(client.decrypt(server.answer(query)), program.circuit.run(rows), atol=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_outputs_that_ignore_their_inputs(engine: Engine) -> None:
    """SEAL refuses products with 0; an all-zero row still answers with its bias."""
    maps = (Affine(torch.tensor([[0.0, 0.0], [1.0, 2.0]]).double(), torch.tensor([3.0, 0.0]).double()),)
    rows = torch.rand(2, 2, generator=RNG).double()
    program = choose(Circuit(maps, (2,)), rows, (0.0, 1.0), engine=engine)
    assert (Encrypted(program)(rows) - program.circuit.run(rows)).abs().max() < 1e-4


def test_a_program_that_is_not_the_module_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Quadratic, "forward", lambda self, x: x**2)
    with pytest.raises(sm.UsageError, match="differs from the module"):
        circuit_of(VECTORS["two activations"], torch.zeros(1, 6))


@pytest.mark.parametrize("engine", ["latency", "throughput"])
def test_overflow_is_noticed(engine: Engine) -> None:
    """An answer beyond the headroom wraps around silently in CKKS, and loudly here."""
    maps = (Affine(torch.tensor([[1.0]]).double(), torch.tensor([0.0]).double()),)
    program = choose(Circuit(maps, (1,)), torch.ones(1, 1), (0.0, 1e6), engine=engine)
    with pytest.raises(sm.SecureMLError, match="they overflow"):
        Encrypted(program)(torch.full((4096, 1) if engine == "throughput" else (1, 1), 20.0))


# -- the defense ----------------------------------------------------------------------------------------------------


def test_refusals() -> None:
    task = tiny_task("digits_mlp")
    odd = replace(task, build=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softplus()))
    with pytest.raises(sm.NotApplicable, match=r"cannot encrypt Softplus, .*use a Sequential"):
        sm.fit(odd, [Homomorphic()], device="cpu")
    with pytest.raises(sm.NotApplicable, match=r"cannot encrypt Embedding, .*let the client look"):
        sm.fit(tiny_task("text_embedding"), [Homomorphic()], device="cpu")
    with pytest.raises(sm.NotApplicable, match="use BatchNorm"):
        compile_module(nn.Sequential(nn.GroupNorm(1, 2), nn.Flatten()), torch.zeros(1, 2, 4))
    with pytest.raises(sm.NotApplicable, match="more than the 10 allowed"):
        sm.fit(task, [Homomorphic(products=10)], device="cpu")
    with pytest.raises(sm.NotApplicable, match="does not fit a ring of degree 4096"):
        compile_module(VECTORS["two activations"], torch.rand(1, 6), degree=4096)
    with pytest.raises(sm.UsageError, match="list it before"):
        sm.fit(task, [LabelOnly(), Homomorphic()], device="cpu")
    with pytest.raises(sm.NotApplicable, match="decrypts the logits"):
        sm.fit(task, [Homomorphic(), LabelOnly()], device="cpu")
    with pytest.raises(sm.NotApplicable, match="errors below 1e-20"):
        compile_module(VECTORS["linear"], torch.rand(1, 6), precision=1e-20)
    with pytest.raises(sm.NotApplicable, match="does not fit the 2,048 slots"):
        compile_module(nn.Linear(3000, 2), torch.rand(1, 3000), engine="latency", degree=4096)
    for settings in ({"span": 0.0}, {"encrypt": -1}, {"learning_rate_factor": 0.0}, {"degree": 5}, {"precision": 0.0}):
        with pytest.raises(sm.UsageError, match="Homomorphic needs"):
            Homomorphic(**settings)


def test_claims_of_training_and_serving_stand_side_by_side() -> None:
    victim = sm.fit(tiny_task("digits_mlp"), [DPSGD(noise=1.0), Homomorphic()], device="cpu")
    assert [claim.kind for claim in victim.claims] == ["differential privacy", "encryption"]
    assert victim.claims[1].values["log2 Q"] <= 214
    assert not sm.fit(tiny_task("digits_mlp"), [Homomorphic(encrypt=4)], device="cpu").claims


@pytest.mark.parametrize("engine", ["latency", "throughput"])
def test_trained_with_learned_quadratics_within_their_span(engine: Engine) -> None:
    task = tiny_task("digits_mlp")
    free, held = (
        sm.fit(
            task,
            [
                Homomorphic(
                    span=0.5,
                    learning_rate_factor=0.05,
                    activation="learned",
                    range_penalty=p,
                    engine=engine,
                    mode="simulate",
                )
            ],
        )
        for p in (0.0, 10.0)
    )
    inputs = task.draw(0).test.inputs

    def outside(victim: sm.Victim) -> float:
        seen: list[torch.Tensor] = []
        hooks = [m.register_forward_pre_hook(lambda _, x: seen.append(x[0])) for m in victim.module.modules()
                 if isinstance(m, Quadratic)]  # fmt: skip
        with torch.no_grad():
            victim.module(inputs)
        for hook in hooks:
            hook.remove()
        return float((torch.cat([s.flatten() for s in seen]).abs() - 0.5).relu().square().mean())

    assert outside(held) < outside(free) / 2
    assert not held.claims
    assert (held.served(inputs) - held.module(inputs).detach()).abs().max() < 1e-2
    assert rows_of(inputs).shape[1] == 64
    assert held.served.usage()["queries encrypted"] == 8
