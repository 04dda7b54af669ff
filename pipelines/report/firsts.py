"""The rows that stay of equal ones: a `FirstOfEqual` filter writes no uid, so its column's values are looked up.

Bounded work: the values of the samples, then the column part by part until the first row of each is found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.contract import parts, storage
from curate.contract.parts import Pool
from curate.filter.base import FirstOfEqual
from pipelines import components
from pipelines.errors import RecipeError
from pipelines.report import options
from pipelines.report.ledger import LedgerSample

Places = Mapping[tuple[str, int], Sequence[LedgerSample]]  # by the stage's name and the part


def found(
    pool: Pool, stages: Sequence[Mapping[str, Any]], places: Places, ends: Sequence[int]
) -> dict[int, dict[str, str]]:
    """position -> {column: uid of the row that stays}, of the samples that such a filter refused."""
    links: dict[int, dict[str, str]] = {}
    for number, stage in enumerate(stages):
        samples = {part: rows for (name, part), rows in places.items() if name == stage["use"]}
        column = _column(stage) if samples else ""
        if not column:
            continue
        values: dict[int, str] = {}
        for part, rows in samples.items():
            column_values = _values(pool, stages[:number], column, part)
            start = ends[part - 1] if part else 0
            for row in rows:
                value = column_values[row.position - start].as_py() if column_values else None
                if value is not None:
                    values[row.position] = value
        stay = _first_uids(pool, stages[:number], stage, column, set(values.values()), len(ends))
        links |= {place: {column: stay[value]} for place, value in values.items() if value in stay}
    return links


def _column(stage: Mapping[str, Any]) -> str:
    """The column of which a stage keeps the first of equal values; "" for any other stage.

    Rows of equal uid are left out: nothing in them differs, so there is nothing to show.
    """
    use = options.use_of(stage)
    try:
        cls = components.load("stage", use) if not use.startswith("source.") else object
    except RecipeError:
        return ""
    return cls.column if issubclass(cls, FirstOfEqual) and cls.column != "uid" else ""


def _values(
    pool: Pool, above: Sequence[Mapping[str, Any]], column: str, part: int
) -> pa.ChunkedArray | None:
    """A column of one part as text, from the rows or from the stage above that wrote it."""
    sidecars = (
        pool.columns_path(options.use_of(stage), stage["fingerprint"], part) for stage in above
    )
    for path in (pool.rows_path(part), *sidecars):
        if storage.exists(path):
            with storage.open_file(path) as file:
                names = pq.read_schema(file).names
            if column in names:
                return parts.read_table(path, [column])[column].cast(pa.string())
    return None


def _first_uids(
    pool: Pool,
    above: Sequence[Mapping[str, Any]],
    stage: Mapping[str, Any],
    column: str,
    wanted: set[str],
    part_count: int,
) -> dict[str, str]:
    """value -> uid of the row that the stage kept; parts are read until all are found."""
    uids: dict[str, str] = {}
    for part in range(part_count):
        missing = pa.array(sorted(wanted - uids.keys()), pa.string())
        if not len(missing):
            break
        path = pool.columns_path(options.use_of(stage), stage["fingerprint"], part)
        values = _values(pool, above, column, part)
        if values is None or not storage.exists(path):
            continue
        table = parts.read_table(path, ["uid", "keep"]).append_column(column, values)
        there = pc.and_(pc.is_in(values, missing), pc.fill_null(table["keep"], False))
        for row in table.filter(there).to_pylist():
            uids.setdefault(row[column], row["uid"])
    return uids
