"""Sums of branches on ciphertexts, against the plaintext twin, and vectors that the client looks up."""

from copy import deepcopy
from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor, nn

import secure_ml as sm
from defenses.homomorphic import Homomorphic
from defenses.homomorphic.circuit import Affine, Circuit, Skip, circuit_of
from defenses.homomorphic.client import Client
from defenses.homomorphic.contract import Engine
from defenses.homomorphic.lookup import looked_up, split
from defenses.homomorphic.polynomial import make_polynomial
from defenses.homomorphic.program import Program, choose, compile_module
from defenses.homomorphic.served import Encrypted
from tests.laws import tiny_task

RNG = torch.Generator().manual_seed(0)


class Around(nn.Module):
    """What some layers add to their input, or to what a shortcut makes of it."""

    def __init__(self, *layers: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.layers, self.shortcut = nn.Sequential(*layers), shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        return self.layers(x) + self.shortcut(x)


class Forked(nn.Module):
    """Two branches, each with an activation of its own, side by side; their difference; then both."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 5), nn.Linear(6, 3)
        self.bend = nn.ReLU()
        self.up = nn.Linear(3, 5)
        self.out = nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Both branches."""
        left, right = self.bend(self.left(x)), self.up(self.bend(self.right(x)))
        return self.out(torch.cat([left - right, self.bend(left + right)], 1))


def polynomial(*layers: nn.Module) -> nn.Module:
    """Polynomial twin, in evaluation mode."""
    torch.manual_seed(0)
    return make_polynomial(nn.Sequential(*layers), 8.0).eval()


def normalised(channels: int) -> nn.Module:
    """A batch normalisation that has seen something."""
    norm = nn.BatchNorm2d(channels)
    norm(torch.rand(20, channels, 4, 4, generator=RNG) * 3)
    return norm


def down() -> nn.Module:
    """A shortcut with a stride."""
    return nn.Sequential(nn.Conv2d(3, 4, 1, 2, bias=False), normalised(4))


torch.manual_seed(0)
NETS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "around the input": (polynomial(Around(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6)), nn.Linear(6, 2)), (6,)),
    "blocks before activations": (
        polynomial(
            nn.Linear(6, 4), nn.ReLU(), Around(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 3)
        ),
        (6,),
    ),
    "two forks": (polynomial(Forked()), (6,)),
    "convolutions": (
        polynomial(
            *(nn.Conv2d(1, 3, 3, 1, 1), nn.ReLU()),
            *(Around(nn.Conv2d(3, 4, 3, 2, 1), normalised(4), nn.ReLU(), nn.Conv2d(4, 4, 1), shortcut=down()),),
            *(nn.AvgPool2d(3), nn.Flatten(), nn.Linear(4, 3)),
        ),
        (1, 6, 6),
    ),
    "a sum alone": (polynomial(Around(nn.Linear(6, 6))), (6,)),
}


def answers_of(
    module: nn.Module, shape: tuple[int, ...], engine: Engine, **settings: object
) -> tuple[Encrypted, float]:
    """What serves a module, and the largest error of its answers to three inputs against the module itself."""
    inputs = torch.rand(3, *shape, generator=RNG)
    program = compile_module(module, inputs[:1], calibration=inputs, engine=engine, **settings)  # type: ignore[arg-type]
    served = Encrypted(program)
    with torch.no_grad():
        return served, float((served(inputs) - module(inputs)).abs().max())


SLOW = pytest.mark.slow
CASES = [
    pytest.param(name, engine, marks=() if name in ("two forks", "around the input") else SLOW)
    for name, engine in product(NETS, ("latency", "throughput"))
]


@pytest.mark.parametrize(("name", "engine"), [*CASES, pytest.param("around the input", "reference", marks=SLOW)])
def test_sums_of_branches_equal_the_twin(name: str, engine: Engine) -> None:
    served, error = answers_of(*NETS[name], engine, precision=1e-3)
    assert error < 1e-3
    assert served.largest_error <= 2 * served.program.expected_error


def test_a_way_around_takes_no_level() -> None:
    """As deep as the network without it; and branches side by side share one."""
    chain = polynomial(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6), nn.Linear(6, 2))
    assert (
        circuit_of(NETS["around the input"][0], torch.zeros(1, 6)).depth == circuit_of(chain, torch.zeros(1, 6)).depth
    )
    forked = circuit_of(NETS["two forks"][0], torch.zeros(1, 6))
    assert [tuple(step.matrix.shape) for step in forked.maps] == [(8, 6), (5, 8), (2, 5)]
    assert [(skip.source, skip.target) for skip in forked.skips] == [(1, 2)]


