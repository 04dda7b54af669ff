"""filter.top_fraction: the exact share, as sorting the whole pool would have it, for any cut and order."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.contract.draw import draw, pair_uid
from curate.filter import top_fraction
from curate.filter.top_fraction import TopFraction
from curate.stage import StageError, pool_state

CUT, MISSING = "top_fraction.x", "top_fraction.x.missing"


def pool(values: pa.Array | list[Any]) -> pa.Table:
    uids = [pair_uid(f"http://host/{n}", "x") for n in range(len(values))]
    return pa.table({"uid": pa.array(uids, pa.string()), "x": values})


def reasons(stage: TopFraction, parts: list[pa.Table]) -> list[str | None]:
    stage.check()
    state = pool_state(stage, lambda: parts)
    decided = [stage.decide(part, state) for part in parts]
    assert all(table.schema == stage.writes() for table in decided)
    whole = pa.concat_tables(decided)
    assert whole["keep"].to_pylist() == [reason is None for reason in whole["reason"].to_pylist()]
    return whole["reason"].to_pylist()


def oracle(stage: TopFraction, table: pa.Table) -> list[str | None]:
    """By sorting the pool."""
    uids, values = table["uid"].to_pylist(), table["x"].to_pylist()
    known = [n for n, value in enumerate(values) if value is not None and value == value]
    sign = -1 if stage.highest else 1
    known.sort(key=lambda n: (sign * values[n], draw(uids[n], f"top_fraction:{stage.seed}")))
    wanted = math.floor(Fraction(str(stage.fraction)) * len(known) + Fraction(1, 2))
    kept, valued = set(known[:wanted]), set(known)
    return [None if n in kept else CUT if n in valued else MISSING for n in range(len(values))]


numbers = st.one_of(
    st.floats(width=32),
    st.sampled_from([0.0, -0.0, 0.25, 0.3, float("inf"), float("-inf"), None]),
)


@settings(max_examples=120, deadline=None)
@given(
    values=st.lists(numbers, max_size=60),
    fraction=st.floats(0.001, 1.0),
    highest=st.booleans(),
    seed=st.integers(0, 3),
    sample=st.sampled_from([1, 2, 7, 1 << 16]),
    cuts=st.lists(st.integers(0, 60), max_size=5),
    kind=st.sampled_from([pa.float32(), pa.float64()]),
)
def test_the_same_rows_as_sorting_the_whole_pool(
    values: list[float | None],
    fraction: float,
    highest: bool,
    seed: int,
    sample: int,
    cuts: list[int],
    kind: pa.DataType,
) -> None:
    table = pool(pa.array(values, kind))
    stage = TopFraction(column="x", fraction=fraction, highest=highest, seed=seed)
    edges = sorted({0, len(values), *(min(cut, len(values)) for cut in cuts)})
    parts = [table.slice(a, b - a) for a, b in itertools.pairwise(edges)] or [table]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(top_fraction, "_SAMPLE_ROWS", sample)
        assert reasons(stage, parts) == oracle(stage, table)


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1, 2]), min_size=1),
    fraction=st.floats(0.01, 1.0),
)
def test_integers_are_compared_exactly(values: list[int], fraction: float) -> None:
    table = pool(pa.array(values, pa.int64()))
    stage = TopFraction(column="x", fraction=fraction)
    assert reasons(stage, [table]) == oracle(stage, table)


@pytest.mark.parametrize("parts", [1, 7, 100])
def test_partitions_and_order_do_not_matter(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_fraction, "_SAMPLE_ROWS", 64)
    scores = np.random.default_rng(0).normal(0.25, 0.05, 5000).astype(np.float32).round(2)
    table, stage = pool(pa.array(scores)), TopFraction(column="x", fraction=0.3)
    edges = np.linspace(0, len(table), parts + 1).astype(int).tolist()
    cut = [table.slice(a, b - a) for a, b in itertools.pairwise(edges)]
    found = reasons(stage, cut)
    assert found.count(None) == 1500
    assert found == oracle(stage, table)
    backwards = reasons(stage, cut[::-1])
    order = [n for a, b in reversed(list(itertools.pairwise(edges))) for n in range(a, b)]
    assert backwards == [found[n] for n in order]


def test_one_value_for_all_is_cut_by_the_draw_and_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_fraction, "_SAMPLE_ROWS", 16)
    table = pool(pa.array([1.0] * 1000))
    first = reasons(TopFraction(column="x", fraction=0.25), [table])
    assert first.count(None) == 250
    assert first != reasons(TopFraction(column="x", fraction=0.25, seed=1), [table])


def test_states_stay_small_whatever_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_fraction, "_SAMPLE_ROWS", 256)
    scores = np.random.default_rng(0).normal(0, 1, 40_000)
    table, stage = pool(pa.array(scores)), TopFraction(column="x", fraction=0.3)
    parts = [table.slice(start, 4000) for start in range(0, 40_000, 4000)]
    state = stage.settle([stage.close(stage.merge([stage.summarize(part) for part in parts]))])
    assert len(state) <= 257
    state = stage.adjust(state, [stage.look_again(part, state) for part in parts])
    inside = [stage.look_again(part, state) for part in parts]
    assert 0 < sum(len(found) for found in inside) < 40_000 // 256 * 10
    state = stage.adjust(state, inside)
    assert len(state) == 1
    assert state["value"][0].as_py() == pytest.approx(np.sort(scores)[-12_000])


def test_shares_are_decimal_and_rounded_to_the_nearest_row() -> None:
    def kept(fraction: float, rows: int) -> int:
        values = pa.array(np.arange(rows))
        return reasons(TopFraction(column="x", fraction=fraction), [pool(values)]).count(None)

    assert [kept(0.1, rows) for rows in (4, 5, 14, 15, 30)] == [0, 1, 1, 2, 3]
    assert kept(0.29, 100) == 29
    assert kept(0.3, 5) == 2  # the float 0.3 is a little less, and its share of 5 below a half
    assert kept(1.0, 7) == 7


def test_an_empty_pool_and_one_without_values() -> None:
    stage = TopFraction(column="x", fraction=0.5)
    assert reasons(stage, [pool(pa.array([], pa.float32()))]) == []
    assert reasons(stage, [pool(pa.nulls(2)), pool(pa.nulls(1))]) == [MISSING] * 3


def test_what_cannot_work_is_refused() -> None:
    for fraction in (0.0, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="hint: a share above 0"):
            TopFraction(column="x", fraction=fraction).check()
    stage = TopFraction(column="x", fraction=0.5)
    with pytest.raises(ValueError, match="is string, not a number"):
        stage.check_columns({"x": pa.string()})
    with pytest.raises(StageError, match="is string, not a number"):
        stage.summarize(pool(pa.array(["a"])))
