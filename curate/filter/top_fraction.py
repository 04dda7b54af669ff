"""Keeps the best rows of the pool by one column: exactly the share that was asked for.

DataComp's "CLIP score (L/14 30 %)" (arXiv 2304.14108) is ``column = "clip_score"``, ``fraction = 0.3``.
Its code keeps every row that reaches the value at that rank, so ties and one row more may stay; here
the count is exact, and which of equal rows stay depends on their uids and the seed alone.

Nothing holds the pool. Each row has a key that orders all rows: its value, a draw, its uid. The first
look takes a sample of keys; the second counts all rows between neighbours of the sample; the third
fetches the keys of the one gap that the cut falls in, a few in 65,536 of the pool. Chance decides how
large that gap is, never where the cut is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.contract.draw import draws
from curate.stage import KEEP, REASON, GlobalStage, StageError

_SAMPLE_ROWS = 1 << 16
_DRAW_STEPS = float(1 << 53)
_KEY_BYTES = 48  # 8 of value, 8 of draw, 32 of uid
_KEY = f"S{_KEY_BYTES}"  # numpy compares these byte by byte
_HIGHEST = b"\xff" * _KEY_BYTES  # over every key: a uid is hex digits
_SIGN = np.uint64(1 << 63)
_SAMPLE = pa.schema([("key", pa.binary()), ("lot", pa.float64()), ("rows", pa.int64())])
_SPLIT = pa.schema([("split", pa.binary()), ("wanted", pa.int64())])
_COUNTS = pa.schema([("gap", pa.int64()), ("rows", pa.int64())])
_GAP = pa.schema([("above", pa.binary()), ("upto", pa.binary()), ("wanted", pa.int64())])
_CUT = pa.schema([("key", pa.binary()), ("value", pa.float64())])  # of the last row that is kept


@dataclass(frozen=True, kw_only=True)
class TopFraction(GlobalStage):
    """Refuses rows as ``top_fraction.<column>``, rows without a value as ``top_fraction.<column>.missing``.

    Options:
        column: a column of numbers that a stage above writes.
        fraction: share of the rows that live and have a value, above 0 and at most 1. The number kept
            is that share, rounded to the nearest row, halves up.
        highest: keep the highest values; false keeps the lowest.
        seed: chooses among equal values; the recipe's where it is left out.
    """

    bucket_by: ClassVar[str | None] = None  # the state is a sample, whatever the pool

    column: str
    fraction: float
    highest: bool = True
    seed: int = 0

    def reads(self) -> tuple[str, ...]:
        return (self.column,)

    def writes(self) -> pa.Schema:
        return pa.schema([KEEP, REASON])

    def check(self) -> None:
        if not 0 < self.fraction <= 1:  # nan is refused, too
            raise ValueError(
                f"fraction = {self.fraction}. hint: a share above 0 and at most 1; 0.3 is the best 30 %"
            )

    def check_columns(self, types: Mapping[str, pa.DataType]) -> None:
        kind = types[self.column]
        if not _is_number(kind):
            raise ValueError(
                f"column {self.column!r} is {kind}, not a number. hint: name a column of scores or counts"
            )

    def passes(self) -> int:
        return 3

    def summarize(self, part: pa.Table) -> pa.Table:
        """A sample of the keys, with the lots by which it was drawn, and the number of rows."""
        keys, uids, _ = self._keys(part)
        lots = draws(uids, f"top_fraction:sample:{self.seed}")
        chosen = np.argsort(lots, kind="stable")[:_SAMPLE_ROWS]
        rows = pa.nulls(len(chosen), pa.int64())
        sample = pa.table([_binary(keys[chosen]), pa.array(lots[chosen]), rows], schema=_SAMPLE)
        return self.merge([sample, _total(len(keys))])

    def merge(self, partials: Sequence[pa.Table]) -> pa.Table:
        """The smallest lots of all and the sum of the rows; both associative, in any order."""
        table = pa.concat_tables(partials)
        rows = pc.sum(table["rows"]).as_py() or 0
        sample = table.filter(table["key"].is_valid())
        sample = sample.sort_by([("lot", "ascending"), ("key", "ascending")]).slice(0, _SAMPLE_ROWS)
        return pa.concat_tables([sample, _total(rows)])

    def settle(self, states: Sequence[pa.Table]) -> pa.Table:
        """The sample as splits of the order, and how many rows are wanted."""
        state = self.merge(states)
        rows = pc.sum(state["rows"]).as_py()
        wanted = math.floor(Fraction(str(self.fraction)) * rows + Fraction(1, 2))
        splits = np.concatenate(
            [np.array([b""], _KEY), np.unique(_packed(state["key"].drop_null()))]
        )
        return pa.table([_binary(splits), np.full(len(splits), wanted)], schema=_SPLIT)

    def look_again(self, part: pa.Table, state: pa.Table) -> pa.Table:
        """How many rows lie in each gap between splits; then the keys and values of the one gap."""
        keys, _, known = self._keys(part)
        if "split" in state.column_names:
            gaps, rows = np.unique(
                np.searchsorted(_packed(state["split"]), keys), return_counts=True
            )
            return pa.table([gaps.astype(np.int64), rows.astype(np.int64)], schema=_COUNTS)
        inside = (keys > _packed(state["above"])[0]) & (keys <= _packed(state["upto"])[0])
        values = part[self.column].filter(pa.array(known)).cast(pa.float64(), safe=False)
        found = [_binary(keys[inside]), values.filter(pa.array(inside)).combine_chunks()]
        return pa.table(found, schema=_CUT)

    def together(self, partials: Sequence[pa.Table]) -> pa.Table:
        found = pa.concat_tables(partials)
        if found.schema != _COUNTS:
            return found
        summed = found.group_by("gap").aggregate([("rows", "sum")])
        return pa.table([summed["gap"], summed["rows_sum"]], schema=_COUNTS)

    def adjust(self, state: pa.Table, partials: Sequence[pa.Table]) -> pa.Table:
        wanted = state["wanted"][0].as_py()
        found = pa.concat_tables(partials)
        if "split" in state.column_names:
            return _gap_of(_packed(state["split"]), wanted, found)
        if not wanted:
            return pa.table([pa.array([b""], pa.binary()), pa.nulls(1, pa.float64())], schema=_CUT)
        return found.sort_by("key").slice(wanted - 1, 1)

    def decide(self, part: pa.Table, state: pa.Table) -> pa.Table:
        keys, _, known = self._keys(part)
        kept = np.zeros(len(part), bool)
        kept[known] = keys <= _packed(state["key"])[0]
        names = pa.array([f"top_fraction.{self.column}", f"top_fraction.{self.column}.missing"])
        codes = pa.array(np.where(known, 0, 1).astype(np.int32), mask=kept)
        reason = pa.DictionaryArray.from_arrays(codes, names)
        return pa.table([pa.array(kept), reason], schema=self.writes())

    def _keys(self, part: pa.Table) -> tuple[np.ndarray, list[str], np.ndarray]:
        """Of the rows that have a value: their keys and their uids; and which rows these are."""
        column = part[self.column].combine_chunks()
        if not _is_number(column.type):
            raise StageError(
                f"filter.top_fraction: column {self.column!r} is {column.type}, not a number. hint: name a column of scores or counts"
            )
        known = np.array(column.is_valid())
        if pa.types.is_floating(column.type):
            known &= ~np.array(pc.is_nan(column).fill_null(True))  # infinities are values
        uids = part["uid"].filter(pa.array(known)).to_pylist()
        order = _ordered(column.filter(pa.array(known)))
        lots = draws(uids, f"top_fraction:{self.seed}") * _DRAW_STEPS
        packed = np.zeros((len(uids), _KEY_BYTES), np.uint8)
        packed[:, :8] = _big_endian(~order if self.highest else order)
        packed[:, 8:16] = _big_endian(lots.astype(np.uint64))
        packed[:, 16:] = np.array(uids, "S32").view(np.uint8).reshape(-1, 32)
        return packed.reshape(-1).view(_KEY), uids, known


def _total(rows: int) -> pa.Table:
    """The one row of a sample that says how many rows it stands for."""
    return pa.table([[None], [None], [rows]], schema=_SAMPLE)


def _gap_of(splits: np.ndarray, wanted: int, counts: pa.Table) -> pa.Table:
    """The gap in which the last wanted row is, and which of its rows that is (1 for the first)."""
    rows = np.zeros(len(splits) + 1, np.int64)
    np.add.at(rows, np.asarray(counts["gap"]), np.asarray(counts["rows"]))
    passed = np.cumsum(rows)
    gap = int(np.searchsorted(passed, wanted))
    above = splits[max(gap - 1, 0)]
    upto = splits[gap] if gap < len(splits) else _HIGHEST
    left = wanted - int(passed[gap] - rows[gap])
    return pa.table([_binary([above]), _binary([upto]), [left]], schema=_GAP)


def _ordered(values: pa.Array) -> np.ndarray:
    """Unsigned numbers in the order of the values: uint64, shape (rows,)."""
    if pa.types.is_unsigned_integer(values.type):
        return np.asarray(values, np.uint64)
    if pa.types.is_integer(values.type):
        return np.asarray(values, np.int64).view(np.uint64) ^ _SIGN
    numbers = np.asarray(values.cast(pa.float64()), np.float64) + 0.0  # -0.0 is 0.0
    bits = numbers.view(np.uint64)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _is_number(kind: pa.DataType) -> bool:
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    return any(is_one(kind) for is_one in numbers)


def _big_endian(numbers: np.ndarray) -> np.ndarray:
    """The bytes of unsigned numbers, uint8 of shape (rows, 8), the most significant first."""
    return numbers.astype(">u8").view(np.uint8).reshape(-1, 8)


def _packed(column: pa.ChunkedArray) -> np.ndarray:
    return np.array(column.to_pylist(), _KEY)


def _binary(keys: Any) -> pa.Array:
    return pa.array(np.asarray(keys, _KEY).tolist(), pa.binary())
