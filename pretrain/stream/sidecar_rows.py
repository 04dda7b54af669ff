"""The rows of a sidecar's parquet files: checked, by digest of the uid, values in one form.

Sorted bucket by bucket where they are too many for memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.contract import storage
from pretrain.stream.grouping import text_of

_ROWS_AT_ONCE = 20_000_000  # more are sorted bucket by bucket
_BUCKETS = 256
_BATCH_ROWS = 1 << 16
_REPEAT = "duplicate.pair"  # the ledger's word for a further row of one pair
_UID_CHARACTERS = 32
_NIBBLES = np.full(256, 255, np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_WANTED = {
    "captions": "text, or a list of texts or of objects with `text`",
    "caption": "text",
    "keep": "true or false",
    "features": "a list of numbers",
}


def digests(data: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """16 bytes for each key, as (high, low) uint64 of shape (2, rows); see ``grouping.text_of``."""
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    found = np.zeros((len(ends), 16), np.uint8)
    is_uid = ends - starts == _UID_CHARACTERS
    if is_uid.all():
        letters = data.reshape(-1, _UID_CHARACTERS)
    else:
        letters = data[starts[is_uid, None] + np.arange(_UID_CHARACTERS)]
    nibbles = _NIBBLES[letters]
    found[is_uid] = nibbles[:, ::2] << 4 | (nibbles[:, 1::2] & 15)
    is_uid[is_uid] = (nibbles < 16).all(axis=1)
    for row in np.flatnonzero(~is_uid).tolist():
        text = data[starts[row] : ends[row]].tobytes()
        found[row] = np.frombuffer(hashlib.blake2b(text, digest_size=16).digest(), np.uint8)
    return found.view(">u8").reshape(-1, 2).T.astype(np.uint64)


@dataclass(frozen=True)
class Source:
    """The column of a table (``path``, in ``files``) that is put to a use."""

    path: str
    files: tuple[str, ...]
    use: str
    column: str

    def uid_of(self, high: Any, low: Any) -> str:
        for uids, _ in self.batches():
            found = digests(*text_of(uids))
            rows = np.flatnonzero((found[0] == high) & (found[1] == low))
            if len(rows):
                return str(uids[int(rows[0])])
        return f"{high:016x}{low:016x}"

    def in_order(self, place: str) -> Iterator[pa.Table]:
        """high, low, value of all rows, in tables that follow one another by their digests' first byte."""
        rows, halves = self._look()
        if rows <= _ROWS_AT_ONCE or not place:
            yield pa.concat_tables(list(self._pieces(halves)) or [_NOTHING])
            return
        paths = [
            f"{place}{storage.TEMPORARY}{os.uname().nodename}-{os.getpid()}-bucket{n}"
            for n in range(_BUCKETS)
        ]
        writers: dict[int, Any] = {}
        os.makedirs(os.path.dirname(place), exist_ok=True)
        try:
            for piece in self._pieces(halves):
                bucket = (np.asarray(piece["high"]) >> np.uint64(56)).astype(np.int64)
                order = np.argsort(bucket, kind="stable")
                piece = piece.take(pa.array(order))
                ends = np.cumsum(np.bincount(bucket, minlength=_BUCKETS)).tolist()
                for number, (start, stop) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
                    if stop > start:
                        if number not in writers:
                            writers[number] = pa.ipc.new_stream(paths[number], piece.schema)
                        writers[number].write_table(piece.slice(start, stop - start))
            for number in sorted(writers):
                writers[number].close()
                with pa.ipc.open_stream(paths[number]) as stream:
                    yield stream.read_all()
        finally:
            for path in paths:
                if os.path.exists(path):
                    os.remove(path)

    def _look(self) -> tuple[int, bool]:
        """(rows of all files, whether all hold their numbers in 16 bits). Raises ValueError for files that don't fit."""
        rows, halves = 0, True
        for path in self.files:
            with storage.open_file(path) as file:
                try:
                    parquet = pq.ParquetFile(file)
                except (pa.ArrowInvalid, OSError) as fault:
                    raise ValueError(
                        f"{path}: can't be read as parquet: {fault}. hint: write or fetch it again"
                    ) from fault
                self._columns(parquet.schema_arrow, path)
                kind = parquet.schema_arrow.field(self.column).type
                halves &= self.use == "features" and bool(pa.types.is_float16(kind.value_type))
                rows += int(parquet.metadata.num_rows)
        return rows, halves

    def _pieces(self, halves: bool) -> Iterator[pa.Table]:
        width = 0
        for uids, values in self.batches():
            found = digests(*text_of(uids))
            if self.use == "features":
                values, width = self._vectors(values, width, halves)
            elif self.use != "keep":
                values = self._json(values)
            yield pa.table({"high": found[0], "low": found[1], "value": values})

    def batches(self) -> Iterator[tuple[pa.Array, pa.Array]]:
        """(uids, values) of the rows that have a value."""
        for path in self.files:
            with storage.open_file(path) as file:
                parquet = pq.ParquetFile(file)
                names = self._columns(parquet.schema_arrow, path)
                for batch in parquet.iter_batches(_BATCH_ROWS, columns=names, use_threads=False):
                    there = pc.is_valid(batch[self.column])
                    if _is_text(_plain_type(batch[self.column].type)):  # an empty text is none
                        there = pc.and_(there, pc.not_equal(_plain(batch[self.column]), ""))
                        there = pc.fill_null(there, False)
                    if "reason" in names:
                        repeat = pc.equal(batch["reason"].cast(pa.string()), _REPEAT)
                        there = pc.and_(there, pc.invert(pc.fill_null(repeat, False)))
                    batch = batch.filter(there)
                    uids = batch["uid"]
                    if uids.null_count:
                        raise ValueError(f"{path}: a row without uid. hint: give each row its uid")
                    if len(batch):
                        yield uids.cast(pa.string()), _plain(batch[self.column])

    def _columns(self, schema: pa.Schema, path: str) -> list[str]:
        for name in ("uid", self.column):
            if name not in schema.names:
                raise ValueError(
                    f"{path}: no column {name!r}, only {', '.join(schema.names)}. "
                    "hint: a sidecar has `uid` and the column named by `column`"
                )
        kind = _plain_type(schema.field("uid").type)
        if not _is_text(kind):
            raise ValueError(
                f"{path}: column 'uid' is {kind}. hint: uids are text, the samples' keys: 32 small hex digits in shards of ours"
            )
        kind = _plain_type(schema.field(self.column).type)
        if not _fits(self.use, kind):
            raise ValueError(
                f'{path}: column {self.column!r} is {kind}, not what use = "{self.use}" takes. hint: {_WANTED[self.use]}'
            )
        with_reason = self.use == "keep" and "reason" in schema.names
        return ["uid", self.column, *(["reason"] if with_reason else [])]

    def _vectors(self, values: pa.Array, width: int, halves: bool) -> tuple[pa.Array, int]:
        """The features as lists of one fixed length, float16 if ``halves``, otherwise float32."""
        if pa.types.is_fixed_size_list(values.type):
            lengths = np.array([values.type.list_size])
        else:
            lengths = np.unique(np.asarray(pc.list_value_length(values)))
        width = width or int(lengths[0])
        flat = values.flatten()
        numbers = np.asarray(
            flat.to_numpy(zero_copy_only=False), np.float16 if halves else np.float32
        )
        if set(lengths.tolist()) != {width} or not width:
            raise ValueError(
                f"{self.path}: features of {sorted({width, *lengths.tolist()})} numbers. hint: all rows have one length"
            )
        if flat.null_count or not np.isfinite(numbers).all():
            raise ValueError(
                f"{self.path}: {self.column!r} holds numbers that are null or not finite. hint: leave such rows out"
            )
        return pa.FixedSizeListArray.from_arrays(pa.array(numbers), width), width

    def _json(self, values: pa.Array) -> pa.Array:
        """Every row's texts as a JSON list."""
        if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            texts = [_texts(row) for row in values.to_pylist()]
        else:
            texts = [[text] for text in values.to_pylist()]
        return pa.array([json.dumps(row) for row in texts], pa.large_string())


