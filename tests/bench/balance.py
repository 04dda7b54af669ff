"""Rows per CPU-second of the balance's steps, as a small table.

    python tests/bench/balance.py [--rows N] [--entries N] [--matches X] [--rows-per-part N]

Matches are drawn by Zipf's law over the entries. `summarize`, `look` (one pass of `keep`, which tries 32
thresholds) and `decide` are per row of the pool; `draws` is the part of `decide` that hashes uids.
The state is held in memory; reading it anew for each part is the runner's.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from curate.contract.draw import draws
from curate.filter.metadata_balance import MetadataBalance
from curate.stage import pool_state

LANGUAGES = ("en", "de", "ja", "ru", "es", "fr", "zh", "pt")


def pool(rows: int, entries: int, matches: float) -> pa.Table:
    """Rows with a uid, a language and ascending, distinct entries, on average nearly ``matches``."""
    rng = np.random.default_rng(0)
    shares = np.cumsum(1 / np.arange(1, entries + 1))
    number = rng.poisson(matches, rows)
    ranks = np.searchsorted(shares, rng.random(number.sum()) * shares[-1])
    keys = np.repeat(np.arange(rows), number) * entries + rng.permutation(entries)[ranks]
    keys = np.unique(keys)
    ends = np.concatenate([[0], np.cumsum(np.bincount(keys // entries, minlength=rows))])
    lists = pa.ListArray.from_arrays(
        pa.array(ends, pa.int32()), pa.array(keys % entries, pa.int32())
    )
    names = pa.array(LANGUAGES).take(pa.array(rng.integers(0, len(LANGUAGES), rows)))
    uids = pa.array([f"{row:032x}" for row in range(rows)])
    return pa.table({"uid": uids, "entries": lists, "language": names})


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What the work returns, and its CPU seconds."""
    started = time.process_time()
    done = work()
    return done, time.process_time() - started


def measure(stage: MetadataBalance, parts: list[pa.Table]) -> list[float]:
    """CPU seconds of summarize, merge, look (0 without) and decide over all parts."""
    partials, summarize_s = timed(lambda: [stage.summarize(part) for part in parts])
    state, merge_s = timed(lambda: stage.close(stage.merge(partials)))
    look_s = 0.0
    if stage.passes() > 1:
        _, look_s = timed(lambda: [stage.look_again(part, state) for part in parts])
        state = pool_state(stage, lambda: parts)
    _, decide_s = timed(lambda: [stage.decide(part, state) for part in parts])
    return [summarize_s, merge_s, look_s, decide_s]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--entries", type=int, default=300_000)
    parser.add_argument("--matches", type=float, default=8.0, help="matches of a row, on average")
    parser.add_argument("--rows-per-part", type=int, default=10_000)
    arguments = parser.parse_args()
    rows = arguments.rows
    table = pool(rows, arguments.entries, arguments.matches)
    size = arguments.rows_per_part
    parts = [table.slice(start, size) for start in range(0, rows, size)]
    _, draws_s = timed(lambda: [draws(part["uid"].to_pylist(), "balance:0") for part in parts])
    print(f"{rows:,} rows in {len(parts)} parts; draws {rows / draws_s:,.0f} rows/CPU-s")
    print("balanced by             summarize  merge CPU-s        look       decide  without draws")
    stages = {
        "t = 100": MetadataBalance(t=100),
        f"keep = {rows // 2}": MetadataBalance(keep=rows // 2),
        "tail_share = 0.06": MetadataBalance(tail_share=0.06),
        "t = 100, 8 languages": MetadataBalance(t=100, by="language"),
    }
    for name, stage in stages.items():
        summarize_s, merge_s, look_s, decide_s = measure(stage, parts)
        look = f"{rows / look_s:,.0f}" if look_s else "-"
        print(
            f"{name:20s} {rows / summarize_s:12,.0f} {merge_s:12.2f} {look:>11s} "
            f"{rows / decide_s:12,.0f} {rows / (decide_s - draws_s):14,.0f}"
        )
    print(f"peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
