"""Chances of rows to the last bit, exact sums for any cut, tail shares, and the search for t."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.filter import balancing

ROWS = st.lists(st.none() | st.sets(st.integers(0, 12), max_size=6).map(sorted), max_size=40)


def lists(rows: list[list[int] | None]) -> pa.ListArray:
    return pa.array(rows, pa.list_(pa.int32()))


def counted(rows: list[list[int] | None]) -> tuple[np.ndarray, np.ndarray]:
    counts = Counter(entry for row in rows for entry in row or ())
    ids = sorted(counts)
    return np.array(ids, np.int32), np.array([counts[entry] for entry in ids], np.int64)


def by_loop(row: list[int] | None, p: dict[int, float]) -> float:
    """P of one row, one factor after the other; NaN without an entry."""
    refused = 1.0
    for entry in sorted(row or ()):
        refused *= 1.0 - p[entry]
    return 1.0 - refused if row else math.nan


def test_chances_by_hand() -> None:
    ids, counts = np.array([0, 1, 2], np.int32), np.array([10, 4, 2])
    rows = lists([[0], [1], [2], [0, 1], [0, 2], [], None])
    found = balancing.chances(rows, ids, counts, 2)
    expected = [0.2, 0.5, 1.0, 1 - 0.8 * 0.5, 1.0, math.nan, math.nan]
    assert found == pytest.approx(expected, nan_ok=True)


def test_a_count_equal_to_t_keeps_every_row() -> None:
    ids, counts = np.array([7], np.int32), np.array([5])
    assert balancing.chances(lists([[7]]), ids, counts, 5).tolist() == [1.0]
    assert balancing.chances(lists([[7]]), ids, counts, 4).tolist() == [1.0 - (1.0 - 4 / 5)]


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, t=st.integers(1, 20), cut=st.integers(0, 40), data=st.data())
def test_chances_are_a_plain_loop_s_to_the_last_bit(
    rows: list[list[int] | None], t: int, cut: int, data: st.DataObject
) -> None:
    """For arrays, chunks and slices; one t, or one for each entry; lists in any order."""
    ids, counts = counted(rows)
    each = np.array([data.draw(st.integers(1, 20)) for _ in ids], np.int64)
    shuffled = [data.draw(st.permutations(row)) if row else row for row in rows]
    whole = lists(shuffled)
    chunks = pa.chunked_array([whole.slice(0, cut), whole.slice(cut)])
    for threshold, entries in ((t, whole), (t, chunks), (each, whole)):
        ts = np.broadcast_to(np.asarray(threshold), len(ids)).tolist()
        p = {e: min(1.0, t / c) for e, c, t in zip(ids.tolist(), counts.tolist(), ts)}
        expected = np.array([by_loop(row, p) for row in rows], np.float64)
        found = balancing.chances(entries, ids, counts, threshold)
        assert found.tobytes() == expected.tobytes()


def test_many_rows_and_far_ids_change_nothing() -> None:
    """More rows than one block, lists of very different lengths, ids that no table can be made of."""
    rng = np.random.default_rng(0)
    rows = [sorted({int(e) for e in rng.integers(0, 60, n)}) for n in rng.poisson(3, 40_000)]
    rows[17] = list(range(60))
    ids, counts = counted(rows)
    p = {e: min(1.0, 100 / c) for e, c in zip(ids.tolist(), counts.tolist())}
    expected = np.array([by_loop(row, p) for row in rows])
    near = balancing.chances(lists(rows), ids, counts, 100)
    far_rows = pa.array([[e * 30_000_000 for e in row] for row in rows], pa.list_(pa.int32()))
    far = balancing.chances(far_rows, ids * 30_000_000, counts, 100)
    assert near.tobytes() == expected.tobytes() == far.tobytes()


@pytest.mark.parametrize("entry", [0, 2, 9, 2_000_000_000, -1])
def test_an_entry_without_a_count_is_an_error(entry: int) -> None:
    with pytest.raises(ValueError, match=r"an entry that has no count\. hint: "):
        balancing.chances(lists([[1], [entry]]), np.array([1, 3], np.int32), np.array([1, 1]), 1)


def test_null_rows_may_hide_entries() -> None:
    """Arrow allows a null list to have values; they are nobody's."""
    hidden = pa.ListArray.from_arrays(
        pa.array([0, 1, 3], pa.int32()),
        pa.array([1, 99, 98], pa.int32()),
        mask=pa.array([False, True]),
    )
    found = balancing.chances(hidden, np.array([1], np.int32), np.array([4]), 1)
    assert found == pytest.approx([0.25, math.nan], nan_ok=True)


@settings(max_examples=50, deadline=None)
@given(rows=ROWS, cuts=st.lists(st.integers(0, 40), max_size=4))
def test_sums_of_chances_are_exact_for_any_cut(
    rows: list[list[int] | None], cuts: list[int]
) -> None:
    ids, counts = counted(rows)
    trials = np.array([[1, 2, 3, 7, 40]])
    whole = lists(rows)
    expected = balancing.expected_units(whole, ids, counts, trials)
    edges = sorted({0, len(rows), *(min(cut, len(rows)) for cut in cuts)})
    pieces = [
        balancing.expected_units(whole.slice(a, b - a), ids, counts, trials)
        for a, b in itertools.pairwise(edges)
    ]
    assert [sum(one) for one in zip(*pieces)] == (expected if pieces else [])
    for t, units in zip(trials[0], expected):
        plain = np.nansum(balancing.chances(whole, ids, counts, t))
        assert units / 2**balancing.UNIT_BITS == pytest.approx(plain, abs=1e-9)
    assert expected == sorted(expected)
    assert expected[-1] == sum(bool(row) for row in rows) << balancing.UNIT_BITS


