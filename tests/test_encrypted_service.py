"""The encrypted service as two processes: what is answered, what is refused, and that the key stays at home."""

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from torch import nn

import secure_ml as sm
from defenses.homomorphic.client import Client
from defenses.homomorphic.program import Program, compile_module
from defenses.homomorphic.release import most_decimals, released
from defenses.homomorphic.server import Server
from defenses.homomorphic.service.front import Body, Front, Refusal
from defenses.homomorphic.service.keyring import SECRET, open_keyring
from defenses.homomorphic.service.limits import Limits, Rates
from defenses.homomorphic.service.remote import Remote, Unanswered
from defenses.homomorphic.service.web import bound
from defenses.homomorphic.service.workers import Lost, Pool
from defenses.homomorphic.wire import frame, unframe
from experiments._main import main

RNG = torch.Generator().manual_seed(0)
SECONDS = 8.0


def compiled(engine: str = "latency", shift: float = 0.0) -> Program:
    torch.manual_seed(0)
    module = nn.Linear(6, 3)
    nn.init.constant_(module.bias, shift)
    rows = torch.rand(20, 6, generator=torch.Generator().manual_seed(1))
    return compile_module(module, rows[:1], calibration=rows, engine=engine)  # type: ignore[arg-type]


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
    assert process.wait(timeout=30) in (0, -signal.SIGINT, 130)
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


def test_keyrings(tmp_path: Path) -> None:
    program, other = compiled(), compiled(shift=1.0)
    first = open_keyring(tmp_path / "keys", program.contract)
    again = open_keyring(tmp_path / "keys", program.contract)
    assert again.public_bytes() == first.public_bytes()
    rows = torch.rand(1, 6, generator=RNG, dtype=torch.float64)
    answer = Server(program, first.public_bytes()).answer(again.encrypt(rows))
    assert (first.decrypt(answer) - program.circuit.run(rows)).abs().max() < 1e-3
    with pytest.raises(sm.UsageError, match="were made for the contract"):
        open_keyring(tmp_path / "keys", other.contract)
    path = tmp_path / "keys" / SECRET
    path.chmod(0o644)
    with pytest.raises(sm.UsageError, match="can be read by others"):
        open_keyring(tmp_path / "keys", program.contract)
    path.chmod(0o600)
    open_keyring(tmp_path / "other", program.contract)
    (tmp_path / "other" / "public.keys").replace(tmp_path / "keys" / "public.keys")
    with pytest.raises(sm.UsageError, match="do not belong together"):
        open_keyring(tmp_path / "keys", program.contract)
    path.write_bytes(b"junk")
    with pytest.raises(sm.UsageError, match="cannot be read"):
        open_keyring(tmp_path / "keys", program.contract)


