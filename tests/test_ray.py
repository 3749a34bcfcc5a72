"""The same cells on a Ray cluster, whole, with limits, and with workers killed under them."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import secure_ml as sm
from attacks.extraction.knockoff import Knockoff
from attacks.membership.loss_threshold import LossThreshold
from defenses.dp_sgd import DPSGD
from secure_ml.cells import Cell, Event, Limits, Store, carry_out, plan, run_cells
from secure_ml.on_ray import OnRay
from tests.laws import same, timeless, tiny_task
from tests.test_failures import Broken

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of Ray's own files and sockets
]
ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two workers here."""
    root = str(Path(__file__).parent.parent)
    environment = {"env_vars": {"PYTHONPATH": root, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    yield
    ray.shutdown()


def cells() -> list[Cell]:
    task = tiny_task("digits_mlp")
    stacks, tried = ((), (DPSGD(noise=1.0),)), (None, LossThreshold(), Knockoff.tiny())
    return [Cell(task=task, defenses=d, attack=a, seed=s) for d in stacks for a in tried for s in range(3)]


def on_ray(some: list[Cell], folder: Path, limits: Limits = Limits(), kill: bool = False) -> list[sm.attack.Result]:  # noqa: B008
    pool = OnRay(limits=limits)
    agenda = plan(some, pool.open(Store(folder=folder)))
    over = threading.Event()
    killed: list[int] = []
    if kill:
        threading.Thread(target=kill_now_and_then, args=(over, killed), daemon=True).start()
    try:
        return carry_out(agenda, pool, lambda event: heard(event))
    finally:
        over.set()
        assert not kill or killed


def heard(event: Event) -> None:
    assert event.place.startswith("ray ")


def kill_now_and_then(over: threading.Event, killed: list[int]) -> None:
    """The worker processes of Ray, one after the other, while they work."""
    while not over.wait(1.5) and len(killed) < 4:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes()
            except OSError:
                continue
            if line.startswith(b"ray::_do") and int(path.parent.name) not in killed:
                os.kill(int(path.parent.name), signal.SIGKILL)
                killed.append(int(path.parent.name))
                break


def test_the_same_rows_though_workers_are_killed(cluster: None, tmp_path: Path) -> None:
    alone = run_cells(cells(), Store(folder=tmp_path / "alone"), 1, lambda event: None)
    there = on_ray(cells(), tmp_path / "there", kill=True)
    assert same([timeless(r) for r in there], [timeless(r) for r in alone])
    found = on_ray(cells(), tmp_path / "there")
    assert [r.rows for r in found] == [r.rows for r in there]


def test_limits_and_errors_there(cluster: None, tmp_path: Path) -> None:
    task = tiny_task("logistic_regression")
    tried = (None, Broken(), Broken(how="grow"), LossThreshold())
    some = [Cell(task=task, defenses=(), attack=a, seed=0) for a in tried]
    start = time.monotonic()
    found = on_ray(some, tmp_path, Limits(gib=2.0))
    assert time.monotonic() - start < 300
    assert [r.obstacle for r in found] == [
        "",
        "failed: ValueError: no such thing",
        "failed: it used more than 2 GiB of memory (--cell-gib), and was ended",
        "",
    ]


def test_what_a_cluster_cannot_do(cluster: None) -> None:
    with pytest.raises(sm.UsageError, match="has 2 processors and 0 GPUs; a cell needs 1 and"):
        OnRay(gpus=0.5).open(Store(folder="x"))
    with pytest.raises(sm.UsageError, match="seen by one process only"):
        OnRay().open(Store(folder="memory://x"))
    with pytest.raises(sm.UsageError, match="at least 0"):
        OnRay(gpus=-1.0)
