"""Matching and balancing by Ray, a pool and one ten times as large: CPU per row, memory, and what the scheduler costs.

    python tests/bench/rows_by_ray.py [--rows 10000000] [--entries 300000] [--rows-per-part 100000] [--workers 2]

Captions as in `runner.py`; those of the larger pool are the smaller one's over and over with other URLs, so that
a row costs the same in both. Each pool has a Ray of its own. Memory is each process's peak as the kernel has it
(VmHWM). CPU-seconds are those of the processes from start to end of the run: workers with their imports and
matchers, the driver (this process, without Ray's start), and Ray's own (raylet, GCS, agents). Compare ratios, not
rates. Needs about 400 bytes of disk a row.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import curation, recipe, run_ray
from pipelines.plan import CurationPlan, plan_curation
from pipelines.progress import Progress
from tests.bench.runner import write_entries, write_source

_TICKS = os.sysconf("SC_CLK_TCK")
_POLL_S = 0.5


@dataclass
class Watched:
    """CPU-seconds and peak memory of this process's descendants, by kind, looked at twice a second."""

    cpu_s: dict[int, float] = field(default_factory=dict)
    peak_mib: dict[int, float] = field(default_factory=dict)
    kinds: dict[int, str] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watched:
        self._look()
        self._before = dict(self.cpu_s)  # what Ray took to start
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._stop.wait(_POLL_S):
            self._look()

    def _look(self) -> None:
        for pid in _descendants(os.getpid()):
            try:
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                status = Path(f"/proc/{pid}/status").read_text()
                words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (FileNotFoundError, ProcessLookupError):
                continue
            self.cpu_s[pid] = (int(stat[11]) + int(stat[12])) / _TICKS
            found = re.search(r"VmHWM:\s+(\d+)", status)
            self.peak_mib[pid] = int(found[1]) / 1024 if found else 0.0
            # A worker is named after its task while it has one, and else IDLE.
            is_worker = words.startswith("ray::") or "default_worker.py" in words
            self.kinds[pid] = "workers" if is_worker else "Ray's own"

    def cpu(self, kind: str) -> float:
        return sum(
            seconds - self._before.get(pid, 0.0)
            for pid, seconds in self.cpu_s.items()
            if self.kinds[pid] == kind
        )

    def peak(self, kind: str) -> float:
        return max(
            (mib for pid, mib in self.peak_mib.items() if self.kinds[pid] == kind), default=0
        )

    def count(self, kind: str) -> int:
        return Counter(self.kinds.values())[kind]


def _descendants(root: int) -> set[int]:
    below: defaultdict[int, list[int]] = defaultdict(list)
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(f"/proc/{entry.name}/stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            below[int(stat[1])].append(int(entry.name))
    found: set[int] = set()
    left = list(below[root])
    while left:
        pid = left.pop()
        found.add(pid)
        left += below[pid]
    return found


class Counted:
    """A runner that counts its calls."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self.calls = 0

    @property
    def workers(self) -> int:
        return int(self._runner.workers)

    def map(self, function: Any, plan: Any, calls: Any, resources: Any) -> Iterator[Any]:
        self.calls += len(calls)
        return self._runner.map(function, plan, calls, resources)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)


def repeated(source: Path, folder: Path, times: int) -> None:
    """The rows of a file ``times`` over, in a file each, no URL twice."""
    folder.mkdir()
    for number in range(times):
        with pq.ParquetWriter(folder / f"{number:03d}.parquet", pq.read_schema(source)) as writer:
            for batch in pq.ParquetFile(source).iter_batches(50_000):
                urls = [f"{url}?{number}" for url in batch.column("url").to_pylist()]
                columns = {"url": urls, "caption": batch.column("caption")}
                writer.write_table(pa.table(columns, schema=batch.schema))


def planned(folder: Path, source: Path, name: str, rows_per_part: int, t: int) -> CurationPlan:
    return plan_curation(
        recipe.load(
            "text_only",
            [f"curate.source.path={source}", f"curate.source.rows_per_part={rows_per_part}", f"curate.stage.0.entries={folder}/entries.txt", f"curate.pool={folder}/{name}-pool", f"curate.shards={folder}/{name}-shards", f"curate.stage.1.t={t}"],
        )
    )  # fmt: skip


def run(plan: CurationPlan, workers: int, rows: int) -> float:
    """Run one pool with a Ray of its own and tell of it. Returns CPU-microseconds of workers and driver a row."""
    with run_ray.connected(workers=workers) as ray_runner, Watched() as watched:
        runner = Counted(ray_runner)
        driver = time.process_time()
        started = time.perf_counter()
        manifest = curation.run(plan, runner, Progress()).manifest
        driver_s, wall_s = time.process_time() - driver, time.perf_counter() - started
    status = Path("/proc/self/status").read_text()
    driver_mib = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]
    workers_s, own_s = watched.cpu("workers"), watched.cpu("Ray's own")
    own_mib = watched.peak("Ray's own")
    stages = {stage["use"]: stage["seconds"] for stage in manifest["stages"]}
    count = len(list(Path(plan.pool_root, "rows").glob("*.parquet")))
    print(
        f"{rows:,} rows, {count} parts, {runner.calls} calls, kept {manifest['kept']:,}; {wall_s:,.0f} s on the wall"
    )
    print(
        f"  workers    {workers_s:9.1f} CPU-s  {workers_s / rows * 1e6:7.2f} us/row  {watched.count('workers')} processes, peak {watched.peak('workers'):,.0f} MiB each at most"
    )
    print(
        f"  driver     {driver_s:9.1f} CPU-s  {driver_s / count * 1e3:7.1f} ms/part  peak {driver_mib:,.0f} MiB (of this process so far)"
    )
    print(
        f"  Ray's own  {own_s:9.1f} CPU-s  {own_s / count * 1e3:7.1f} ms/part  peak {own_mib:,.0f} MiB each at most"
    )
    print(
        f"  scheduling {(driver_s + own_s) / runner.calls * 1e3:9.1f} ms of CPU a call (driver and Ray's own)"
    )
    print(f"  in stages  {', '.join(f'{use} {seconds / rows * 1e6:.2f} us/row' for use, seconds in stages.items())}")  # fmt: skip
    return (workers_s + driver_s) / rows * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--times", type=int, default=10, help="how much smaller the first pool is")
    parser.add_argument("--entries", type=int, default=300_000)
    parser.add_argument("--rows-per-part", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", default=None, help="where to write; a temporary one by default")
    arguments = parser.parse_args()
    few = arguments.rows // arguments.times
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        folder = Path(place)
        write_source(
            folder / "few.parquet", few, write_entries(folder / "entries.txt", arguments.entries)
        )
        repeated(folder / "few.parquet", folder / "many", arguments.times)
        found = []
        for name, source, rows in (
            ("few", folder / "few.parquet", few),
            ("many", folder / "many", few * arguments.times),
        ):
            plan = planned(folder, source, name, arguments.rows_per_part, rows // 10_000)
            found.append(run(plan, arguments.workers, rows))
        print(f"a row of the larger pool costs {found[1] / found[0]:.0%} of one of the smaller: {found[1]:.2f} and {found[0]:.2f} CPU-us, workers and driver")  # fmt: skip


if __name__ == "__main__":
    main()
