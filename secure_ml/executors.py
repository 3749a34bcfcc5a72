"""Who does the pieces of a run: this process, or worker processes that can be stopped."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from secure_ml.errors import require
from secure_ml.parcels import Packer, unpack
from secure_ml.store import Store
from secure_ml.work import Outcome, Piece, perform
from secure_ml.worker import receive, send


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one piece of work may take; a worker beyond it is ended, and its cell says so."""

    minutes: float | None = None
    gib: float | None = None
    """Resident memory of the worker, in GiB (2**30 bytes)."""

    def __post_init__(self) -> None:
        for name, value, unit in (("minutes", self.minutes, "minutes"), ("gib", self.gib, "GiB")):
            require(value is None or value > 0, f"a limit (--cell-{name}) must be above 0 {unit}; given {value}")

    def __bool__(self) -> bool:
        return self.minutes is not None or self.gib is not None


UNLIMITED = Limits()


class Executor(ABC):
    """Places where pieces are done, one at a time each. Which one does what changes no result."""

    def open(self, store: Store) -> Store:
        """Get ready to work for a store; the store as its places see it."""
        return store

    @abstractmethod
    def free(self) -> list[str]:
        """The places that have nothing to do."""

    @abstractmethod
    def start(self, place: str, piece: Piece) -> None:
        """Do a piece in a place that is free."""

    @abstractmethod
    def finished(self) -> list[tuple[str, Outcome]]:
        """Wait until something is finished, or a moment has passed: what, by place."""

    @abstractmethod
    def close(self) -> None:
        """Stop whatever is going on."""


class Here(Executor):
    """This process, one piece after the other. It cannot be stopped, so there are no limits."""

    store: Store

    def __init__(self) -> None:
        self.piece: Piece | None = None

    def open(self, store: Store) -> Store:
        """Remember the store."""
        self.store = store
        return store

    def free(self) -> list[str]:
        """The one place, unless a piece waits for being done."""
        return [] if self.piece else ["here"]

    def start(self, place: str, piece: Piece) -> None:
        """Put it down, to be done when it is waited for."""
        self.piece = piece

    def finished(self) -> list[tuple[str, Outcome]]:
        """Do it."""
        piece, self.piece = self.piece, None
        return [("here", perform(self.store, piece))] if piece else []

    def close(self) -> None:
        """There is nothing to stop."""


