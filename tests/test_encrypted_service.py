"""The encrypted service as two processes: what is answered, what is refused, and that the key stays at home."""

import http.client
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch

import secure_ml as sm
from defenses.homomorphic import stream
from defenses.homomorphic.client import Client
from defenses.homomorphic.program import Program
from defenses.homomorphic.service.front import Front
from defenses.homomorphic.service.keyring import SECRET, open_keyring
from defenses.homomorphic.service.limits import Limits
from defenses.homomorphic.service.remote import Remote, Unanswered
from defenses.homomorphic.service.web import bound
from defenses.homomorphic.wire import frame, unframe
from experiments._main import main
from tests.memory import family, holds
from tests.service import Fake, compiled

RNG = torch.Generator().manual_seed(0)
SECONDS = 8.0


@dataclass(frozen=True)
class Service:
    """A server in a process of its own, and what its clients need to know."""

    url: str
    program: Program
    process: subprocess.Popen[str]

    def post(self, path: str, body: bytes, length: int | None = None) -> tuple[int, str]:
        """Status and sentence for a body; of another length than is said where one is given."""
        parts = urlsplit(self.url)
        with closing(http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)) as connection:
            connection.putrequest("POST", path)
            connection.putheader("content-length", str(len(body) if length is None else length))
            connection.endheaders()
            connection.send(body)
            reply = connection.getresponse()
            content = reply.read()
            return reply.status, json.loads(content)["error"] if reply.status >= 400 else ""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    program = compiled()
    path = tmp_path_factory.mktemp("service") / "program"
    path.write_bytes(program.to_bytes())
    command = [sys.executable, "-m", "experiments._main", "serve", str(path), "--port", "0", "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--rate", "500", "--seconds", str(SECONDS)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    url = ""
    for line in process.stdout:
        if found := re.match(r"serving (\w+) at (.*)", line):
            assert found[1] == program.contract.id
            url = found[2]
            break
    assert url, "the server did not start"
    yield Service(url, program, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
    process.stdout.close()


@pytest.fixture(scope="module")
def client(service: Service) -> Client:
    with closing(Remote(service.url)) as remote:
        return Client(remote.about()[0])


def ask(service: Service, client: Client, rows: torch.Tensor) -> torch.Tensor:
    with closing(Remote(service.url)) as remote:
        return remote.ask(client, rows)


def right(service: Service, rows: torch.Tensor, answers: torch.Tensor) -> bool:
    return bool((answers - service.program.circuit.run(rows)).abs().max() < 1e-3)


# -- what is answered -------------------------------------------------------------------------------------------------


def test_answers_are_those_of_the_program(service: Service, client: Client) -> None:
    rows = torch.rand(3, 6, generator=RNG, dtype=torch.float64)
    with closing(Remote(service.url)) as remote:
        contract, about = remote.about()
        assert contract == service.program.contract
        assert about["protocol"] == 1
        assert right(service, rows, remote.ask(client, rows))
        sent = remote.sent
        assert right(service, rows, remote.ask(client, rows))
        assert remote.sent - sent < sent / 2, "the keys were sent again"
        assert sent < len(client.public_bytes()) + 1.5 * (remote.sent - sent), "the query was sent in vain"


def test_the_command_asks_and_keeps_the_secret_key_private(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = torch.rand(2, 6, generator=RNG, dtype=torch.float64)
    decided = service.program.circuit.run(rows).argmax(1).tolist()
    np.save(tmp_path / "rows.npy", rows.numpy())
    np.savez(tmp_path / "rows.npz", rows.numpy())
    np.savetxt(tmp_path / "rows.csv", rows.numpy(), delimiter=",")
    keys = tmp_path / "keys"
    made = ""
    for kind in ("npy", "npz", "csv"):
        assert main(["query", service.url, "--input", str(tmp_path / f"rows.{kind}"), "--keys", str(keys)]) == 0
        *lines, last = capsys.readouterr().out.splitlines()
        assert lines == [f"class {k}" for k in decided]
        assert "2 queries" in last
        secret = (keys / SECRET).read_text(errors="replace")
        assert made in ("", secret), "new keys were made"
        made = secret
    assert (keys / SECRET).stat().st_mode & 0o777 == 0o600
    assert keys.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("values", "options", "why"),
    [
        (np.full((1, 6), 50.0), [], "calibrated range"),
        (np.full((1, 6), np.nan), [], "NaN"),
        (np.zeros((2, 5)), [], "has 6 numbers here"),
        (np.zeros((1, 6)), ["--decimals", "12"], "may give the key away"),
        (np.zeros((1, 6)), ["--example", "1"], "either --input FILE or --example"),
        (np.array(["a"]), [], "cannot be read as numbers"),
    ],
)
def test_what_the_client_refuses(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str], values: Any, options: list[str], why: str
) -> None:
    np.save(tmp_path / "rows.npy", values)
    argv = ["query", service.url, "--input", str(tmp_path / "rows.npy"), "--keys", str(tmp_path / "keys")]
    assert main([*argv, *options]) == 2
    assert why in capsys.readouterr().err


def test_logging_of_others_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uvicorn's own settings close every handler there is, and with absl's the stream behind it."""
    from uvicorn.config import LOGGING_CONFIG

    closed: list[bool] = []

    class Handler(logging.Handler):
        def close(self) -> None:
            closed.append(True)

    handler = Handler()
    monkeypatch.setattr(logging, "_handlerList", [weakref.ref(handler)])  # no other is closed here
    monkeypatch.setattr(logging, "_handlers", weakref.WeakValueDictionary())
    front = Front(compiled().contract, Fake(), tmp_path, Limits(), {})  # type: ignore[arg-type]
    for settings in ({}, {"log_config": LOGGING_CONFIG}):
        assert not closed
        bound(front, "127.0.0.1", 0, settings)[1].close()
    assert closed, "the settings that were left out are those that close handlers"


def test_addresses_without_a_server(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(tmp_path)]) == 2
        assert "holds no saved model" in capsys.readouterr().err
        front = Front(compiled().contract, Fake(), tmp_path, Limits(), {})  # type: ignore[arg-type]
        with pytest.raises(sm.UsageError, match="cannot serve at"):
            bound(front, "127.0.0.1", port)
    for url, why in ((f"http://127.0.0.1:{port}", "no server answers"), ("ftp://x", "no address of a server")):
        assert main(["query", url, "--example", "0"]) == 2
        assert why in capsys.readouterr().err


# -- what is refused, while others are served -------------------------------------------------------------------------


def bad_bodies(service: Service, client: Client) -> dict[str, tuple[str, bytes, int, str]]:
    query = client.encrypt(torch.zeros(1, 6))
    about, blobs = unframe("query", query)
    return {
        "truncated": ("/answers", query[:-100], 400, "cut short"),
        "junk": ("/answers", b"junk" * 1000, 400, "no message of this protocol"),
        "empty": ("/answers", b"", 400, "no message of this protocol"),
        "bare start": ("/answers", query[:9], 400, "cut short"),
        "keys for a query": ("/answers", client.public_bytes()[:1000], 400, "expected query"),
        "foreign keys": ("/answers", Client(service.program.contract).encrypt(torch.zeros(1, 6)), 404, "no keys"),
        "another model": ("/answers", Client(compiled(shift=1.0).contract).encrypt(torch.zeros(1, 6)), 409, "contract"),
        "damaged": ("/answers", frame("query", about, [bytes(len(blobs[0]))]), 400, "are no Ciphertext"),
        "too few": ("/answers", frame("query", about, []), 400, "0 ciphertexts of 1 queries"),
        "no number": ("/answers", frame("query", {**about, "queries": "1"}, blobs), 400, "ciphertexts of 1"),
        "larger than any query": ("/answers", query * 200, 413, "has at most"),
        "a query for keys": ("/keys", query, 400, "expected keys"),
        "cut keys": ("/keys", client.public_bytes()[:-9], 400, "cut short"),
        "keys of another model": ("/keys", Client(compiled(shift=1.0).contract).public_bytes(), 400, "contract"),
    }


def test_each_bad_request_gets_a_sentence_while_others_are_served(service: Service, client: Client) -> None:
    """A hundred megabytes of junk and a client that hangs up among them."""
    rows = torch.rand(1, 6, generator=RNG, dtype=torch.float64)
    ask(service, client, rows)
    stop, good, wrong, mine = threading.Event(), [], [], Client(service.program.contract)

    def others() -> None:
        while not stop.is_set():
            (good if right(service, rows, ask(service, mine, rows)) else wrong).append(1)

    thread = threading.Thread(target=others)
    thread.start()
    try:
        for name, (path, body, status, why) in bad_bodies(service, client).items():
            given, said = service.post(path, body)
            assert given == status, f"{name}: {given} {said}"
            assert why in said, name
            assert "\n" not in said
        for path in ("/answers", "/keys"):
            given, said = service.post(path, bytes(100 << 20))
            assert given == 413
            assert "104,857,600 bytes were given" in said
        parts = urlsplit(service.url)
        for _ in range(3):
            with socket.create_connection((parts.hostname, parts.port)) as gone:
                gone.sendall(b"POST /answers HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\nSMLHE1\n")
        before = len(good)
        given, said = service.post("/answers", b"SMLHE1\n", length=1000)
        assert given == 408
        assert "7 bytes arrived in 8 s" in said
        assert len(good) > before, "others waited for a client that sends nothing"
    finally:
        stop.set()
        thread.join()
    assert not wrong
    assert right(service, rows, ask(service, client, rows))


def test_an_unknown_client_is_told_to_send_its_keys(service: Service) -> None:
    other = Client(service.program.contract)
    with closing(Remote(service.url)) as remote:
        with pytest.raises(Unanswered, match="send the public keys"):
            remote._ask("POST", "/answers", other.encrypt(torch.zeros(1, 6)))
        assert right(service, torch.zeros(1, 6).double(), remote.ask(other, torch.zeros(1, 6)))


# -- the key stays at home --------------------------------------------------------------------------------------------


def leaks(sent: bytes, secret: bytes) -> bool:
    """Whether any part of the secret key, as it is stored, is in what was sent."""
    return any(secret[at : at + 48] in sent for at in range(200, len(secret) - 48, 4096))


def test_no_part_of_the_secret_key_is_sent(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traffic: list[bytes] = []
    request = http.client.HTTPConnection.request

    def spy(self: Any, method: str, url: str, body: Any = None, *rest: Any) -> None:
        traffic.append(body or b"")
        request(self, method, url, body, *rest)

    monkeypatch.setattr(http.client.HTTPConnection, "request", spy)
    kept = open_keyring(tmp_path / "keys", service.program.contract)
    secret = unframe("secret", (tmp_path / "keys" / SECRET).read_bytes())[1][0]
    ask(service, kept, torch.zeros(1, 6))
    assert len(b"".join(traffic)) > 100_000
    assert not leaks(b"".join(traffic), secret)
    kept._public = [secret, *kept._public[1:]]
    with closing(Remote(service.url)) as remote, pytest.raises(sm.UsageError, match=r"refused \(400\)"):
        remote.send_keys(kept)  # a client that sends it: the check fires, and the server takes no such key
    assert leaks(b"".join(traffic), secret)


KEEPER = """
import sys
from pathlib import Path
from defenses.homomorphic.contract import Contract
from defenses.homomorphic.service.keyring import open_keyring
kept = open_keyring(Path(sys.argv[1]), Contract.from_json(sys.argv[2]))
print("ready", flush=True)
input()
"""


def test_the_secret_key_is_nowhere_in_the_servers_memory(service: Service, tmp_path: Path) -> None:
    """Of the process that listens and of its workers, after they answered; a server that keeps the key is seen."""
    contract = service.program.contract
    mine = open_keyring(tmp_path, contract)
    ask(service, mine, torch.zeros(1, 6))
    size = 8 * contract.parameters.degree * len(contract.parameters.bits)
    blob = unframe("secret", (tmp_path / SECRET).read_bytes())[1][0]
    raw = bytes(stream._decompressed(blob, size + 256)) if blob[5] == stream.ZSTD else blob
    parts = [raw[-size:][at : at + 64] for at in (0, size // 2)]
    try:
        found = [holds(service.process.pid, part) for part in parts]
    except PermissionError:
        pytest.skip("this system does not show the memory of other processes")
    assert len(family(service.process.pid)) >= 3
    assert holds(service.process.pid, contract.id.encode()), "the search finds nothing at all"
    assert not any(found)
    command = [sys.executable, "-c", KEEPER, str(tmp_path), contract.to_json()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "ready\n"
        assert all(holds(keeper.pid, part) for part in parts), "a server that keeps the key was not seen"
        keeper.kill()


@pytest.mark.slow
def test_two_hundred_queries_of_four_clients_under_junk(tmp_path: Path) -> None:
    """None wrong and none lost, on a trained model, while a fifth sends junk; and a count that notices both."""
    from benchmarks.encryption_load import Outcome, load, model, serving, summary

    program, path, rows = model(tmp_path)
    with serving(path) as (url, _):
        row = summary(*load(url, program, rows, 4, 50))
    assert row["queries"] == 200
    assert row["passed"], row
    bad = Outcome(right=48, wrong=1, lost=1, seconds=(0.1,) * 50, setup=0.1, sent=1, received=1)
    assert not summary([bad], [], 1.0)["passed"]
    assert not summary([replace(bad, right=50, wrong=0, lost=0)], ["200: accepted"], 1.0)["passed"]
