"""srun's words in torch's; the first host of a list; what a rank is told; signals passed on, and the second one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import ranks
from pipelines.command_line import signals
from pipelines.errors import Stopped

ROOT = Path(__file__).resolve().parent.parent.parent
STEP = {
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
    "SLURM_JOB_ID": "1234567",
}


def test_a_task_of_srun_is_a_rank() -> None:
    environment = dict(STEP)
    ranks.from_slurm(environment)
    assert {name: environment[name] for name in environment if name not in STEP} == {
        "RANK": "9",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "gpu007",
        "MASTER_PORT": str(29500 + 4567),
    }


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"},  # a batch script's shell
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},
        {**STEP, "RANK": "3", "WORLD_SIZE": "4"},  # torchrun, started by srun
    ],
)
def test_what_is_none_or_is_said_already_stays(environment: dict[str, str]) -> None:
    before = dict(environment)
    ranks.from_slurm(environment)
    assert environment == before


def test_an_address_that_was_given_stays() -> None:
    environment = {**STEP, "MASTER_ADDR": "head", "MASTER_PORT": "1"}
    ranks.from_slurm(environment)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("head", "1")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[007-009,12],login", "gpu007"),
        ("a[1,3]", "a1"),
        ("n1,n2", "n1"),
        ("one", "one"),
        ("rack[2-3]-ib", "rack2-ib"),
        ("", ""),
    ],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert ranks.first_host(nodes) == first


def test_a_rank_is_told_what_we_were() -> None:
    told = ranks.arguments("r.toml", ["a=1", "b=2"], True, ["phase.0"])
    assert " ".join(told) == "train r.toml --set a=1 --set b=2 --resume --allow-change phase.0"


# A launcher that says it was asked to end and a rank below it, in a session of its own, that hears nothing.
LAUNCHER = """
import os, signal, subprocess, sys, time
rank = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
below = subprocess.Popen([sys.executable, "-S", "-c", rank], start_new_session=True)
def asked(*_):
    open("asked", "w").close()
    if "patient" not in sys.argv:
        below.kill()
        sys.exit(1)
signal.signal(signal.SIGTERM, asked)
open("pid.tmp", "w").write(str(below.pid))
os.rename("pid.tmp", "pid")
while True:
    time.sleep(0.05)
"""


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


def runs_still(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("asks", [1, 2])
def test_a_signal_is_passed_on_and_a_second_one_ends_all_at_once(
    asks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = ["patient"] if asks == 2 else []
    monkeypatch.setattr(
        ranks, "_command", lambda told, nproc: [sys.executable, "-S", "-c", LAUNCHER, *told]
    )

    def ask() -> None:
        wait_for((tmp_path / "pid").exists)
        os.kill(os.getpid(), signal.SIGTERM)
        if asks == 2:
            wait_for((tmp_path / "asked").exists)
            os.kill(os.getpid(), signal.SIGINT)

    asking = threading.Thread(target=ask)
    began = time.monotonic()
    with signals():
        asking.start()
        with pytest.raises(Stopped) as stop:
            ranks.torchrun(told, 2)
    asking.join()
    assert stop.value.exit_code == 143
    assert (tmp_path / "asked").exists()
    assert time.monotonic() - began < 100
    wait_for(lambda: not runs_still(int((tmp_path / "pid").read_text())))


# A parent that starts a child as torchrun starts a rank; the child says when it is bound to it.
PARENT = """
import os, subprocess, sys
os.environ["CLIP_PIPE_PARENT"] = str(os.getpid())
rank = "import os, time; from pipelines import ranks; ranks.die_with_parent(os.environ); " \\
    "assert not os.environ.get('CLIP_PIPE_PARENT'); print(os.getpid(), flush=True); time.sleep(300)"
subprocess.run([sys.executable, "-c", rank], start_new_session=True)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_a_rank_ends_with_its_launcher_though_that_was_killed() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert runs_still(pid)
    parent.kill()
    parent.wait()
    wait_for(lambda: not runs_still(pid))
    parent.stdout.close()


def test_a_rank_whose_launcher_is_gone_does_not_begin() -> None:
    if sys.platform.startswith("linux"):
        code = "import os; from pipelines import ranks; ranks.die_with_parent(os.environ)"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
            env={**os.environ, "CLIP_PIPE_PARENT": "1"},
        )  # fmt: skip
        assert "the launcher (process 1) ended before" in done.stderr
    ranks.die_with_parent({})  # no child of ours
