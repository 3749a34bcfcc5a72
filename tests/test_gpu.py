"""The same code on a GPU: everything runs there, and agrees with the CPU as far as rounding lets it."""

import pytest
import torch

import secure_ml as sm
from attacks.evasion.pgd import PGD
from tests.laws import ATTACKS, DEFENSES, TASKS, applies, tiny_task, tiny_victim

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", TASKS)
def test_everything_runs_there(name: str) -> None:
    task = tiny_task(name)
    attacks = [cls.tiny() for cls in ATTACKS.values()]
    for cls in DEFENSES.values():
        if not applies(cls.tiny(), task) or (cls.__name__ == "Homomorphic" and "mnist" in name):
            continue
        victim = sm.fit(task, [cls.tiny()], seed=0, device="cuda")
        assert victim.device.type == "cuda"
        assert sm.evaluate(victim, attacks)


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_means_the_same(name: str) -> None:
    """Equal splits, initial weights and order of batches: after training, weights are equal to rounding."""
    there, here = sm.fit(tiny_task(name), seed=0, device="cuda"), tiny_victim(name)
    assert there.splits.fingerprint() == here.splits.fingerprint()
    if name != "text_embedding":  # its dropout draws from the device's own stream
        for one, other in zip(there.module.parameters(), here.module.parameters(), strict=True):
            assert torch.allclose(one.cpu(), other, atol=1e-3)


def test_no_trace_on_the_gpu_stream() -> None:
    before = torch.cuda.get_rng_state()
    victim = sm.fit(tiny_task("digits_cnn"), device="cuda")
    PGD.tiny().evaluate(victim, threat=None, seed=0, examples=20)
    assert torch.equal(before, torch.cuda.get_rng_state())


def test_saved_there_loaded_here(tmp_path: object) -> None:
    victim = sm.fit(tiny_task("digits_cnn"), device="cuda")
    victim.save(f"{tmp_path}/v")
    again = sm.Victim.load(f"{tmp_path}/v", tiny_task("digits_cnn"), device="cpu")
    test = victim.splits.test
    assert torch.allclose(again.served(test.inputs.cpu()), victim.served(test.inputs).cpu(), atol=1e-4)
