"""The Ray runner: the same bytes as in process, a killed worker's task runs again, causes come back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from curate.stage import Resources
from pipelines import curation, run_ray
from pipelines.errors import RunFailed
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import SOURCE, STAGES, Quiet, ledger, shard_bytes
from tests.tiny import commands
from tests.tiny.stages import USE

ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.ray


def test_the_same_bytes_as_in_process(curate_recipe: Callable[..., Any], ray_address: str) -> None:
    here, there = (
        curate_recipe(SOURCE, STAGES, folder="here"),
        curate_recipe(SOURCE, STAGES, folder="there"),
    )
    curation.run(plan_curation(here), LocalRunner(), Quiet())
    with run_ray.connected() as runner:
        curation.run(plan_curation(there), runner, Quiet())
    assert shard_bytes(here) == shard_bytes(there)


class _Unending:
    """As much of Ray as ``map`` needs, in this process: every result of a task is there at once."""

    class exceptions:
        RayTaskError = RayError = RuntimeError

    class _Result:
        """A task's stream of results: known by itself, as Ray's are."""

        def __init__(self, found: Any) -> None:
            self._found = found

        def __next__(self) -> Any:
            return next(self._found)

    def __init__(self) -> None:
        self.running, self.most, self.puts = 0, 0, 0

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 2.0}}]

    def put(self, plan: Any) -> Any:
        self.puts += 1
        return plan

    def get(self, result: Any) -> Any:
        return result

    def wait(self, references: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return list(references[:1]), list(references[1:])

    def cancel(self, *_: Any, **__: Any) -> None:
        pass

    def remote(self, function: Any) -> Any:
        def begin(*arguments: Any) -> Any:
            self.running += 1
            self.most = max(self.most, self.running)
            return self._Result(results(function(*arguments)))

        def results(found: Any) -> Any:
            yield from found
            self.running -= 1

        task = SimpleNamespace(remote=begin)
        task.options = lambda **_: task
        return task


def _eight(plan: Any, number: int) -> Iterator[int]:
    yield from range(8 * number, 8 * number + 8)


def test_no_more_tasks_than_the_window_has_while_they_give_many_results() -> None:
    ray = _Unending()
    runner = run_ray.RayRunner(ray, SimpleNamespace(obey=lambda: None, head_answers=lambda: True))  # type: ignore[arg-type]
    plan: Any = object()
    found = list(runner.map(_eight, plan, [(n,) for n in range(50)], Resources()))
    assert found == [(n, k) for n in range(50) for k in range(8 * n, 8 * n + 8)]
    assert ray.most == 4


def test_a_plan_travels_once_and_is_known_by_itself() -> None:
    ray = _Unending()
    runner = run_ray.RayRunner(ray, SimpleNamespace(obey=lambda: None, head_answers=lambda: True))  # type: ignore[arg-type]
    for _ in range(20):  # one that is gone may leave its id to the next
        plan: Any = [0]
        for _ in range(2):
            list(runner.map(_eight, plan, [(1,)], Resources()))
        del plan
    assert ray.puts == 20


@pytest.mark.parametrize("slow", [0, 2, 3])
def test_a_ray_that_is_slow_to_start_is_started_again(slow: int) -> None:
    tries: list[dict[str, Any]] = []

    def init(**options: Any) -> None:
        tries.append(options)
        if len(tries) <= slow:
            raise Exception("The current node timed out during startup. This could")
        if slow == 0:
            raise ValueError("no place\nmore")

    ray = SimpleNamespace(init=init, shutdown=lambda: None)
    if slow == 2:
        run_ray._start_here(ray, {})
        assert len(tries) == 3
        return
    told = r"can't be started on this machine: (no place|The current node timed .*)\nhint: "
    with pytest.raises(RunFailed, match=told):
        run_ray._start_here(ray, {})
    assert len(tries) == (3 if slow else 1)


def test_a_killed_worker_s_task_runs_again(
    curate_recipe: Callable[..., Any], ray_address: str, tmp_path: Path
) -> None:
    stages = [{"use": f"{USE}:Killer", "flag": str(tmp_path / "flag"), "at": "26"}, *STAGES]
    recipe = curate_recipe(SOURCE, stages)
    with run_ray.connected() as runner:
        curation.run(plan_curation(recipe), runner, Quiet())
    assert (tmp_path / "flag-row").exists()
    assert len(ledger(recipe)) == 47


def test_a_killed_worker_s_span_goes_on_where_it_was(
    curate_recipe: Callable[..., Any], ray_address: str, tmp_path: Path
) -> None:
    stages = [
        {"use": f"{USE}:Ahead", "log": str(tmp_path / "log")},
        {"use": f"{USE}:Killer", "flag": str(tmp_path / "flag"), "at": "26"},
    ]
    recipe = curate_recipe({**SOURCE, "rows_per_part": 2}, stages)
    with run_ray.connected() as runner:
        curation.run(plan_curation(recipe), runner, Quiet())
    assert (tmp_path / "flag-row").exists()
    assert len(ledger(recipe)) == 47
    lines = (tmp_path / "log").read_text().splitlines()
    asked = Counter(uid for line in lines for uid in line.split()[1:] if line.startswith("asked"))
    assert sum(count - 1 for count in asked.values()) <= 2  # only the part that was in work


@pytest.mark.parametrize("is_ahead", [False, True])
def test_a_lost_service_is_told_in_its_own_words(
    curate_recipe: Callable[..., Any], ray_address: str, tmp_path: Path, is_ahead: bool
) -> None:
    recipe = curate_recipe(
        SOURCE,
        [
            *([{"use": f"{USE}:Ahead"}] if is_ahead else []),
            {"use": f"{USE}:Killer", "flag": str(tmp_path / "flag"), "at": "26", "how": "service"},
        ],
    )
    with (
        run_ray.connected() as runner,
        pytest.raises(RunFailed, match=r"the service at x is down\. hint: start it"),
    ):
        curation.run(plan_curation(recipe), runner, Quiet())


def test_the_session_s_cluster_is_left_running(ray_address: str) -> None:
    import ray

    with run_ray.connected():
        pass
    assert ray.is_initialized()


def _train_recipe(folder: Path) -> str:
    import tomli_w

    from tests.tiny import scenes

    shards = scenes.write_shards(folder / "shards", 64, per_shard=32)
    phase = {"samples": 16_000, "global_batch": 16, "lr": 1e-4}
    train = {
        "model": scenes.write_model(folder),
        "shards": str(shards),
        "out": str(folder / "out"),
        "workers": 0,
        "precision": "fp32",
        "log_every_steps": 1,
        "phase": [phase],
    }
    path = folder / "r.toml"
    path.write_text(tomli_w.dumps({"name": "ray-train", "train": train}))
    return str(path)


@pytest.mark.slow
def test_ray_train_stops_with_a_checkpoint_resumes_and_says_what_is_wrong(tmp_path: Path) -> None:
    """The whole command on a Ray of its own: SIGTERM, --resume to the end, --resume with another seed."""
    recipe = _train_recipe(tmp_path)
    command = [sys.executable, str(ROOT / "cli.py"), "train", recipe, "--ray", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    metrics = tmp_path / "out" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143, err[-3000:]
    assert out == ""
    assert "the same command goes on" in err
    assert list((tmp_path / "out" / "checkpoints").glob("samples-*.pt"))
    seen = json.loads(metrics.read_text().splitlines()[-1])["samples_seen"]

    def again(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, "--resume", *more],
            capture_output=True,
            text=True,
            timeout=280,
            env=environment,
        )

    done = again("--set", "seed=9")
    assert done.returncode == 2, done.stderr[-3000:]
    assert "seed: checkpoint has 0, now 9" in done.stderr
    done = again()
    assert done.returncode == 0, done.stderr[-3000:]
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 1001))
    assert seen < 16_000


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_ends_a_run_on_a_ray_of_its_own(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "r.toml"
    path.write_text(
        f'name = "slow"\n[curate]\npool = "{tmp_path}/pool"\nshards = "{tmp_path}/shards"\n[curate.source]\n'
        f'use = "{USE}:Slow"\ncount = 400\n[[curate.stage]]\nuse = "{USE}:Picture"\n'
    )
    commands.stopped(
        ["curate", str(path), "--workers", "1"],
        number,
        lambda: list(tmp_path.glob("pool/rows/*.parquet")),
    )
    assert list(tmp_path.glob("pool/rows/*.parquet"))


def test_what_ray_says_on_stdout_goes_to_stderr(
    ray_address: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with run_ray.connected():
        os.write(1, b"(raylet) a worker died\n")
    os.write(1, b"{}\n")
    told = capfd.readouterr()
    assert told.out == "{}\n"
    assert "(raylet) a worker died" in told.err
