"""Parts of the encrypted service: kept keys, limits, workers, TLS, and what is not installed."""

import asyncio
import json
import ssl
import sys
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import secure_ml as sm
from defenses.homomorphic.client import Client
from defenses.homomorphic.release import most_decimals, released
from defenses.homomorphic.server import Server
from defenses.homomorphic.service.front import Body, Front, Refusal
from defenses.homomorphic.service.keyring import SECRET, open_keyring
from defenses.homomorphic.service.limits import Limits, Rates
from defenses.homomorphic.service.remote import Remote
from defenses.homomorphic.service.web import bound
from defenses.homomorphic.service.workers import Lost, Pool
from defenses.homomorphic.wire import frame
from experiments._main import main
from tests.service import Fake, compiled

RNG = torch.Generator().manual_seed(0)


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
    server, heard = bound(front, "127.0.0.1", 0, {"ssl_certfile": certificate, "ssl_keyfile": key})
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


def test_settings_of_uvicorn(tmp_path: Path) -> None:
    front = Front(compiled().contract, Fake(), tmp_path, Limits(), {})  # type: ignore[arg-type]
    server, heard = bound(front, "127.0.0.1", 0, {"timeout_keep_alive": 30})
    heard.close()
    assert server.config.timeout_keep_alive == 30
    for settings, why in (({"timeout_keep_alve": 1}, "did you mean timeout_keep_alive"), ({"port": 1}, "no setting")):
        with pytest.raises(sm.UsageError, match=why):
            bound(front, "127.0.0.1", 0, settings)
    with pytest.raises(sm.UsageError, match="cannot serve at"):
        bound(front, "127.0.0.1", 0, {"ssl_certfile": "nowhere", "ssl_keyfile": "nowhere"})


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
    assert main(["serve", str(tmp_path / "junk"), "--uvicorn", "workers"]) == 2
    assert "takes NAME=VALUE" in capsys.readouterr().err
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
