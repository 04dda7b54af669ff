"""Whether shards are what their index, sizes, manifest and ledger say: every tar read to its end, every checksum.

Foreign tars (no index, no manifest) are read too: damage and keys that occur twice are told. Per sample 8 bytes
are held, a hash of its key, and of the index a few tars' rows at a time.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.contract import listing, shards, storage, tars
from curate.contract.listing import Entry
from pipelines.faults import Fault, Faults, json_fault, mapped, some, spread

_AGAIN = "copy it again, or delete the whole folder and run `clip-pipe curate` again: the pool has all that shards are made of"
_FOREIGN = "fetch it again; `clip-pipe train` can leave damaged samples out (train.max_bad_frac)"
_MOST = 20  # faults of one shard that are named; the rest is counted
_HEX = np.full(256, 255, np.uint8)
_HEX[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


@dataclass
class Seen:
    """What was found of one shard. ``marks``: a hash of each of its keys, uint64 of shape (samples,)."""

    faults: list[Fault] = field(default_factory=list)
    marks: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    members: int = 0


class _Index:
    """index.parquet, read tar by tar: each row group says by its statistics which shards it may hold."""

    def __init__(self, path: str, found: Faults, opened: ExitStack) -> None:
        self._path, self._found = path, found
        self._file: pq.ParquetFile | None = None
        self._groups: list[tuple[str, str] | None] = []  # first and last shard; None: not told
        if not storage.exists(path):
            return
        try:
            file = pq.ParquetFile(opened.enter_context(storage.open_file(path)))
            lacking = set(shards.INDEX_SCHEMA.names) - set(file.schema_arrow.names)
            if lacking:
                raise OSError(f"no column {sorted(lacking)[0]}")
            column = file.schema_arrow.get_field_index("shard")
            for group in range(file.num_row_groups):
                told = file.metadata.row_group(group).column(column).statistics
                known = told is not None and told.has_min_max
                self._groups.append((told.min, told.max) if known else None)
            self._file = file
        except (pa.ArrowException, OSError) as fault:
            self._broken(fault)

    def of(self, shard: str) -> pa.Table | None:
        """The rows of a tar, in the order of its members; None where there is no index that can be read."""
        if self._file is None:
            return None
        here = [n for n, span in enumerate(self._groups) if not span or span[0] <= shard <= span[1]]
        try:
            table = self._file.read_row_groups(here, shards.INDEX_SCHEMA.names, use_threads=False)
            table = table.select(shards.INDEX_SCHEMA.names).cast(shards.INDEX_SCHEMA)
        except (pa.ArrowException, OSError) as fault:
            self._broken(fault)
            return None
        return table.filter(pc.equal(table["shard"], shard))

    def _broken(self, fault: Exception) -> None:
        self._file = None
        self._found.add(self._path, "", f"can't be read: {str(fault).splitlines()[0]}", _AGAIN)


def check(root: str, quick: bool, found: Faults) -> None:
    """Add to ``found`` what is wrong with a shards folder."""
    marker = storage.join(root, shards.UNFINISHED)
    if storage.exists(marker):
        found.add(marker, "", "the shards are not finished: a run writes them, or died here", "run `clip-pipe curate` again: it goes on")  # fmt: skip
        return
    manifest, sizes = _json(root, "manifest.json", found), _json(root, "sizes.json", found)
    there = {entry.name: entry for entry in listing.files(root) if entry.name.endswith(".tar")}
    for name in sorted(set(sizes or {}) - set(there)):
        found.add(storage.join(root, name), f"shard {name}", "is not there, and sizes.json names it", _AGAIN)  # fmt: skip
    if manifest is not None and manifest.get("shards", len(there)) != len(there):
        found.add(storage.join(root, "manifest.json"), "", f"names {manifest['shards']} shards, and {len(there)} are there", _AGAIN)  # fmt: skip
    for name in sorted(there):
        if sizes is not None and name not in sizes:
            found.add(there[name].path, f"shard {name}", "sizes.json does not name it", _AGAIN)
    marks = _check_tars(root, [there[name] for name in sorted(there)], sizes or {}, quick, found)
    found.saw("shards", len(there))
    found.saw("samples", len(marks))
    kept = _check_ledger(root, manifest, found)
    if kept is not None and manifest is not None:
        _check_kept(root, manifest, marks, kept, bool(there), found)


def _check_tars(
    root: str, there: list[Entry], sizes: Mapping[str, Any], quick: bool, found: Faults
) -> np.ndarray:
    every = []
    of = [entry.name for entry in there]
    has_index = False

    def calls(index: _Index) -> Iterator[tuple[Any, ...]]:
        nonlocal has_index
        for one in there:
            own = index.of(one.name)
            has_index = has_index or own is not None
            yield one.path, one.name, one.bytes, own, sizes.get(one.name), quick

    with ExitStack() as opened:
        index = _Index(storage.join(root, "index.parquet"), found, opened)
        pool = opened.enter_context(spread(root, 0 if quick else sum(one.bytes for one in there)))
        for seen in mapped(pool, check_shard, calls(index)):
            found.extend(seen.faults)
            found.saw("members", seen.members)
            every.append(seen.marks)
    marks = np.concatenate(every) if every else np.zeros(0, np.uint64)
    unique, counts = np.unique(marks, return_counts=True)
    twice = unique[counts > 1]
    if len(twice):
        names = [name for name, own in zip(of, every, strict=True) if np.isin(own, twice).any()]
        what = f"{len(twice):,} keys occur in more than one place"
        if has_index:
            found.add(root, f"shards {some(names)}", what, _AGAIN)
        else:  # other tools number samples anew in each shard
            found.notes.append(f"{root}: shards {some(names)}: {what}")
    return marks


def check_shard(
    path: str, name: str, size: int, index: pa.Table | None, samples: int | None, quick: bool
) -> Seen:
    """Look at one tar. ``index``: its rows in index.parquet; ``samples``: what sizes.json says."""
    seen = Seen()
    faults: list[Fault] = []
    hint = _FOREIGN if index is None else _AGAIN

    def add(at: str, what: str) -> None:
        faults.append(Fault(path, f"shard {name}{', ' + at if at else ''}", what, hint))

    if quick and index is not None:
        keys = index["key"].combine_chunks()
        ends = pc.max(pc.add(index["offset"], index["size"])).as_py() or 0
        least = ends + -ends % tars.BLOCK_BYTES + len(tars.END)
        if size < least:
            add("", f"{size:,} bytes; its index wants {least:,} or more: it is cut")
    elif quick:
        keys = pa.array([], pa.string())
    else:
        keys = _read(path, index, add, seen)
    unique = pc.unique(keys)
    if samples is not None and len(unique) != samples and (index is not None or not quick):
        add("", f"{len(unique):,} samples, and sizes.json says {samples:,}")
    if not _are_adjacent(keys):
        add("", "members of a sample do not stand together")
    seen.marks = marks_of(unique)
    if len(faults) > _MOST:
        more = len(faults) - _MOST
        faults[_MOST:] = [Fault(path, f"shard {name}", f"and {more:,} more faults", hint)]
    seen.faults = faults
    return seen


def _read(path: str, index: pa.Table | None, add: Any, seen: Seen) -> pa.Array:
    """Every member of a tar held against its index; the keys as they stand in the tar."""
    keys: list[str] = []
    wanted: dict[tuple[str, str], tuple[int, int, int]] = {}
    if index is not None:
        columns = [index[column].to_pylist() for column in ("key", "member", "offset", "size", "crc32")]  # fmt: skip
        wanted = {(k, m): (o, s, c) for k, m, o, s, c in zip(*columns, strict=True)}
        if len(wanted) != len(index):
            add("", f"{len(index) - len(wanted):,} members stand twice in index.parquet")
    met: set[tuple[str, str]] = set()
    try:
        with storage.open_shard(path) as file:
            for one in tars.survey(file, path):
                if isinstance(one, tars.Gap):
                    add(f"byte {one.offset:,} to {one.end:,}", one.fault.removeprefix(f"{path}: "))
                    continue
                seen.members += 1
                key, member = shards.split_name(one.name)
                keys.append(key)
                if (key, member) in met:
                    add(
                        f"key {key}, byte {one.offset:,}",
                        f"its {member} stands there a second time",
                    )
                met.add((key, member))
                if index is None:
                    continue
                own = (one.offset, one.size, zlib.crc32(one.data))
                told = wanted.pop((key, member), None)
                if told is None:
                    add(f"key {key}, byte {one.offset:,}", f"its {member} is not in index.parquet")
                elif told != own:
                    add(f"key {key}, byte {one.offset:,}", f"its {member} {_differs(own, told)}")
    except OSError as fault:
        add("", f"can't be read: {fault.strerror or fault}")
    for (key, member), (offset, *_) in wanted.items():
        add(f"key {key}, byte {offset:,}", f"its {member} is in index.parquet, and not there")
    return pa.array(keys, pa.string())


def _differs(own: tuple[int, int, int], told: tuple[int, int, int]) -> str:
    if own[:2] == told[:2]:
        return "has another checksum than index.parquet says: its bytes were changed"
    return f"has {own[1]:,} bytes at {own[0]:,}; index.parquet says {told[1]:,} at {told[0]:,}"


def _are_adjacent(keys: pa.Array) -> bool:
    """Whether equal keys stand together."""
    if len(keys) < 2:
        return True
    codes = np.asarray(keys.dictionary_encode().indices)
    return int((np.diff(codes) != 0).sum()) + 1 == len(np.unique(codes))


def marks_of(keys: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """64 bits of each key: of a uid its first 16 hex digits, of others a hash. uint64 of shape (keys,)."""
    if isinstance(keys, pa.ChunkedArray):
        keys = keys.combine_chunks()
    marks = np.zeros(len(keys), np.uint64)
    is_uid = np.asarray(pc.fill_null(pc.match_substring_regex(keys, "^[0-9a-f]{32}$"), False))
    digits = pc.utf8_slice_codeunits(keys.filter(pa.array(is_uid)), 0, 16)
    letters = np.frombuffer("".join(digits.to_pylist()).encode(), np.uint8).reshape(-1, 16)
    value = np.zeros(len(letters), np.uint64)
    for column in range(16):
        value = (value << np.uint64(4)) | _HEX[letters[:, column]].astype(np.uint64)
    marks[is_uid] = value
    others = keys.filter(pa.array(~is_uid)).to_pylist()
    hashed = [int.from_bytes(blake2b(str(key).encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big") for key in others]  # fmt: skip
    marks[~is_uid] = np.array(hashed, np.uint64)
    return marks


def _json(root: str, name: str, found: Faults) -> dict[str, Any] | None:
    path = storage.join(root, name)
    if not storage.exists(path):
        return None
    try:
        return storage.read_json(path, "verify")
    except ValueError as fault:
        found.add(path, "", json_fault(fault, "verify", path), _AGAIN)
        return None


def _check_ledger(
    root: str, manifest: Mapping[str, Any] | None, found: Faults
) -> np.ndarray | None:
    """Rows, reasons and sums of the ledger; the marks of its kept rows. None where it can't be told."""
    path = storage.join(root, "ledger.parquet")
    if manifest is None:
        return None
    files = [e.path for e in listing.files(path)] or ([path] if storage.exists(path) else [])
    if not files:
        found.add(path, "", "is not there", _AGAIN)
        return None
    rows, marks, refused = 0, [], Counter[tuple[str, str]]()
    try:
        for file_path in files:
            with storage.open_file(file_path) as file:
                opened = pq.ParquetFile(file)
                for group in range(opened.num_row_groups):
                    table = opened.read_row_group(group, ["uid", "keep", "reason", "stage"], use_threads=False)  # fmt: skip
                    _check_reasons(file_path, rows, table, refused, found)
                    marks.append(marks_of(table.filter(table["keep"])["uid"]))
                    rows += len(table)
    except (pa.ArrowException, OSError, KeyError) as fault:
        found.add(path, "", f"can't be read: {str(fault).splitlines()[0]}", _AGAIN)
        return None
    found.saw("ledger rows", rows)
    if rows != manifest.get("rows_in"):
        found.add(path, "", f"{rows:,} rows, and the source had {manifest.get('rows_in')}", _AGAIN)
    try:
        told = {
            (stage.get("use"), reason): count
            for stage in manifest.get("stages", [])
            for reason, count in stage.get("refused", {}).items()
        }
    except (AttributeError, TypeError):
        found.add(
            storage.join(root, "manifest.json"), "", "its stages are no list of counts", _AGAIN
        )
        return None
    for stage, reason in sorted({*told, *refused}):
        if told.get((stage, reason), 0) != refused[(stage, reason)]:
            found.add(path, f"stage {stage}", f"{refused[(stage, reason)]:,} rows with {reason}, and manifest.json says {told.get((stage, reason), 0):,}", _AGAIN)  # fmt: skip
    return np.concatenate(marks) if marks else np.zeros(0, np.uint64)


