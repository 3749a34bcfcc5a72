"""A Ray cluster of several nodes, one of which is lost in the middle of a run and another joins."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attacks.extraction.knockoff import Knockoff
from attacks.membership.loss_threshold import LossThreshold
from defenses.dp_sgd import DPSGD
from secure_ml.cells import Cell, Event, Store, carry_out, plan, run_cells
from secure_ml.on_ray import OnRay
from tests.laws import same, timeless, tiny_task

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of Ray's own files and sockets
]
ray = pytest.importorskip("ray")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that takes no work, and two nodes of one processor each, with raylets and object stores of their own."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    ray.shutdown()
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.mine = [made.add_node(num_cpus=1) for _ in range(2)]
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


def cells() -> list[Cell]:
    task = tiny_task("digits_mlp")
    stacks, tried = ((), (DPSGD(noise=1.0),)), (None, LossThreshold(), Knockoff.tiny())
    return [Cell(task=task, defenses=d, attack=a, seed=s) for d in stacks for a in tried for s in range(2)]


def test_a_node_is_lost_and_no_number_changes(cluster: Any, tmp_path: Path) -> None:
    alone = run_cells(cells(), Store(folder=tmp_path / "alone"), 1, lambda event: None)
    pool = OnRay(address=cluster.address)
    agenda = plan(cells(), pool.open(Store(folder=tmp_path / "there")))
    assert pool.places == ["ray 1", "ray 2"], "one on each node"
    heard: list[Event] = []

    def lose(event: Event) -> None:
        heard.append(event)
        if len(heard) == 3:
            cluster.remove_node(cluster.mine[0], allow_graceful=False)
            while all(node["Alive"] for node in ray.nodes()):
                time.sleep(0.2)
            cluster.add_node(num_cpus=1)

    there = carry_out(agenda, pool, lose)
    assert len(heard) >= len(cells()) > 3, "a node was lost before the end"
    assert same([timeless(result) for result in there], [timeless(result) for result in alone])
