"""How many bytes a download would bring: from a sample fetched now, else from what is known already.

The sample are the rows with the smallest draw(uid, "forecast"): the same ones every time, and a larger
sample holds the smaller. They are fetched by the recipe's own download stage, guard included.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.contract import parts, storage, tars
from curate.contract.draw import draws
from curate.stage import StageError
from pipelines import fused, part
from pipelines.errors import RunFailed
from pipelines.plan import CurationPlan, Planned

SIZE_COLUMNS = ("bytes", "size_bytes", "file_size", "content_length", "size")
_SALT = "forecast"
_MOST_TARS = 8
TAR_BYTES = 3_600  # of one sample beside its picture: three headers, captions, paddings


@dataclass(frozen=True)
class Bytes:
    """What is expected of a download of ``rows`` rows. None where it is not known.

    Errors are standard errors of the sum, from the spread within the sample.
    """

    source: str  # "probe", "column", "earlier run", "unknown"
    rows: int
    sample_rows: int = 0
    success_frac: float | None = None
    fetched: float | None = None  # bytes over the network
    fetched_error: float = 0.0
    stored: float | None = None  # bytes of the resized pictures
    stored_error: float = 0.0
    seconds_per_row: float | None = None  # of one worker
    note: str = ""
    failures: dict[str, int] = field(default_factory=dict)  # reason -> rows of the sample
    hint: str = ""  # where none came: what the download stage advises


def estimate(plan: CurationPlan, fetch: Planned | None, rows: int, sample_rows: int) -> Bytes:
    """Bytes to download for the rows that the front ``plan`` keeps. ``fetch`` is the download stage."""
    if fetch is None or not rows:
        return Bytes("unknown", rows, note="nothing to download")
    if sample_rows:
        return probed(fetch, sample(plan, fetch, sample_rows), rows)
    return _from_column(plan, rows) or _from_earlier(plan, fetch, rows) or Bytes("unknown", rows)


def sample(plan: CurationPlan, fetch: Planned, size: int) -> pa.Table:
    """uid and what the download reads, of ``size`` rows that the front keeps (all, if there are fewer)."""
    chosen: pa.Table | None = None
    for number in range(_part_count(plan)):
        table = _kept(plan, number, ("uid", *(name for name in fetch.reads if name != "uid")))
        lots = draws(table["uid"].to_pylist(), _SALT)
        table = table.append_column("__draw", pa.array(lots))
        both = table if chosen is None else pa.concat_tables([chosen, table])
        chosen = both.sort_by("__draw").slice(0, size)
    assert chosen is not None
    return chosen.drop_columns(["__draw"])


def probed(fetch: Planned, rows: pa.Table, of_rows: int) -> Bytes:
    """Fetch the sample and multiply. Raises RunFailed where the download can't be used at all."""
    try:
        state = fused.opened(fetch)
        started = time.perf_counter()
        done = fused.attempt(fetch, rows)  # a row it raises on counts as one that did not come
    except StageError as fault:
        raise RunFailed(str(fault)) from fault
    seconds = time.perf_counter() - started
    lengths = pc.fill_null(pc.binary_length(done["image"]), 0)
    stored = np.asarray(lengths, dtype=np.float64)
    wire = getattr(state, "wire_bytes", None)
    # It is of the last call; where a row raised, that was not of all rows.
    failures = part.reason_counts(done["reason"])
    if not stored.any():
        hint = _cure(fetch, max(failures, key=lambda reason: failures[reason], default=""))
        return Bytes("probe", of_rows, len(rows), 0.0, failures=failures, hint=hint)
    fetched, fetched_error = None, 0.0
    if wire is not None and len(wire) == len(rows):
        got = [float(length or 0) for length in wire]
        fetched, fetched_error = _scaled(np.array(got), of_rows)
    kept, kept_error = _scaled(stored, of_rows)
    return Bytes(
        "probe",
        of_rows,
        sample_rows=len(rows),
        success_frac=float((stored > 0).mean()),
        fetched=fetched,
        fetched_error=fetched_error,
        stored=kept,
        stored_error=kept_error,
        seconds_per_row=seconds / len(rows),
        failures=failures,
    )


