"""How many calls a cluster takes: by node, leaving a CPU to the rest; who runs as an actor."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from curate.stage import Resources
from pipelines import slots


class _Nodes:
    """As much of Ray as it takes to ask what a cluster has."""

    def __init__(self, *nodes: dict[str, float]) -> None:
        self.found = [{"Alive": True, "Resources": node} for node in nodes]
        self.killed: list[Any] = []
        self.made = 0

    def nodes(self) -> list[dict[str, Any]]:
        return self.found

    def remote(self, what: Any) -> Any:
        def make() -> Any:
            self.made += 1
            return SimpleNamespace(ready=SimpleNamespace(remote=lambda: f"ready {self.made}"))

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=make))

    def wait(self, references: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return references, []

    def get(self, reference: Any) -> Any:
        return reference

    def kill(self, actor: Any) -> None:
        self.killed.append(actor)


BIG, GPUS = {"CPU": 8.0, "memory": 64e9}, {"CPU": 4.0, "GPU": 4.0, "memory": 16e9}


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        (Resources(), 12),
        (Resources(cpus=3), 3),  # 2 and 1: what is left of a node is no help to another
        (Resources(gpus=1), 4),
        (Resources(gpus=0.5, cpus=0.1), 8),
        (Resources(memory_bytes=10_000_000_000), 7),
        (Resources(gpus=8), 0),
    ],
)
def test_what_fits(asked: Resources, fits: int) -> None:
    assert slots.Cluster(_Nodes(BIG, GPUS)).fits(asked) == fits


def test_a_dead_node_counts_no_more() -> None:
    ray = _Nodes(BIG, GPUS)
    ray.found[0]["Alive"] = False
    cluster = slots.Cluster(ray)
    assert cluster.total("CPU") == 4
    assert cluster.told() == "1 node with 4 CPUs, 4 GPUs, 14.9 GiB"


def test_a_pool_grows_with_the_cluster_shrinks_with_the_work_and_leaves_a_cpu() -> None:
    ray = _Nodes({"CPU": 4.0, "GPU": 4.0})
    cluster = slots.Cluster(ray)
    pool = slots.Actors(ray, cluster, Resources(gpus=1), "x")
    assert pool.most() == 3
    pool.tick(2)
    assert pool.size == 2  # no more than there are calls
    pool.tick(100)
    assert (pool.size, ray.made) == (3, 3)
    ray.found.append({"Alive": True, "Resources": GPUS})
    cluster._asked = 0.0
    assert pool.most() == 7
    del ray.found[:]
    cluster._asked = 0.0
    pool.tick(100)  # ready ones are idle now, and there is no place for more than one
    assert pool.most() == 1
    assert (pool.size, len(ray.killed)) == (1, 2)
    pool.close()
    assert len(ray.killed) == 3


def test_a_pool_that_shrinks_lets_go_first_of_actors_that_found_no_place() -> None:
    ray = _Nodes({"CPU": 8.0})
    pool = slots.Actors(ray, slots.Cluster(ray), Resources(keep=True), "x")
    pool.tick(2)
    pool.tick(2)
    assert pool.room(0) == 2
    ray.wait = lambda *_, **__: ([], [])  # type: ignore[method-assign]
    pool.tick(5)
    pool.tick(2)
    assert (pool.size, pool.room(0)) == (2, 2)


def test_who_holds_more_memory_than_asked_for_is_ended_and_says_why() -> None:
    code = (
        "from pipelines import slots\nimport time\n"
        "for _ in slots.work(lambda plan: time.sleep(60), 'plan', (), slots.Attempt(1 << 20), 1.0): pass"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 137
    assert slots.OVER_MEMORY in done.stderr


def test_tasks_are_given_ahead_of_the_workers() -> None:
    ray = _Nodes({"CPU": 4.0})
    tasks = slots.Tasks(ray, slots.Cluster(ray), Resources(), "x")
    assert (tasks.room(0), tasks.room(8), tasks.room(10)) == (8, 0, -2)


def test_who_runs_as_an_actor() -> None:
    ray = _Nodes(BIG)
    kinds = [
        type(slots.slots(ray, slots.Cluster(ray), asked, "x"))
        for asked in (Resources(), Resources(gpus=0.5), Resources(keep=True), Resources(cpus=4))
    ]
    assert kinds == [slots.Tasks, slots.Actors, slots.Actors, slots.Tasks]


def test_a_call_says_where_it_runs_then_what_it_gives() -> None:
    plan: Any = "plan"
    one = list(slots.work(lambda plan, n: n + 1, plan, (4,), slots.Attempt(), 1.0))
    assert isinstance(one[0], slots.Began)
    assert one[1:] == [5]
    several = slots.work(lambda plan, n: iter(range(n)), plan, (3,), slots.Attempt(), 1.0)
    assert list(several)[1:] == [0, 1, 2]