def test_threads_may_share_a_client() -> None:
    """SEAL's bindings go through a file: without a lock, answers are swapped in silence."""
    program = compiled()
    client = Client(program.contract)
    server = Server(program, client.public_bytes())
    worst = []

    def many(seed: int) -> None:
        rows = torch.rand(1, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for _ in range(15):
            answer = client.decrypt(server.answer(client.encrypt(rows)))
            worst.append(float((answer - program.circuit.run(rows)).abs().max()))

    threads = [threading.Thread(target=many, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(worst) == 60
    assert max(worst) < 1e-3


def test_rounding_for_others() -> None:
    contract = compiled().contract
    most = most_decimals(contract.parameters)
    values = torch.tensor([1.23456789012345], dtype=torch.float64)
    assert released(values, contract.parameters).item() == round(values.item(), most)
    assert released(values, contract.parameters, 1).item() == 1.2
    with pytest.raises(sm.UsageError, match=f"show at most {most}"):
        released(values, contract.parameters, most + 1)


# -- limits -----------------------------------------------------------------------------------------------------------


class Fake:
    """A pool that answers with what it was asked."""

    async def ask(self, keys: Path, query: bytes = b"") -> bytes:
        await asyncio.sleep(0.05)
        return query or b"0123456789abcdef"


async def pieces(*parts: bytes) -> Any:
    for part in parts:
        yield part


async def here() -> bool:
    return False


@pytest.mark.parametrize("engine", ["latency", "throughput"])
def test_limits_on_bodies_fit_what_clients_send(engine: str) -> None:
    contract = compiled(engine).contract
    client, limits = Client(contract), Limits(queries=2)
    rows = torch.zeros(2 if engine == "latency" else contract.batch, 6)
    for kind, message in (("keys", client.public_bytes()), ("query", client.encrypt(rows))):
        assert len(message) <= limits.most(contract, kind) <= 4 * len(message) + 20_000


def test_rates() -> None:
    rates = Rates(2.0)
    assert [rates.wait("a", 0.0) for _ in range(4)] == [0.0] * 4
    assert rates.wait("a", 0.0) == 0.5
    assert rates.wait("b", 0.0) == 0.0
    assert rates.wait("a", 0.5) == 0.0
    assert rates.wait("a", 0.5) == 0.5


def test_too_many_at_a_time_or_too_soon(tmp_path: Path) -> None:
    contract = compiled().contract

    async def play(limits: Limits, addresses: list[str]) -> list[int]:
        front = Front(contract, Fake(), tmp_path, limits, {})  # type: ignore[arg-type]

        async def one(address: str) -> int:
            try:
                async with front.admitted(address):
                    await asyncio.sleep(0.05)
            except Refusal as refusal:
                return refusal.status if refusal.wait > 0 else 0
            return 200

        return await asyncio.gather(*map(one, addresses))

    assert asyncio.run(play(Limits(waiting=2), ["a", "b", "c"])) == [200, 200, 503]
    assert asyncio.run(play(Limits(rate=1.0), ["a", "a", "a", "b"])) == [200, 200, 429, 200]
    with pytest.raises(sm.UsageError, match="rate above 0"):
        Limits(rate=0)


def test_keys_of_those_who_asked_longest_ago_are_dropped(tmp_path: Path) -> None:
    contract = compiled().contract
    names = [f"{i:016x}" for i in range(3)]

    async def play() -> list[int]:
        front = Front(contract, Fake(), tmp_path, Limits(clients=2), {})  # type: ignore[arg-type]
        statuses = []
        for name in names:
            (tmp_path / f"{name}.keys").write_bytes(b"")
            front._remember(name, tmp_path / f"{name}.keys")
        for name in names:
            message = frame("query", {"contract": contract.id, "keys": name, "queries": 1}, [b""])
            try:
                await front.answer(Body(pieces(message[:20], message[20:]), None, 5.0), here)
                statuses.append(200)
            except Refusal as refusal:
                statuses.append(refusal.status)
        return statuses

    assert asyncio.run(play()) == [404, 200, 200]
    assert sorted(path.stem for path in tmp_path.glob("*.keys")) == names[1:]


def test_a_client_that_left_is_not_computed_for(tmp_path: Path) -> None:
    contract = compiled().contract

    async def gone() -> bool:
        return True

    async def play() -> None:
        front = Front(contract, Fake(), tmp_path, Limits(), {})  # type: ignore[arg-type]
        front._remember("k", tmp_path / "k.keys")
        message = frame("query", {"contract": contract.id, "keys": "k", "queries": 1}, [b""])
        await front.answer(Body(pieces(message), None, 5.0), gone)

    (tmp_path / "k.keys").touch()
    with pytest.raises(Refusal, match="left before"):
        asyncio.run(play())


def test_a_broken_worker_costs_one_request(tmp_path: Path) -> None:
    """Who kills a process gets an error, and the next request a new process."""
    program = compiled()
    (tmp_path / "program").write_bytes(program.to_bytes())
    client = Client(program.contract)
    (tmp_path / "keys").write_bytes(client.public_bytes())
    rows = torch.zeros(1, 6, dtype=torch.float64)

    async def play() -> bytes:
        pool = Pool(tmp_path / "program", 1, 60.0)
        try:
            assert (await pool.ask(tmp_path / "keys")).decode() == client.keys
            pool.workers[0]._process.kill()
            with pytest.raises(Lost, match="broke its process"):
                await pool.ask(tmp_path / "keys")
            return await pool.ask(tmp_path / "keys", client.encrypt(rows))
        finally:
            pool.stop()

    assert (client.decrypt(asyncio.run(play())) - program.circuit.run(rows)).abs().max() < 1e-3


# -- TLS and what is not installed ------------------------------------------------------------------------------------


def test_over_tls(tmp_path: Path) -> None:
    """With a certificate of one's own, which who does not trust it refuses."""
    certificate, key = self_signed(tmp_path)
    contract = compiled().contract
    front = Front(contract, Fake(), tmp_path, Limits(), {"task": "x"})  # type: ignore[arg-type]
    server, heard = bound(front, "127.0.0.1", 0, certificate, key)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [heard]})
    port = heard.getsockname()[1]
    thread.start()
    try:
        with closing(Remote(f"https://127.0.0.1:{port}", trusted=certificate)) as remote:
            assert remote.about()[0] == contract
        with (
            closing(Remote(f"https://127.0.0.1:{port}")) as remote,
            pytest.raises(sm.UsageError, match=r"(?i)certific"),
        ):
            remote.about()
    finally:
        server.should_exit = True
        thread.join()
        heard.close()


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for this computer and its private key."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    start = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start - datetime.timedelta(days=1))
        .not_valid_after(start + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    assert ssl.create_default_context(cafile=paths[0])
    return paths


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "program").write_bytes(compiled().to_bytes())
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(tmp_path / "program")]) == 2
    assert "pip install 'secure-ml[serve]'" in capsys.readouterr().err


def test_serving_refuses_other_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "victim.json").write_text('{"task": "digits_mlp(tiny=True)", "training": "none"}')
    (tmp_path / "junk").write_bytes(b"junk")
    for model, why in (("bare", "fit it with --defense homomorphic"), ("junk", "no message of this protocol")):
        assert main(["serve", str(tmp_path / model)]) == 2
        assert why in capsys.readouterr().err
    assert main(["serve", str(tmp_path / "junk"), "--ssl-certfile", "x"]) == 2
    assert "--ssl-keyfile" in capsys.readouterr().err


def test_contracts_and_protocols_that_do_not_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contract = compiled().contract
    remote = Remote("http://127.0.0.1:1")
    said = {"contract": contract.to_json(), "protocol": 1, "id": contract.id}
    for change, why in (
        ({"protocol": 2}, "version 2 of the protocol"),
        ({"id": "0" * 16}, "update one of the two"),
        ({"contract": "{}"}, "no contract"),
        ({"contract": replace(contract, low=5.0).to_json()}, "update one of the two"),
    ):
        monkeypatch.setattr(remote, "_ask", lambda *_, c=change: json.dumps({**said, **c}).encode())
        with pytest.raises(sm.UsageError, match=why):
            remote.about()
    monkeypatch.setattr(remote, "_ask", lambda *_: b"<html>")
    with pytest.raises(sm.UsageError, match="no server of encrypted models"):
        remote.about()