def of_rows(found: Bytes, rows: int) -> Bytes:
    """The same for another number of rows."""
    if rows == found.rows or not found.rows:
        return found
    factor = rows / found.rows

    def times(value: float | None) -> float | None:
        return None if value is None else value * factor

    return replace(
        found,
        rows=rows,
        fetched=times(found.fetched),
        fetched_error=found.fetched_error * factor,
        stored=times(found.stored),
        stored_error=found.stored_error * factor,
    )


def _cure(fetch: Planned, reason: str) -> str:
    """What the download stage itself advises for a reason; '' where it has nothing to say."""
    kind = reason.removeprefix(f"error.{fetch.use}.")
    return str(fetch.stage.cures.get(kind, ""))


def _scaled(values: np.ndarray, rows: int) -> tuple[float, float]:
    """The sum over ``rows`` rows and its standard error, from a sample of them; failures count as 0."""
    n = len(values)
    spread = float(values.std(ddof=1)) if n > 1 else float(values[0])
    unseen = math.sqrt(max(0.0, 1 - n / rows))  # what was fetched is known exactly
    return float(values.mean()) * rows, spread / math.sqrt(n) * rows * unseen


def _from_column(plan: CurationPlan, rows: int) -> Bytes | None:
    """The sum of a source's column of sizes; rows without a size count as the mean of the others."""
    types = {f.name: f.type for f in plan.source.schema}
    name = next((n for n in SIZE_COLUMNS if n in types and pa.types.is_integer(types[n])), None)
    if name is None:
        return None
    total = known = 0
    for number in range(_part_count(plan)):
        values = _kept(plan, number, (name,))[name]
        known += len(values) - values.null_count
        total += pc.sum(values).as_py() or 0
    if not known:
        return None
    note = f"the source's column {name!r}, known for {known:,} of {rows:,} rows"
    return Bytes("column", rows, sample_rows=known, fetched=total / known * rows, note=note)


def _from_earlier(plan: CurationPlan, fetch: Planned, rows: int) -> Bytes | None:
    """Mean size of pictures that the pool holds from an earlier download, and its share of successes."""
    folders = (fetch.fingerprint, "?" * 8)  # this very run, as the newest retry left it; else any
    found_paths = (
        storage.glob(plan.pool.columns_path(fetch.use, name, 0).replace("part-00000", "*"))
        for name in folders
    )
    paths = next((paths for paths in found_paths if paths), [])
    stats = [found for path in paths if "rows_in" in (found := parts.read_stats(path))]
    tried = sum(entry["rows_in"] for entry in stats)
    if not tried:
        return None
    frac = sum(entry["kept"] for entry in stats) / tried
    held = storage.glob(storage.join(plan.pool_root, "images", "*", "part-*.tar"))
    sizes: list[int] = []
    for path in held[:: -(-len(held) // _MOST_TARS) or 1]:
        with storage.open_file(path) as file:
            sizes += [len(member.data) for member in tars.walk(file, path)]
    if not sizes:
        return None
    total, spread = _scaled(np.array(sizes, dtype=np.float64), max(rows, len(sizes)))
    scale = frac * rows / max(rows, len(sizes))
    return Bytes(
        "earlier run", rows, sample_rows=len(sizes), success_frac=frac, stored=total * scale,
        stored_error=spread * scale, note="stored size of the pool's pictures; the network carries more",
    )  # fmt: skip


def _kept(plan: CurationPlan, number: int, names: tuple[str, ...]) -> pa.Table:
    """Columns of the rows that every stage of the front keeps."""
    alive = part.alive_mask(plan, tuple(range(-1, len(plan.stages))), number)
    table: Any = part.load_columns(plan, names, len(plan.stages), number)
    return table.filter(pa.array(alive))


def _part_count(plan: CurationPlan) -> int:
    return int((plan.pool.describe() or {"parts": 0})["parts"])
