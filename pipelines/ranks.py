"""Which ranks there are, and how they come about: torchrun on this machine, or srun's environment."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from pipelines.errors import RunFailed, Stopped
from pretrain.loop.cores import cores

_CLI = Path(__file__).resolve().parent.parent / "cli.py"
_SHUTDOWN_S = (
    600  # for the ranks to write a checkpoint after a signal; torchrun's own 30 s may be too few
)
_PARENT = "CLIP_PIPE_PARENT"  # the id of the process that a child of ours must not outlive
_PR_SET_PDEATHSIG = 1
_PORT = 29500  # torch's own; a job's number is added, so that two jobs on one machine differ


def from_slurm(environment: MutableMapping[str, str]) -> None:
    """Say in torch's words what srun said in its own, where it started several tasks.

    What is set already (by torchrun inside of srun, or by hand) stays. A batch script's own shell is
    no task of a step, so `clip-pipe train --nproc 8` in it is not taken for a rank.
    """
    if "RANK" in environment or int(environment.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "")
    port = _PORT + int(environment.get("SLURM_JOB_ID", "0")) % 10_000
    environment.setdefault("MASTER_ADDR", first_host(nodes))
    environment.setdefault("MASTER_PORT", str(port))
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = environment["SLURM_STEP_NUM_TASKS"]
    environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]


def first_host(nodes: str) -> str:
    """The first of SLURM's list of hosts: "gpu[007-009,12],login" -> "gpu007"."""
    found = re.match(r"([^,\[]*)(?:\[([^,\-\]]+)[^\]]*\]([^,\[]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else ""


def die_with_parent(environment: MutableMapping[str, str]) -> None:
    """On Linux: where our torchrun or a launcher of it started us, SIGKILL comes when that ends.

    The mark is taken out of the environment, so that it holds for no process that we start ourselves.
    Raises RunFailed where the parent has ended already.
    """
    parent = environment.pop(_PARENT, "")
    if not parent or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != int(parent):
        raise RunFailed(f"the launcher (process {parent}) ended before this rank began")


def agent() -> None:
    """torchrun itself, as a child that ends with its launcher, and whose ranks end with it."""
    die_with_parent(os.environ)
    os.environ[_PARENT] = str(os.getpid())
    from torch.distributed.run import main

    main()


def arguments(name: str, overrides: Sequence[str], resume: bool, allow: Sequence[str]) -> list[str]:
    """Those of the same training again, as one rank."""
    told = ["train", name]
    told += [part for override in overrides for part in ("--set", override)]
    told += ["--resume"] if resume else []
    return told + [part for key in allow for part in ("--allow-change", key)]


def torchrun(told: Sequence[str], nproc: int) -> str:
    """One process per rank by torchrun on this machine; its signals are ours. Returns rank 0's stdout.

    Raises RunFailed where a rank failed.
    """
    environment = {
        "OMP_NUM_THREADS": str(max(1, cores() // nproc)),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(_SHUTDOWN_S),
        **os.environ,
        _PARENT: str(os.getpid()),
    }
    # A session of its own: Ctrl-C reaches us alone, and we pass it on once, as SIGTERM.
    process = subprocess.Popen(
        _command(told, nproc),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    pump = _Pump(process.stderr)
    try:
        out = process.stdout.read() if process.stdout else ""
        process.wait()
    except Stopped as stop:
        pump.quiet = True  # torchrun's tracebacks about the signal that it was sent
        process.terminate()
        try:
            process.wait()
        except Stopped:  # a second signal: no more waiting
            _kill(process)
        raise stop
    except BaseException:
        _kill(process)
        raise
    finally:
        pump.join()
    if process.returncode:
        raise RunFailed(
            f"torchrun ended with code {process.returncode}; the ranks' messages are above\n"
            "hint: do as they say; --resume goes on from the last checkpoint"
        )
    return out.strip()


def _command(told: Sequence[str], nproc: int) -> list[str]:
    start = f"import sys; sys.path.insert(0, {str(_CLI.parent)!r}); from pipelines import ranks; ranks.agent()"
    command = [sys.executable, "-c", start]
    command += ["--nnodes", "1", "--nproc-per-node", str(nproc)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    return [*command, "--local-addr", "127.0.0.1", str(_CLI), *told]


def _kill(process: subprocess.Popen[str]) -> None:
    """End torchrun, its ranks and their loaders at once, and wait until torchrun is gone.

    Each rank has a session of its own, so the process group of torchrun is not all.
    """
    below = [process.pid]
    for pid in below:  # grows by the children of each
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(OSError):
                below += [int(child) for child in children.read_text().split()]
    for pid in below:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


class _Pump(threading.Thread):
    """Passes a process's stderr on as it comes, until told to be quiet."""

    def __init__(self, stream: IO[str] | None) -> None:
        super().__init__(daemon=True)
        self.stream, self.quiet = stream, False
        self.start()

    def run(self) -> None:
        for line in self.stream or ():
            if not self.quiet:
                sys.stderr.write(line)
                sys.stderr.flush()