def _check_reasons(
    path: str, before: int, table: pa.Table, refused: Counter[tuple[str, str]], found: Faults
) -> None:
    """Exactly one reason, and the stage that gave it, for each refused row; none for a kept one."""
    keep = table["keep"]
    both = pc.and_(pc.is_valid(table["reason"]), pc.is_valid(table["stage"]))
    neither = pc.and_(pc.is_null(table["reason"]), pc.is_null(table["stage"]))
    right = pc.fill_null(pc.if_else(keep, neither, both), False)
    row = pc.index(right, False).as_py()
    if row >= 0:
        what = "is kept and has a reason" if table["keep"][row].as_py() else "is refused and has no reason or stage"  # fmt: skip
        found.add(path, f"row {before + row:,}, key {table['uid'][row]}", f"{what}; {len(table) - pc.sum(right).as_py():,} such rows here", _AGAIN)  # fmt: skip
    gone = table.filter(pc.invert(pc.fill_null(keep, False)))
    counted = gone.group_by(["stage", "reason"]).aggregate([([], "count_all")])
    for entry in counted.to_pylist():
        refused[(str(entry["stage"]), str(entry["reason"]))] += entry["count_all"]


def _check_kept(
    root: str,
    manifest: Mapping[str, Any],
    marks: np.ndarray,
    kept: np.ndarray,
    has_tars: bool,
    found: Faults,
) -> None:
    """Kept rows and samples are the same ones."""
    path = storage.join(root, "ledger.parquet")
    if len(kept) != manifest.get("kept"):
        found.add(path, "", f"{len(kept):,} kept rows, and manifest.json says {manifest.get('kept')}", _AGAIN)  # fmt: skip
    if not manifest.get("images", has_tars):
        text = storage.join(root, "kept.parquet")
        if not storage.exists(text):
            found.add(text, "", "is not there", _AGAIN)
            return
        try:
            with storage.open_file(
                text
            ) as file:  # all of its columns: what can't be decoded is found
                marks = marks_of(_uids(pq.ParquetFile(file)))
        except (pa.ArrowException, OSError, KeyError) as fault:
            found.add(text, "", f"can't be read: {str(fault).splitlines()[0]}", _AGAIN)
            return
        path = text
    for what, count in (
        ("kept rows of the ledger are in no shard", int((~np.isin(kept, marks)).sum())),
        ("samples are no kept rows of the ledger", int((~np.isin(marks, kept)).sum())),
    ):
        if count:
            found.add(path, "", f"{count:,} {what}", _AGAIN)


def _uids(file: pq.ParquetFile) -> pa.ChunkedArray:
    groups = (file.read_row_group(n, use_threads=False)["uid"] for n in range(file.num_row_groups))
    chunks = [chunk for uids in groups for chunk in uids.chunks]
    return pa.chunked_array(chunks, pa.string())
