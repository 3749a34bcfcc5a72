"""Encrypted answers against the plaintext twin, and what must be refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import secure_ml as sm
from defenses.dp_sgd import DPSGD
from defenses.homomorphic import Homomorphic
from defenses.homomorphic.engine import Client, Encrypted, Server
from defenses.homomorphic.parameters import GUIDELINE, Parameters
from defenses.homomorphic.polynomial import Quadratic, make_polynomial
from defenses.homomorphic.program import Affine, Program, compile_module
from defenses.label_only import LabelOnly
from tests.laws import tiny_task

RNG = torch.Generator().manual_seed(0)


def network(*layers: nn.Module) -> nn.Sequential:
    """Polynomial twin of a Sequential, in evaluation mode."""
    torch.manual_seed(0)
    return make_polynomial(nn.Sequential(*layers), 8.0).eval()


ARCHITECTURES = {
    "linear": network(nn.Linear(6, 3)),
    "one logit": network(nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 1), nn.Flatten(0)),
    "two activations": network(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)),
    "starts and ends with an activation": network(nn.ReLU(), nn.Linear(6, 3), nn.ReLU()),
    "wider behind": network(nn.Linear(6, 2), nn.ReLU(), nn.Dropout(0.5), nn.Linear(2, 9)),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_encrypted_answers_equal_the_twin(name: str) -> None:
    module = ARCHITECTURES[name]
    rows = torch.rand(9, 6, generator=RNG)
    served = Encrypted(compile_module(module, rows[:1]))
    with torch.no_grad():
        twin = module(rows)
    answers = served(rows)
    assert answers.shape == twin.shape
    assert (answers - twin).abs().max() < 2e-5
    assert served.usage() == {"queries served": 9, "queries encrypted": 9}


def test_convolution_and_pooling() -> None:
    module = network(
        nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4)
    )
    images = torch.rand(5, 1, 8, 8, generator=RNG)
    with torch.no_grad():
        twin = module(images)
    assert (Encrypted(compile_module(module, images[:1]))(images) - twin).abs().max() < 2e-5


def test_extreme_inputs() -> None:
    """All 0, all 1, and corners of the box."""
    module = ARCHITECTURES["two activations"]
    rows = torch.stack([torch.zeros(6), torch.ones(6), torch.tensor([0.0, 1.0] * 3)])
    with torch.no_grad():
        assert (Encrypted(compile_module(module, rows[:1]))(rows) - module(rows)).abs().max() < 2e-5


def test_batches_larger_than_the_slots_and_empty_ones() -> None:
    module = ARCHITECTURES["linear"]
    rows = torch.rand(4096 + 7, 6, generator=RNG)
    served = Encrypted(compile_module(module, rows[:1]))
    with torch.no_grad():
        assert (served(rows) - module(rows)).abs().max() < 2e-5
    assert served(rows[:0]).shape == (0, 3)


def test_a_limit_on_encrypted_queries() -> None:
    """The first ones are encrypted, the rest answered in the clear, and the count says so."""
    rows = torch.rand(10, 6, generator=RNG)
    served = Encrypted(compile_module(ARCHITECTURES["linear"], rows[:1]), encrypt=4)
    answers = served(rows)
    exact = served.program.run(rows).float()
    assert not torch.equal(answers[:4], exact[:4])
    assert torch.equal(answers[4:], exact[4:])
    assert served.usage()["queries encrypted"] == 4


def test_the_server_holds_no_secret() -> None:
    parameters = Parameters.for_depth(1)
    client = Client(parameters)
    program = compile_module(ARCHITECTURES["linear"], torch.zeros(1, 6))
    server = Server(client.public_bytes(), program, parameters)
    assert not server.context.has_secret_key()
    with pytest.raises(ValueError, match=r"(?i)secret|private|decrypt"):
        server.context.data.decryptor()
    keeping = bytes(client.context.serialize(save_secret_key=True, save_galois_keys=False))
    with pytest.raises(sm.SecureMLError, match="handed a secret key"):
        Server(keeping, program, parameters)


def test_a_foreign_key_gives_garbage() -> None:
    """The check that answers equal the twin can fail."""
    parameters, rows = Parameters.for_depth(1), torch.rand(3, 6, generator=RNG)
    program = compile_module(ARCHITECTURES["linear"], rows[:1])
    mine, other = Client(parameters), Client(parameters)
    answers = Server(mine.public_bytes(), program, parameters).answer(mine.encrypt(rows))
    assert (other.decrypt(answers, 3) - program.run(rows)).abs().max() > 1
    assert (mine.decrypt(answers, 3) - program.run(rows)).abs().max() < 1e-5


def test_parameters_are_within_the_guideline() -> None:
    """Depths 1 to 18 fit; SEAL itself accepts each set, and refuses one beyond its own limit."""
    for depth in range(1, 19):
        chosen = Parameters.for_depth(depth)
        assert chosen.log_q <= GUIDELINE[chosen.degree]
        assert len(chosen.bits) == depth + 2
    with pytest.raises(sm.NotApplicable, match="depth of 19"):
        Parameters.for_depth(19)
    with pytest.raises(ValueError, match="parameters"):
        Client(Parameters(8192, 60, 40, 4))


def test_outputs_that_ignore_their_inputs() -> None:
    """SEAL refuses products with 0; an all-zero row still answers with its bias."""
    program = Program(
        (Affine(torch.tensor([[0.0, 0.0], [1.0, 2.0]]).double(), torch.tensor([3.0, 0.0]).double()),), (2,)
    )
    rows = torch.rand(4, 2, generator=RNG)
    assert (Encrypted(program)(rows) - program.run(rows)).abs().max() < 1e-5


def test_a_program_that_is_not_the_module_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Quadratic, "forward", lambda self, x: x**2)
    with pytest.raises(sm.UsageError, match="differs from the module"):
        compile_module(ARCHITECTURES["two activations"], torch.zeros(1, 6))


def test_quadratic_fits_relu_best() -> None:
    """No quadratic is closer to ReLU on the span, in the mean square."""
    x = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    design = torch.stack([x**2, x, torch.ones_like(x)], 1)
    fitted = torch.linalg.lstsq(design, x.relu()[:, None]).solution.flatten()
    mine = Quadratic(8.0)
    assert torch.allclose(fitted, torch.tensor([mine.c2, mine.c1, mine.c0], dtype=torch.float64), atol=1e-3)


def test_refusals() -> None:
    task = tiny_task("digits_mlp")
    odd = replace(task, build=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softplus()))
    with pytest.raises(sm.NotApplicable, match="cannot encrypt Softplus"):
        sm.fit(odd, [Homomorphic()], device="cpu")
    with pytest.raises(sm.NotApplicable, match="cannot encrypt BagOfWords"):
        sm.fit(tiny_task("text_embedding"), [Homomorphic()], device="cpu")
    with pytest.raises(sm.NotApplicable, match="more than the 10 allowed"):
        sm.fit(task, [Homomorphic(products=10)], device="cpu")
    with pytest.raises(sm.UsageError, match="list it before"):
        sm.fit(task, [LabelOnly(), Homomorphic()], device="cpu")
    with pytest.raises(sm.NotApplicable, match="decrypts the logits"):
        sm.fit(task, [Homomorphic(), LabelOnly()], device="cpu")
    big = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.constant_(big[1].weight, 1e4)
    huge = replace(task, build=lambda: big, recipe=sm.Recipe(epochs=1, learning_rate=1e-9))
    with pytest.raises(sm.NotApplicable, match="headroom"):
        sm.fit(huge, [Homomorphic()], device="cpu")
    for settings in ({"span": 0.0}, {"encrypt": -1}, {"learning_rate_factor": 0.0}):
        with pytest.raises(sm.UsageError, match="Homomorphic needs"):
            Homomorphic(**settings)


def test_claims_of_training_and_serving_stand_side_by_side() -> None:
    victim = sm.fit(tiny_task("digits_mlp"), [DPSGD(noise=1.0), Homomorphic()], device="cpu")
    assert [claim.kind for claim in victim.claims] == ["differential privacy", "encryption"]
    assert victim.claims[1].values["log2 Q"] <= 214
    assert not sm.fit(tiny_task("digits_mlp"), [Homomorphic(encrypt=4)], device="cpu").claims


def test_overflow_is_noticed() -> None:
    """An answer beyond the headroom wraps around silently in CKKS, and loudly here."""
    program = Program((Affine(torch.tensor([[20000.0]]).double(), torch.tensor([0.0]).double()),), (1,))
    with pytest.raises(sm.SecureMLError, match="they overflow"):
        Encrypted(program)(torch.ones(4096, 1))
