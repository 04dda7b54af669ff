"""filter.metadata_balance: MetaCLIP's probability by hand, t given or solved, and options that cannot work."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.contract.draw import draw, pair_uid
from curate.filter import balancing
from curate.filter.metadata_balance import MetadataBalance
from curate.stage import pool_state

Lists = list[list[int] | None]


def part_of(entries: Lists, first: int = 0, languages: list[str | None] | None = None) -> pa.Table:
    uids = [pair_uid(f"http://host/{first + n}", "x") for n in range(len(entries))]
    columns = {
        "uid": pa.array(uids, pa.string()),
        "entries": pa.array(entries, pa.list_(pa.int32())),
    }
    if languages is not None:
        columns["language"] = pa.array(languages, pa.string())
    return pa.table(columns)


def cut(whole: pa.Table, pieces: int) -> list[pa.Table]:
    edges = [len(whole) * n // pieces for n in range(pieces + 1)]
    return [whole.slice(a, b - a) for a, b in itertools.pairwise(edges)]


def reasons(stage: MetadataBalance, parts: list[pa.Table]) -> list[str | None]:
    state = pool_state(stage, lambda: parts)
    decided = [stage.decide(part, state) for part in parts]
    assert all(table.schema == stage.writes() for table in decided)
    for table in decided:
        assert table["keep"].to_pylist() == [
            reason is None for reason in table["reason"].to_pylist()
        ]
    return [reason for table in decided for reason in table["reason"].to_pylist()]


def thresholds(stage: MetadataBalance, parts: list[pa.Table]) -> dict[str | None, int]:
    """The t of each group."""
    state = pool_state(stage, lambda: parts)
    found = set(zip(state["group"].to_pylist(), state["t"].to_pylist(), strict=True))
    assert len(dict(found)) == len(found), "a group has one t"
    return dict(found)


def zipf_entries(rows: int, seed: int = 0) -> Lists:
    rng = random.Random(seed)
    return [
        sorted({min(int(rng.paretovariate(0.8)), 5000) for _ in range(rng.randint(0, 6))})
        for _ in range(rows)
    ]


def test_counts_are_rows_per_entry() -> None:
    stage = MetadataBalance(t=1)
    state = stage.merge(
        [stage.summarize(part_of([[1, 2], [2], [], None])), stage.summarize(part_of([[2, 9]]))]
    )
    assert dict(zip(state["entry"].to_pylist(), state["count"].to_pylist(), strict=True)) == {
        1: 1,
        2: 3,
        9: 1,
    }


def test_the_state_is_for_others_to_read() -> None:
    """Forecast, what-if and the report read these columns of the kept state."""
    state = pool_state(MetadataBalance(t=7), lambda: [part_of([[1, 2], [2]])])
    assert state.schema.names[:4] == ["entry", "count", "group", "t"]
    assert [str(kind) for kind in state.schema.types[:4]] == ["int32", "int64", "string", "int64"]
    assert state.select(["entry", "count", "group", "t"]).to_pylist() == [
        {"entry": 1, "count": 1, "group": None, "t": 7},
        {"entry": 2, "count": 2, "group": None, "t": 7},
    ]


def test_probability_by_hand() -> None:
    part = part_of([[0]] * 7 + [[1]] * 2 + [[2], [0, 1], [0, 1], [0, 2], []])
    stage = MetadataBalance(t=2)
    state = pool_state(stage, lambda: [part])
    assert state["count"].to_pylist() == [10, 4, 2]
    chances = stage.probabilities(part, state).tolist()
    assert chances[6:] == pytest.approx(
        [0.2, 0.5, 0.5, 1.0, 1 - 0.8 * 0.5, 1 - 0.8 * 0.5, 1.0, math.nan], nan_ok=True
    )


def test_a_row_stays_iff_its_draw_is_under_its_probability() -> None:
    part = part_of([[0]] * 50)
    found = reasons(MetadataBalance(t=10, seed=3), [part])
    expected = [
        None if draw(uid, "balance:3") < 10 / 50 else "balanced" for uid in part["uid"].to_pylist()
    ]
    assert found == expected
    assert None in found
    assert "balanced" in found


@pytest.mark.parametrize(
    "stage",
    [
        *(MetadataBalance(t=t) for t in (1, 5, 40)),
        MetadataBalance(keep=9000),
        MetadataBalance(tail_share=0.3),
    ],
)
def test_yield_is_what_the_probabilities_promise(stage: MetadataBalance) -> None:
    part = part_of(zipf_entries(20_000))
    chances = stage.probabilities(part, pool_state(stage, lambda: [part]))
    chances = chances[~np.isnan(chances)]
    sigma = math.sqrt((chances * (1 - chances)).sum())
    kept = reasons(stage, [part]).count(None)
    assert abs(kept - chances.sum()) < 3 * sigma
    assert 0 < kept < len(chances)


def test_the_tail_is_flattened_and_rare_entries_are_whole() -> None:
    entries = [[0]] * 5000 + [[n] for n in range(1, 100) for _ in range(3)]
    found = reasons(MetadataBalance(t=100), [part_of(entries)])
    assert found[5000:] == [None] * 297
    assert 60 < found[:5000].count(None) < 140


def test_t_at_the_largest_count_keeps_every_matched_row() -> None:
    entries: Lists = [found for found in zipf_entries(2000) if found]
    largest = max(MetadataBalance(t=1).summarize(part_of(entries))["count"].to_pylist())
    assert set(reasons(MetadataBalance(t=largest), [part_of(entries)])) == {None}
    assert "balanced" in reasons(MetadataBalance(t=largest // 4), [part_of(entries)])


def test_rows_without_an_entry_are_unmatched_unless_kept() -> None:
    part = part_of([[], None, [1]])
    assert reasons(MetadataBalance(t=1), [part]) == ["unmatched", "unmatched", None]
    assert reasons(MetadataBalance(t=1, keep_unmatched=True), [part]) == [None, None, None]


def test_seed_and_salt_choose_other_rows() -> None:
    part = part_of([[0]] * 400)
    found = {
        str(reasons(stage, [part]))
        for stage in (
            MetadataBalance(t=200),
            MetadataBalance(t=200, seed=1),
            MetadataBalance(t=200, salt="b"),
        )
    }
    assert len(found) == 3


def kept_at(entries: Lists, t: int) -> Fraction:
    """The expected number of kept rows, exactly."""
    counts = Counter(entry for row in entries for entry in row or ())
    return sum(
        (
            1 - math.prod(1 - min(Fraction(1), Fraction(t, counts[e])) for e in row)
            for row in entries
            if row
        ),
        Fraction(0),
    )


@settings(max_examples=60, deadline=None)
@given(
    entries=st.lists(st.sets(st.integers(0, 5), max_size=4).map(sorted), min_size=1, max_size=40),
    keep=st.integers(1, 45),
    keep_unmatched=st.booleans(),
)
def test_keep_is_the_smallest_t_that_is_expected_to_keep_as_many(
    entries: Lists, keep: int, keep_unmatched: bool
) -> None:
    """Against exact fractions: also where the expected number is a whole one."""
    parts = cut(part_of(entries), 3)
    found = thresholds(MetadataBalance(keep=keep, keep_unmatched=keep_unmatched), parts)
    largest = max(Counter(entry for row in entries for entry in row or ()).values(), default=0)
    free = sum(not row for row in entries) if keep_unmatched else 0
    enough = (t for t in range(1, largest + 1) if kept_at(entries, t) + free >= keep)
    assert found == ({None: next(enough, largest)} if largest else {})


@pytest.mark.parametrize(("keep", "kept"), [(1, 1), (40, 40), (41, 40), (10**12, 40)])
def test_keep_of_one_of_all_and_of_more(keep: int, kept: int) -> None:
    part = part_of([[0]] * 40 + [[]] * 3)
    found = reasons(MetadataBalance(keep=keep), [part])
    assert found.count(None) == kept if keep > 1 else found.count(None) < 8
    assert found.count("unmatched") == 3


def test_keep_is_kept_nearly() -> None:
    parts = cut(part_of(zipf_entries(30_000)), 4)
    stage = MetadataBalance(keep=12_345)
    assert abs(reasons(stage, parts).count(None) - 12_345) < 3 * math.sqrt(12_345)
    state = pool_state(stage, lambda: parts)
    t = state["t"][0].as_py()
    units = [
        sum(
            balancing.expected_units(part["entries"], *counts_of(state), np.array([[t - 1, t]]))[n]
            for part in parts
        )
        for n in range(2)
    ]
    assert units[0] < 12_345 << balancing.UNIT_BITS <= units[1]


def counts_of(state: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    return state["entry"].to_numpy(), state["count"].to_numpy()


def test_unmatched_rows_count_for_keep_where_they_are_kept() -> None:
    part = part_of([[0]] * 40 + [None] * 30)
    assert thresholds(MetadataBalance(keep=40), [part]) == {None: 40}
    assert thresholds(MetadataBalance(keep=40, keep_unmatched=True), [part]) == {None: 10}
    assert thresholds(MetadataBalance(keep=20, keep_unmatched=True), [part]) == {None: 1}


def test_t_of_a_tail_share() -> None:
    entries: Lists = [[e] for e, count in enumerate([1, 2, 3, 4, 90]) for _ in range(count)]
    assert thresholds(MetadataBalance(tail_share=0.06), cut(part_of(entries), 3)) == {None: 3}


STAGES = [
    MetadataBalance(t=4),
    MetadataBalance(keep=900),
    MetadataBalance(tail_share=0.3),
    MetadataBalance(t=4, by="language"),
    MetadataBalance(keep=900, by="language"),
    MetadataBalance(tail_share=0.3, by="language", keep_unmatched=True),
]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t": 0}, r"t = 0, no row would be kept\. hint: t is a number of rows"),
        ({"keep": 0}, r"keep = 0, no row would be kept\. hint: keep is a number of rows"),
        ({"t": 1 << 63}, r"more rows than any pool has\. hint: t is at most"),
        ({"keep": 1 << 63}, r"more rows than any pool has\. hint: keep is at most"),
        ({}, r"none of t, keep and tail_share is given\. hint: set one of t"),
        ({"t": 5, "keep": 9}, r"t = 5 and keep = 9 is given\. hint: set one of t"),
        ({"tail_share": 0.0}, r"tail_share = 0\.0\. hint: a share of all matches"),
        ({"tail_share": 6.0}, r"tail_share = 6\.0\. hint: a share of all matches"),
        ({"t": 5, "reference": "de"}, r'reference = "de" and no by\. hint: name the column'),
        (
            {"tail_share": 0.06, "by": "language", "reference": "de"},
            r'reference = "de" and tail_share = 0\.06, which has no reference\. hint: ',
        ),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetadataBalance(**options).check()


@pytest.mark.parametrize("stage", STAGES)
def test_options_that_work_are_taken(stage: MetadataBalance) -> None:
    stage.check()
    assert stage.reads() == (("entries", "language") if stage.by else ("entries",))


def test_oversample_multiplies_keep_exactly() -> None:
    assert MetadataBalance(keep=100, oversample=1.1).wanted() == 110
    assert MetadataBalance(keep=3, oversample=1.5).wanted() == 5
    assert MetadataBalance(keep=7).wanted() == 7
    assert MetadataBalance(t=7).wanted() is None
    parts = cut(part_of(zipf_entries(6_000)), 3)
    more = MetadataBalance(keep=1_000, oversample=1.5)
    plain = MetadataBalance(keep=1_500)
    assert reasons(more, parts) == reasons(plain, parts)


def test_a_larger_allowance_keeps_what_a_smaller_one_keeps() -> None:
    part = part_of(zipf_entries(3_000))
    kept = [
        {n for n, reason in enumerate(reasons(MetadataBalance(keep=300, oversample=f), [part])) if not reason}
        for f in (1.0, 1.0001, 1.4, 3.0)
    ]  # fmt: skip
    assert kept[0] <= kept[1] <= kept[2] <= kept[3]
    assert len(kept[0]) < len(kept[2]) < len(kept[3])


def test_what_was_observed_becomes_a_factor() -> None:
    stage = MetadataBalance(keep=300, oversample="observed")
    assert stage.rows_wanted() == 300
    assert stage.after_losses(1.0) == MetadataBalance(keep=300)
    assert stage.after_losses(0.7).oversample == 1.428572
    assert stage.after_losses(0.7).wanted() == 429
    for keep in (1, 300, 2**61, 2**62):
        most = MetadataBalance(keep=keep, oversample="observed").after_losses(1e-300)
        assert keep <= most.wanted() <= 2**62, "a state holds thresholds as int64"
        most.check()
    assert MetadataBalance(keep=300, oversample=2).rows_wanted() is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": 5, "oversample": 0.9}, r"oversample = 0.9. hint: 1 or more"),
        ({"keep": 5, "oversample": math.inf}, "1 or more"),
        ({"keep": 5, "oversample": math.nan}, "1 or more"),
        ({"keep": 5, "oversample": "seen"}, '"observed"'),
        ({"t": 5, "oversample": 1.2}, "no keep"),
        ({"tail_share": 0.1, "oversample": "observed"}, "no keep"),
        ({"keep": 5, "oversample": 1.2, "by": "language"}, 'by = "language"'),
        ({"keep": 1 << 61, "oversample": 3.0}, "more rows than any pool has"),
    ],
)
def test_an_allowance_that_means_nothing_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MetadataBalance(**options).check()
