"""Ranks of a recipe's training, forked from the test, which has imported torch: starts cost little."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.tiny.ranks import free_port


class Launched:
    """The processes of one launch, as torchrun would have started them; what they say is under ``log``."""

    def __init__(self, path: str, count: int, log: Path) -> None:
        import torch

        context: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
        log.mkdir(exist_ok=True)
        port = free_port()
        self.log = log
        self.processes = [
            context.Process(target=_rank, args=(path, rank, count, port, log))
            for rank in range(count)
        ]
        for process in self.processes:
            process.start()

    @property
    def alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def kill(self) -> None:
        """``kill -9`` for every rank, by its id."""
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
        for process in self.processes:
            process.join()

    def end_well(self, timeout_s: float = 300) -> None:
        """Wait for all ranks; each must end with code 0."""
        for process in self.processes:
            process.join(timeout_s)
        codes = [process.exitcode for process in self.processes]
        self.kill()
        assert set(codes) == {0}, (codes, (self.log / "rank-0.txt").read_text()[-3000:])

    def keys_by_step(self) -> dict[int, list[str]]:
        """samples_seen after a step -> the global batch's keys in order, as last written by every rank."""
        found: dict[int, dict[int, list[str]]] = {}
        for path in sorted(self.log.glob("keys-*.jsonl")):
            for text in path.read_text().splitlines():
                line = json.loads(text)
                found.setdefault(line["samples_seen"], {})[line["rank"]] = line["keys"]
        return {
            seen: [key for rank in sorted(by_rank) for key in by_rank[rank]]
            for seen, by_rank in sorted(found.items())
        }


def _rank(path: str, rank: int, count: int, port: int, log: Path) -> None:
    """One rank. What it says, and the keys of every batch it trains on, go to files under ``log``."""
    sys.stdout = sys.stderr = (log / f"rank-{rank}.txt").open("a", buffering=1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    import torch

    from pipelines import launch, recipe
    from pretrain.loop.job import Job

    torch.set_num_threads(1)
    count_bad = Job.count_bad

    def noted(job: Job, batch: Any) -> None:
        line = {"samples_seen": job.cursor.samples_seen, "rank": rank, "keys": batch.keys}
        with (log / f"keys-{rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        count_bad(job, batch)

    Job.count_bad = noted  # type: ignore[method-assign]
    launch.run_rank(recipe.load(path), resume=True)  # the command without its report page
