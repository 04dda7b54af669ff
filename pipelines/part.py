"""One part at a time: load what a stage needs, take in source rows, commit sidecars.

Everything here runs inside a worker, whichever runner owns it. What is committed is whole; a
stage whose sidecar for a part exists is never run again for that part.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.contract import parts, storage
from curate.contract.columns import ROW_FIELDS
from curate.stage import KEEP, REASON, Part
from pipelines.plan import CurationPlan, Planned


def sidecar(plan: CurationPlan, planned: Planned, part: int) -> str:
    return plan.pool.columns_path(planned.use, planned.fingerprint, part)


def is_done(plan: CurationPlan, planned: Planned, part: int) -> bool:
    """Whether a stage is committed for a part (its pictures are committed before its sidecar)."""
    return storage.exists(sidecar(plan, planned, part))


def alive_mask(plan: CurationPlan, upstream: tuple[int, ...], part: int) -> np.ndarray:
    """Which rows of a part no stage of ``upstream`` refused. Bool of shape (rows,)."""
    rows = parts.read_stats(plan.pool.rows_path(part))["rows"]
    alive = np.ones(rows, dtype=bool)
    for index in upstream:
        keep = parts.read_table(sidecar(plan, plan.at(index), part), ["keep"])["keep"]
        alive &= np.asarray(pc.fill_null(keep, True))
    return alive


def load_columns(plan: CurationPlan, names: tuple[str, ...], below: int, part: int) -> pa.Table:
    """uid and the named columns for every row of a part, from whichever stage above wrote each."""
    in_rows = {"uid", "url", "caption", *plan.source.columns}
    own = parts.read_table(
        plan.pool.rows_path(part), ["uid", *(n for n in names if n in in_rows and n != "uid")]
    )
    columns: dict[str, Any] = {"uid": own["uid"]}
    for name in names:
        if name in in_rows:
            columns[name] = own[name]
        elif name == "part":
            columns[name] = pa.array(np.full(len(own), part, dtype=np.int64))
        elif name == "row":
            columns[name] = pa.array(np.arange(len(own), dtype=np.int64))
        elif name != "image":
            provider = next(p for p in plan.stages if name in p.columns)
            columns[name] = parts.read_table(sidecar(plan, provider, part), [name])[name]
    if "image" in names:
        with pictures_of(plan, below, part) as pictures:
            columns["image"] = pa.array(pictures(own["uid"].to_pylist()), pa.large_binary())
    return pa.table(columns)


def pictures_of(plan: CurationPlan, below: int, part: int) -> parts.Pictures:
    """The newest pictures above stage ``below``."""
    maker = plan.image_maker(below)
    assert maker is not None
    return parts.Pictures(plan.pool.images_path(maker.fingerprint, part))


def ingest(plan: CurationPlan, part: Part) -> dict[str, Any]:
    """Read one part of the source into rows, its decisions and, if it brings any, its pictures."""
    planned = plan.source
    started = time.perf_counter()
    tables = list(planned.stage.produce(part))
    own = [f for f in planned.schema if f.name in planned.columns]
    schema = pa.schema([*ROW_FIELDS, *own])
    brought = [pa.field("image", pa.binary())] if planned.makes_images else []
    empty = pa.schema([*schema, *brought, KEEP, REASON]).empty_table()
    whole = pa.concat_tables(tables, promote_options="permissive") if tables else empty
    if planned.makes_images:
        # Refused rows may share their uid with a kept one, and their picture is none.
        kept = whole.filter(whole["keep"])
        path = plan.pool.images_path(planned.fingerprint, part.index)
        parts.write_images(path, kept["uid"].to_pylist(), kept["image"].to_pylist())
    decided = pa.table(
        {"uid": whole["uid"], "keep": whole["keep"], "reason": whole["reason"].cast(REASON.type)}
    )
    stats = stats_of(
        decided, part.index, np.ones(len(whole), dtype=bool), time.perf_counter() - started
    )
    parts.write_table(sidecar(plan, planned, part.index), decided, stats)
    # The rows file comes last: a part that has one is whole.
    parts.write_table(
        plan.pool.rows_path(part.index),
        whole.select(schema.names).cast(schema),
        {"rows": len(whole)},
    )
    return stats


def sidecar_schema(planned: Planned) -> pa.Schema:
    """The columns of a stage's sidecar besides uid: its own, then keep and reason."""
    return pa.schema([*(f for f in planned.schema if f.name in planned.columns), KEEP, REASON])


