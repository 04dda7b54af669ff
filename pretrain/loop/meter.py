"""How fast a run is, and what holds it up: samples per second, MFU, the wait for data, the bottleneck by name.

MFU (PaLM, arXiv 2204.02311, appendix B) is the published towers' arithmetic without what is computed again,
as a share of the chips' data sheet peak (ours do some 7 % less of it, see `flops.py`); the text's part is of
the lengths captions were really padded to.
Nothing here waits for the device between two log lines: on a GPU, the wait for data is the time
between two events on its own clock (the last kernel of a step, the first of the next), read where the loop
waits for the loss anyway.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from pretrain.loop import flops, gpus
from pretrain.loop.cores import cores
from pretrain.loop.flops import Towers
from pretrain.stream.batch import Batch

if TYPE_CHECKING:
    from pretrain.loop.job import Job
    from pretrain.loop.settings import Phase
    from pretrain.loop.world import World

# The figures of a line that hang on the machine, the clock, or where the run was resumed: not equal in an equal run.
TIMED = frozenset(
    {
        "samples_per_s",
        "data_wait_frac",
        "mfu",
        "bottleneck",
        "loader_cpu_ms",
        "text_tokens",
        "gpu_memory_bytes",
    }
)
_LITTLE_FRAC, _MUCH_FRAC = (
    0.03,
    0.10,
)  # wait for data: below, the device is the limit; above, the data
_BUSY_FRAC = 0.6  # of a loader's time on a CPU: above, it computes; below, it waits for files


@dataclass
class Window:
    """What one rank saw between two log lines. Times in seconds."""

    passed_s: float
    waited_s: float
    samples: int  # of this rank
    loader_cpu_s: float
    flops: float
    text_tokens: int  # that the text tower computes, padding included
    texts: int
    cores: int  # of this rank's machine, shared by its ranks there
    workers: int  # loaders of this rank
    host: int = 0  # the number of its machine
    on_cpu: bool = False  # the towers run on the loaders' cores


@dataclass
class Meter:
    """``flops_of`` gives the arithmetic of one pair of a batch; ``peak_flops`` is of all ranks together."""

    world: World
    samples_seen: int
    flops_of: Callable[[Batch], float] = lambda batch: 0.0
    peak_flops: float | None = None
    workers: int = 0
    texts: tuple[str, ...] = ("text",)  # names of the views that are text
    micro_batch: int = 0  # rows of a forward; 0: the whole local batch
    _events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._cuda = self.world.device.type == "cuda"
        self._step_end: torch.cuda.Event | None = None
        self._asked_s = time.monotonic()
        self._restart(self.samples_seen)

    @classmethod
    def of(cls, job: Job, phase: Phase) -> Meter:
        """The meter of a phase that was entered."""
        towers = flops.of_config(job.encoder.config)
        for tweak in phase.tweak if towers else ():
            assert towers is not None
            towers = towers.tweaked(_snake(type(tweak).__name__), vars(tweak))
        texts = tuple(name for name, tower in job.towers_of.items() if tower == "text")
        return cls(
            job.world,
            job.cursor.samples_seen,
            arithmetic(towers, job.towers_of, phase.micro_batch) if towers else lambda batch: 0.0,
            peak(job.world, job.settings.precision),
            job.settings.workers,
            texts,
            phase.micro_batch,
        )

    def batch_came(self, batch: Batch) -> None:
        """The loop was given a batch and goes to work on it."""
        self._window.waited_s += time.monotonic() - self._asked_s
        if self._cuda and self._step_end is not None:
            begin = torch.cuda.Event(enable_timing=True)
            begin.record()
            self._events.append((self._step_end, begin))
        window, rows = self._window, len(batch.keys)
        window.samples += rows
        window.loader_cpu_s += getattr(batch, "cost_s", 0.0)
        window.flops += self.flops_of(batch) * rows
        for name in self.texts:
            if name in batch.views:
                spans = batch.text_spans(name, self.micro_batch)
                window.text_tokens += sum(length * texts for length, texts in spans)
                window.texts += rows

    def step_done(self) -> None:
        """All work of a step was given to the device."""
        if self._cuda:
            self._step_end = torch.cuda.Event(enable_timing=True)
            self._step_end.record()
        self._asked_s = time.monotonic()

    def read(self, samples_seen: int) -> dict[str, Any]:
        """The figures since the last call; all ranks call it together, after the device was waited for."""
        window = self._window
        window.passed_s = max(time.monotonic() - self._began_s, 1e-9)
        if self._cuda:
            window.waited_s = sum(end.elapsed_time(begin) for end, begin in self._events) / 1e3
        found = figures(
            self.world.gather(window), samples_seen - self._began_samples, self.peak_flops
        )
        if self._cuda:
            found["gpu_memory_bytes"] = torch.cuda.max_memory_allocated(self.world.device)
        self._restart(samples_seen)
        return found

    def _restart(self, samples_seen: int) -> None:
        self._began_s, self._began_samples = time.monotonic(), samples_seen
        self._events = []
        host = int(os.environ.get("GROUP_RANK") or os.environ.get("SLURM_NODEID") or 0)
        self._window = Window(
            0.0, 0.0, 0, 0.0, 0.0, 0, 0, _CORES, self.workers, host, not self._cuda
        )


def figures(windows: list[Window], samples: int, peak_flops: float | None) -> dict[str, Any]:
    """One line's figures from all ranks' windows. The rank that waits most holds up all the others."""
    passed_s = max(window.passed_s for window in windows)
    wait_frac = min(max(window.waited_s / window.passed_s for window in windows), 1.0)
    work = sum(window.flops for window in windows)
    seen = max(sum(window.samples for window in windows), 1)
    texts = sum(window.texts for window in windows)
    found: dict[str, Any] = {
        "samples_per_s": round(samples / passed_s, 2),
        "data_wait_frac": round(wait_frac, 4),
        "mfu": round(work / passed_s / peak_flops, 4) if peak_flops and work else None,
        "bottleneck": bottleneck(windows),
        "loader_cpu_ms": round(1e3 * sum(window.loader_cpu_s for window in windows) / seen, 3),
    }
    if texts:
        found["text_tokens"] = round(sum(w.text_tokens for w in windows) / texts, 2)
    return found


def bottleneck(windows: list[Window]) -> str:
    """What holds a run up, in words.

    The cores needed are what the device would take without waiting, times what a sample costs a CPU.
    """
    worst = max(windows, key=lambda window: window.waited_s / window.passed_s)
    wait_frac = min(worst.waited_s / worst.passed_s, 1.0)
    if wait_frac < _LITTLE_FRAC:
        return "compute-bound"
    if wait_frac < _MUCH_FRAC:
        return "balanced"
    where = f" (rank {windows.index(worst)})" if _alone(worst, windows) else ""
    here = [window for window in windows if window.host == worst.host]
    cpu_s = sum(window.loader_cpu_s for window in here)
    working_s = max(worst.passed_s - worst.waited_s, 0.01 * worst.passed_s)
    needed = cpu_s / working_s
    if not worst.workers:
        return f"decode-bound: pictures are decoded between steps, set train.workers{where}"
    loaders = min(sum(window.workers for window in here), worst.cores)
    if cpu_s < _BUSY_FRAC * loaders * worst.passed_s and worst.on_cpu:
        return f"loading-bound: loaders and towers share {worst.cores} cores{where}"
    if cpu_s < _BUSY_FRAC * loaders * worst.passed_s:
        busy = cpu_s / (loaders * worst.passed_s)
        return f"network/disk-bound: loaders compute {busy:.0%} of the time{where}"
    if needed > worst.cores:
        return f"decode-bound: {needed:.0f} cores needed, {worst.cores} present{where}"
    each = -(-needed // max(len(here), 1))
    return f"decode-bound: train.workers = {each:.0f} needed, {worst.workers} set{where}"


def arithmetic(
    towers: Towers, towers_of: Mapping[str, str], micro_batch: int = 0
) -> Callable[[Batch], float]:
    """FLOPs of one pair of a batch, at the lengths its texts go through the tower."""
    known: dict[int, float] = {}  # by length
    names = [name for name, tower in towers_of.items() if tower == "text"]
    images = len(towers_of) - len(names)

    def of(batch: Batch) -> float:
        total = images * towers.image.train_flops
        for name in names:
            spans = [(towers.text.tokens, 1)]
            if name in batch.views:
                spans = batch.text_spans(name, micro_batch)
            for length, rows in spans:
                if length not in known:
                    known[length] = towers.at(text_tokens=length).text.train_flops
                total += known[length] * rows / sum(rows for _, rows in spans)
        return total

    return of


def peak(world: World, precision: str) -> float | None:
    """FLOP/s of all ranks' devices together; None where the device is a CPU or not known."""
    if world.device.type != "cuda":
        return None
    gpu = gpus.find(torch.cuda.get_device_name(world.device))
    return gpu.peak_flops(precision) * world.size if gpu else None


_CORES = cores()


def _alone(worst: Window, windows: list[Window]) -> bool:
    """Whether this rank waits, and the ranks on the whole do not."""
    shares = sorted(window.waited_s / window.passed_s for window in windows)
    return len(windows) > 1 and shares[len(shares) // 2 - (len(shares) % 2 == 0)] < _LITTLE_FRAC


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
