"""Groups of links, the row that stays for each, and how a part is told of its own."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.filter import linked


def rows(places: list[int], ranks: list[float]) -> pa.Table:
    return pa.table([places, ranks, [f"u{p}" for p in places]], schema=linked.ROWS)


def ends(table: pa.Table) -> list[tuple[int, str]]:
    return sorted(zip(table["row"].to_pylist(), table["of_uid"].to_pylist(), strict=True))


def test_a_place_counts_part_first() -> None:
    table = pa.table({"part": [0, 1, 0, 70_000], "row": [5, 0, 4_000_000_000, 1]})
    assert np.argsort(linked.places(table)).tolist() == [0, 2, 1, 3]


@given(st.lists(st.integers(0, 4), max_size=30))
def test_pairs_in_groups_are_all_of_them_once(values: list[int]) -> None:
    group = np.array(sorted(values), np.int64)
    found = [pair for piece in linked.pairs_in_groups(group) for pair in zip(*map(list, piece))]
    wanted = [(i, j) for i, j in combinations(range(len(group)), 2) if group[i] == group[j]]
    assert sorted(found) == wanted


@settings(deadline=None)  # the first call imports scipy
@given(
    st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40),
    st.lists(st.integers(0, 3), min_size=20, max_size=20),
    st.integers(1, 4),
)
def test_stars_of_buckets_settle_to_the_groups_of_all_links(
    pairs: list[tuple[int, int]], ranks: list[int], buckets: int
) -> None:
    group = list(range(20))
    for i, j in pairs:
        old, new = group[j], group[i]
        group = [new if g == old else g for g in group]
    kept = {g: min((ranks[n], n) for n in range(20) if group[n] == g)[1] for g in group}
    wanted = sorted((n, f"u{kept[g]}") for n, g in enumerate(group) if kept[g] != n)
    table = rows(list(range(20)), [float(rank) for rank in ranks])
    states = []
    for bucket in range(buckets):
        own = np.array(pairs[bucket::buckets], np.int64).reshape(-1, 2)
        states.append(linked.stars(table, own[:, 0], own[:, 1]))
    assert ends(linked.settled(pa.concat_tables(states))) == wanted


def test_stars_take_a_place_that_stands_in_several_rows() -> None:
    table = rows([7, 3, 7, 9], [0.0, 0.0, 0.0, -1.0])
    done = linked.stars(table, np.array([0, 2]), np.array([1, 3]))
    assert done.to_pylist() == [
        {"place": 3, "of_place": 9, "of_rank": -1.0, "of_uid": "u9"},
        {"place": 7, "of_place": 9, "of_rank": -1.0, "of_uid": "u9"},
    ]


def test_forest_holds_few_links_and_joins_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linked, "_LINKS_AT_ONCE", 5)
    everything = linked.pairs_in_groups(np.repeat([0, 1], [6, 4]))
    left, right = linked.forest(10, everything)
    assert sorted(zip(left.tolist(), right.tolist())) == [
        *((n, 0) for n in range(1, 6)),
        *((n, 6) for n in range(7, 10)),
    ]
    assert [len(side) for side in linked.forest(3, iter(()))] == [0, 0]


def test_a_part_finds_its_own_rows() -> None:
    part = pa.table({"part": [2, 2, 2], "row": [0, 5, 9]})
    copies = pa.table([[2, 2, 3], [9, 0, 5], ["x", "y", "z"]], schema=linked.COPIES)
    assert linked.copied_uids(part, copies).to_pylist() == ["y", None, "x"]
    assert linked.copied_uids(part, copies.slice(0, 0)).to_pylist() == [None] * 3
    assert linked.copied_uids(part.slice(0, 0), copies).to_pylist() == []


def test_most_pixels_comes_first_and_unknown_last() -> None:
    table = pa.table({"original_width": [10, None, 20], "original_height": [10, 50, 10]})
    assert np.argsort(linked.ranks(table, "largest")).tolist() == [2, 0, 1]


def test_stored_sizes_rank_by_whole_pixels() -> None:
    """300 by 200, 200 by 300 and 240 by 250 are of one area, though a ratio of 250 / 240 is rounded."""
    sides, ratios = [200, 200, 240, None, 100, 7], [1.5, 1.5, 250 / 240, 1.0, 7.0, 3.0]
    table = pa.table(
        {
            "min_side_px": pa.array(sides, pa.int32()),
            "aspect_ratio": pa.array(ratios, pa.float32()),
        }
    )
    expected = [-60_000, -60_000, -60_000, 0, -70_000, -147]
    assert linked.ranks(table, "largest_stored").tolist() == expected
    assert linked.ranks(table, "first").tolist() == [0] * 6


def test_refusals_have_one_reason() -> None:
    keep, reason = linked.refusals(np.array([True, False]), "a.b")
    assert (keep.to_pylist(), reason.to_pylist()) == ([False, True], ["a.b", None])