def scatter(table: pa.Table, alive: np.ndarray, schema: pa.Schema) -> pa.Table:
    """Values of the living rows put at their places among all rows; null elsewhere."""
    if alive.all():
        return table.select(schema.names).cast(schema)
    indices = np.where(alive, np.cumsum(alive) - 1, -1)
    taken = pa.array(indices, mask=~alive)
    return pa.table(
        [table[f.name].combine_chunks().take(taken).cast(f.type) for f in schema], schema=schema
    )


def with_decision(table: pa.Table, reason: str | None = None) -> pa.Table:
    """The table with keep and reason columns, which are the runner's where the stage has none."""
    if reason is not None:
        names = [name for name in table.column_names if name not in ("keep", "reason")]
        table = table.select(names)
    if "keep" not in table.column_names:
        keep = np.full(len(table), reason is None)
        table = table.append_column(KEEP, pa.array(keep))
        nothing = pa.scalar(reason, pa.string())
        table = table.append_column(
            REASON, pa.repeat(nothing, len(table)).dictionary_encode().cast(REASON.type)
        )
    return table


def stats_of(table: pa.Table, part: int, alive: np.ndarray, seconds: float) -> dict[str, Any]:
    """Counts of one stage and part, kept in the sidecar's footer."""
    refused = reason_counts(table["reason"])
    rows_in = int(alive.sum())
    return {
        "part": part,
        "rows": len(table),
        "rows_in": rows_in,
        "kept": rows_in - sum(refused.values()),
        "refused": refused,
        "seconds": round(seconds, 4),
    }


def reason_counts(reasons: pa.ChunkedArray) -> dict[str, int]:
    """Reason -> rows, sorted by reason; rows without one are not counted."""
    counted = pc.value_counts(reasons.cast(pa.string()).drop_null())
    return {
        entry["values"]: entry["counts"]
        for entry in sorted(counted.to_pylist(), key=lambda e: e["values"])
    }


def living(
    plan: CurationPlan, index: int, part: int, alive: np.ndarray | None = None
) -> tuple[pa.Table, np.ndarray]:
    """The kept rows of a part with the columns that stage ``index`` reads, and the mask they come from."""
    planned = plan.stages[index]
    if alive is None:
        alive = alive_mask(plan, planned.upstream, part)
    table = load_columns(plan, planned.reads, index, part)
    return (table if alive.all() else table.filter(pa.array(alive))), alive


def commit_decision(
    plan: CurationPlan,
    index: int,
    part: int,
    decided: pa.Table,
    alive: np.ndarray,
    seconds: float,
    uid: pa.ChunkedArray,
) -> dict[str, Any]:
    """Write a global stage's sidecar for one part. ``uid``: those of the living rows."""
    planned = plan.stages[index]
    if not alive.all():
        uid = parts.read_table(plan.pool.rows_path(part), ["uid"])["uid"]
    full = scatter(
        with_decision(decided.cast(planned.schema)), alive, sidecar_schema(planned)
    ).add_column(0, "uid", uid)
    stats = stats_of(full, part, alive, seconds)
    parts.write_table(sidecar(plan, planned, part), full, stats)
    return stats


def decided_rows(plan: CurationPlan, part: int) -> Iterator[tuple[str, np.ndarray, pa.Array]]:
    """(stage, keep, reasons as text) of every stage in order, the source first."""
    for planned in (plan.source, *plan.stages):
        table = parts.read_table(sidecar(plan, planned, part), ["keep", "reason"])
        yield (
            planned.name,
            np.asarray(pc.fill_null(table["keep"], True)),
            table["reason"].cast(pa.string()).combine_chunks(),
        )
