"""Calls on a cluster: rows that hang, kill and eat are lost and no part; parts that always fail are named."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from curate.stage import Resources
from pipelines import curation, failures, run_ray
from pipelines.errors import RunFailed
from pipelines.failures import Failed
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from pipelines.task_pool import Settings
from tests.pipelines.test_curation import Quiet, ledger
from tests.tiny.faults import USE
from tests.tiny.stages import USE as STAGES

ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.ray
SOURCE = {"use": f"{STAGES}:Numbers", "count": 24, "rows_per_part": 8}


def sidecar_rows(plan: Any, index: int) -> list[dict[str, Any]]:
    paths = [curation.part.sidecar(plan, plan.stages[index], n) for n in range(3)]
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


@pytest.mark.slow
def test_rows_that_take_their_process_along_get_a_reason_and_no_others(
    curate_recipe: Callable[..., Any], ray_address: str
) -> None:
    """One in each part: the first hangs, the second kills its process, the third eats memory."""
    traps = [("er 5", "hang"), ("er 13", "exit"), ("er 21", "eat")]
    stages = [{"use": f"{USE}:Trap{n}", "at": at, "how": how, "memory_gb": 0.15} for n, (at, how) in enumerate(traps)]  # fmt: skip
    whole = [{"use": f"{USE}:Trap{n}"} for n in range(3)]
    there = plan_curation(curate_recipe(SOURCE, stages, folder="there", max_error_frac=1.0))
    here = plan_curation(curate_recipe(SOURCE, whole, folder="here"))
    with run_ray.connected(settings=Settings(task_deadline_s=8.0)) as runner:
        curation.measure(there, runner, Quiet())
    curation.measure(here, LocalRunner(), Quiet())
    reasons: dict[int, str] = {}
    for index in range(3):
        rows, others = sidecar_rows(there, index + 1), sidecar_rows(here, index + 1)
        assert len(rows) == 24
        for number, (one, other) in enumerate(zip(rows, others, strict=True)):
            if one["reason"]:
                assert number not in reasons
                reasons[number] = one["reason"]
            elif number not in reasons:
                assert one == other
    name = f"error.{USE}:Trap"
    assert reasons == {5: f"{name}0.hung", 13: f"{name}1.died", 21: f"{name}2.memory"}
    assert failures.read(there.pool_root) == {}


def test_a_part_that_always_fails_is_named_and_all_others_end(
    curate_recipe: Callable[..., Any], ray_address: str, tmp_path: Path
) -> None:
    mended = tmp_path / "mended"
    stages = [{"use": f"{USE}:Uncommittable", "at": "er 13", "mended": str(mended)}]
    recipe = curate_recipe(SOURCE, stages)
    plan = plan_curation(recipe)
    name = f"{USE}:Uncommittable"
    with run_ray.connected() as runner:
        with pytest.raises(RunFailed) as fault:
            curation.run(plan, runner, Quiet())
        told = str(fault.value)
        assert "1 of 3 parts could not be done; all others are" in told
        assert f"part 1 of {name}: it raised in each of 3 attempts on {os.uname().nodename}" in told
        assert [curation.part.is_done(plan, plan.stages[1], n) for n in range(3)] == [
            True,
            False,
            True,
        ]
        noted = failures.read(plan.pool_root)[name]["parts"]
        assert list(noted) == ["1"]
        assert noted["1"]["kind"] == "raised"
        mended.touch()
        curation.run(plan, runner, Quiet())
    assert failures.read(plan.pool_root) == {}
    assert len(ledger(recipe)) == 24


def _dies(plan: Any, number: int) -> int:
    if number == 1:
        os._exit(1)
    return number


@pytest.mark.slow
def test_a_call_that_always_dies_is_given_up_and_no_other(ray_address: str) -> None:
    with run_ray.connected() as runner:
        plan: Any = "plan"
        found = dict(runner.map(_dies, plan, [(n,) for n in range(6)], Resources()))
    failed = found.pop(1)
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.results) == ("died", 0)
    assert 4 <= failed.attempts <= 23  # some were lost with a worker before they began
    assert found == {n: n for n in range(6) if n != 1}


def _span(plan: Any, number: int, folder: str) -> Iterator[int]:
    """The first time, one of them hangs behind its third result."""
    for one in range(6):
        if number == 0 and one == 3 and not os.path.exists(f"{folder}/hung"):
            Path(folder, "hung").touch()
            time.sleep(600)
        yield one


def test_a_call_that_hangs_is_run_again_and_gives_each_result_once(
    ray_address: str, tmp_path: Path
) -> None:
    with run_ray.connected(settings=Settings(task_deadline_s=3.0)) as runner:
        plan: Any = "plan"
        calls = [(n, str(tmp_path)) for n in range(3)]
        found = list(runner.map(_span, plan, calls, Resources()))
    assert (tmp_path / "hung").exists()
    assert sorted(found) == [(n, k) for n in range(3) for k in range(6)]


def _pid(plan: Any, number: int, flag: str) -> int:
    if number == 4 and not os.path.exists(flag):
        Path(flag).touch()
        os._exit(1)
    time.sleep(0.05)
    return os.getpid()


def test_actors_leave_a_cpu_and_are_replaced(ray_address: str, tmp_path: Path) -> None:
    import ray

    def free_cpus(runner: Any) -> Iterator[float]:
        calls = [(n, str(tmp_path / "flag")) for n in range(12)]
        for _, process in runner.map(_pid, "plan", calls, Resources(keep=True)):
            processes.append(process)
            yield ray.available_resources().get("CPU", 0.0)

    processes: list[int] = []
    with run_ray.connected() as runner:
        free = list(free_cpus(runner))
    assert len(processes) == 12
    assert len(set(processes)) == 2  # one after the other: the first died
    assert min(free) >= 1


def test_what_no_node_has_is_said_and_given_up(ray_address: str) -> None:
    said: list[str] = []
    with run_ray.connected(settings=Settings(wait_for_resources_s=0.5)) as runner:
        runner._say = said.append
        with pytest.raises(RunFailed, match=r"a task asks for 1 CPUs, 4 GPUs, and no node has that: the cluster is 1 node with 2 CPUs"):  # fmt: skip
            list(runner.map(_pid, "plan", [(1, "")], Resources(gpus=4)))  # type: ignore[arg-type]
        settings = dataclasses.replace(runner._settings, wait_for_resources_s=0.0)
        runner._settings = settings
        with pytest.raises(RunFailed, match="64 CPUs, and no node"):
            list(runner.map(_pid, "plan", [(1, "")], Resources(cpus=64)))  # type: ignore[arg-type]


@pytest.mark.slow
def test_nodes_that_are_lost_change_nothing(tmp_path: Path) -> None:
    """Three nodes; one is killed in a row step, a global step, a step on GPUs (of Ray's books) and in the shards."""
    told = {}
    for name, more in (("killed", []), ("undisturbed", ["--undisturbed"])):
        done = subprocess.run(
            [sys.executable, "-m", "tests.tiny.lost_nodes", str(tmp_path / name), *more],
            cwd=ROOT, capture_output=True, text=True, timeout=280,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        line = next(
            one for one in done.stdout.splitlines() if one.startswith('{"killed')
        )  # Ray talks, too
        told[name] = json.loads(line)
    assert told["killed"]["killed"] == ["rows", "global", "gpu", "shard"]
    assert told["killed"]["kept"] == told["undisturbed"]["kept"] == 96
    shards = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "shards").glob("*.tar")}
        for name in told
    ]
    assert len(shards[0]) == 10
    assert shards[0] == shards[1]
