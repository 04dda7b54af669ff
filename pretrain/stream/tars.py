"""A shard set read by index: any sample by its number, each member's checksum verified.

Only known members are looked at (a picture, ``txt``, ``json``), and nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.contract import shards, storage
from curate.contract.tars import TarDamage
from pretrain.stream.batch import BadSample, Reader, Sample

_OPEN_FILES = 64
_MEMBERS = (*shards.IMAGE_EXTENSIONS, "txt", "json")


class TarSet(Reader):
    """One shard set. Opens files lazily and per process, so it travels to loader workers.

    Raises ValueError for a path without tars, without a sample, or with a tar that has no index
    and cannot be walked.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            index = shards.load_index(path)
        except TarDamage as fault:
            raise ValueError(
                f"{fault}. hint: this tar is damaged and has no index.parquet beside it; replace it, or move it away"
            ) from fault
        index = index.filter(pc.is_in(index["member"], pa.array(_MEMBERS)))
        if not index.num_rows:
            raise ValueError(
                f"{path}: no picture or caption in its tars. hint: members must be named like 0001.jpg, 0001.txt, 0001.json"
            )
        self._files = shards.tar_names(path)
        self._index = index.combine_chunks()
        shard = self._index["shard"].combine_chunks().dictionary_encode()
        self._names: list[str] = shard.dictionary.to_pylist()
        self._starts, shard_of = _group(
            shard.indices.to_numpy(), self._index["key"].combine_chunks()
        )
        self.counts = tuple(np.bincount(shard_of, minlength=len(self._names)).tolist())
        self._open: OrderedDict[str, IO[Any]] = OrderedDict()
        self._pid = os.getpid()

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def fingerprint(self) -> str:
        """sha256 over every member's name, size and checksum: equal for equal content."""
        digest = hashlib.sha256()
        for name in ("shard", "key", "member"):
            digest.update(
                "\0".join(self._index[name].to_pylist()).encode("utf-8", "surrogateescape")
            )
        for name in ("size", "crc32"):
            digest.update(np.ascontiguousarray(self._index[name].to_numpy()).tobytes())
        return digest.hexdigest()

    def read(self, number: int) -> Sample:
        """The sample with this number, counted through the shards in order. Raises BadSample."""
        rows = self._index.slice(
            self._starts[number], self._starts[number + 1] - self._starts[number]
        )
        members = {row["member"]: row for row in rows.to_pylist()}
        first = next(iter(members.values()))
        where = f"{first['shard']}: sample {first['key']}"
        picture = next((members[name] for name in shards.IMAGE_EXTENSIONS if name in members), None)
        if picture is None:
            raise BadSample("no_picture", f"{where} has members {sorted(members)}")
        record = _record(self._bytes(members["json"]), where) if "json" in members else {}
        caption = self._caption(members, record, where)
        captions = tuple(shards.captions_of(caption, record))
        return Sample(first["key"], self._bytes(picture), caption, captions, record)

    def _caption(self, members: dict[str, Any], record: dict[str, Any], where: str) -> str:
        if "txt" in members:
            try:
                return self._bytes(members["txt"]).decode()
            except UnicodeDecodeError as fault:
                raise BadSample("caption_not_utf8", f"{where}: {fault}") from fault
        if isinstance(record.get("caption"), str):
            return str(record["caption"])
        raise BadSample("no_caption", f"{where} has members {sorted(members)}")

    def _bytes(self, row: dict[str, Any]) -> bytes:
        where = f"{row['shard']}: {row['key']}.{row['member']}"
        try:
            return shards.read_member(
                self._file(row["shard"]), row["offset"], row["size"], row["crc32"], where
            )
        except TarDamage as fault:
            raise BadSample("damaged", str(fault)) from fault

    def _file(self, shard: str) -> IO[Any]:
        if self._pid != os.getpid():  # a forked worker must not share file positions with others
            self._open, self._pid = OrderedDict(), os.getpid()
        if shard in self._open:
            self._open.move_to_end(shard)
        else:
            self._open[shard] = storage.open_file(self._files[shard])
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)[1].close()
        return self._open[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


def _group(shard_rows: np.ndarray, keys: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """Index rows to samples: (first row of each sample and the end, shard number of each sample)."""
    names = keys.dictionary_encode().indices.to_numpy()
    changes = (np.diff(shard_rows) != 0) | (np.diff(names) != 0)
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
    return np.append(starts, len(names)), shard_rows[starts]


def _record(data: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as fault:
        raise BadSample("json", f"{where}: {fault}") from fault
    if not isinstance(record, dict):
        raise BadSample("json", f"{where}: a {type(record).__name__}, not an object")
    return record
