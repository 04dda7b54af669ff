"""filter.time_window: the first moment is in, the last is out, for every type that holds a time."""

from __future__ import annotations

import datetime
import itertools
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.filter.time_window import TimeWindow
from curate.stage import StageError

NO, MISSING = "time_window", "time_window.missing"


def reasons(values: pa.Array, **options: Any) -> list[str | None]:
    stage = TimeWindow(column="x", **options)
    stage.check()
    stage.check_columns({"x": values.type})
    done = stage.process(pa.table({"x": values}), stage.open())
    assert done.schema == stage.writes()
    assert done["keep"].to_pylist() == [reason is None for reason in done["reason"].to_pylist()]
    return done["reason"].to_pylist()


DAYS = [datetime.date(2020, 12, 31), datetime.date(2021, 1, 1), datetime.date(2021, 12, 31)]
DAYS += [datetime.date(2022, 1, 1)]
YEAR = {"since": "2021-01-01", "until": "2022-01-01"}


@pytest.mark.parametrize(
    "kind",
    [pa.date32(), pa.date64(), *(pa.timestamp(unit) for unit in ("s", "ms", "us", "ns"))],
)
def test_since_is_in_and_until_is_out(kind: pa.DataType) -> None:
    values = pa.array([*DAYS, None]).cast(kind)
    assert reasons(values, **YEAR) == [NO, None, None, NO, MISSING]
    assert reasons(values, since="2021-01-01") == [NO, None, None, None, MISSING]
    assert reasons(values, until="2021-12-31", missing="keep") == [None, None, NO, NO, None]


def test_texts_are_read_as_iso_and_what_is_none_is_missing() -> None:
    texts = ["2021-06-01", "2021-12-31T23:59:59.999999Z", "2021-12-31T23:30:00-01:00", "20210601", " 2021-06-01 ", "June 2021", "2021-02-30", "", None]  # fmt: skip
    expected = [None, None, NO, None, None, MISSING, MISSING, MISSING, MISSING]
    assert reasons(pa.array(texts), **YEAR) == expected
    assert reasons(pa.array(texts).dictionary_encode(), **YEAR) == expected
    assert reasons(pa.nulls(1), **YEAR) == [MISSING]


def test_zones_and_nanoseconds_are_exact() -> None:
    berlin = pa.array([datetime.datetime(2020, 12, 31, 23, 30)], pa.timestamp("s", "Europe/Berlin"))
    assert reasons(berlin, since="2020-12-31T23:30:00") == [None]
    before = pa.array([-1, 0], pa.int64()).cast(pa.timestamp("ns"))
    assert reasons(before, since="1970-01-01") == [NO, None]
    assert reasons(before, until="1970-01-01") == [None, NO]


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        (pa.timestamp("s"), pa.int64()),
        (pa.timestamp("ms", "UTC"), pa.int64()),
        (pa.date64(), pa.int64()),
        (pa.date32(), pa.int32()),
    ],
)
def test_times_beyond_all_counting_are_missing(kind: pa.DataType, numbers: pa.DataType) -> None:
    most = 2 ** (numbers.bit_width - 1) - 1
    values = pa.array([most, -most - 1, 0, None], numbers).cast(kind)
    assert reasons(values, since="1970-01-01") == [MISSING, MISSING, None, MISSING]


@given(st.lists(st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1))))
def test_windows_that_touch_share_no_row_and_lose_none(times: list[datetime.datetime]) -> None:
    values = pa.array(times, pa.timestamp("us"))
    edges = ["", "2000-01-01", "2021-03-01T12:00:00", ""]
    kept = [
        [reason is None for reason in reasons(values, since=since, until=until)]
        for since, until in itertools.pairwise(edges)
    ]
    assert [sum(of_row) for of_row in zip(*kept)] == [1] * len(times)
    as_text = pa.array([time.isoformat() for time in times], pa.string())
    assert reasons(as_text, since=edges[1]) == reasons(values, since=edges[1])


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, "no window"),
        ({"since": "yesterday"}, "since = 'yesterday' is no date"),
        ({"since": "2021-01-01", "until": "2021-01-01"}, "no row would be kept"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], found: str) -> None:
    with pytest.raises(ValueError, match=f"{found}.*hint: "):
        TimeWindow(**options).check()


def test_a_column_that_holds_no_time_is_refused() -> None:
    stage = TimeWindow(since="2021-01-01")
    with pytest.raises(ValueError, match="'crawl_date' is int64, no date"):
        stage.check_columns({"crawl_date": pa.int64()})
    with pytest.raises(StageError, match="is int64"):
        stage.process(pa.table({"crawl_date": [1]}), None)