def test_trials_of_groups_are_as_of_each_alone() -> None:
    rows = [[0, 1], [1], [0, 2], [2], [2, 3], [0]]
    ids, counts = counted(rows)
    groups, trials = np.array([0, 1, 0, 1]), np.array([[1, 2], [2, 1]])
    found = balancing.expected_units(lists(rows), ids, counts, trials, groups)
    for units, t in zip(found, trials[groups].T):
        plain = balancing.chances(lists(rows), ids, counts, t).sum()
        assert units / 2**balancing.UNIT_BITS == pytest.approx(plain, abs=1e-9)


@given(rows=ROWS)
def test_chances_grow_with_t(rows: list[list[int] | None]) -> None:
    ids, counts = counted(rows)
    found = [balancing.chances(lists(rows), ids, counts, t) for t in range(1, 42)]
    for lower, higher in itertools.pairwise(found):
        assert not (higher < lower).any()
    assert set(found[-1][~np.isnan(found[-1])]) <= {1.0}


@given(st.lists(st.integers(-3, 50) | st.integers(10**8, 2 * 10**9), max_size=50))
def test_tally_counts(values: list[int]) -> None:
    ids, counts = balancing.tally(np.array(values, np.int32))
    assert dict(zip(ids.tolist(), counts.tolist())) == Counter(values)
    assert ids.tolist() == sorted(ids.tolist())
    assert ids.dtype == counts.dtype == np.int64


def test_the_tail_is_what_lies_under_t() -> None:
    counts = np.array([1, 2, 3, 4, 90])
    assert balancing.tail_share(counts, 4) == 0.06
    assert balancing.tail_share(counts, 1) == 0.0
    assert balancing.tail_share(counts, 91) == 1.0
    assert balancing.tail_share(np.array([], np.int64), 5) == 0.0
    assert balancing.head_and_tail(counts, 4) == {
        "head_entries": 2,
        "head_matches": 94,
        "tail_entries": 3,
        "tail_matches": 6,
    }
    assert balancing.head_and_tail(counts, np.array([2, 2, 2, 9, 9]))["tail_entries"] == 2


def test_t_of_a_tail_share_is_the_nearest_count() -> None:
    counts = np.array([90, 4, 3, 2, 1])
    assert balancing.t_of_tail_share(counts, 0.06) == 3
    assert balancing.t_of_tail_share(counts, 0.09) == 4
    assert balancing.t_of_tail_share(counts, 1.0) == 90
    assert balancing.t_of_tail_share(np.array([1, 1, 2]), 0.375) == 1  # 0.25 is as near as 0.5


def test_t_of_a_tail_share_is_never_under_one() -> None:
    assert balancing.t_of_tail_share(np.array([0, 0, 100]), 0.06) == 1
    assert balancing.t_of_tail_share(np.array([], np.int64), 0.06) == 1
    assert balancing.t_of_tail_share(np.array([0, 0]), 0.06) == 1


def searched(kept: Callable[[int], float], wanted: float, highest: int) -> tuple[int | None, int]:
    """The smallest t, or None if none keeps enough, and how often the pool was looked at."""
    tried: dict[int, float] = {}
    trials, looks = balancing.first_trials(highest), 0
    while trials:
        assert len(trials) <= balancing.TRIALS + 1
        looks += 1
        tried |= {t: kept(t) for t in trials}
        trials = balancing.next_trials(tried, wanted)
    return balancing.bracket(tried, wanted)[1], looks


@settings(max_examples=200, deadline=None)
@given(
    counts=st.lists(st.integers(1, 10**9), min_size=1, max_size=30),
    share=st.fractions(0, 1, max_denominator=10**6),
)
def test_the_search_finds_the_smallest_t(counts: list[int], share: Fraction) -> None:
    """For rows of one entry each, whose expected number at t is the sum of min(count, t)."""

    def kept(t: int) -> int:
        return sum(min(count, t) for count in counts)

    wanted = math.ceil(share * sum(counts))
    t, looks = searched(kept, wanted, max(counts))
    assert t is not None
    assert kept(t) >= wanted
    assert t == 1 or kept(t - 1) < wanted
    assert looks <= 5


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.integers(1, 10**7), min_size=1, max_size=5, unique=True),
    wanted=st.integers(1, 6),
)
def test_the_search_takes_steps_too(steps: list[int], wanted: int) -> None:
    """Thresholds by tail share jump: there is no curve to go by, only the bracket."""
    t, looks = searched(lambda t: sum(step <= t for step in steps), wanted, 10**7)
    assert t == (sorted(steps)[wanted - 1] if wanted <= len(steps) else None)
    assert looks <= 8


@pytest.mark.parametrize("highest", [1, 2, 31, 32, 33, 10**10])
def test_first_trials_are_from_one_to_the_highest(highest: int) -> None:
    trials = balancing.first_trials(highest)
    assert (trials[0], trials[-1]) == (1, highest)
    assert trials == sorted(set(trials))
    assert len(trials) <= balancing.TRIALS
