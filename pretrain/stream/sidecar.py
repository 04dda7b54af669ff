"""Columns joined to samples by uid when they are read: captions, stored features, drop lists.

So a new curation decision trains without new shards. A table is sorted once by the first 16 bytes of
the uid (a key that is no uid: by its BLAKE2 digest of that length), and mapped from the cache folder:
no process holds its rows. Rows whose value is null have no opinion and count as missing: so it is in
a pool's own sidecars, where a filter above had refused the row.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import nullcontext
from typing import Any

import numpy as np
import pyarrow as pa

from curate.contract import storage
from pretrain.loop.settings import Sidecar
from pretrain.stream import cache
from pretrain.stream.grouping import text_of
from pretrain.stream.sidecar_rows import Source, files_of

USES = ("captions", "caption", "keep", "features")
_SMALL_BYTES = 8 << 20  # of parquet: such a table is kept in memory, not in the cache folder
_FORMAT = 2  # of what is kept in the cache folder


class Table:
    """One sidecar. Raises ValueError, naming the table, for what can't be joined."""

    def __init__(self, spec: Sidecar, root: str) -> None:
        """``root`` is the cache folder."""
        _check(spec)
        self.use, self.missing = spec.use, spec.missing
        self.column = spec.column or spec.use
        self.name = spec.name or self.column
        self.path = spec.path
        source = Source(spec.path, files_of(spec.path), self.use, self.column)
        files = source.files
        sizes = [storage.size_bytes(file) for file in files]
        marks = [
            (storage.absolute(f), n, storage.modified(f)) for f, n in zip(files, sizes, strict=True)
        ]
        small = sum(sizes) <= _SMALL_BYTES
        name = cache.key(_FORMAT, self.use, self.column, *marks)
        place = "" if small else os.path.join(root, "sidecar", name)
        with nullcontext() if small else cache.locked(root, "index", place):
            self.found = cache.arrays(place, lambda put: self._make(source, put, place))

    @property
    def fingerprint(self) -> str:
        """sha256 over use, missing and the rows: equal for equal content, however it is cut into files."""
        told = (self.use, self.missing, self.name, self.found.about["digest"])
        return hashlib.sha256(repr(told).encode()).hexdigest()

    def example(self) -> str:
        """One of its uids."""
        source = Source(self.path, files_of(self.path), self.use, self.column)
        return next((str(uids[0]) for uids, _ in source.batches()), "")

    @property
    def decides(self) -> bool:
        """Whether it can take samples out of the stream, or must have a row for each."""
        return self.use in ("keep", "features") or self.missing == "drop"

    def find(self, wanted: np.ndarray) -> np.ndarray:
        """The row of each digest (uint64 of shape (2, keys)), -1 where there is none: int64 (keys,)."""
        high, low = self.found["high"], self.found["low"]
        order = np.argsort(wanted[0])  # so that a mapped table is read from front to back
        rows = np.empty(wanted.shape[1], np.int64)
        rows[order] = np.searchsorted(high, wanted[0][order])
        pending = np.arange(len(rows))
        while len(pending):  # more than once only for digests that agree in their first half
            inside = rows[pending] < len(high)
            rows[pending[~inside]] = -1
            pending = pending[inside]
            same = high[rows[pending]] == wanted[0][pending]
            rows[pending[~same]] = -1
            pending = pending[same]
            pending = pending[low[rows[pending]] != wanted[1][pending]]
            rows[pending] += 1
        return rows

    def kept(self, rows: np.ndarray) -> np.ndarray:
        """Which samples stay, by their row of ``find``. Bool of shape (rows,)."""
        there = rows >= 0
        stay = there | (self.missing == "keep")
        if self.use == "keep":
            stay[there] &= self.found["keep"][rows[there]] > 0
        return stay

    def texts(self, row: int) -> list[str]:
        """The captions of a row, in their order."""
        ends = self.found["end"]
        start = int(ends[row - 1]) if row else 0
        return list(json.loads(self.found["text"][start : int(ends[row])].tobytes()))

    def vector(self, row: int) -> np.ndarray:
        """The stored features of a row, float32 of shape (D,)."""
        return np.asarray(self.found["vector"][row], np.float32)

    def _make(self, source: Source, put: cache.Put, place: str) -> dict[str, Any]:
        content: dict[str, Any] = {}
        put_rows = text_bytes = 0
        put({"high": np.zeros(0, np.uint64), "low": np.zeros(0, np.uint64), **self._values(None)})
        for table in source.in_order(place):
            high, low = (np.asarray(table[name]) for name in ("high", "low"))
            order = np.lexsort((low, high))
            high, low = high[order], low[order]
            values = self._values(table["value"].take(pa.array(order)).combine_chunks())
            stays = self._without_repeats(high, low, values, source)
            found = {"high": high[stays], "low": low[stays], **values}
            if "keep" in values:
                found["keep"] = values["keep"][stays]
            if "end" in values:
                found["end"] = values["end"] + text_bytes
                text_bytes += len(values["text"])
            for name, rows in found.items():
                content.setdefault(name, hashlib.sha256()).update(np.ascontiguousarray(rows).data)
            put(found)
            put_rows += len(found["high"])
        if not put_rows:
            raise ValueError(
                f"{self.path}: no row with a value in {self.column!r}. hint: name the right table and column"
            )
        told = sorted((name, one.hexdigest()) for name, one in content.items())
        return {"digest": cache.key(told), "rows": put_rows}

    def _values(self, values: pa.Array | None) -> dict[str, np.ndarray]:
        """Arrays of a sorted bucket's values; of no row where there is none yet."""
        if self.use == "features":
            if values is None:
                return {}
            return {"vector": np.asarray(values.flatten()).reshape(len(values), -1)}
        if self.use == "keep":
            return {
                "keep": np.zeros(0, np.uint8)
                if values is None
                else np.asarray(values.cast(pa.uint8()))
            }
        data, ends = text_of(pa.array([], pa.string()) if values is None else values)
        return {"text": data, "end": ends}

    def _without_repeats(
        self, high: np.ndarray, low: np.ndarray, values: dict[str, np.ndarray], source: Source
    ) -> np.ndarray:
        """Which rows stay: the first of each uid. Raises ValueError for two that differ."""
        again = np.zeros(len(high), bool)
        again[1:] = (np.diff(high) == 0) & (np.diff(low) == 0)
        differ = again
        if "keep" in values:
            differ = again.copy()
            differ[1:] &= np.diff(values["keep"].astype(np.int8)) != 0
        if differ.any():
            row = int(np.flatnonzero(differ)[0])
            uid = source.uid_of(high[row], low[row])
            raise ValueError(
                f"{self.path}: several rows of uid {uid} have a value in {self.column!r}. hint: give one row for each uid"
            )
        return ~again


def _check(spec: Sidecar) -> None:
    for name, found, known in (
        ("use", spec.use, USES),
        ("missing", spec.missing, ("keep", "drop")),
    ):
        if found not in known:
            raise ValueError(
                f"train.sidecar {spec.path}: {name} = {found!r}. hint: one of {', '.join(known)}"
            )
