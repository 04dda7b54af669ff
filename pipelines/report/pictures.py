"""Pictures for the report: of kept rows from the shards, of refused ones from the pool.

Only the pictures shown are read: tar headers are walked by seeking from one to the next.
"""

from __future__ import annotations

import json
import logging
import tarfile
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.contract import parts, shards, storage
from curate.contract.parts import Pool
from pipelines.report import repeated
from pipelines.report.content import Thumb
from pipelines.report.ledger import LedgerSample

_LOG = logging.getLogger("clip_pipe")


def kept(shards_root: str, count: int = 12) -> list[Thumb]:
    """The first samples of the shards (their order is drawn, so these are a fair sample).

    A text-only run has no shards: the first rows of its `kept.parquet` then, without pictures.
    """
    index = storage.join(shards_root, "index.parquet")
    if storage.exists(index):
        return _first_samples(shards_root, index, count)
    path = storage.join(shards_root, "kept.parquet")
    rows = _first_rows(path, count).to_pylist() if storage.exists(path) else []
    return [Thumb(row["uid"], None, row["caption"] or "", note=row["url"] or "") for row in rows]


def refused(
    pool: Pool | None,
    image_fingerprints: Sequence[str],
    samples: Mapping[str, Sequence[LedgerSample]],
    stages: Sequence[Mapping[str, Any]] = (),
) -> dict[str, list[Thumb]]:
    """The sampled rows of each reason, with the newest picture the pool has of each.

    ``image_fingerprints``: of the stages that made pictures, newest last. A row that was refused
    before its picture was fetched has none. ``stages``, of the shards' manifest, tell of which rows
    it is a copy.
    """
    every = [row for rows in samples.values() for row in rows]
    ends = _ends(pool)
    copies = repeated.found(pool, stages, every, ends) if pool is not None and ends else {}
    wanted = [(bisect_right(ends, row.position), row.uid) for row in every]
    wanted += [(copy.row.part, copy.row.uid) for copy in copies.values() if copy.row is not None]
    found = newest(pool, image_fingerprints, wanted) if pool is not None and ends else {}

    def thumb(row: LedgerSample) -> Thumb:
        copy = copies.get(row.position, repeated.Repeated())
        stays = copy.row
        of = None
        if stays is not None:
            of = Thumb(stays.uid, found.get(stays.uid), stays.caption, note=stays.url)
        return Thumb(
            row.uid, found.get(row.uid), row.caption, note=row.url, repeats=of, item=copy.item
        )

    return {reason: [thumb(row) for row in rows] for reason, rows in samples.items()}


def _first_rows(path: str, count: int) -> pa.Table:
    with storage.open_file(path) as file:
        batch = next(pq.ParquetFile(file).iter_batches(count), None)
    return pa.Table.from_batches([batch]) if batch is not None else pa.table({})


def _first_samples(shards_root: str, index: str, count: int) -> list[Thumb]:
    members: dict[tuple[str, str], dict[str, bytes]] = {}
    for row in _first_rows(index, 8 * count).to_pylist():
        sample = (row["shard"], row["key"])
        if sample not in members and len(members) == count:
            break
        name = storage.join(shards_root, row["shard"])
        with storage.open_file(name) as file:
            data = shards.read_member(file, row["offset"], row["size"], row["crc32"], name)
        members.setdefault(sample, {})[row["member"]] = data
    return [_thumb(key, found) for (_, key), found in members.items()]


def _thumb(uid: str, members: Mapping[str, bytes]) -> Thumb:
    record = json.loads(members.get("json", b"{}"))
    caption = members.get("txt", b"").decode("utf-8", "replace")
    image = next((data for name, data in members.items() if name in shards.IMAGE_EXTENSIONS), None)
    return Thumb(
        uid, image, caption, shards.captions_of(caption, record)[1:], str(record.get("url") or "")
    )


def _ends(pool: Pool | None) -> list[int]:
    """Rows of the pool up to the end of each part."""
    description = pool.describe() if pool is not None else None
    if pool is None or description is None:
        return []
    sizes = [parts.read_stats(pool.rows_path(part))["rows"] for part in range(description["parts"])]
    return list(accumulate(sizes))


def newest(
    pool: Pool, fingerprints: Sequence[str], wanted: Sequence[tuple[int, str]]
) -> dict[str, bytes]:
    """uid -> newest picture, for those of the wanted (part, uid) that have one."""
    by_part: dict[int, set[str]] = {}
    for part, uid in wanted:
        by_part.setdefault(part, set()).add(uid)
    found: dict[str, bytes] = {}
    for part, uids in sorted(by_part.items()):
        for fingerprint in reversed(fingerprints):
            missing = uids - found.keys()
            found.update(_from_tar(pool.images_path(fingerprint, part), missing))
    return found


def _from_tar(path: str, uids: set[str]) -> dict[str, bytes]:
    """The wanted members of a pool's images tar; {} where there is no such tar."""
    found: dict[str, bytes] = {}
    if not uids or not storage.exists(path):
        return found
    with storage.open_file(path) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    uid = member.name.split(".", 1)[0]
                    data = tar.extractfile(member) if uid in uids else None
                    if data is not None:
                        found[uid] = data.read()
                    if len(found) == len(uids):
                        break
        except tarfile.TarError as fault:  # a page without some pictures beats no page
            _LOG.warning("%s: %s; its pictures are left out of the report", path, fault)
    return found
