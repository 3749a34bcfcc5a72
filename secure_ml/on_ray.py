"""The pieces of a run as tasks of a Ray cluster (Moritz et al. 2018, https://arxiv.org/abs/1712.05889)."""

from __future__ import annotations

import logging
import os
import queue
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from secure_ml.data import VARIABLE
from secure_ml.errors import UsageError, require
from secure_ml.executors import UNLIMITED, Executor, Limits, Worker
from secure_ml.parcels import Packer, check_machine, perform_packed, unpack
from secure_ml.store import Store, machine_of
from secure_ml.work import Outcome, Piece

RETRIES = 5
"""How often a piece is begun again whose node or worker was lost."""


class OnRay(Executor):
    """Places of a Ray cluster: each a share of its processors and GPUs, wherever there is room.

    A piece whose node is lost is begun again elsewhere: a cell is kept whole or not at all, so that doing it twice
    changes no number. Nodes must have the same versions of everything that a cell's name holds. Raises `UsageError`
    where Ray is not installed, the cluster does not answer, or it has less than one piece needs.
    """

    packer: Packer

    def __init__(
        self,
        address: str | None = None,
        gpus: float = 0.0,
        workers: int | None = None,
        limits: Limits = UNLIMITED,
    ) -> None:
        require(gpus >= 0, f"--gpus-per-cell must be at least 0; given {gpus}")
        if find_spec("ray") is None:
            raise UsageError("--executor ray needs ray, which is not installed: pip install ray (the extra 'cluster')")
        self.address, self.gpus, self.workers, self.limits = address, gpus, workers, limits
        self.going: dict[Any, str] = {}
        self.places: list[str] = []
        self.tasks: dict[bytes, Any] = {}
        self.mine = False

    def open(self, store: Store) -> Store:
        """Reach the cluster, ask it what it computes with, and how much there is of it."""
        import ray

        folder = str(store.folder)
        require(
            not folder.startswith("memory://"),
            f"{folder} is seen by one process only: give a folder or a URL that every node reaches",
        )
        if not ray.is_initialized():
            self._connect()
        options = {"num_cpus": store.threads, "num_gpus": self.gpus, "max_retries": RETRIES}
        room = self._room(store.threads)
        self.places = [f"ray {i + 1}" for i in range(min(self.workers or room, room))]
        machine = ray.get(ray.remote(machine_of).options(**options).remote(store.device, store.threads))
        store = replace(store, folder=folder if "://" in folder else os.path.abspath(folder), machine=machine)  # noqa: PTH100
        self.packer = Packer(store)
        self._do = ray.remote(_do).options(**options)
        return store

    def _connect(self) -> None:
        import ray

        given = {VARIABLE: os.environ[VARIABLE]} if VARIABLE in os.environ else {}
        settings: dict[str, Any] = {"runtime_env": {"env_vars": given}} if given else {}
        try:
            ray.init(self.address, log_to_driver=False, logging_level=logging.WARNING, **settings)
        except Exception as error:  # Ray raises many kinds, bare ones too
            where = self.address or "a new one here"
            raise UsageError(f"no Ray cluster answers at {where}: {str(error).strip().partition(chr(10))[0]}") from None
        self.mine = True

    def _room(self, threads: int) -> int:
        """How many pieces the cluster holds at once."""
        import ray

        there = ray.cluster_resources()
        room = int(there.get("CPU", 0) // threads)
        if self.gpus:
            room = min(room, int(there.get("GPU", 0) / self.gpus + 1e-9))
        have = f"{there.get('CPU', 0):g} processors and {there.get('GPU', 0):g} GPUs"
        require(room >= 1, f"the cluster has {have}; a cell needs {threads} and {self.gpus:g}")
        return room

    def free(self) -> list[str]:
        """The places that nothing was sent to."""
        taken = set(self.going.values())
        return [place for place in self.places if place not in taken]

    def start(self, place: str, piece: Piece) -> None:
        """Send the piece; its task goes to the cluster's memory once."""
        import ray

        task, rest = self.packer.pack(piece)
        if task not in self.tasks:
            self.tasks[task] = ray.put(task)
        self.going[self._do.remote(self.tasks[task], rest, self.packer.store, self.limits)] = place

    def finished(self) -> list[tuple[str, Outcome]]:
        """What came back, or was lost for good."""
        import ray

        ready, _ = ray.wait(list(self.going), num_returns=1, timeout=5.0)
        found = []
        for reference in ready:
            place = self.going.pop(reference)
            try:
                found.append((place, unpack(ray.get(reference))))
            except ray.exceptions.RayError as error:
                found.append((place, Outcome(failure=_said(error))))
        return found

    def close(self) -> None:
        """Take back what is going on; leave a cluster that this run did not reach for itself."""
        import ray

        for reference in self.going:
            ray.cancel(reference, force=True)
        self.going.clear()
        self.tasks.clear()
        if self.mine:
            ray.shutdown()
            self.mine = False


def _said(error: Exception) -> str:
    """What went wrong, in a line: of what a node raised, that, and not Ray's account of it."""
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0] if lines else 'it says no more'}"


def _do(task: bytes, rest: bytes, store: Store, limits: Limits) -> bytes:
    """What a node does: in a process of its own where there are limits to keep."""
    check_machine(store)
    return within(task, rest, limits, store.threads) if limits else perform_packed(task, rest)


def within(task: bytes, rest: bytes, limits: Limits, threads: int) -> bytes:
    """The outcome of a piece in a process of its own, which is ended when it passes a limit."""
    import cloudpickle

    news: queue.SimpleQueue[tuple[Worker, bytes | None]] = queue.SimpleQueue()
    worker = Worker(news, threads)
    worker.start(task, rest)
    try:
        while True:
            try:
                _, message = news.get(timeout=0.1)
            except queue.Empty:
                message = b""
            else:
                if message == b"":
                    worker.ready = True
            if message is None:
                return bytes(cloudpickle.dumps(Outcome(failure=worker.end())))
            if message:
                return message
            if why := worker.beyond(limits):
                return bytes(cloudpickle.dumps(Outcome(failure=why)))
    finally:
        worker.end()
