"""What a stage is expected to cost: seconds per row as measured in the pool, else a typical rate, else unknown.

Typical rates were measured on one core of a shared server (its description: docs/benchmarks.md), where
ratios hold better than rates; a download differs most. They are for planning a night or a month, and the paper
estimates of docs/scale.md stand on them. ``python tests/bench/scale.py --measure rates.json`` measures most of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from curate.contract import parts, storage
from curate.contract.parts import stage_folder
from pipelines.plan import CurationPlan, Planned

_MOST_PARTS = 64  # footers that are read for a measured rate
LEAST_S = 0.05  # less than this in all is no measurement


@dataclass(frozen=True)
class Rate:
    """Seconds of one worker for one row, and where the figure is from."""

    seconds_per_row: float
    source: str  # "measured in this pool", "probe", "typical"
    note: str = ""

    def told(self, rows: int, workers: int = 1) -> str:
        """``about 3 h (typical: ...)`` for so many rows, divided by the workers."""
        source = f"{self.source}: {self.note}" if self.note else self.source
        return f"{self._time(rows, workers)} ({source})"

    def briefly(self, rows: int) -> str:
        """``about 3 h (typical)``, of one worker."""
        return f"{self._time(rows, 1)} ({self.source})"

    def _time(self, rows: int, workers: int) -> str:
        seconds = self.seconds_per_row * rows / max(workers, 1)
        return duration(seconds) + (f" by {workers} workers" if workers > 1 else "")


# use -> (rows per second of one worker, what that was measured on)
TYPICAL: dict[str, tuple[float, str]] = {
    "source.url_table": (600_000, "rows of parquet"),
    "source.image_tars": (8_600, "256 px pictures of 20 KB"),
    "filter.duplicate_pair": (300_000, "all its passes"),
    "score.metadata_match": (350_000, "300,000 entries, alt-texts"),
    "download.fetch": (
        150,
        "pictures of 230 KB from a near server, one decoding process; the web is slower",
    ),
    "score.text_regions": (37, "detection at 320 px"),
    "score.language": (74_000, "alt-texts"),
    "score.caption_shape": (250_000, "alt-texts"),
    "score.text_embedding": (216, "MiniLM on one core"),
    "score.phash": (1_400, "256 px pictures"),
    "score.picture_shape": (19_000, "256 px pictures"),
    "filter.metadata_balance": (750_000, "counts and draws"),
    "filter.threshold": (8_000_000, "one column"),
    "filter.top_fraction": (230_000, "three passes"),
    "filter.duplicate_image": (240_000, "all its passes"),
    "filter.near_duplicate": (12_000, "hashes with no near ones"),
    "shard.write": (11_000, "256 px pictures of 20 KB"),
    "shard.write: list of pairs": (1_000_000, "ledger and kept.parquet"),
    "filter.eval_overlap": (5_000, "50,000 evaluation pictures"),
}


def rate_of(plan: CurationPlan, planned: Planned) -> Rate | None:
    """The best figure there is for a stage, or None."""
    return measured(plan, planned) or typical(planned.use)


def typical(use: str) -> Rate | None:
    """The typical rate of a component, or None where nobody measured it."""
    if use not in TYPICAL:
        return None
    rows_per_s, note = TYPICAL[use]
    return Rate(1.0 / rows_per_s, "typical", note)


def measured(plan: CurationPlan, planned: Planned) -> Rate | None:
    """The rate of the parts that are done in the pool, with these options or else with others."""
    own = plan.pool.columns_folder(planned.use, planned.fingerprint)
    found = _rate(storage.glob(storage.join(own, "part-*.parquet")))
    if found is not None:
        return Rate(found, "measured in this pool")
    # The fingerprint is the end of the folder's name.
    every = stage_folder(planned.use, "")
    found = _rate(
        storage.glob(storage.join(plan.pool_root, "columns", f"{every}*", "part-*.parquet"))
    )
    return None if found is None else Rate(found, "measured in this pool, by another run")


def _rate(paths: list[str]) -> float | None:
    """Seconds per row over some parts' footers; None where too little was done to tell."""
    step = -(-len(paths) // _MOST_PARTS) or 1
    rows, seconds = 0, 0.0
    for path in paths[::step]:
        stats = parts.read_stats(path)
        # Rows whose values were taken over from another run cost nothing.
        fresh = stats.get("rows_in", 0) - stats.get("taken_over", 0)
        if fresh > 0:
            rows += fresh
            seconds += stats.get("seconds", 0.0)
    return seconds / rows if rows and seconds >= LEAST_S else None


@dataclass(frozen=True)
class Known:
    """Rows that a stage kept, as of its manifest; where the pool has grown since, of the parts it had."""

    kept: int
    parts: int
    is_whole: bool


def rows_known(plan: CurationPlan, part_count: int) -> dict[str, Known]:
    """stage name -> what its manifest says, of the stages that ended in this pool of so many parts."""
    found: dict[str, Known] = {}
    for planned in (plan.source, *plan.stages):
        folder = plan.pool.columns_folder(planned.use, planned.fingerprint)
        path = storage.join(folder, "manifest.json")
        if storage.exists(path):
            manifest: dict[str, Any] = storage.read_json(path, "pool")
            count = int(manifest["parts"])
            found[planned.name] = Known(int(manifest["kept"]), count, count >= part_count)
    return found


def plan_cost(plan: CurationPlan, index: int, known: dict[str, Known]) -> str:
    """The expected cost of one stage that is to do, for `clip-pipe plan`; '' where nothing is known."""
    rate = rate_of(plan, plan.stages[index])
    if rate is None:
        return ""
    above = [known[p.name] for p in (plan.source, *plan.stages[:index]) if p.name in known]
    if not above:
        return f"{rate.briefly(1_000_000)} for a million rows by one worker"
    # What was counted before files were added bounds no row of the new parts.
    chosen = [one for one in above if one.is_whole] or above
    least = min(chosen, key=lambda one: one.kept)
    of_parts = "" if least.is_whole else f" of the {least.parts} parts read in before"
    return f"{rate.briefly(least.kept)} for at most {least.kept:,} rows{of_parts} by one worker"


def duration(seconds: float) -> str:
    """``about 3.5 h``, in the unit a person would take."""
    for unit, length_s in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 1.5 * length_s:
            value = seconds / length_s
            return f"about {value:.0f} {unit}" if value >= 10 else f"about {value:.1f} {unit}"
    return f"about {seconds:.0f} s" if seconds >= 1 else "under a second"


def memory(size_bytes: float) -> str:
    """Bytes of a device's memory as its driver and PyTorch tell them: ``139.7 GiB``, of 2^30 bytes."""
    return f"{size_bytes / 2**30:,.1f} GiB"


def size(size_bytes: float) -> str:
    """Bytes in decimal units: ``1.23 TB``."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= length:
            return (
                f"{size_bytes / length:.3g} {unit}"
                if size_bytes < 999 * length
                else f"{size_bytes / length:,.0f} {unit}"
            )
    return f"{size_bytes:.0f} bytes"
