"""The rows that a stage of a finished run was given, with what it wrote of them, part by part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.contract import parts, storage
from curate.contract.parts import Pool
from pipelines.report import options


def rows(
    pool: Pool, stage: Mapping[str, Any], names: Sequence[str]
) -> Iterator[tuple[int, pa.Table]]:
    """(part, table of uid, url and the named columns) of the rows that a stage was given.

    Its reason is "" where the row came. ``names`` must have keep and reason.
    """
    for part in range((pool.describe() or {"parts": 0})["parts"]):
        path = pool.columns_path(options.use_of(stage), stage["fingerprint"], part)
        if not storage.exists(path):
            continue
        table = parts.read_table(path, list(names))
        urls = parts.read_table(pool.rows_path(part), ["uid", "url"])
        if len(urls) != len(table):
            continue  # not of this pool any more
        reason = pc.fill_null(table["reason"].cast(pa.string()), "")
        table = table.set_column(table.column_names.index("reason"), "reason", reason)
        for name in urls.column_names:
            table = table.append_column(name, urls[name])
        yield part, table.filter(pc.is_valid(table["keep"]))  # null where a stage above refused it


def columns(pool: Pool, stage: Mapping[str, Any]) -> list[str]:
    """The columns of the stage's first sidecar; none where all are gone."""
    for part in range((pool.describe() or {"parts": 0})["parts"]):
        path = pool.columns_path(options.use_of(stage), stage["fingerprint"], part)
        if storage.exists(path):
            with storage.open_file(path) as file:
                return list(pq.read_schema(file).names)
    return []