class Worker:
    """A process that does one piece after the other, and how it is going there.

    It has a session of its own, so that what it starts can be ended with it.
    """

    def __init__(self, news: queue.SimpleQueue[tuple[Worker, bytes | None]], threads: int) -> None:
        path = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)
        bounded = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "secure_ml.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **bounded, "PYTHONPATH": path},
            start_new_session=True,
        )
        self.busy = self.ready = False
        self.since = time.monotonic()
        self._listeners = [
            threading.Thread(target=self._listen, args=(news,), daemon=True),
            threading.Thread(target=self._echo, daemon=True),
        ]
        for listener in self._listeners:
            listener.start()

    def start(self, task: bytes, rest: bytes) -> None:
        """Send it a piece."""
        assert self.process.stdin is not None
        self.busy, self.since = True, time.monotonic()
        with suppress(BrokenPipeError):  # it is gone, which its listener reports
            send(self.process.stdin, task, rest)  # type: ignore[arg-type]

    def beyond(self, limits: Limits) -> str:
        """Which limit its piece has passed; empty where none."""
        if not self.busy or not self.ready:
            return ""
        if limits.minutes is not None and time.monotonic() - self.since > 60 * limits.minutes:
            return f"it took longer than {limits.minutes:g} minutes (--cell-minutes), and was ended"
        if limits.gib is not None and self.gib() > limits.gib:
            return f"it used more than {limits.gib:g} GiB of memory (--cell-gib), and was ended"
        return ""

    def gib(self) -> float:
        """Its resident memory."""
        statm = Path(f"/proc/{self.process.pid}/statm")
        with suppress(OSError, IndexError, ValueError):
            if statm.exists():
                return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30
            ask = ["ps", "-o", "rss=", "-p", str(self.process.pid)]
            shown = subprocess.run(ask, capture_output=True, check=False)  # noqa: S603
            return int(shown.stdout) / 2**20
        return 0.0

    def end(self) -> str:
        """End it and what it has started; how it ended, where it had ended by itself."""
        code = self.process.poll()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for listener in self._listeners:
            listener.join(timeout=5)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        if code is not None and code < 0:
            killed = " (the system ends what takes too much memory)" if code == -signal.SIGKILL else ""
            return f"its worker was ended by {signal.Signals(-code).name}{killed}"
        return f"its worker ended with code {code}"

    def _listen(self, news: queue.SimpleQueue[tuple[Worker, bytes | None]]) -> None:
        assert self.process.stdout is not None
        message: bytes | None = b""
        while message is not None:
            message = receive(self.process.stdout)  # type: ignore[arg-type]
            news.put((self, message))

    def _echo(self) -> None:
        """What it says on stderr goes through this process, so that it does not tear up a table being shown there."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            sys.stderr.write(line.decode(errors="replace"))


class Processes(Executor):
    """Worker processes of this machine, started when they are needed and ended when they pass a limit.

    A worker that ends by itself (a crash, no memory left) costs its cell, and another takes its place.
    """

    packer: Packer

    def __init__(self, workers: int, limits: Limits = UNLIMITED) -> None:
        self.limits = limits
        self.workers: dict[str, Worker | None] = {f"worker {i + 1}": None for i in range(workers)}
        self.news: queue.SimpleQueue[tuple[Worker, bytes | None]] = queue.SimpleQueue()

    def open(self, store: Store) -> Store:
        """Pack for this store from now on."""
        if str(store.folder).startswith("memory://"):
            require(False, f"{store.folder} is seen by one process only: give --workers 1, or another folder")
        self.packer = Packer(store)
        return store

    def free(self) -> list[str]:
        """The places whose worker has nothing to do, or is not there yet."""
        return [place for place, worker in self.workers.items() if worker is None or not worker.busy]

    def start(self, place: str, piece: Piece) -> None:
        """Send the piece to the place's worker."""
        self.send(place, *self.packer.pack(piece))

    def send(self, place: str, task: bytes, rest: bytes) -> None:
        """Send parcels to the place's worker, which is a new one where the last one is gone or holds much memory."""
        worker = self.workers[place]
        if worker and self.limits.gib is not None and worker.gib() > self.limits.gib / 2:
            worker.end()
            worker = None
        if worker is None:
            worker = self.workers[place] = Worker(self.news, self._threads())
        worker.start(task, rest)

    def finished(self) -> list[tuple[str, Outcome]]:
        """What came back, what ended, and what was ended."""
        found = []
        try:
            worker, message = self.news.get(timeout=0.1 if self.limits else 5.0)
        except queue.Empty:
            pass
        else:
            found += self._hear(worker, message)
        for place, worker_or_none in self.workers.items():
            if worker_or_none and (why := worker_or_none.beyond(self.limits)):
                seconds = time.monotonic() - worker_or_none.since
                worker_or_none.end()
                self.workers[place] = None
                found.append((place, Outcome(failure=why, seconds=seconds)))
        return found

    def _hear(self, worker: Worker, message: bytes | None) -> list[tuple[str, Outcome]]:
        places = [place for place, there in self.workers.items() if there is worker]
        if not places:  # the last words of one that was ended
            return []
        if message == b"":
            worker.ready, worker.since = True, time.monotonic()
            return []
        was_busy, worker.busy = worker.busy, False
        if message is not None:
            return [(places[0], unpack(message))]
        self.workers[places[0]] = None
        how = worker.end()
        return [(places[0], Outcome(failure=how))] if was_busy else []

    def _threads(self) -> int:
        return self.packer.store.threads

    def close(self) -> None:
        """End all workers, whatever they do."""
        for worker in self.workers.values():
            if worker:
                worker.end()
        self.workers = dict.fromkeys(self.workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
