"""What a small finished curation leaves on disk, written by the contract's own functions.

Thirteen rows in two parts: r0 ... r12. Their fates, and the entries they match, are in ROWS.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa

from curate.contract import parts, shards, storage, tars
from curate.contract.columns import LEDGER_SCHEMA
from curate.contract.parts import Pool
from tests.tiny import eval_sets

SOURCE, MATCH, BALANCE, FETCH, EDIT, THRESHOLD = (
    "source.url_table", "score.metadata_match", "filter.metadata_balance", "download.fetch", "edit.mask_text", "filter.threshold#2",
)  # fmt: skip
ORDER = (SOURCE, MATCH, BALANCE, FETCH, EDIT, THRESHOLD)
FINGERPRINTS = {name: f"{number:02d}" * 32 for number, name in enumerate(ORDER)}
HOSTILE = "<script>alert('x')</script> & <img src=http://evil.example/x.png>"
TEXT = "filter.threshold.text_area_frac"

# (entries or None where never matched, reason, stage); kept where there is no reason
ROWS: list[tuple[list[int] | None, str | None, str | None]] = [
    ([0], None, None),
    ([0, 1], None, None),
    ([0], "balanced", BALANCE),
    ([0], "balanced", BALANCE),
    ([], "unmatched", BALANCE),
    (None, "error.source.url_table.no_caption", SOURCE),
    ([0, 3], "error.download.fetch.http_404", FETCH),
    ([1], TEXT, THRESHOLD),
    ([0], TEXT, THRESHOLD),
    ([3], None, None),
    ([0], "balanced", BALANCE),
    ([0], None, None),
    (None, "error.source.url_table.no_caption", SOURCE),
]
PART_SIZES = (8, 5)
COLOUR_OF_ROW = (
    "red",
    "green",
    "red",
    "red",
    "red",
    "red",
    "red",
    "blue",
    "yellow",
    "cyan",
    "red",
    "purple",
    "red",
)


def uid(row: int) -> str:
    return f"{row:032x}"


def make(folder: Path, *, text_only: bool = False) -> tuple[str, str]:
    """(SHARDS, POOL) of the run. A text-only one ends with kept.parquet and has no pictures."""
    pool_root, shards_root = str(folder / "pool"), str(folder / "shards")
    pool = Pool(pool_root)
    storage.write_text(
        pool.description_path, json.dumps({"schema_version": 1, "parts": len(PART_SIZES)})
    )
    first = 0
    for part, size in enumerate(PART_SIZES):
        _write_part(pool, part, list(range(first, first + size)), text_only)
        first += size
    ledger = pa.Table.from_pylist([_ledger_row(row) for row in range(len(ROWS))], LEDGER_SCHEMA)
    parts.write_table(storage.join(shards_root, "ledger.parquet"), ledger)
    if text_only:
        kept = ledger.filter(ledger["keep"]).select(["uid", "url", "caption"])
        parts.write_table(storage.join(shards_root, "kept.parquet"), kept)
    else:
        _write_shard(shards_root)
    storage.write_text(
        storage.join(shards_root, "manifest.json"), json.dumps(_manifest(pool_root, text_only))
    )
    return shards_root, pool_root


def _caption(row: int) -> str | None:
    if row in (5, 12):
        return None
    return HOSTILE if row in (0, 7) else f"caption of {row}"


def _ledger_row(row: int) -> dict:
    _, reason, stage = ROWS[row]
    url = f"http://pictures.example/{row}.jpg"
    return {
        "uid": uid(row),
        "url": url,
        "caption": _caption(row),
        "keep": reason is None,
        "reason": reason,
        "stage": stage,
    }


def _fetched(row: int) -> bool:
    return ROWS[row][2] in (None, EDIT, THRESHOLD)


def _write_part(pool: Pool, part: int, rows: list[int], text_only: bool) -> None:
    table = pa.Table.from_pylist(
        [{k: v for k, v in _ledger_row(r).items() if k in ("uid", "url", "caption")} for r in rows]
    )
    parts.write_table(pool.rows_path(part), table, {"rows": len(rows)})
    entries = pa.table(
        {
            "uid": [uid(r) for r in rows],
            "entries": pa.array([ROWS[r][0] for r in rows], pa.list_(pa.int32())),
        }
    )
    parts.write_table(pool.columns_path(MATCH, FINGERPRINTS[MATCH], part), entries)
    if text_only:
        return
    fetched = [r for r in rows if _fetched(r)]
    pictures = [
        eval_sets.square("white") if r == 8 else eval_sets.square(COLOUR_OF_ROW[r]) for r in fetched
    ]
    parts.write_images(
        pool.images_path(FINGERPRINTS[FETCH], part), [uid(r) for r in fetched], pictures
    )
    if 8 in rows:  # an edit made a newer picture of this row alone
        parts.write_images(
            pool.images_path(FINGERPRINTS[EDIT], part), [uid(8)], [eval_sets.square("yellow")]
        )


def _write_shard(shards_root: str) -> None:
    index, offset = [], 0
    with storage.committed(storage.join(shards_root, "00000.tar")) as tar:
        for row in [r for r in range(len(ROWS)) if ROWS[r][1] is None]:
            record = {
                "url": f"http://pictures.example/{row}.jpg",
                "captions": [{"text": f"rewrite of {row}", "writer": "w"}],
            }
            members = [
                ("png", eval_sets.square(COLOUR_OF_ROW[row])),
                ("txt", (_caption(row) or "").encode()),
                ("json", shards.sample_json(record)),
            ]
            block, rows = shards.sample_block(uid(row), members)
            tar.write(block)
            index += [
                {**entry, "shard": "00000.tar", "offset": offset + entry["offset"]}
                for entry in rows
            ]
            offset += len(block)
        tar.write(tars.END)
    parts.write_table(
        storage.join(shards_root, "index.parquet"), pa.Table.from_pylist(index, shards.INDEX_SCHEMA)
    )


def _manifest(pool_root: str, text_only: bool) -> dict:
    stages, rows_in = [], len(ROWS)
    for name in ORDER:
        reasons: dict[str, int] = {}
        for _, reason, stage in ROWS:
            if stage == name and reason is not None:
                reasons[reason] = reasons.get(reason, 0) + 1
        kept = rows_in - sum(reasons.values())
        stages.append(
            {
                "use": name,
                "fingerprint": FINGERPRINTS[name],
                "rows_in": rows_in,
                "kept": kept,
                "refused": reasons,
                "seconds": 1.5,
            }
        )
        rows_in = kept
    images = [] if text_only else [FINGERPRINTS[FETCH], FINGERPRINTS[EDIT]]
    return {
        "schema_version": 1, "recipe": "tiny", "fingerprint": "ab" * 32, "seed": 3, "rows_in": len(ROWS), "kept": rows_in,
        "shards": 0 if text_only else 1, "stages": stages, "pool": pool_root, "images": images, "packages": {"python": "3.11.0", "numpy": "2.0"},
    }  # fmt: skip
