"""Kept rows become shuffled, byte-reproducible webdataset tars.

Each part is packed into finished tar blocks, one per sample, sorted by ``draw(uid, salt)``. A shard
is a range of ranks in that order over all parts, so assembling it copies byte ranges and decodes
nothing. Ranks come from a histogram of the draws: no process holds more than one shard's index.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.contract import parts, shards, storage, tables, tars
from curate.contract.done import Damaged, Written
from curate.contract.draw import draws
from curate.stage import Pictures, ShardStage

_BUCKETS = 1 << 16
_ROWS_AT_ONCE = 1_000
_ROW_GROUP_ROWS = 1000  # rows are sorted by bucket, so a shard reads the row groups of its own only
_OPEN_FILES = 64
_ASKED_AT_ONCE = 16  # blocks of remote files
_NOT_IN_JSON = ("image", "keep", "reason", "part", "row")
_PACKED_SCHEMA = pa.schema(
    [
        ("bucket", pa.int32()),
        ("draw", pa.float64()),
        ("uid", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("members", pa.list_(pa.struct([("member", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("crc32", pa.uint32())]))),
    ]
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Write(ShardStage):
    """Options: how many samples a tar holds, and the seed of their order."""

    samples_per_shard: int = 10_000
    seed: int = 0

    def check(self) -> None:
        if self.samples_per_shard < 1:
            raise ValueError(f"samples_per_shard = {self.samples_per_shard}. hint: at least 1")

    def pack(
        self, samples: pa.Table, pictures: Pictures, blocks_path: str, index_path: str
    ) -> dict[int, int]:
        uids = samples["uid"].to_pylist()
        order = _Order.of(uids, f"shard:{self.seed}")
        rows: list[dict[str, Any]] = []
        offset = 0
        with storage.committed(blocks_path) as file:
            for row, draw in order.rows_of(samples, pictures):
                block, members = shards.sample_block(row["uid"], sample_members(row))
                file.write(block)
                for member in members:
                    del member["key"]
                rows.append(
                    {
                        "bucket": int(draw * _BUCKETS),
                        "draw": draw,
                        "uid": row["uid"],
                        "offset": offset,
                        "size": len(block),
                        "members": members,
                    }
                )
                offset += len(block)
        table = pa.Table.from_pylist(rows, _PACKED_SCHEMA)
        parts.write_table(index_path, table, row_group_rows=_ROW_GROUP_ROWS)
        counts = pc.value_counts(table["bucket"]).to_pylist()
        return {entry["values"]: entry["counts"] for entry in counts}

    def slices(self, histogram: Mapping[int, int]) -> list[tuple[int, ...]]:
        """(lowest bucket, highest bucket, ranks to skip in the lowest, samples) of each tar."""
        counts = np.zeros(_BUCKETS, dtype=np.int64)
        for bucket, count in histogram.items():
            counts[bucket] = count
        ends = np.cumsum(counts)
        found: list[tuple[int, ...]] = []
        for first in range(0, int(ends[-1]), self.samples_per_shard):
            last = min(first + self.samples_per_shard, int(ends[-1]))
            low = int(np.searchsorted(ends, first, side="right"))
            high = int(np.searchsorted(ends, last, side="left"))
            found.append((low, high, first - int(ends[low] - counts[low]), last - first))
        return found

    def assemble(
        self, piece: tuple[int, ...], packed: Sequence[tuple[str, str]], path: str
    ) -> pa.Table:
        low, high, skip, count = piece
        chosen = islice(_chosen(packed, low, high), skip, skip + count)
        return _write_tar(path, ((blocks_path, entry) for _, _, blocks_path, entry in chosen))

    def gather(self, index_paths: Mapping[int, str], cuts: int, path: str) -> Written:
        found = []
        for number, index_path in index_paths.items():
            index = parts.read_table(index_path)
            of = pa.array(np.full(len(index), number, np.int32))
            found.append(index.append_column("part", of))
        whole = pa.concat_tables(found).combine_chunks()
        cut = _cut_of(np.asarray(whole["bucket"]).astype(np.int64), cuts)
        whole = whole.take(pa.array(np.argsort(cut, kind="stable")))
        with tables.writing(path) as file:
            start = 0
            for count in np.bincount(cut, minlength=cuts).tolist():
                file.add(whole.slice(start, count))
                start += count
        return file.written

    def assemble_gathered(
        self,
        piece: tuple[int, ...],
        gathered: Sequence[str],
        cuts: int,
        blocks_path: Callable[[int], str],
        path: str,
    ) -> pa.Table:
        low, high, skip, count = piece
        first, last = _cut_of(np.array([low, high]), cuts).tolist()
        of_range = (pc.field("bucket") >= low) & (pc.field("bucket") <= high)
        found = pa.concat_tables(
            [
                table.filter(of_range)
                for file in gathered
                for table in tables.read(file, first, cuts, last - first + 1)
            ]
        )
        order = np.lexsort((np.array(found["uid"].to_pylist(), "U32"), np.asarray(found["draw"])))
        chosen = found.take(pa.array(order[skip : skip + count])).to_pylist()
        return _write_tar(path, ((blocks_path(entry["part"]), entry) for entry in chosen))


def _cut_of(buckets: np.ndarray, cuts: int) -> np.ndarray:
    """Which of ``cuts`` pieces of the order a bucket is in. Int64."""
    return buckets * cuts // _BUCKETS


def _write_tar(path: str, chosen: Iterable[tuple[str, dict[str, Any]]]) -> pa.Table:
    """Copy the blocks of samples, each (blocks path, entry), into a tar. Returns its index."""
    rows: list[dict[str, Any]] = []
    offset = 0
    name = path.rsplit("/", 1)[-1]
    with _Blocks() as blocks, storage.committed(path) as tar:
        for entry, block in blocks.read_all(chosen):
            tar.write(block)
            for member in entry["members"]:
                place = {"offset": offset + member["offset"], "shard": name, "key": entry["uid"]}
                rows.append({**member, **place})
            offset += entry["size"]
        tar.write(tars.END)
    return pa.Table.from_pylist(rows, shards.INDEX_SCHEMA)


class _Blocks:
    """Reads byte ranges of many files with a bounded number of them open."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, Any] = OrderedDict()

    def __enter__(self) -> _Blocks:
        return self

    def __exit__(self, *_: object) -> None:
        while self._files:
            self._files.popitem()[1].close()

    def read_all(
        self, chosen: Iterable[tuple[str, dict[str, Any]]]
    ) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Each entry with its bytes, in order; of remote files some at a time, since each takes a journey."""
        left = iter(chosen)
        with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
            while several := list(islice(left, _ASKED_AT_ONCE)):
                places = [(path, entry["offset"], entry["size"]) for path, entry in several]
                if storage.is_url(several[0][0]):
                    found: Iterable[bytes] = pool.map(storage.read_range, *zip(*places))
                else:
                    found = (self.read(*place) for place in places)
                for (path, entry), data in zip(several, found, strict=True):
                    if len(data) != entry["size"]:
                        raise Damaged(path, f"ends within the sample at byte {entry['offset']}")
                    yield entry, data

    def read(self, path: str, offset: int, size: int) -> bytes:
        if path not in self._files:
            if len(self._files) >= _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            self._files[path] = storage.open_file(path)
        self._files.move_to_end(path)
        file = self._files[path]
        file.seek(offset)
        return file.read(size)


def sample_members(row: dict[str, Any]) -> list[tuple[str, bytes]]:
    """The tar members of one row: its picture, its alt-text, and everything known about it as JSON."""
    image: bytes = row["image"]
    record = {key: value for key, value in row.items() if key not in _NOT_IN_JSON}
    record["key"] = row["uid"]
    return [
        (tars.image_extension(image), image),
        ("txt", row["caption"].encode("utf-8", "replace")),
        ("json", shards.sample_json(record)),
    ]


@dataclass(frozen=True)
class _Order:
    """The order of a part's rows by draw, then uid."""

    draws: np.ndarray
    positions: np.ndarray

    @classmethod
    def of(cls, uids: list[str], salt: str) -> _Order:
        drawn = draws(uids, salt)
        return cls(drawn, np.lexsort((np.array(uids, dtype="U32"), drawn)))

    def rows_of(
        self, table: pa.Table, pictures: Pictures
    ) -> Iterator[tuple[dict[str, Any], float]]:
        """(row with its picture, its draw) in order; a few rows at a time become Python objects."""
        for start in range(0, len(self.positions), _ROWS_AT_ONCE):
            positions = self.positions[start : start + _ROWS_AT_ONCE]
            rows = table.take(positions).to_pylist()
            for row, draw in zip(rows, self.draws[positions].tolist(), strict=True):
                (row["image"],) = pictures([row["uid"]])
                yield row, draw


def _chosen(
    packed: Sequence[tuple[str, str]], low: int, high: int
) -> Iterator[tuple[float, str, str, dict[str, Any]]]:
    """(draw, uid, blocks path, entry) of every packed sample in the bucket range, in rank order."""
    wanted = (pc.field("bucket") >= low) & (pc.field("bucket") <= high)

    def of_part(
        blocks_path: str, index_path: str
    ) -> Iterator[tuple[float, str, str, dict[str, Any]]]:
        with storage.open_file(index_path) as file:
            table = pq.read_table(file, filters=wanted)
        for entry in table.to_pylist():
            yield entry["draw"], entry["uid"], blocks_path, entry

    return heapq.merge(*(of_part(*paths) for paths in packed), key=lambda item: item[:2])
