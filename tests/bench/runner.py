"""Rows per CPU-second of a text-only run (read, match, count, decide, write), beside the bare matcher.

    python tests/bench/runner.py [--rows 200000] [--entries 50000]

Captions are made of entries drawn by a Zipf law. One process, one run; compare ratios, not rates.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import curation, recipe
from pipelines.plan import plan_curation
from pipelines.progress import Progress
from pipelines.run_local import LocalRunner


def write_source(folder: Path, rows: int, entries: int) -> tuple[Path, Path]:
    """A parquet list and an entry list; captions hold about six words."""
    rng = np.random.default_rng(0)
    words = [f"w{n}" for n in range(entries)]
    ranks = np.minimum(rng.zipf(1.3, size=(rows, 6)) - 1, entries - 1)
    captions = [" ".join(words[rank] for rank in row) for row in ranks]
    pq.write_table(
        pa.table({"url": [f"http://x/{n}.jpg" for n in range(rows)], "caption": captions}),
        folder / "rows.parquet",
    )
    (folder / "entries.txt").write_text("\n".join(words) + "\n")
    return folder / "rows.parquet", folder / "entries.txt"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--entries", type=int, default=50_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, entries = write_source(Path(folder), arguments.rows, arguments.entries)
        loaded = recipe.load(
            "text_only",
            [f"curate.source.path={source}", f"curate.stage.0.entries={entries}", f"curate.pool={folder}/pool", f"curate.shards={folder}/shards", "curate.stage.1.t=100"],
        )  # fmt: skip
        plan = plan_curation(loaded)
        matcher = next(
            planned.stage for planned in plan.stages if planned.use == "score.metadata_match"
        )
        state = matcher.open()
        table = pq.read_table(source)
        started = time.process_time()
        for start in range(0, len(table), 10_000):
            matcher.process(table.slice(start, 10_000), state)
        bare_s = time.process_time() - started
        started = time.process_time()
        manifest = curation.run(plan, LocalRunner(), Progress()).manifest
        whole_s = time.process_time() - started
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"bare matcher    {arguments.rows / bare_s:10,.0f} captions per CPU-s")
    print(
        f"whole run       {arguments.rows / whole_s:10,.0f} rows per CPU-s   ({bare_s / whole_s:.0%} of the bare matcher's)"
    )
    print(f"rows {manifest['rows_in']}, kept {manifest['kept']}, peak {peak_mib:,.0f} MiB")


if __name__ == "__main__":
    main()
