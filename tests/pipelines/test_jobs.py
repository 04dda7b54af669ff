"""Whole commands as Ray jobs and from a node, on a cluster with a token, as docs/cluster.md tells to run them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from tests.tiny import ray_head, scenes
from tests.tiny.ray_head import Head
from tests.tiny.stages import USE

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.net]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head.running() as head:
        yield head


def recipe(folder: Path, **curate: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    table = {
        "pool": str(folder / "pool"),
        "shards": str(folder / "shards"),
        "source": {"use": f"{USE}:Numbers", "count": 40},
        "stage": [{"use": f"{USE}:Picture"}],
        **curate,
    }
    path = folder / "recipe.toml"
    path.write_text(tomli_w.dumps({"name": "job", "curate": table}))
    return str(path)


def tars(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "shards").glob("*.tar"))]


def jobs(head: Head) -> list[dict[str, Any]]:
    """The cluster's jobs, newest first, as the client's own Python interface has them."""
    code = (
        "import json, sys\n"
        "from ray.job_submission import JobSubmissionClient\n"
        "found = JobSubmissionClient(sys.argv[1]).list_jobs()\n"
        "found.sort(key=lambda job: -job.start_time)\n"
        "print(json.dumps([[job.submission_id, job.status.value, job.driver_exit_code, job.message] for job in found]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, head.dashboard],
        capture_output=True, text=True, check=True, env=head.environment, timeout=60,
    )  # fmt: skip
    names = ("id", "status", "code", "message")
    return [dict(zip(names, job, strict=True)) for job in json.loads(done.stdout)]


def test_a_job_and_a_node_s_command_give_what_one_process_gives(head: Head, tmp_path: Path) -> None:
    done = head.command("curate", recipe(tmp_path / "here"), "--local")
    assert done.returncode == 0, done.stderr
    ours = ["--runtime-env-json", '{"env_vars": {"OMP_NUM_THREADS": "2"}}']  # as we would set, too
    done = head.submit("python", "cli.py", "curate", recipe(tmp_path / "job"), before=ours)
    assert done.returncode == 0, done.stdout + done.stderr
    told = next(
        json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"recipe')
    )
    assert Path(told["report"]).is_file()
    assert Path(told["log"]).is_file()
    joined = head.command("curate", recipe(tmp_path / "joined"), "--address", head.address)
    assert joined.returncode == 0, joined.stderr
    assert tars(tmp_path / "here") == tars(tmp_path / "job") == tars(tmp_path / "joined") != []


def test_a_job_s_exit_code_and_error_reach_the_caller(head: Head, tmp_path: Path) -> None:
    relative = recipe(tmp_path, pool="runs/pool")
    done = head.submit("python", "cli.py", "curate", relative)
    assert done.returncode == 1  # of `ray job submit`, whatever ours was
    last = "clip-pipe: exit code 2: curate.pool = 'runs/pool': in a Ray job a relative path lies in"
    assert last in done.stdout + done.stderr
    job = jobs(head)[0]
    assert (job["status"], job["code"]) == ("FAILED", 2)
    assert job["message"].splitlines()[-1].startswith(last)


def test_a_lost_service_is_exit_code_1(head: Head, tmp_path: Path) -> None:
    killer = {"use": f"{USE}:Killer", "flag": str(tmp_path / "flag"), "at": "26", "how": "service"}
    head.submit("python", "cli.py", "curate", recipe(tmp_path, stage=[killer]))
    job = jobs(head)[0]
    assert (job["status"], job["code"]) == ("FAILED", 1)
    last = job["message"].splitlines()[-1]
    assert last.startswith("clip-pipe: exit code 1: ")
    assert "the service at x is down" in last


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"RAY_AUTH_MODE": "", "RAY_AUTH_TOKEN_PATH": ""}, "Missing"),
        ({"RAY_AUTH_TOKEN": "0" * 32, "RAY_AUTH_TOKEN_PATH": ""}, "Invalid"),
    ],
    ids=["none", "wrong"],
)
def test_without_the_token_nothing_runs(
    head: Head, tmp_path: Path, changes: dict[str, str], code: str
) -> None:
    submitted = head.ray("job", "submit", "--address", head.dashboard, "--", "true", **changes)
    assert submitted.returncode != 0
    assert f"{code} authentication token" in submitted.stderr
    done = head.command("curate", recipe(tmp_path), "--address", head.address, **changes)
    assert done.returncode == 2
    assert "the cluster refused the token, or was given none\nhint: the cluster asks" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_training_job_that_is_stopped_keeps_a_checkpoint_and_goes_on(
    head: Head, tmp_path: Path
) -> None:
    shards = scenes.write_shards(tmp_path / "shards", 64, per_shard=32)
    phase = {"samples": 8_000, "global_batch": 16, "lr": 1e-4}
    train = {
        "model": scenes.write_model(tmp_path), "shards": str(shards), "out": str(tmp_path / "out"),
        "workers": 0, "precision": "fp32", "log_every_steps": 1, "phase": [phase],
    }  # fmt: skip
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps({"name": "job-train", "train": train}))
    command = ["python", "cli.py", "train", str(path), "--ray", "1", "--resume"]
    patient = ["--runtime-env-json", '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}}']
    begun = head.submit(*command, before=[*patient, "--no-wait", "--submission-id", "first"])
    assert begun.returncode == 0, begun.stderr
    metrics = tmp_path / "out" / "metrics.jsonl"
    deadline = time.monotonic() + 150
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.2)
    stopped = head.ray("job", "stop", "first", "--address", head.dashboard)
    assert "first' was stopped" in stopped.stdout + stopped.stderr
    logs = head.ray("job", "logs", "first", "--address", head.dashboard)
    assert "the same command goes on from there" in logs.stdout
    assert list((tmp_path / "out" / "checkpoints").glob("samples-*.pt"))
    done = head.submit(*command, before=patient)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 501))


def test_the_hook_of_a_pod_stops_jobs_and_waits_for_them(head: Head, tmp_path: Path) -> None:
    """deploy/stop_jobs.py, with a job that needs two seconds after SIGTERM."""
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import pathlib, signal, sys, time\n"
        "def stop(*_):\n    time.sleep(2)\n    pathlib.Path(sys.argv[1]).touch()\n    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\npathlib.Path(sys.argv[2]).touch()\ntime.sleep(300)\n"
    )
    ended, begun = tmp_path / "ended", tmp_path / "begun"
    patient = [
        "--runtime-env-json",
        '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}',
        "--no-wait",
    ]
    head.submit("python", str(slow), str(ended), str(begun), before=patient)
    deadline = time.monotonic() + 60
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    hook = [
        sys.executable,
        str(ray_head.ROOT / "deploy" / "stop_jobs.py"),
        "--address",
        head.dashboard,
    ]
    done = subprocess.run(
        [*hook, "--wait-only", "--seconds", "1"],
        env=head.environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0
    assert "still runs after 1 s" in done.stderr
    assert not ended.exists()
    subprocess.run(hook, env=head.environment, check=True, timeout=100)
    assert ended.exists()
    assert jobs(head)[0]["status"] == "STOPPED"


def test_a_node_that_does_not_see_the_pool_is_named(head: Head, tmp_path: Path) -> None:
    """A second node whose mount of the run's folder is another one."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"]).returncode:
        pytest.skip("no mount namespaces here (needs root)")
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    node = (
        f"mount -t tmpfs none {hidden} && exec {ray_head.RAY} start --block --address={head.address} "
        "--num-cpus=1 --object-store-memory=80000000 --disable-usage-stats"
    )
    head.start(["unshare", "-m", "sh", "-c", node], tmp_path / "node.log")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if "will now block" in (tmp_path / "node.log").read_text():
            break
        time.sleep(0.2)
    done = head.command("curate", recipe(hidden / "run"), "--address", head.address)
    assert done.returncode == 2, done.stderr
    assert "a file written by the driver is not there on " in done.stderr
    assert "hint: put it on a file system that all nodes mount" in done.stderr
    assert not list((hidden / "run").rglob("seen*"))
    done = head.command("curate", recipe(tmp_path / "seen"), "--address", head.address)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "seen").rglob("*.tmp-*"))
