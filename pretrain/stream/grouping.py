"""Members of a tar become samples: consecutive members of one key, each in its slot.

Vectorised, since an index has rows by the hundred million. What can't be a sample is one that says
why: a key that was there before, bytes that no header accounts for.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.contract import shards, tars

PICTURE, TEXT, RECORD = range(3)  # the slots of a sample
_MEMBERS = (*shards.IMAGE_EXTENSIONS, "txt", "json")
_SLOT_OF = np.array([PICTURE] * len(shards.IMAGE_EXTENSIONS) + [TEXT, RECORD])
SAMPLE = np.dtype(
    [
        ("offset", "<i8", 3),  # of the data of each slot's member; 0: there is none
        ("size", "<u4", 3),
        ("crc32", "<u4", 3),
        ("key_end", "<u4"),  # in the shard's keys, one after another
        ("member", "u1"),  # the picture's, in shards.IMAGE_EXTENSIONS
    ]
)


class Damage(NamedTuple):
    """Bytes of a tar that no sample accounts for. ``is_cut``: how many are missing behind them is unknown."""

    told: str
    gap_bytes: int
    tar_bytes: int
    is_cut: bool


@dataclass
class Rows:
    """The samples of one shard. ``faults`` has (kind, what was found) of those that are none."""

    sample: np.ndarray  # SAMPLE of shape (samples,)
    keys: bytes  # utf-8, one after another
    faults: dict[int, tuple[str, str]] = field(default_factory=dict)
    damage: Damage | None = None  # of a tar that was walked
    end_bytes: int = 0  # the least size of the tar that an index tells of

    def key(self, row: int) -> str:
        ends = self.sample["key_end"]
        return self.keys[ends[row - 1] if row else 0 : ends[row]].decode("utf-8", "replace")

    def digest(self) -> bytes:
        """sha256 of what the shard holds, wherever in the tar it stands."""
        found = hashlib.sha256(self.keys)
        for name in ("key_end", "size", "crc32", "member"):
            found.update(np.ascontiguousarray(self.sample[name]).tobytes())
        found.update(repr(sorted((row, kind) for row, (kind, _) in self.faults.items())).encode())
        return found.digest()


def walk(name: str, file: IO[Any]) -> Rows:
    """The samples of a tar that has no index, by reading all of it; ``name`` is for messages."""
    members: list[tuple[str, str, int, int, int]] = []
    gaps: list[tuple[int, tars.Gap]] = []
    last: tars.Member | None = None
    for found in tars.survey(file, name):
        if isinstance(found, tars.Gap):
            if found.is_zeros and last and last.data.endswith(b"\0"):  # they begin in its data
                found = replace(found, offset=last.offset - tars.BLOCK_BYTES)
                members = [one for one in members if one[2] < last.offset]
            gaps.append((len(members), found))
            continue
        last = found
        key, member = shards.split_name(found.name)
        if member in _MEMBERS:
            key = key.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            members.append((key, member, found.offset, found.size, zlib.crc32(found.data)))
    names = ("key", "member", "offset", "size", "crc32")
    columns = zip(*members, strict=True) if members else ([],) * len(names)
    types = [shards.INDEX_SCHEMA.field(column).type for column in names]
    table = pa.table(
        [pa.array(list(c), t) for c, t in zip(columns, types, strict=True)], names=list(names)
    )
    rows = rows_of(name, table, gaps)
    if gaps:
        rows.damage = _damage(name, file, [gap for _, gap in gaps])
    return rows


def _damage(name: str, file: IO[Any], gaps: Sequence[tars.Gap]) -> Damage:
    tar_bytes = file.seek(0, 2)
    file.seek(max(0, tar_bytes - tars.MOST_PADDING_BYTES - 1))
    tail = file.read()
    ends = tail.endswith(tars.END) and (tail.strip(b"\0") or len(tail) <= tars.MOST_PADDING_BYTES)
    is_cut = gaps[-1].end == tar_bytes and not ends
    shown = gaps[-1 if is_cut else 0]
    told = f"{name}: bytes {shown.offset} to {shown.end} hold no sample: {_fault(name, shown)}"
    told += "; what follows is lost" if is_cut and not shown.is_zeros else ""
    told += f" (and {len(gaps) - 1} more such places)" if len(gaps) > 1 else ""
    return Damage(told, sum(gap.end - gap.offset for gap in gaps), tar_bytes, is_cut)


def _fault(name: str, gap: tars.Gap) -> str:
    return gap.fault.removeprefix(f"{name}: ")


def rows_of(name: str, table: pa.Table, gaps: Sequence[tuple[int, tars.Gap]] = ()) -> Rows:
    """The samples of one shard by its index rows (see shards.INDEX_SCHEMA), in the tar's order.

    ``gaps`` are the places where its headers were unreadable, each with the number of rows before it;
    then every row is of a known member.
    """
    codes = pc.index_in(table["member"], pa.array(_MEMBERS)).combine_chunks()
    if codes.null_count:
        table = table.filter(codes.is_valid())
        codes = codes.drop_null()
    code = np.asarray(codes).astype(np.int64)
    keys = table["key"].combine_chunks()
    named = np.asarray(keys.dictionary_encode().indices).astype(np.int64)
    group, firsts = _groups(named, code)
    sample = np.zeros(len(firsts), SAMPLE)
    slot = _SLOT_OF[code]
    order = np.argsort(-code, kind="stable")  # of two pictures, the first extension stays
    for column in ("offset", "size", "crc32"):
        values = np.asarray(table[column].combine_chunks())
        sample[column][group[order], slot[order]] = values[order]
    pictures = order[slot[order] == PICTURE]
    sample["member"][group[pictures]] = code[pictures]
    data, ends = text_of(keys.take(pa.array(firsts)))
    sample["key_end"] = ends
    rows = Rows(sample, data.tobytes())
    _mark_repeats(rows, name, named[firsts])
    for before, gap in reversed(gaps):
        _mark_gap(rows, name, gap, group[before - 1 : before + 1] if before else group[:1], before)
    return rows


def text_of(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of a string array, one after another, and where each ends: uint8, and int64 (rows,)."""
    array = pc.fill_null(array, "").cast(pa.large_string())
    if not len(array):
        return np.zeros(0, np.uint8), np.zeros(0, np.int64)
    ends = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
    data = array.buffers()[2]
    whole = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return whole[ends[0] : ends[-1]], ends[1:] - ends[0]


