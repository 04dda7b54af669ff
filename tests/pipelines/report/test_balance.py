"""The threshold and both ends of the entry list, of one group and of several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from curate.contract import parts, storage
from curate.contract.parts import Pool
from pipelines.report import balance
from pipelines.report.content import BalanceGroup
from pipelines.report.entries import EntryCounts

STAGE = {"use": "filter.metadata_balance#2", "fingerprint": "ab" * 32, "kept": 9}


def state(groups: list[str | None]) -> pa.Table:
    size = len(groups)
    columns = [np.arange(size), [50, 4, 30, 2][:size], groups, [10, 10, 5, 5][:size]]
    types = [pa.int32(), pa.int64(), pa.string(), pa.int64()]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
    return pa.table(arrays, ["entry", "count", "group", "t"])


def counts(expected: float | None) -> EntryCounts:
    return EntryCounts(np.zeros(1), np.zeros(1), unmatched=3, expected=expected, variance=4.0)


def test_each_group_has_its_threshold() -> None:
    found = balance.balance_of(STAGE, state(["de", "de", None, None]), {}, None)
    assert found is not None
    assert found.groups == [
        BalanceGroup("de", 10, 1, 50, 1, 4),
        BalanceGroup("(none)", 5, 1, 30, 1, 2),
    ]
    assert (found.n_groups, found.kept, found.expected, found.sigma) == (2, 9, None, None)


def test_rows_without_an_entry_count_where_they_are_kept() -> None:
    one = state([None, None])
    found = balance.balance_of(STAGE, one, {"keep_unmatched": False}, counts(5.5))
    assert found is not None
    assert (found.groups[0].group, found.expected, found.sigma) == ("", 5.5, 2.0)
    found = balance.balance_of(STAGE, one, {"keep_unmatched": True}, counts(5.5))
    assert found is not None
    assert found.expected == 8.5
    found = balance.balance_of(STAGE, one, {}, counts(None))
    assert found is not None
    assert found.expected is found.sigma is None
    assert balance.balance_of(STAGE, state([]), {}, None) is None


def test_many_languages_are_cut_to_the_largest() -> None:
    size = 100
    many = pa.table(
        {
            "entry": np.arange(size, dtype=np.int32),
            "count": np.arange(1, size + 1),
            "group": [f"l{n:03d}" for n in range(size)],
            "t": [7] * size,
        }
    )
    found = balance.balance_of(STAGE, many, {}, None)
    assert found is not None
    assert (found.n_groups, len(found.groups), found.groups[0].group) == (100, 40, "l099")


def test_the_state_lies_beside_the_decisions(tmp_path: Path) -> None:
    pool = Pool(str(tmp_path))
    assert balance.state_of(pool, STAGE) is None
    folder = pool.columns_folder("filter.metadata_balance", STAGE["fingerprint"])
    parts.write_table(storage.join(folder, "state.parquet"), state([None, None]))
    found = balance.state_of(pool, STAGE)
    assert found is not None
    assert not balance.is_grouped(found)
    assert balance.is_grouped(state(["de", None]))