_NOTHING = pa.table(
    {
        "high": np.zeros(0, np.uint64),
        "low": np.zeros(0, np.uint64),
        "value": pa.array([], pa.large_string()),
    }
)


def _texts(row: list[Any]) -> list[str]:
    found = [entry.get("text") if isinstance(entry, dict) else entry for entry in row]
    return [text for text in found if text]


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _plain(values: pa.Array) -> pa.Array:
    return values.cast(_plain_type(values.type))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _fits(use: str, kind: pa.DataType) -> bool:
    is_text = _is_text(kind)
    inner = (
        kind.value_type
        if isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType)
        else None
    )
    if use == "keep":
        return bool(pa.types.is_boolean(kind))
    if use == "features":
        return inner is not None and bool(pa.types.is_floating(inner))
    if is_text or use == "caption":
        return bool(is_text)
    if inner is None or isinstance(kind, pa.FixedSizeListType):
        return False
    if pa.types.is_struct(inner):
        return any(entry.name == "text" and _is_text(entry.type) for entry in inner)
    return _is_text(inner)


def files_of(path: str) -> tuple[str, ...]:
    """The parquet files of a sidecar: itself, those of a glob, or a folder's parts."""
    if path.endswith(".parquet") and "*" not in path:
        inside = storage.inside(path, "part-*.parquet")  # a ledger may be a folder
        found = inside or ([path] if storage.exists(path) else [])
    elif "*" in path:
        found = storage.glob(path)
    else:
        found = storage.inside(path, "part-*.parquet") or storage.inside(path, "*.parquet")
        columns = path.rstrip("/").rpartition("/")[0]
        pool = storage.join(columns.rpartition("/")[0], "pool.json")
        if (
            columns.endswith("/columns")
            and storage.exists(pool)
            and not storage.exists(storage.join(path, "manifest.json"))
        ):
            raise ValueError(
                f"{path}: a sidecar that `clip-pipe curate` has not finished. hint: run it to the end"
            )
    found = [file for file in found if storage.TEMPORARY not in file]
    if not found:
        raise ValueError(
            f"{path}: no parquet file there. hint: name a parquet file, a folder of them, or a glob"
        )
    return tuple(found)