def _groups(named: np.ndarray, code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(number of the sample of each row, first row of each sample)."""
    begins = np.ones(len(named), bool)
    begins[1:] = np.diff(named) != 0
    run = np.cumsum(begins) - 1
    seen, times = np.unique(run * len(_MEMBERS) + code, return_counts=True)
    for repeated in np.unique(seen[times > 1] // len(_MEMBERS)).tolist():
        there: set[int] = set()
        for row in np.flatnonzero(run == repeated).tolist():
            if int(code[row]) in there:
                begins[row], there = True, set()
            there.add(int(code[row]))
    return np.cumsum(begins) - 1, np.flatnonzero(begins)


def _mark_repeats(rows: Rows, name: str, named: np.ndarray) -> None:
    first = np.unique(named, return_index=True)[1]
    if len(first) == len(named):
        return
    again = np.ones(len(named), bool)
    again[first] = False
    for row in np.flatnonzero(again).tolist():
        here = _header_at(rows.sample[row])
        there = _header_at(rows.sample[int(np.flatnonzero(named == named[row])[0])])
        detail = f"{name}: sample {rows.key(row)} at byte {here}: a sample of this key is at byte {there} already"
        rows.faults[row] = ("duplicate_key", detail)


def _header_at(sample: Any) -> int:
    """Where a sample begins, in bytes from the tar's start."""
    offsets = sample["offset"]
    return int(offsets[offsets > 0].min(initial=1 << 62)) - tars.BLOCK_BYTES


def _mark_gap(rows: Rows, name: str, gap: tars.Gap, beside: np.ndarray, before: int) -> None:
    """Lay unreadable bytes to the samples they are missing from, or else to a place of their own."""
    around = dict.fromkeys(beside.tolist())
    for row in around:
        offsets = rows.sample["offset"][row]
        whole = offsets[PICTURE] and (offsets[TEXT] or offsets[RECORD])
        if not whole or (before and len(beside) == 2 and len(around) == 1):
            detail = f"{name}: sample {rows.key(row)} lacks the bytes {gap.offset} to {gap.end}: {_fault(name, gap)}"
            rows.faults.setdefault(row, ("damaged", detail))
            around[row] = True
    if not any(around.values()):
        _insert(
            rows,
            name,
            gap,
            int(beside[-1]) + (len(beside) < 2 and before > 0) if len(beside) else 0,
        )


def _insert(rows: Rows, name: str, gap: tars.Gap, at: int) -> None:
    """A sample that is nothing but the fault, before the sample ``at``."""
    key = f"at-byte-{gap.offset}".encode()
    start = int(rows.sample["key_end"][at - 1]) if at else 0
    one = np.zeros((), SAMPLE)
    one["key_end"] = start
    rows.sample = np.insert(rows.sample, at, one)
    rows.sample["key_end"][at:] += len(key)
    rows.keys = rows.keys[:start] + key + rows.keys[start:]
    rows.faults = {row + (row >= at): fault for row, fault in rows.faults.items()}
    rows.faults[at] = (
        "damaged",
        f"{name}: bytes {gap.offset} to {gap.end} hold no sample: {_fault(name, gap)}",
    )
