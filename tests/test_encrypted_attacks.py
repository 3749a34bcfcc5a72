"""Attacks through the encrypted endpoint: encryption hides inputs from the server, and nothing from who asks."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest
import torch

import secure_ml as sm
from attacks import Knockoff, LossThreshold
from defenses import Homomorphic
from defenses.homomorphic.client import Client
from defenses.homomorphic.service.endpoint import Endpoint
from defenses.homomorphic.service.remote import Remote
from secure_ml.victim import Plain

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def victim() -> sm.Victim:
    return sm.fit(sm.task("digits_mlp", tiny=True), [Homomorphic(mode="simulate", encrypt=0)], device="cpu")


@pytest.fixture(scope="module")
def endpoint(victim: sm.Victim, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """The victim's program in a process of its own, behind HTTP."""
    pytest.importorskip("uvicorn")
    path = tmp_path_factory.mktemp("endpoint") / "program"
    path.write_bytes(Homomorphic(degree=4096, precision=1.0).program(victim).to_bytes())
    command = [sys.executable, "-m", "experiments._main", "serve", str(path), "--port", "0", "--workers", "1"]
    process = subprocess.Popen(
        [*command, "--rate", "500"], stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert process.stdout is not None
    found = next(m for line in process.stdout if (m := re.match(r"serving \w+ at (.*)", line)))
    with closing(Remote(found[1])) as remote:
        yield Endpoint(remote, Client(remote.about()[0]))
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
    process.stdout.close()


def test_attacks_find_the_same_through_ciphertexts(victim: sm.Victim, endpoint: Endpoint) -> None:
    """Fidelity, the copy's accuracy and AUC within what noise in the answers can move."""
    clear = replace(victim, served=Plain(victim.module, victim.task.chunk))
    hidden = replace(victim, served=endpoint)
    inputs = victim.splits.test.inputs
    assert isinstance(inputs, torch.Tensor)
    assert (hidden.served(inputs) - clear.served(inputs)).abs().max() < 0.1
    for attack in (Knockoff(queries=20, epochs=3, reveal="label"), LossThreshold()):
        found = []
        for one in (clear, hidden):
            rows = attack.evaluate(one, threat=None, seed=0, examples=40).rows
            found.append({row.measure: row.value for row in rows if row.unit == "share" and row.value is not None})
        assert found[0].keys() == found[1].keys()
        assert all(abs(found[0][name] - found[1][name]) <= 0.06 for name in found[0])
    usage = endpoint.usage()
    assert usage["queries encrypted"] > 100
    assert usage["bytes up"] > 10_000_000


def test_no_inputs_are_not_sent(endpoint: Endpoint) -> None:
    before = dict(endpoint.usage())
    assert endpoint(torch.zeros(0, 1, 8, 8)).shape == (0, 10)
    assert endpoint.usage() == before
