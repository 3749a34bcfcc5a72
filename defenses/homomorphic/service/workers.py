"""Processes that compute on ciphertexts: TenSEAL holds Python's lock, so that threads would take turns."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import signal
import sys
import traceback
from collections import OrderedDict
from multiprocessing.connection import Connection
from pathlib import Path

from defenses.homomorphic.program import Program
from defenses.homomorphic.server import Server
from defenses.homomorphic.wire import frame, unframe
from secure_ml.errors import SecureMLError, UsageError

KEPT = 4
"""Clients whose keys a worker holds in memory, loaded and with the weights encoded."""
STARTUP = 300.0
"""Seconds in which a worker must be ready."""


class Lost(SecureMLError):  # noqa: N818
    """A worker died over a request, or took too long and was ended: another is there by now."""


class Desk:
    """What a worker does: answers for any client, by keys that lie in files; no secret key can be handed to it."""

    def __init__(self, program: bytes) -> None:
        self.program = Program.from_bytes(program)
        self._servers: OrderedDict[str, Server] = OrderedDict()

    def check(self, keys: str) -> bytes:
        """The fingerprint of keys that fit the program; raises `UsageError` for others."""
        return Server(self.program, Path(keys).read_bytes()).keys.encode()

    def answer(self, keys: str, query: bytes) -> bytes:
        """The answer under the keys in that file."""
        server = self._servers.pop(keys, None) or Server(self.program, Path(keys).read_bytes())
        self._servers[keys] = server
        while len(self._servers) > KEPT:
            self._servers.popitem(last=False)
        return server.answer(query)

    def do(self, job: bytes) -> bytes:
        """A job's result as a message of the kind ``done``, ``refused`` or ``failed``."""
        about, blobs = unframe("job", job)
        try:
            result = self.answer(about["keys"], blobs[0]) if blobs else self.check(about["keys"])
        except UsageError as error:
            return frame("refused", {"why": str(error)}, [])
        except Exception as error:
            traceback.print_exception(error, file=sys.stderr)
            return frame(
                "failed", {"why": str(error) if isinstance(error, SecureMLError) else type(error).__name__}, []
            )
        return frame("done", {}, [result])


def work(program: str, pipe: Connection, threads: int) -> None:
    """A worker's life: jobs in, results out, until the pipe closes."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal it goes to all; the server ends its workers
    torch.set_num_threads(threads)
    desk = Desk(Path(program).read_bytes())
    pipe.send_bytes(frame("done", {}, []))
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            pipe.send_bytes(desk.do(pipe.recv_bytes()))


class Worker:
    """One process, started anew where it dies or takes too long."""

    def __init__(self, program: Path, seconds: float) -> None:
        self.program, self.seconds = program, seconds
        self._ready = False
        self._start()

    def ask(self, keys: Path, query: bytes = b"") -> bytes:
        """The answer to a query, or without one the fingerprint of the keys; blocks until then.

        Raises `UsageError` where the client is to blame, `Lost` where the process ended.
        """
        try:
            self._pipe.send_bytes(frame("job", {"keys": str(keys)}, [query] if query else []))
            reply = self._receive(self.seconds)
        except (EOFError, OSError) as error:
            self.stop()
            self._start()
            why = f"took more than {self.seconds:g} s" if isinstance(error, TimeoutError) else "broke its process"
            raise Lost(f"this request {why} and was given up") from None
        kind, why, result = reply
        if kind == "refused":
            raise UsageError(why)
        if kind == "failed":
            raise SecureMLError(f"the server failed over this request: {why}")
        return result

    def ready(self) -> None:
        """Block until the process has loaded the program."""
        if not self._ready:
            self._receive(STARTUP)
            self._ready = True

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=work, args=(str(self.program), other, 1), daemon=True)
        self._process.start()
        other.close()
        self._ready = False

    def _receive(self, seconds: float) -> tuple[str, str, bytes]:
        if not self._pipe.poll(seconds):
            raise TimeoutError
        message = self._pipe.recv_bytes()
        for kind in ("done", "refused", "failed"):
            with contextlib.suppress(UsageError):
                about, blobs = unframe(kind, message)
                return kind, str(about.get("why", "")), blobs[0] if blobs else b""
        raise EOFError


class Pool:
    """Workers, each with at most one request: who breaks one loses that request and nobody else's."""

    def __init__(self, program: Path, count: int, seconds: float) -> None:
        self.workers = [Worker(program, seconds) for _ in range(count)]
        self._idle: asyncio.Queue[Worker] = asyncio.Queue()
        for worker in self.workers:
            worker.ready()
            self._idle.put_nowait(worker)

    async def ask(self, keys: Path, query: bytes = b"") -> bytes:
        """What a worker answers, when one is free; goes on to its end though whoever waits for it leaves."""
        worker = await self._idle.get()
        return await asyncio.shield(asyncio.create_task(self._use(worker, keys, query)))

    def stop(self) -> None:
        """End all processes."""
        for worker in self.workers:
            worker.stop()

    async def _use(self, worker: Worker, keys: Path, query: bytes) -> bytes:
        try:
            await asyncio.to_thread(worker.ready)
            return await asyncio.to_thread(worker.ask, keys, query)
        finally:
            self._idle.put_nowait(worker)
