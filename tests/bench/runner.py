"""Captions per CPU-second of the text path, phase by phase, beside the bare matcher; and its memory.

    python tests/bench/runner.py [--rows 1000000] [--entries 300000] [--rows-per-part 100000]
    python tests/bench/runner.py --parts 20000 [--workers 2]

Captions are made of entries drawn by a Zipf law and of words that are none. Two paths are told:
"match + balance" reads the pool's rows, matches, counts, decides and writes both sidecars; "whole run"
is `clip-pipe curate text_only --local`: source file in, ledger and kept.parquet out. One process; compare
ratios, not rates. Memory is the peak of the process after each quarter of the work was made: a run over
a quarter of the rows is made first, so growth with the pool shows.

With ``--parts``: what Ray's runner takes for each part that does nothing, and how the driver grows with them.
"""

from __future__ import annotations

import argparse
import gc
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.stage import Resources
from pipelines import calls, curation, fused, recipe, run_ray
from pipelines.plan import CurationPlan, plan_curation
from pipelines.progress import Progress
from pipelines.run_local import LocalRunner

_ROWS_AT_ONCE = 50_000


class TimedRunner(LocalRunner):
    """Adds up CPU-seconds by worker function and stage."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def map(
        self,
        function: Callable[..., Any],
        plan: CurationPlan,
        calls: Sequence[tuple[Any, ...]],
        resources: Resources,
    ) -> Iterator[tuple[int, Any]]:
        name = self.named(function, plan, calls)
        started = time.process_time()
        for done in super().map(function, plan, calls, resources):
            self.seconds[name] += time.process_time() - started
            yield done
            started = time.process_time()

    def named(
        self, function: Callable[..., Any], plan: CurationPlan, calls: Sequence[tuple[Any, ...]]
    ) -> str:
        """Under what the seconds of these calls are added up."""
        name = function.__name__
        if calls and isinstance(calls[0][0], int) and name in ("summarize", "merge", "decide"):
            name += f" {plan.stages[calls[0][0]].use}"
        return name


def write_entries(path: Path, count: int) -> list[str]:
    """Two thirds words, one third pairs of them."""
    rng = np.random.default_rng(0)
    words = [f"w{n:x}" for n in range(count * 2 // 3)]
    pairs = rng.integers(0, min(len(words), 20_000), size=(count - len(words), 2))
    entries = [*words, *(f"{words[a]} {words[b]}" for a, b in pairs)]
    order = rng.permutation(len(entries))
    entries = [entries[n] for n in order]
    path.write_text("\n".join(entries) + "\n")
    return entries


def write_source(path: Path, rows: int, entries: list[str]) -> None:
    """Captions of two to eight entries by a Zipf law, each followed by a word that is no entry in one of three."""
    rng = np.random.default_rng(1)
    chance = 1 / np.arange(1, len(entries) + 1)
    chance /= chance.sum()
    listed = np.array(entries, dtype=object)
    schema = pa.schema([("url", pa.string()), ("caption", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, _ROWS_AT_ONCE):
            count = min(_ROWS_AT_ONCE, rows - start)
            drawn = listed[rng.choice(len(entries), size=(count, 8), p=chance)]
            length = rng.integers(2, 9, size=count)
            filler = rng.integers(0, 3, size=(count, 8))
            captions = [
                " ".join(f"{word} x{n}" if f == 0 else word for n, (word, f) in enumerate(zip(row[:k], more)))
                for row, k, more in zip(drawn, length, filler)
            ]  # fmt: skip
            urls = [f"http://example.com/pictures/{n}.jpg" for n in range(start, start + count)]
            writer.write_table(pa.table({"url": urls, "caption": captions}, schema=schema))


def planned(folder: Path, name: str, rows_per_part: int) -> CurationPlan:
    return plan_curation(
        recipe.load(
            "text_only",
            [f"curate.source.path={folder}/{name}.parquet", f"curate.source.rows_per_part={rows_per_part}", f"curate.stage.0.entries={folder}/entries.txt", f"curate.pool={folder}/{name}-pool", f"curate.shards={folder}/{name}-shards", "curate.stage.1.t=100"],
        )
    )  # fmt: skip


def built_s(plan: CurationPlan) -> float:
    """CPU-seconds of building the matcher: once for each worker process, whatever the pool's size."""
    match = next(planned for planned in plan.stages if planned.use == "score.metadata_match")
    started = time.process_time()
    fused.opened(match)
    return time.process_time() - started


