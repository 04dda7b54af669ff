"""Where every sample of a shard set lies: made once, kept as arrays, looked up shard by shard.

A set of ours has ``index.parquet``; tars of img2dataset, DataComp or open_clip are walked once. A
process holds one number per shard and the rows of the shards it reads from now; a large index is a
file in the cache folder. What is damaged keeps a place among the samples, and says what is wrong.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.contract import shards, storage, tars
from pretrain.stream import cache, grouping
from pretrain.stream.grouping import Damage, Rows
from pretrain.stream.remote import Copies, Unreachable, on_disk

_logger = logging.getLogger(__name__)
_SMALL_INDEX_BYTES = 64 << 20  # of parquet, which becomes two or three times as much
_SMALL_TARS_BYTES = 64 << 20  # walked in a moment, so nothing is kept of them
_BATCH_ROWS = 1 << 16
_WALKERS = 8
_ASKED_AT_ONCE = 32  # what a server has of each tar
_FORMAT = 3  # of what is kept: raise it when grouping.SAMPLE or its rules change
_COUNTS = np.dtype([("samples", "<i8"), ("key_bytes", "<i8"), ("end_bytes", "<i8")])


class Cut(NamedTuple):
    """A shard that is shorter than its index says."""

    told: str
    samples: int  # of those that the index names, so many are not there, or not whole


@dataclass(frozen=True)
class Index:
    """The index of one set. ``names`` and ``paths`` are the shards', in order.

    ``cut``: shards that ``index.parquet`` names and that are too short, as far as their size was known.
    ``fingerprint`` is a sha256 over every sample's key, sizes and checksums: equal for equal content.
    """

    names: tuple[str, ...]
    paths: tuple[str, ...]
    found: cache.Arrays
    cut: dict[int, Cut] = field(default_factory=dict)
    _starts: np.ndarray = field(init=False)  # int64 (shards + 1, 2): the first sample and key byte

    def __post_init__(self) -> None:
        counts = np.asarray(self.found["shard"])
        starts = np.zeros((len(counts) + 1, 2), np.int64)
        starts[1:, 0], starts[1:, 1] = np.cumsum(counts["samples"]), np.cumsum(counts["key_bytes"])
        object.__setattr__(self, "_starts", starts)

    @property
    def fingerprint(self) -> str:
        return str(self.found.about["fingerprint"])

    @property
    def counts(self) -> np.ndarray:
        """Samples of each shard, int64 of shape (shards,)."""
        return np.diff(self._starts[:, 0])

    @property
    def fault(self) -> str:
        """One of the faults of a set that holds nothing else, otherwise ""."""
        faults = self.found.about["faults"]
        if sum(map(len, faults.values())) < self._starts[-1, 0]:
            return ""
        return str(next(iter(next(iter(faults.values())).values()))[1])

    @property
    def damage(self) -> dict[int, Damage]:
        """What was found damaged when the tars were walked, by shard; nothing where an index names the samples."""
        return {int(s): Damage(*found) for s, found in self.found.about["damage"].items()}

    def lost_frac(self) -> float:
        """Share of the set that is known to be lost: 0 to 1. Where no index names the samples it is an estimate.

        A damaged tar lost as its unreadable bytes would hold of samples like its others; one that is cut
        at least what it lacks of the median of the undamaged ones (with none of these, of the largest).
        """
        damage, own = self.damage, self.counts
        if self.cut:
            gone = sum(found.samples for found in self.cut.values())
            return gone / float(own.sum()) if gone > 1 else 0.0
        faulty = {shard: len(self.found.about["faults"].get(str(shard), ())) for shard in damage}
        whole = np.delete(own, list(damage))
        typical = float(np.median(whole)) if len(whole) else float(own.max(initial=0))
        lost = 0.0
        for shard, found in damage.items():
            kept = float(own[shard] - faulty[shard])
            sound_bytes = found.tar_bytes - found.gap_bytes
            share = kept * found.gap_bytes / sound_bytes if sound_bytes else 0.0
            if found.is_cut:
                share = max(share, typical - kept)
            lost += max(
                share - faulty[shard], 0.0
            )  # those have a place, and weigh when they are read
        # One sample is not judged by an estimate.
        return lost / (float(own.sum()) + lost) if lost > 1 else 0.0

    @property
    def told(self) -> list[str]:
        """A line for each damaged shard."""
        walked = [found.told for found in self.damage.values()]
        return walked + [found.told for found in self.cut.values()]

    def cut_at(self, shard: int, size_bytes: int) -> Cut | None:
        """What a shard of this size lacks of what ``index.parquet`` names; None where it is whole."""
        end_bytes = int(self.found["shard"]["end_bytes"][shard])
        if size_bytes >= end_bytes:
            return None
        sample = self.found["sample"][self._starts[shard, 0] : self._starts[shard + 1, 0]]
        ends = (sample["offset"] + sample["size"]).max(axis=1)
        lost = int((ends > size_bytes).sum())
        told = (
            f"{self.names[shard]}: ends at byte {size_bytes}, by its index not before {end_bytes}: "
            f"{lost} of its {len(sample)} samples are cut off"
        )
        return Cut(told, lost)

    def rows(self, shard: int) -> Rows:
        """The samples of one shard, copied out of the index."""
        (first, key), (last, key_end) = self._starts[shard], self._starts[shard + 1]
        return Rows(
            np.array(self.found["sample"][first:last]),
            bytes(self.found["key"][key:key_end]),
            {
                int(row): (kind, detail)
                for row, (kind, detail) in self.found.about["faults"].get(str(shard), {}).items()
            },
        )


def load(path: str, root: str, copies: Copies) -> Index:
    """The index of the set at ``path``; ``root`` is the cache folder.

    Raises ValueError for a path without tars, without a sample, or an index that does not fit them.
    """
    try:
        index = _load(path, root, copies)
    except Unreachable as fault:
        raise ValueError(str(fault)) from fault
    # What a filesystem of fsspec raises for a wrong address or missing credentials is its own.
    except Exception as fault:
        if isinstance(fault, ValueError) or not storage.is_url(path):
            raise
        raise ValueError(
            f"{path}: {type(fault).__name__}: {fault}. hint: check the address, and the credentials in the environment"
        ) from fault
    if not index.counts.sum():
        raise ValueError(
            f"{path}: no picture or caption in its tars. hint: members must be named like 0001.jpg, 0001.txt, 0001.json"
        )
    if index.fault:
        raise ValueError(
            f"{path}: no sample can be read, {index.fault}. hint: fetch the tars again"
        )
    return index


def _load(path: str, root: str, copies: Copies) -> Index:
    table = storage.join(path, "index.parquet")
    alone = path.endswith(".tar") or "*" in path or "{" in path
    if not alone and storage.exists(storage.join(path, shards.UNFINISHED)):
        raise ValueError(
            f"{path}: shards that `clip-pipe curate` has not finished. hint: run it to the end"
        )
    if alone or not storage.exists(table):
        return _walked(path, root, copies)
    return _from_parquet(path, table, root)


def _from_parquet(path: str, table: str, root: str) -> Index:
    size = storage.size_bytes(table)
    place = ""
    if size > _SMALL_INDEX_BYTES:
        about = (storage.absolute(table), size, storage.modified(table))
        place = os.path.join(root, "index", cache.key("parquet", _FORMAT, *about))
    with _made_once(root, place):
        found = cache.arrays(place, lambda put: _collect(_shards_of(table), put))
    names = found.about["names"]
    try:
        there = shards.tar_names(path)
    except (ValueError, OSError):
        if not storage.is_url(path):
            raise
        there = {}  # a server that lists nothing: the index alone says what there is
    if not there:
        there = {name: storage.join(path, name) for name in names}
    missing = sorted(set(names) - set(there))
    if missing:
        raise ValueError(_missing(table, missing))
    unnamed = sorted(set(there) - set(names))
    if unnamed:
        _logger.warning(
            "%s: %d tars of the folder, such as %s, are not in it and are not read; "
            "move it away and the tars are walked", table, len(unnamed), unnamed[0]
        )  # fmt: skip
    index = Index(tuple(names), tuple(there[name] for name in names), found)
    sizes = _sizes(path, table, index)
    cuts = {shard: index.cut_at(shard, size) for shard, size in enumerate(sizes) if size >= 0}
    return replace(index, cut={shard: cut for shard, cut in cuts.items() if cut})


def _missing(table: str, names: list[str]) -> str:
    more = f" (nor are {len(names) - 1} more)" if len(names) > 1 else ""
    return (
        f"{table} names {names[0]}, which is not there{more}. "
        "hint: the folder was copied incompletely; copy it again or run `clip-pipe curate` again"
    )


def _sizes(path: str, table: str, index: Index) -> list[int]:
    """Bytes of each shard; -1 where that would take a request for each. Raises ValueError for one that is not there."""
    if not all(map(on_disk, index.paths)):
        try:
            listed = storage.sizes(path)
        # Filesystems raise what they like; what is not known now is seen when a copy is there.
        except Exception:
            listed = {}
        return [listed.get(where, -1) for where in index.paths]
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        # Of each thread a slice: a task for each file would cost more than the disk's own answer.
        slices = [index.paths[n::_ASKED_AT_ONCE] for n in range(_ASKED_AT_ONCE)]
        found = list(pool.map(lambda paths: [*map(_size, paths)], slices))
    sizes = [found[n % _ASKED_AT_ONCE][n // _ASKED_AT_ONCE] for n in range(len(index.paths))]
    gone = [name for name, size in zip(index.names, sizes, strict=True) if size is None]
    if gone:  # a link that leads nowhere
        raise ValueError(_missing(table, gone))
    return [size if size is not None else -1 for size in sizes]


def _size(path: str) -> int | None:
    try:
        return storage.size_bytes(path)
    except FileNotFoundError:
        return None
    except OSError:  # of the disk itself: named when the shard is read
        return -1


def _made_once(root: str, place: str) -> AbstractContextManager[bool | None]:
    return cache.locked(root, "index", place) if place else nullcontext()


def _shards_of(table: str) -> Iterator[tuple[str, Rows]]:
    """The rows of each shard in turn, of an index too large to be held."""
    done: set[str] = set()
    waiting: list[pa.Table] = []
    with storage.open_file(table) as file:
        for batch in _batches(file, table):
            names = batch["shard"].combine_chunks().dictionary_encode()
            codes = names.indices.to_numpy()
            cuts = np.concatenate([[0], np.flatnonzero(np.diff(codes)) + 1, [len(codes)]])
            for start, stop in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
                piece = batch.slice(start, stop - start)
                if waiting and waiting[0]["shard"][0] != piece["shard"][0]:
                    yield _grouped(waiting, done, table)
                    waiting = []
                waiting.append(piece)
    if waiting:
        yield _grouped(waiting, done, table)


def _batches(file: IO[Any], table: str) -> Iterator[pa.Table]:
    try:
        parquet = pq.ParquetFile(file)
        for batch in parquet.iter_batches(
            _BATCH_ROWS, columns=shards.INDEX_SCHEMA.names, use_threads=False
        ):
            found = pa.Table.from_batches([batch])
            if len(found):
                yield found.select(shards.INDEX_SCHEMA.names).cast(shards.INDEX_SCHEMA)
    except (pa.ArrowInvalid, KeyError, OSError) as fault:
        raise ValueError(
            f"{table}: can't be read as an index of shards: {fault}. "
            "hint: it needs shard, key, member, offset, size, crc32; move it away and the tars are walked"
        ) from fault


def _grouped(pieces: list[pa.Table], done: set[str], table: str) -> tuple[str, Rows]:
    whole = pa.concat_tables(pieces).combine_chunks()
    name = str(whole["shard"][0])
    if name in done:
        raise ValueError(
            f"{table}: rows of {name} stand in several places. hint: sort it by shard, or move it away and the tars are walked"
        )
    done.add(name)
    rows = grouping.rows_of(name, whole)
    last = int(pc.max(pc.add(whole["offset"], whole["size"])).as_py())
    rows.end_bytes = last + -last % tars.BLOCK_BYTES + len(tars.END)
    return name, rows


def _collect(found: Iterator[tuple[str, Rows]], put: cache.Put) -> dict[str, Any]:
    """Put the shards' rows one after another; returns their names, faults and fingerprint."""
    names: list[str] = []
    faults: dict[str, dict[int, tuple[str, str]]] = {}
    damage: dict[str, Damage] = {}
    digest = hashlib.sha256()
    put({"sample": np.zeros(0, grouping.SAMPLE), "key": np.zeros(0, np.uint8)})
    put({"shard": np.zeros(0, _COUNTS)})
    for name, rows in found:
        if rows.faults:
            faults[str(len(names))] = rows.faults
        if rows.damage:
            damage[str(len(names))] = rows.damage
        names.append(name)
        digest.update(name.encode() + b"\0" + rows.digest())
        put({"sample": rows.sample, "key": np.frombuffer(rows.keys, np.uint8)})
        put({"shard": np.array([(len(rows.sample), len(rows.keys), rows.end_bytes)], _COUNTS)})
    return {"names": names, "faults": faults, "damage": damage, "fingerprint": digest.hexdigest()}


