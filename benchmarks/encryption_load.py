"""Whether an encrypted service holds up: 200 queries from four concurrent clients, while others send it junk.

    python -m benchmarks.encryption_load RUN

fits ``digits_mlp`` for encryption, or takes it from RUN; starts ``secure-ml serve`` with two workers, and four clients,
each a process with keys of its own, which ask for 50 different test images each, one at a time. Meanwhile a fifth sends
junk of 100 MB, cut messages and queries under foreign keys, and hangs up in the middle. An answer is wrong if its
decision is not the program's or a number differs by more than 1e-3, lost if there is none. The bars: none wrong, none
lost, each piece of junk refused with a sentence. Written to ``benchmarks/results/encryption_load.json``; 1 if missed.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from benchmarks.record import RESULTS, hardware
from defenses import Homomorphic
from defenses.homomorphic.circuit import rows_of
from defenses.homomorphic.client import Client
from defenses.homomorphic.program import Program
from defenses.homomorphic.service.remote import Remote
from secure_ml.discovery import task
from secure_ml.rows import package_version
from secure_ml.training import fit

CLIENTS, EACH, WORKERS = 4, 50, 2
TOLERANCE = 1e-3
JUNK = 100 << 20


@dataclass(frozen=True)
class Outcome:
    """What one client got."""

    right: int
    wrong: int
    lost: int
    seconds: tuple[float, ...]
    setup: float
    sent: int
    received: int


@contextmanager
def serving(program: Path, workers: int = WORKERS) -> Iterator[tuple[str, int]]:
    """Address and process of a server that runs while the block does."""
    command = [sys.executable, "-m", "experiments._main", "serve", str(program), "--port", "0", "--rate", "1000"]
    process = subprocess.Popen(  # noqa: S603
        [*command, "--workers", str(workers)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        found = next((m for line in process.stdout if (m := re.match(r"serving \w+ at (.*)", line))), None)
        assert found is not None, "the server did not start"
        yield found[1], process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        process.stdout.close()


def ask(url: str, rows: Tensor, expected: Tensor) -> Outcome:
    """One client: rows ``(n, in)`` one at a time, each compared with the program's answer ``(n, *shape)``."""
    counts, seconds = {"right": 0, "wrong": 0, "lost": 0}, []
    with closing(Remote(url)) as remote:
        start = time.perf_counter()
        client = Client(remote.about()[0])
        remote.send_keys(client)
        setup = time.perf_counter() - start
        for row, answer in zip(rows.split(1), expected, strict=True):
            start = time.perf_counter()
            try:
                given = remote.ask(client, row)[0]
                near = float((given - answer).abs().max()) <= TOLERANCE
                counts["right" if near and int(given.argmax()) == int(answer.argmax()) else "wrong"] += 1
            except Exception:
                counts["lost"] += 1
            seconds.append(time.perf_counter() - start)
        return Outcome(**counts, seconds=tuple(seconds), setup=setup, sent=remote.sent, received=remote.received)


def pester(url: str, program: Program, size: int = JUNK) -> list[str]:
    """Send junk of each kind; status and sentence of every refusal, and one line for each hang-up."""
    client = Client(program.contract)
    query = client.encrypt(torch.full((1, program.contract.inputs), program.contract.low))
    with closing(Remote(url)) as remote:
        remote.send_keys(client)
    foreign = Client(program.contract).encrypt(torch.full((1, program.contract.inputs), program.contract.low))
    heard = [_post(url, path, body) for path, body in (
        ("/answers", bytes(size)), ("/keys", bytes(size)), ("/answers", query[:-100]), ("/answers", foreign),
        ("/answers", b"junk"), ("/keys", query))]  # fmt: skip
    parts = urlsplit(url)
    for _ in range(3):
        with socket.create_connection((parts.hostname, parts.port)) as gone:
            gone.sendall(b"POST /answers HTTP/1.1\r\nhost: x\r\ncontent-length: 9999\r\n\r\n" + query[:500])
        heard.append("hung up")
    return heard


def _post(url: str, path: str, body: bytes) -> str:
    parts = urlsplit(url)
    with closing(http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)) as connection:
        connection.request("POST", path, body)
        reply = connection.getresponse()
        content = json.loads(reply.read())
        return f"{reply.status}: {content['error']}" if reply.status >= 400 else f"{reply.status}: accepted"


def load(url: str, program: Program, rows: Tensor, clients: int, each: int) -> tuple[list[Outcome], list[str], float]:
    """What each client got, what the one who pesters heard, and the seconds that it took from the first query on."""
    context = multiprocessing.get_context("spawn")
    expected = program.circuit.run(rows)
    parts = [slice(i * each, (i + 1) * each) for i in range(clients)]
    with context.Pool(clients + 1) as pool:
        started = [pool.apply_async(ask, (url, rows[part], expected[part])) for part in parts]
        pestering = pool.apply_async(pester, (url, program))
        outcomes, heard = [one.get(3000) for one in started], pestering.get(3000)
    longest = max(sum(outcome.seconds) for outcome in outcomes)
    return outcomes, heard, longest


def summary(outcomes: list[Outcome], heard: list[str], longest: float) -> dict[str, Any]:
    """The row of the record."""
    seconds = [s for outcome in outcomes for s in outcome.seconds]
    cuts = quantiles(seconds, n=20)
    refused = [line for line in heard if line[:1] == "4" and len(line) > 20]
    asked = sum(o.right + o.wrong + o.lost for o in outcomes)
    row: dict[str, Any] = {
        "clients": len(outcomes),
        "queries": asked,
        "wrong": sum(o.wrong for o in outcomes),
        "lost": sum(o.lost for o in outcomes),
        "median seconds": round(median(seconds), 3),
        "95 % within seconds": round(cuts[-1], 3),
        "queries a second": round(asked / longest, 2),
        "seconds to make and send keys": round(median(o.setup for o in outcomes), 2),
        "bytes up, all": sum(o.sent for o in outcomes),
        "bytes down, all": sum(o.received for o in outcomes),
        "junk": heard,
    }
    row["passed"] = row["wrong"] == row["lost"] == 0 and len(refused) + heard.count("hung up") == len(heard)
    return row


def model(run: Path) -> tuple[Program, Path, Tensor]:
    """The program for one query at a time, its file, and the test images ``(n, 64)``."""
    run.mkdir(parents=True, exist_ok=True)
    path, digits = run / "program", task("digits_mlp")
    defense = Homomorphic(engine="latency", mode="simulate", encrypt=0)
    if not path.exists():
        path.write_bytes(defense.program(fit(digits, [defense], device="cpu")).to_bytes())
    return Program.from_bytes(path.read_bytes()), path, rows_of(digits.draw(0).test.inputs)


def main(run: str) -> int:
    """Measure, write, print."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    program, path, rows = model(Path(run))
    with serving(path) as (url, _):
        row = summary(*load(url, program, rows, CLIENTS, EACH))
    record = {
        "command": "python -m benchmarks.encryption_load",
        "versions": {package: package_version(package) for package in ("secure-ml", "tenseal", "torch", "uvicorn")},
        "hardware": {**hardware(), "workers": WORKERS, "load average": [round(v, 1) for v in os.getloadavg()]},
        "program": program.describe().splitlines(),
        "rows": [row],
    }
    (RESULTS / "encryption_load.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(row, indent=1))
    return 0 if row["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