def bare_s(plan: CurationPlan, path: Path) -> float:
    """CPU-seconds of the matcher alone over the same captions, in the stage's own batches."""
    match = next(planned for planned in plan.stages if planned.use == "score.metadata_match")
    stage, state = match.stage, fused.opened(match)
    seconds = 0.0
    for batch in pq.ParquetFile(path).iter_batches(stage.batch_rows, columns=["caption"]):
        table = pa.table(batch)
        started = time.process_time()
        stage.process(table, state)
        seconds += time.process_time() - started
    return seconds


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def nothing(plan: CurationPlan, number: int) -> dict[str, int]:
    """The least that a part can be: what a real one gives back."""
    return {"part": number}


def scheduled(parts: int, workers: int) -> None:
    """Print what the runner costs for each of so many parts."""
    with run_ray.connected(workers=workers) as runner:
        made = calls.Calls(range(parts), lambda number: (number,))
        for keep in (False, True):
            asked = Resources(keep=keep)
            list(runner.map(nothing, "plan", made[: 4 * workers], asked))  # type: ignore[arg-type]
            before_mib, began_s, began_cpu_s = now_mib(), time.monotonic(), time.process_time()
            first_s = 0.0
            for _ in runner.map(nothing, "plan", made, asked):  # type: ignore[arg-type]
                first_s = first_s or time.monotonic() - began_s
            wall_s, cpu_s = time.monotonic() - began_s, time.process_time() - began_cpu_s
            print(
                f"{'actors' if keep else 'tasks':8s} {parts:,} parts, {workers} CPUs: {wall_s / parts * 1e3:.2f} ms a part, "
                f"{cpu_s / parts * 1e3:.2f} CPU-ms of the driver; first after {first_s:.2f} s; "
                f"driver grew by {now_mib() - before_mib:.0f} MiB"
            )


def now_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--entries", type=int, default=300_000)
    parser.add_argument("--rows-per-part", type=int, default=100_000)
    parser.add_argument("--parts", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.parts:
        scheduled(arguments.parts, arguments.workers)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        entries = write_entries(folder / "entries.txt", arguments.entries)
        write_source(folder / "quarter.parquet", arguments.rows // 4, entries)
        write_source(folder / "rows.parquet", arguments.rows, entries)
        del entries
        gc.collect()
        curation.run(planned(folder, "quarter", arguments.rows_per_part), LocalRunner(), Progress())
        quarter_mib = peak_mib()
        plan = planned(folder, "rows", arguments.rows_per_part)
        building_s = built_s(plan)
        matcher_s = bare_s(plan, folder / "rows.parquet")
        runner = TimedRunner()
        started = time.process_time()
        manifest = curation.run(plan, runner, Progress()).manifest
        whole_s = time.process_time() - started
    path_s = sum(
        seconds for name, seconds in runner.seconds.items()
        if name == fused.run_span.__name__ or name.endswith("filter.metadata_balance")
    )  # fmt: skip
    rows = arguments.rows
    for name, seconds in runner.seconds.items():
        print(f"  {name:40s} {seconds:8.2f} CPU-s   {seconds / rows * 1e6:6.2f} us/row")
    for name, seconds in (
        ("bare matcher", matcher_s),
        ("match + balance", path_s),
        ("whole run", whole_s),
    ):
        print(
            f"{name:16s} {rows / seconds:12,.0f} captions per CPU-s   {matcher_s / seconds:5.0%} of the bare matcher's rate"
        )
    print(
        f"the matcher is built in {building_s:.2f} CPU-s, once for each worker process (not counted above)"
    )
    print(f"rows {manifest['rows_in']:,}, kept {manifest['kept']:,}")
    print(f"peak memory: {quarter_mib:,.0f} MiB after {rows // 4:,} rows, {peak_mib():,.0f} MiB after {rows:,} more")  # fmt: skip


if __name__ == "__main__":
    main()