def _walked(path: str, root: str, copies: Copies) -> Index:
    """The index of tars that have none: each is read once on this machine, whoever comes first."""
    there = shards.tar_names(path)
    with ThreadPoolExecutor(_ASKED_AT_ONCE if storage.is_url(path) else 1) as pool:
        marks = dict(zip(there, pool.map(_mark, there.values()), strict=True))
    sizes = sum(size for size, _ in marks.values())
    if sizes <= _SMALL_TARS_BYTES:
        pairs = ((name, _walk(name, where, copies)) for name, where in there.items())
        made = cache.arrays("", lambda put: _collect(pairs, put))
        return Index(tuple(there), tuple(there.values()), made)
    files = {
        name: os.path.join(
            root, "tar", cache.key(_FORMAT, storage.absolute(where), *marks[name]) + ".npz"
        )
        for name, where in there.items()
    }
    missing = [name for name, file in files.items() if not os.path.exists(file)]
    if missing:
        _logger.warning("%s: %d tars without an index are read once", path, len(missing))
    # Each process begins elsewhere, so that several share the work.
    turn = os.getpid() * 7919 % max(1, len(missing))
    with ThreadPoolExecutor(min(_WALKERS, os.cpu_count() or 1)) as pool:
        for _ in pool.map(
            lambda name: _keep_walk(name, there[name], files[name], root, copies),
            missing[turn:] + missing[:turn],
        ):
            pass
    place = os.path.join(root, "index", cache.key("walked", *files.values()))
    with _made_once(root, place):
        made = cache.arrays(
            place, lambda put: _collect(((n, _read_walk(f)) for n, f in files.items()), put)
        )
    return Index(tuple(there), tuple(there.values()), made)


def _mark(path: str) -> tuple[int, str]:
    """Size and time of change, or what a server calls its version."""
    if on_disk(path):
        return storage.size_bytes(path), storage.modified(path)
    return storage.mark(path)


def _walk(name: str, path: str, copies: Copies) -> Rows:
    with open(copies.open(path), "rb") as file:
        return grouping.walk(name, file)


def _keep_walk(name: str, path: str, kept: str, root: str, copies: Copies) -> None:
    with cache.locked(root, "tar", kept):
        if os.path.exists(kept):
            return
        rows = _walk(name, path, copies)
        packed = io.BytesIO()
        told = np.frombuffer(json.dumps([rows.faults, rows.damage]).encode(), np.uint8)
        np.savez(packed, sample=rows.sample, key=np.frombuffer(rows.keys, np.uint8), told=told)
        with storage.committed(kept) as file:
            file.write(packed.getvalue())


def _read_walk(kept: str) -> Rows:
    with np.load(kept, allow_pickle=False) as found:
        faults, damage = json.loads(found["told"].tobytes())
        return Rows(
            found["sample"],
            found["key"].tobytes(),
            {int(row): (kind, detail) for row, (kind, detail) in faults.items()},
            Damage(*damage) if damage else None,
        )
