"""Answer encrypted queries over HTTP: a server that never holds a secret key."""

from __future__ import annotations

import ast
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from defenses.homomorphic import Homomorphic
from defenses.homomorphic.program import Program
from defenses.homomorphic.service.front import Front
from defenses.homomorphic.service.limits import Limits
from defenses.homomorphic.service.web import check_installed, listen
from defenses.homomorphic.service.workers import Pool
from experiments._catalog import Catalog, ask, set_data_directory
from secure_ml.errors import UsageError, require
from secure_ml.vault import key_from
from secure_ml.victim import ABOUT, Victim


@dataclass(frozen=True)
class Serve:
    """Answer encrypted queries over HTTP, with a model that ``secure-ml fit ... --defense homomorphic`` kept.

    The server sees ciphertexts and public keys. It does not know its clients: put a reverse proxy that does in front of
    it, and name a certificate for TLS. Ctrl-C ends it.
    """

    model: tyro.conf.Positional[Path]
    """Folder of the model, or the file of a program that was compiled from one."""
    engine: Literal["latency", "throughput"] = "latency"
    """latency: one query at a time; throughput: as many as a ciphertext has slots."""
    host: str = "127.0.0.1"
    """Where to listen; 0.0.0.0 for every network."""
    port: int = 8765
    """0 for any that is free."""
    workers: int = 2
    """Processes that compute, with one core and one request each."""
    rate: float = Limits.rate
    """Requests a second from one address, beyond a burst of twice as many."""
    waiting: int = Limits.waiting
    """Requests in hand at a time, from all."""
    clients: int = Limits.clients
    """Clients whose keys are kept."""
    seconds: float = Limits.seconds
    """For a body to arrive, and for an answer to be computed."""
    ssl_certfile: Path | None = None
    """Certificate for TLS."""
    ssl_keyfile: Path | None = None
    """Its private key."""
    uvicorn: tuple[str, ...] = ()
    """Further settings of uvicorn: proxy_headers=True forwarded_allow_ips=10.0.0.1 ssl_keyfile_password=..."""
    compiled: Path | None = None
    """Keep the compiled program in this file, which serves on a computer without the training data."""
    key_file: Path | None = None
    """File with the key by which the weights were encrypted; or else SECURE_ML_KEY, where that is set."""
    data_dir: Path | None = None
    """Where data sets lie; SECURE_ML_DATA or ~/.cache/secure_ml unless given."""


def main(argv: Sequence[str]) -> int:
    """Compile, start the workers, listen."""
    options = ask(Serve, argv, "secure-ml serve")
    set_data_directory(options.data_dir)
    require(options.workers >= 1, f"--workers must be at least 1; given {options.workers}")
    require(
        (options.ssl_certfile is None) == (options.ssl_keyfile is None),
        "TLS needs a certificate and its private key: give --ssl-certfile and --ssl-keyfile",
    )
    check_installed()
    limits = Limits(rate=options.rate, waiting=options.waiting, clients=options.clients, seconds=options.seconds)
    settings = _settings(options)
    program, about = _program(options)
    print(program.describe())
    message = program.to_bytes()
    if options.compiled is not None:
        options.compiled.write_bytes(message)
    with tempfile.TemporaryDirectory(prefix="secure-ml-serve-") as spool:
        path = Path(spool) / "program"
        path.write_bytes(message)
        pool = Pool(path, options.workers, limits.seconds)
        try:
            front = Front(program.contract, pool, Path(spool), limits, about)
            with suppress(KeyboardInterrupt):
                listen(front, options.host, options.port, settings)
        finally:
            pool.stop()
    return 0


def _settings(options: Serve) -> dict[str, Any]:
    """What uvicorn is told; numbers and truth values are read as such, anything else as text."""
    settings: dict[str, Any] = {}
    for text in options.uvicorn:
        name, equals, value = text.partition("=")
        require(bool(equals), f"--uvicorn takes NAME=VALUE; given {text!r}")
        try:
            settings[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[name] = value
    if options.ssl_certfile is not None:
        settings |= {"ssl_certfile": options.ssl_certfile, "ssl_keyfile": options.ssl_keyfile}
    return settings


def _program(options: Serve) -> tuple[Program, Mapping[str, Any]]:
    """The program to serve, and what clients may know of its model."""
    if options.model.is_file():
        return Program.from_bytes(options.model.read_bytes()), {}
    if not (options.model / ABOUT).is_file():
        raise UsageError(f"{options.model} holds no saved model: secure-ml fit TASK --defense homomorphic keeps one")
    try:
        said = json.loads((options.model / ABOUT).read_text())
        catalog = Catalog.plain()
        task, stack = catalog.task(said["task"]), catalog.stack(said["training"])
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{options.model} is corrupt: train the model again") from None
    encrypting = [defense for defense in stack if isinstance(defense, Homomorphic)]
    if not encrypting:
        raise UsageError(f"{options.model} was trained under {said['training']}: fit it with --defense homomorphic")
    victim = Victim.load(options.model, task, stack, device="cpu", key=key_from(options.key_file))
    program = replace(encrypting[0], engine=options.engine).program(victim)
    return program, {"task": repr(task), "seed": victim.seed, "output": type(task.output).__name__}
