"""A finished run's download as the report reads it: pool, sidecars and the manifest of its shards.

Each row is (url, kind or None where the picture came, body number); None in place of a row was refused above.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.contract import parts, storage
from curate.contract.parts import Pool
from curate.stage import REASON
from tests.tiny import eval_sets

FETCH = {"use": "download.fetch", "fingerprint": "ef" * 32}
Row = tuple[str, str | None, int] | None


def uid(number: int) -> str:
    return f"{number:032x}"


def sha256(body: int) -> str:
    return hashlib.sha256(str(body).encode()).hexdigest()


def make(folder: Path, rows: Sequence[Sequence[Row]], costs: dict[str, float] | None = None) -> Any:
    """(pool, manifest of the shards) of a run whose parts hold these rows."""
    pool = Pool(str(folder / "pool"))
    storage.write_text(pool.description_path, json.dumps({"schema_version": 1, "parts": len(rows)}))
    first = 0
    for part, held in enumerate(rows):
        _write(pool, part, first, held)
        first += len(held)
    if costs is not None:
        note = storage.join(
            pool.columns_folder(FETCH["use"], FETCH["fingerprint"]), "manifest.json"
        )
        storage.write_text(note, json.dumps({"options": {}, "costs": costs}))
    above = {"use": "filter.duplicate_pair", "fingerprint": "aa" * 32}
    return pool, {"stages": [above, FETCH], "images": [FETCH["fingerprint"]]}


def _write(pool: Pool, part: int, first: int, held: Sequence[Row]) -> None:
    uids = [uid(first + n) for n in range(len(held))]
    urls = [row[0] if row is not None else "http://above.example/" for row in held]
    table = pa.table({"uid": uids, "url": urls, "caption": ["c"] * len(held)})
    parts.write_table(pool.rows_path(part), table, {"rows": len(held)})
    kinds = [row[1] if row is not None else None for row in held]
    came = [row is not None and row[1] is None for row in held]
    reasons = pa.array(
        [f"error.download.fetch.{kind}" if kind else None for kind in kinds], pa.string()
    )
    columns: dict[str, Any] = {
        "uid": uids,
        "status": pa.array(["success" if ok else "failed" for ok in came], pa.string()),
        "error_message": pa.array(
            [f"words of {kind}" if kind else None for kind in kinds], pa.string()
        ),
        "sha256": pa.array(
            [sha256(row[2]) if row is not None else None for row in held], pa.string()
        ),
        "keep": pa.array([None if row is None else row[1] is None for row in held], pa.bool_()),
        "reason": reasons.dictionary_encode().cast(REASON.type),
    }
    parts.write_table(
        pool.columns_path(FETCH["use"], FETCH["fingerprint"], part), pa.table(columns)
    )
    pictures = [eval_sets.square("red") if ok else None for ok in came]
    parts.write_images(pool.images_path(FETCH["fingerprint"], part), uids, pictures)
