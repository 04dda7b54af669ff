"""A shard set read by index: any sample by its number, each member's checksum verified.

Only known members are looked at (a picture, ``txt``, ``json``), and nothing is ever unpickled.
Sidecars are joined here: they take samples out, give captions, and store features beside them.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from curate.contract import shards, tars
from pretrain.loop.settings import Sidecar
from pretrain.stream import files, index, sidecar
from pretrain.stream.batch import BadSample, Reader, Sample
from pretrain.stream.cache import Arrays, Put, arrays, folder, key, locked
from pretrain.stream.grouping import PICTURE, RECORD, TEXT, Rows
from pretrain.stream.order import WINDOW_SHARDS
from pretrain.stream.remote import Copies, on_disk
from pretrain.stream.sidecar_rows import digests

_KEPT_SHARDS = WINDOW_SHARDS + WINDOW_SHARDS // 2 + 1  # a window's, and not much more
_SPAN_SLACK_BYTES = 1 << 16  # members so near each other are read at once
_SMALL_SAMPLES = 1_000_000
_KEPT_FORMAT = 2
_logger = logging.getLogger(__name__)
_NAMES = ("picture", "txt", "json")


@dataclass(frozen=True)
class _Shard:
    """What is held of a shard that is read from. ``joined``: per sidecar the row of each sample."""

    rows: Rows
    kept: np.ndarray | None  # the samples that stay, ascending; None: all of them
    joined: tuple[np.ndarray, ...]
    places: tuple[np.ndarray, ...]  # offset, size, crc32 of ``rows``, each of shape (samples, 3)


class TarSet(Reader):
    """One shard set. Opens files lazily and per process, so it travels to loader workers.

    ``path`` is a folder, one tar, a glob or a range, on disk or behind fsspec. ``cache`` is the folder
    for indexes and copies of remote shards (empty: the user's own), ``cache_gb`` the room for copies.

    Raises ValueError for a path without tars or without a sample, and for sidecars that don't fit.
    """

    def __init__(
        self,
        path: str,
        *,
        sidecars: Sequence[Sidecar] = (),
        cache: str = "",
        cache_gb: float = 100.0,
    ) -> None:
        self.path = path
        root = folder(cache)
        self._copies = Copies(root, int(cache_gb * 1e9))
        self._index = index.load(path, root, self._copies)
        self._all_on_disk = all(map(on_disk, self._index.paths))
        self._tables = [sidecar.Table(spec, root) for spec in sidecars]
        stored = [table.name for table in self._tables if table.use == "features"]
        if len(set(stored)) < len(stored):
            raise ValueError(
                f'train.sidecar: two of use "features" have one name, {stored}. hint: give each a `name`'
            )
        self.is_counted = True  # over the whole set
        self.matched = (0,) * len(self._tables)  # samples that have a row, for each sidecar
        self._kept = self._choose(root)
        counts = self._index.counts if self._kept is None else np.asarray(self._kept["count"])
        if not counts.sum():
            check_matched([self])
            raise ValueError(f"{path}: the sidecars leave no sample. hint: look at their uids")
        self.counts = tuple(counts.tolist())
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._begin()

    def _begin(self) -> None:
        """What belongs to one process alone."""
        self._pid = os.getpid()
        self._owner = files.owner()
        self._held: OrderedDict[int, _Shard] = OrderedDict()
        self._looked: set[int] = set()  # remote shards whose copies were compared with the index

    def __len__(self) -> int:
        return int(self._starts[-1])

    def example(self) -> str:
        """The key of a sample."""
        shard = int(np.flatnonzero(self._index.counts)[0])
        return self._index.rows(shard).key(0)

    @property
    def fingerprint(self) -> str:
        """Of every member's key, size and checksum, and of the sidecars: equal for equal content."""
        if not self._tables:
            return self._index.fingerprint
        return key(self._index.fingerprint, *(table.fingerprint for table in self._tables))

    @property
    def damage(self) -> list[str]:
        """A line for each damaged shard: its name, the bytes, and what is wrong."""
        return self._index.told

    def lost_frac(self) -> float:
        """Share of the set that is known to be lost; an estimate where no index names the samples."""
        return self._index.lost_frac()

    def read(self, number: int) -> Sample:
        """The sample with this number, counted through the shards in order.

        Raises BadSample, with shard, key and byte; Unreachable for a remote shard that can't be had.
        """
        shard = int(self._starts.searchsorted(number, side="right")) - 1
        held = self._shard(shard)
        row = number - int(self._starts[shard])
        if held.kept is not None:
            row = int(held.kept[row])
        uid = held.rows.key(row)
        where = f"{self._index.names[shard]}: sample {uid}"
        offsets, sizes, checks = (column[row].tolist() for column in held.places)
        if row in held.rows.faults:
            raise BadSample(*held.rows.faults[row])
        if not offsets[PICTURE]:
            there = " and ".join(_NAMES[slot] for slot in range(3) if offsets[slot])
            raise BadSample("no_picture", f"{where} at byte {_begin_of(offsets)} has only {there}")
        try:
            members = self._members(shard, where, offsets, sizes, checks)
        except OSError as fault:  # of the disk itself
            raise BadSample(
                "damaged", f"{where} at byte {_begin_of(offsets)}: {fault.strerror or fault}"
            ) from fault
        record = _record(members[RECORD], where, offsets[RECORD])
        caption, added, stored = self._joined(held, row)
        if caption is None:
            caption = _caption(members[TEXT], record, where, offsets[TEXT] or _begin_of(offsets))
        captions = (*shards.captions_of(caption, record), *added)
        picture = members[PICTURE]
        assert picture is not None
        where = f"{where}: its picture at byte {offsets[PICTURE]}"
        return Sample(uid, picture, caption, captions, record, stored, where)

    def ahead(self, numbers: Sequence[int] | np.ndarray) -> None:
        """A hint: the shards of these samples will be read soon, in this order."""
        if self._all_on_disk:
            return
        if self._pid != os.getpid():
            self._begin()
        found = self._starts.searchsorted(np.asarray(numbers, np.int64), side="right") - 1
        soon = dict.fromkeys(found.tolist())
        self._copies.ahead([self._index.paths[shard] for shard in soon])
        # A copy that is removed takes up room for as long as it is open.
        files.SHARED.close_others(self._owner, soon)

    def _joined(
        self, held: _Shard, row: int
    ) -> tuple[str | None, list[str], dict[str, np.ndarray]]:
        """(caption in place of the alt-text, captions to add, stored features) of a sample."""
        caption: str | None = None
        added: list[str] = []
        stored: dict[str, np.ndarray] = {}
        for table, joined in zip(self._tables, held.joined, strict=True):
            place = int(joined[row])
            if place < 0 or table.use == "keep":
                continue
            if table.use == "features":
                stored[table.name] = table.vector(place)
            elif table.use == "caption":
                caption = table.texts(place)[0]
            else:
                added += table.texts(place)
        return caption, added, stored

    def _members(
        self, shard: int, where: str, offsets: list[int], sizes: list[int], checks: list[int]
    ) -> list[bytes | None]:
        """The content of each slot, by one read where they lie together. Raises BadSample."""
        slots = [slot for slot in (PICTURE, TEXT, RECORD) if offsets[slot]]
        first = min(offsets[slot] for slot in slots)
        last = max(offsets[slot] + sizes[slot] for slot in slots)
        file = self._file(shard)
        whole = b""
        if last - first <= sum(sizes) + _SPAN_SLACK_BYTES:
            whole = os.pread(file, last - first, first)
        found: list[bytes | None] = [None, None, None]
        for slot in slots:
            start, size = offsets[slot], sizes[slot]
            data = (
                whole[start - first : start - first + size]
                if whole
                else os.pread(file, size, start)
            )
            if len(data) != size or zlib.crc32(data) != checks[slot]:
                what = (
                    f"{len(data)} of {size} bytes"
                    if len(data) != size
                    else "checksum differs from the index"
                )
                raise BadSample("damaged", f"{where}: its {_NAMES[slot]} at byte {start}: {what}")
            found[slot] = data
        return found

    def _shard(self, shard: int) -> _Shard:
        if self._pid != os.getpid():  # a forked worker has descriptors and caches of its own
            self._begin()
        if shard in self._held:
            self._held.move_to_end(shard)
            return self._held[shard]
        rows = self._index.rows(shard)
        kept = None
        if self._kept is not None:
            bits = np.asarray(
                self._kept["bits"][slice(*self._bit_bytes[shard : shard + 2].tolist())]
            )
            kept = np.flatnonzero(np.unpackbits(bits, count=len(rows.sample)))
        places = tuple(rows.sample[name] for name in ("offset", "size", "crc32"))
        found = _Shard(rows, kept, tuple(self._find(rows)), places)
        self._held[shard] = found
        if len(self._held) > _KEPT_SHARDS:
            self._held.popitem(last=False)
        return found

    def _find(self, rows: Rows) -> list[np.ndarray]:
        if not self._tables:
            return []
        keys = np.frombuffer(rows.keys, np.uint8)
        wanted = digests(keys, rows.sample["key_end"].astype(np.int64))
        return [table.find(wanted) for table in self._tables]

    def _choose(self, root: str) -> Arrays | None:
        """Which samples the sidecars leave, a bit for each; None where they leave all."""
        if not self._tables:
            return None
        decides = any(table.decides for table in self._tables)
        counts = self._index.counts
        is_large = counts.sum() > _SMALL_SAMPLES
        if is_large and not decides:
            self._count_some()
            return None
        self._bit_bytes = np.concatenate([[0], np.cumsum((counts + 7) // 8)])
        place = ""
        if is_large:
            place = os.path.join(root, "kept", key(_KEPT_FORMAT, self.fingerprint))
        with locked(root, "index", place) if place else nullcontext():
            found = arrays(place, self._put_kept)
        self.matched = tuple(found.about["matched"])
        self._tell(int(counts.sum()))
        return found if decides else None

    def _count_some(self) -> None:
        """Of a large set from which nothing is taken out, the first shards say enough."""
        counted = 0
        matched = np.zeros(len(self._tables), np.int64)
        for shard, count in enumerate(self._index.counts.tolist()):
            if counted >= _SMALL_SAMPLES:
                break
            found = self._find(self._index.rows(shard))
            matched += [int((joined >= 0).sum()) for joined in found]
            counted += count
        self.matched = tuple(matched.tolist())
        self._tell(counted)

    def _tell(self, counted: int) -> None:
        self.is_counted = counted == self._index.counts.sum()
        for table, matched in zip(self._tables, self.matched, strict=True):
            if matched or self.is_counted:
                _logger.info(
                    "%s: %s has a row for %d of %d samples", self.path, table.path, matched, counted
                )
            else:
                _logger.warning(
                    "%s: %s has no row for any of the first %d samples",
                    self.path,
                    table.path,
                    counted,
                )

    def _put_kept(self, put: Put) -> dict[str, Any]:
        matched = np.zeros(len(self._tables), np.int64)
        for shard in range(len(self._index.names)):
            rows = self._index.rows(shard)
            stay = np.ones(len(rows.sample), bool)
            for number, (table, joined) in enumerate(
                zip(self._tables, self._find(rows), strict=True)
            ):
                matched[number] += int((joined >= 0).sum())
                stay &= table.kept(joined)
                lacking = (joined < 0) & stay
                lacking[list(rows.faults)] = False  # never read
                if table.use == "features" and lacking.any():
                    raise ValueError(
                        f"{table.path}: no row for sample {rows.key(int(np.flatnonzero(lacking)[0]))} of "
                        f'{self._index.names[shard]}. hint: missing = "drop" trains without such samples'
                    )
            put({"bits": np.packbits(stay), "count": np.array([stay.sum()], np.int64)})
        return {"matched": matched.tolist()}

    def _file(self, shard: int) -> int:
        """An open descriptor; read by place, so that nothing hangs on where others had read."""
        return files.SHARED.get(self._owner, shard, lambda: self._open(shard))

    def _open(self, shard: int) -> int:
        found = self._copies.open(self._index.paths[shard])
        # No listing may have told the size of what is remote.
        if not self._all_on_disk and shard not in self._looked:
            self._looked.add(shard)
            cut = self._index.cut_at(shard, os.fstat(found).st_size)
            if cut and shard not in self._index.cut:
                _logger.warning("%s", cut.told)
        return found

    def __getstate__(self) -> dict[str, Any]:
        own = ("_pid", "_owner", "_held", "_looked")
        return {n: v for n, v in self.__dict__.items() if n not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()


def check_matched(sets: Sequence[TarSet]) -> None:
    """Raises ValueError for a sidecar without a row for any sample of the sets of one run.

    One that fits only some of the sets is legal: each set is given all of a run's sidecars.
    """
    tables = sets[0]._tables if sets else []
    for number, table in enumerate(tables):
        if all(one.is_counted and not one.matched[number] for one in sets):
            samples = sum(int(one._index.counts.sum()) for one in sets)
            raise ValueError(
                f"train.sidecar {table.path}: none of its uids, such as {table.example()!r}, is that of one of "
                f"the {samples} samples, such as {sets[0].example()!r}. "
                "hint: `uid` is the sample's key in the tars, letter by letter"
            )


def _begin_of(offsets: list[int]) -> int:
    """Where the sample's first header stands."""
    return min(offset for offset in offsets if offset) - tars.BLOCK_BYTES


def _caption(data: bytes | None, record: dict[str, Any], where: str, first: int) -> str:
    if data is not None:
        try:
            return data.decode()
        except UnicodeDecodeError as fault:
            raise BadSample("caption_not_utf8", f"{where} at byte {first}: {fault}") from fault
    if isinstance(record.get("caption"), str):
        return str(record["caption"])
    raise BadSample("no_caption", f"{where} at byte {first} has no txt, and no caption in its json")


def _record(data: bytes | None, where: str, offset: int) -> dict[str, Any]:
    if data is None:
        return {}
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as fault:
        raise BadSample("json", f"{where}: its json at byte {offset}: {fault}") from fault
    if not isinstance(record, dict):
        raise BadSample(
            "json", f"{where}: its json at byte {offset}: a {type(record).__name__}, not an object"
        )
    return record
