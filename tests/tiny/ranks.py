"""Several ranks of one run as processes of a test, joined by gloo on loopback."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

DEADLINE_S = 180
_HELD: list[socket.socket] = []


def run(work: Callable[..., None], world: int, *arguments: Any, rdzv: bool = True) -> None:
    """``work(rank, *arguments)`` in ``world`` processes with torchrun's environment; all must end well.

    ``rdzv`` False leaves the environment alone. Processes are forked where no GPU is (torch is imported then).
    """
    import torch
    import torch.multiprocessing as multiprocessing

    ranks = multiprocessing.start_processes(
        _rank,
        (work, world, free_port() if rdzv else 0, arguments),
        nprocs=world,
        start_method="spawn" if torch.cuda.is_available() else "fork",
        join=False,
    )
    end_s = time.monotonic() + DEADLINE_S
    while not ranks.join(timeout=0.2):
        if time.monotonic() > end_s:
            for process in ranks.processes:
                process.kill()
            pytest.fail(
                f"{world} ranks did not end within {DEADLINE_S} s: they wait for each other"
            )


def free_port() -> int:
    """A port of loopback that nobody listens on. Linux gives it to none but who names it while we live."""
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(("127.0.0.1", 0))
    if sys.platform.startswith("linux"):
        _HELD.append(probe)
        return int(probe.getsockname()[1])
    with probe:
        return int(probe.getsockname()[1])


def _rank(rank: int, work: Callable[..., None], world: int, port: int, arguments: Any) -> None:
    import torch

    if port:
        os.environ.update(
            RANK=str(rank),
            WORLD_SIZE=str(world),
            LOCAL_RANK=str(rank),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
    torch.set_num_threads(1)
    work(rank, *arguments)