@pytest.mark.parametrize("engine", ["latency", "throughput"])
def test_skips_of_every_length(engine: Engine) -> None:
    """A random circuit with a skip between every two maps, against its float64 self; scales are checked inside."""
    sizes = (5, 4, 3, 3)
    matrix = lambda out, n: torch.rand(out, n, generator=RNG).double() - 0.5  # noqa: E731
    maps = tuple(Affine(matrix(b, a), matrix(b, 1)[:, 0]) for a, b in pairwise(sizes))
    skips = tuple(Skip(s, t, matrix(sizes[t + 1], sizes[s])) for t in range(3) for s in range(t))
    rows = torch.rand(4, 5, generator=RNG)
    program = choose(Circuit(maps, (3,), skips=skips), rows, (0.0, 1.0), engine=engine)
    again = Program.from_bytes(program.to_bytes())
    assert again.contract == program.contract
    assert torch.equal(again.circuit.run(rows), program.circuit.run(rows))
    assert (Encrypted(again)(rows) - program.circuit.run(rows)).abs().max() < 1e-3
    lost = Circuit(maps, (3,), skips=skips[:-1])
    assert (lost.run(rows) - program.circuit.run(rows)).abs().max() > 0.1


@pytest.mark.slow
def test_a_fast_way_around() -> None:
    """Compact keys suffice too."""
    served, error = answers_of(*NETS["blocks before activations"], "latency", compact=True, precision=1e-3)
    assert error < 1e-3
    assert "skip 1 to 2" in served.program.describe()


class Product(nn.Module):
    """No sum."""

    def forward(self, x: Tensor) -> Tensor:
        """A product."""
        return x * x


class Branching(nn.Module):
    """Looks at its numbers."""

    def forward(self, x: Tensor) -> Tensor:
        """One or the other."""
        return x if x.sum() > 0 else -x


def test_what_is_no_sum_is_refused_by_name() -> None:
    for module, why in (
        (nn.Sequential(nn.Linear(6, 6), Around(Product())), "calls mul, which cannot be encrypted"),
        (Around(nn.Linear(6, 6), nn.Softplus()), "Softplus cannot be encrypted"),
        (Around(nn.Linear(6, 6), Branching()), "cannot be followed layer by layer"),
        (Around(nn.Linear(6, 6), nn.LayerNorm(6)), "use BatchNorm"),
    ):
        with pytest.raises(sm.NotApplicable, match=why):
            compile_module(module, torch.zeros(1, 6))


# -- vectors that the client looks up -----------------------------------------------------------------------------


def text_task(bags: bool = True) -> sm.Task:
    """Sentiment of made-up sentences, by a Sequential that begins with a table."""
    task = tiny_task("text_embedding")
    length = int(task.draw(0).train.inputs.shape[1])  # type: ignore[union-attr]
    front = nn.EmbeddingBag(64, 4, mode="mean", padding_idx=0) if bags else nn.Embedding(64, 4, padding_idx=0)
    width = 4 if bags else 4 * length
    rest = [nn.Linear(width, 5), nn.ReLU(), nn.Linear(5, 2)]
    return replace(task, build=lambda: nn.Sequential(deepcopy(front), nn.Flatten(), *deepcopy(rest)))


@pytest.mark.parametrize("bags", [True, pytest.param(False, marks=SLOW)])
def test_a_table_in_front_stays_with_the_client(bags: bool) -> None:
    victim = sm.fit(text_task(bags), [Homomorphic()], device="cpu")
    tokens = victim.splits.test.inputs
    assert isinstance(tokens, Tensor)
    with torch.no_grad():
        twin = victim.module(tokens)
    assert (victim.served(tokens) - twin).abs().max() < 1e-3
    served = victim.served
    assert isinstance(served, Encrypted)
    table, _ = split(victim.module)
    assert table is not None
    weights = served.program.to_bytes()
    assert all(row.double().numpy().tobytes() not in weights for row in table.weight.detach()[1:])
    client, server = served.ends()
    rows = looked_up(table, tokens[:3])
    assert isinstance(rows, Tensor)
    answers = client.decrypt(server.answer(client.encrypt(rows.flatten(1))))
    assert (answers - twin[:3]).abs().max() < 1e-3


def test_tokens_themselves_are_refused_with_what_to_do() -> None:
    tokens = torch.ones(2, 6, dtype=torch.long)
    with pytest.raises(sm.NotApplicable, match=r"tokens cannot be encrypted.*lookup.split"):
        compile_module(nn.Linear(6, 2), tokens)
    program = compile_module(nn.Linear(6, 2), torch.rand(1, 6))
    with pytest.raises(sm.UsageError, match="look their vectors up"):
        Client(program.contract).encrypt(tokens)
    with pytest.raises(sm.NotApplicable, match="tokens cannot be encrypted"):
        Encrypted(program)(tokens)
