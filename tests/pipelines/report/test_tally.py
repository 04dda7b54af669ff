"""Counts with few keys held: exact up to the limit, and never further off than they say beyond it."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.report import tally
from pipelines.report.tally import Tally

KEYS = st.lists(st.lists(st.sampled_from("abcdefghijkl"), max_size=30), max_size=6)


def counted(batches: list[list[str]], most: int) -> tuple[Tally, dict[str, int]]:
    """A tally that settles after each batch, and its counts by key."""
    counts = Tally(most)
    for batch in batches:
        counts.add(
            pa.array(batch, pa.string()), pa.array([key.upper() for key in batch], pa.string())
        )
        counts.counts()
    found = counts.counts().to_pylist()
    assert all(row["value"] == row["key"].upper() for row in found)
    return counts, {row["key"]: row["rows"] for row in found}


@settings(deadline=None, max_examples=60)
@given(batches=KEYS)
def test_few_keys_are_counted_exactly(batches: list[list[str]]) -> None:
    held, found = counted(batches, 12)
    assert found == dict(Counter(key for batch in batches for key in batch))
    assert (held.dropped_rows, held.uncertain) == (0, 0)


@settings(deadline=None, max_examples=200)
@given(batches=KEYS, most=st.integers(2, 8))
def test_no_count_is_further_off_than_told(batches: list[list[str]], most: int) -> None:
    held, found = counted(batches, most)
    right = Counter(key for batch in batches for key in batch)
    assert len(found) <= most
    assert sum(found.values()) + held.dropped_rows == right.total()
    for key, rows in right.items():
        assert found.get(key, 0) <= rows <= found.get(key, 0) + held.uncertain


def test_all_values_of_a_key_go_together() -> None:
    counts = Tally(2)
    counts.add(pa.array(list("aaabbc")), pa.array(list("xyyzxz")))
    assert counts.counts().to_pylist() == [
        {"key": "a", "value": "x", "rows": 1},
        {"key": "a", "value": "y", "rows": 2},
    ]
    assert (counts.dropped_rows, counts.uncertain) == (3, 2)


def test_what_is_held_stays_bounded() -> None:
    counts = Tally(1000)
    for start in range(0, 4 * tally._BUFFER_ROWS, 100_000):
        keys = pa.array(range(start, start + 100_000), pa.int64()).cast(pa.string())
        counts.add(keys, pa.repeat(pa.scalar(""), len(keys)))
        assert counts._buffered < tally._BUFFER_ROWS
        assert len(counts._held) <= 1000
