"""Rows per entry before and after balancing, by hand; the ends of the list and the curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curate.contract.parts import Pool
from pipelines.report import entries
from tests.tiny import finished_run
from tests.tiny.finished_run import BALANCE, FINGERPRINTS, MATCH, ORDER


def counts(tmp_path: Path, order: tuple[str, ...] = ORDER) -> tuple[list[int], list[int]]:
    shards_root, pool_root = finished_run.make(tmp_path)
    found = entries.entry_counts(
        Pool(pool_root), MATCH, FINGERPRINTS[MATCH], f"{shards_root}/ledger.parquet", order, BALANCE
    )
    return found.before.tolist(), found.after.tolist()


def test_counts_by_hand(tmp_path: Path) -> None:
    # Entry 0 is in rows 0 1 2 3 6 8 10 11; balancing refused 2, 3 and 10. Row 6 was lost by the
    # download and 8 by the threshold, both after balancing. Entry 2 is in none.
    assert counts(tmp_path) == ([8, 2, 0, 2], [5, 2, 0, 2])


def test_what_balancing_was_expected_to_keep(tmp_path: Path) -> None:
    shards_root, pool_root = finished_run.make(tmp_path)
    rows = {"entry": [0, 1, 3], "count": [8, 2, 2], "t": [4, 2, 2]}

    def found(state: dict[str, list[int]]) -> entries.EntryCounts:
        ledger = f"{shards_root}/ledger.parquet"
        fingerprint = FINGERPRINTS[MATCH]
        table = pa.table(state)
        return entries.entry_counts(
            Pool(pool_root), MATCH, fingerprint, ledger, ORDER, BALANCE, table
        )

    # Rows 1, 6, 7 and 9 are certain; 0, 2, 3, 8, 10 and 11 have entry 0 alone, a chance of 4 / 8 each.
    assert found(rows).expected == pytest.approx(4 + 6 * 0.5)
    assert found(rows).variance == pytest.approx(6 * 0.25)
    assert found(rows).unmatched == 1
    of_another_pool = {name: values[:2] for name, values in rows.items()}
    assert found(of_another_pool).expected is None


def test_both_ends_and_curves() -> None:
    before = np.array([0, 50, 7, 7, 1000, 1])
    after = np.array([0, 20, 7, 6, 20, 0])
    found = entries.balance_of(before, after, ["zero", "one", "two", "three", "four"], count=2)
    assert found is not None
    assert [(row.text, row.before, row.after) for row in found.head] == [
        ("four", 1000, 20),
        ("one", 50, 20),
    ]
    assert [(row.text, row.before, row.after) for row in found.tail] == [
        ("three", 7, 6),
        ("entry 5", 1, 0),
    ]
    assert found.before == [(1, 1000), (2, 50), (3, 7), (4, 7), (5, 1)]
    assert found.after == [(1, 20), (2, 20), (3, 7), (4, 6)]
    assert (found.n_before, found.n_after) == (5, 4)


def test_a_short_list_is_not_told_twice() -> None:
    found = entries.balance_of(np.array([3, 2, 1]), np.array([1, 1, 1]), None, count=2)
    assert found is not None
    assert [row.text for row in (*found.head, *found.tail)] == ["entry 0", "entry 1", "entry 2"]


def test_a_long_curve_keeps_its_ends_and_stays_small() -> None:
    found = entries.balance_of(np.arange(500_000), np.arange(500_000) // 2, None)
    assert found is not None
    assert found.before[0] == (1, 499_999)
    assert found.before[-1] == (499_999, 1)
    assert len(found.before) <= 240


@pytest.mark.parametrize("nothing", [[], [0, 0]])
def test_nothing_matched_is_no_section(nothing: list[int]) -> None:
    assert entries.balance_of(np.array(nothing, int), np.array(nothing, int), None) is None
