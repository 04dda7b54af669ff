"""Keeps rows of a span of time: since a date, until a date.

Time-sliced pools (TiC-CLIP, arXiv 2310.16226) are made of such windows over the crawl's date.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from curate.stage import KEEP, REASON, RowStage, StageError

_TICK_US = {"days": 86_400_000_000, "s": 1_000_000, "ms": 1000, "us": 1, "ns": 1}
_MOST = 2**63 - 1
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


@dataclass(frozen=True, kw_only=True)
class TimeWindow(RowStage):
    """Refuses rows outside as ``time_window``, and rows without a time as ``time_window.missing``.

    Options:
        column: a column of dates, of times, or of texts in ISO 8601 ("2021-03-01", "2021-03-01T12:30:00Z").
        since: the first moment that is kept, a date or time in ISO 8601. "" is no bound; of the two
            one is given at least.
        until: the first moment that is no longer kept; ``since = "2021-01-01"`` and
            ``until = "2022-01-01"`` are the year 2021, and windows that touch share no row.
        missing: ``refuse`` or ``keep`` rows whose time is null, can't be read, or is beyond all counting
            (300,000 years).

    A time without a zone is taken as UTC, a date as its first moment.
    """

    batch_rows: ClassVar[int] = 8192

    column: str = "crawl_date"
    since: str = ""
    until: str = ""
    missing: Literal["refuse", "keep"] = "refuse"

    def reads(self) -> tuple[str, ...]:
        return (self.column,)

    def writes(self) -> pa.Schema:
        return pa.schema([KEEP, REASON])

    def check(self) -> None:
        if not (self.since or self.until):
            raise ValueError("no window. hint: set since, until, or both")
        for name, text in (("since", self.since), ("until", self.until)):
            if text and _moment(text) is None:
                raise ValueError(
                    f'{name} = {text!r} is no date. hint: write it as in "2021-03-01" or "2021-03-01T12:30:00Z"'
                )
        if self.since and self.until and self._bound(self.since) >= self._bound(self.until):
            raise ValueError(
                f"since = {self.since!r} is not before until = {self.until!r}: no row would be kept. hint: `until` is the first moment that is left out"
            )

    def check_columns(self, types: Mapping[str, pa.DataType]) -> None:
        if not _is_time(types[self.column]):
            raise ValueError(self._wrong_type(types[self.column]))

    def process(self, batch: pa.Table, state: Any) -> pa.Table:
        column = batch[self.column].combine_chunks()
        if not _is_time(column.type):
            raise StageError(f"filter.time_window: {self._wrong_type(column.type)}")
        known, moments = _moments(column)
        outside = np.zeros(len(moments), bool)
        if self.since:
            outside |= moments < self._bound(self.since)
        if self.until:
            outside |= moments >= self._bound(self.until)
        refused = np.where(known, outside, self.missing == "refuse")
        codes = pa.array(np.where(known, 0, 1).astype(np.int32), mask=~refused)
        reason = pa.DictionaryArray.from_arrays(codes, ["time_window", "time_window.missing"])
        return pa.table([pa.array(~refused), reason], schema=self.writes())

    def _bound(self, text: str) -> int:
        moment = _moment(text)
        if moment is None:
            raise ValueError(f"{text!r} is no date")
        return moment

    def _wrong_type(self, kind: pa.DataType) -> str:
        return f"column {self.column!r} is {kind}, no date, time or text. hint: name a column of dates, such as crawl_date"


def _is_time(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return (
        pa.types.is_date(kind)
        or pa.types.is_timestamp(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def _moments(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Which rows have a time, and the time in microseconds since 1970 UTC (0 where there is none)."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
        unit = "ms" if pa.types.is_date64(column.type) else getattr(column.type, "unit", "days")
        wide = column.cast(pa.int32()) if unit == "days" else column
        ticks = np.asarray(wide.cast(pa.int64()).fill_null(0), np.int64)
        most = _MOST // _TICK_US[unit]
        known = np.asarray(column.is_valid()) & (ticks >= -most) & (ticks <= most)
        # Finer than microseconds is cut off downwards, so that a bound in microseconds stays exact.
        moments = ticks // 1000 if unit == "ns" else np.where(known, ticks, 0) * _TICK_US[unit]
        return known, moments
    texts = column.cast(pa.string()).dictionary_encode()  # dates repeat: each is read once
    read = [_moment(text) for text in texts.dictionary.to_pylist()]
    found = pa.array(read, pa.int64()).take(texts.indices)
    return np.asarray(found.is_valid()), np.asarray(found.fill_null(0), np.int64)


def _moment(text: str) -> int | None:
    """Microseconds since 1970 UTC of a date or time in ISO 8601; None for any other text."""
    try:
        read = datetime.datetime.fromisoformat(text.strip())
        zoned = read if read.tzinfo else read.replace(tzinfo=datetime.UTC)
        return (zoned - _EPOCH) // datetime.timedelta(microseconds=1)
    except (ValueError, OverflowError):
        return None
