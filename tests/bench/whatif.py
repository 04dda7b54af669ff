"""Seconds of `whatif` and of `forecast` over a text-only pool, beside the run that made it.

    python tests/bench/whatif.py [--rows 1000000] [--entries 300000]

Captions are those of tests/bench/runner.py. One process. "read" is the pool's own funnel; "t" changes the
balance; "caption + t" changes a filter above the balance too, so that it is counted anew.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from pipelines import curation, forecast, recipe, whatif
from pipelines.plan import plan_curation
from pipelines.progress import Progress
from pipelines.run_local import LocalRunner
from tests.bench.runner import write_entries, write_source


def loaded(folder: Path) -> Any:
    """Measure words, match, refuse short captions, balance, and a download that never starts."""
    curate = {
        "pool": str(folder / "pool"),
        "shards": str(folder / "shards"),
        "source": {"use": "source.url_table", "path": str(folder / "rows.parquet"), "rows_per_part": 50_000},
        "stage": [
            {"use": "score.caption_shape"},
            {"use": "score.metadata_match", "entries": str(folder / "entries.txt")},
            {"use": "filter.threshold", "column": "caption_words", "at_least": 3},
            {"use": "filter.metadata_balance", "t": 100},
        ],
    }  # fmt: skip
    return recipe.from_data({"name": "whatif", "curate": curate}, "bench")


def timed(name: str, call: Callable[[], Any]) -> Any:
    started, cpu = time.perf_counter(), time.process_time()
    found = call()
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:24s} {time.perf_counter() - started:8.2f} s wall {time.process_time() - cpu:8.2f} CPU-s   peak {peak_mib:,.0f} MiB", flush=True)  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--entries", type=int, default=300_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        entries = write_entries(folder / "entries.txt", arguments.entries)
        write_source(folder / "rows.parquet", arguments.rows, entries)
        made = loaded(folder)
        plan = plan_curation(made)
        timed("curate", lambda: curation.run(plan, LocalRunner(), Progress(), made))
        pool = str(folder / "pool")
        timed("whatif: read", lambda: whatif.compare(pool, []))
        balance = "curate.stage.metadata_balance.t=50"
        words = "curate.stage.threshold.at_least=4"
        timed("whatif: t", lambda: whatif.compare(pool, [balance]))
        timed("whatif: caption + t", lambda: whatif.compare(pool, [words, balance]))
        timed("whatif: three t", lambda: whatif.compare(pool, [], (50, 200, 400)))
        timed("forecast: three t", lambda: forecast.forecast(made, LocalRunner(), Progress(), ts=(50, 200, 400)))  # fmt: skip


if __name__ == "__main__":
    main()
