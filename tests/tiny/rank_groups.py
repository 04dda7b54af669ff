"""Several ranks of one run on this machine, over gloo, in groups of several sizes one after the other.

Ranks are forked where there is no GPU: they need not import torch and open_clip, which takes each
12 seconds of CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pretrain.loop.world import World

Work = Callable[[World, Path], Any]


def run(work: Work, sizes: Sequence[int], folder: Path) -> dict[int, list[Any]]:
    """``work(world, folder)`` in groups of each size in turn; size -> what each rank returned, saved by torch."""
    torch.multiprocessing.start_processes(
        _rank,
        (work, tuple(sizes), folder),
        nprocs=max(sizes),
        start_method="spawn" if torch.cuda.is_available() else "fork",
    )
    return {
        size: [torch.load(folder / f"{size}.{rank}.pt") for rank in range(size)] for size in sizes
    }


def _rank(rank: int, work: Work, sizes: Sequence[int], folder: Path) -> None:
    torch.set_num_threads(1)
    for size in sizes:
        if rank >= size:
            continue
        agreement = None
        if size > 1:
            store = f"file://{folder / f'store.{size}'}"
            dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
            agreement = dist.new_group(backend="gloo")
        result = work(World(rank, size, torch.device("cpu"), agreement), folder)
        torch.save(result, folder / f"{size}.{rank}.pt")
        if size > 1:
            dist.destroy_process_group()
