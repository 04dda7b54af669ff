"""Clusters found are those planted, the sample depends on uids alone, and nearness is exact."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.contract.draw import draw
from curate.score import vectors
from curate.score.clusters import Clusters, _bin, nearest_two
from curate.stage import pool_state


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def pool(rows: int, centres: int = 4, dim: int = 16, seed: int = 0) -> tuple[pa.Table, np.ndarray]:
    """Rows around far centres, and the number of each row's centre; every 10th row has no embedding."""
    rng = np.random.default_rng(seed)
    of = rng.integers(0, centres, rows)
    made = np.eye(dim)[of] + rng.normal(size=(rows, dim)) * 0.05
    made[::10] = np.nan
    uids = [hashlib.sha256(str(n).encode()).hexdigest()[:32] for n in range(rows)]
    return pa.table({"uid": uids, "embedding_image": vectors.to_column(unit(made), dim)}), of


def parts(table: pa.Table, count: int) -> list[pa.Table]:
    size = -(-len(table) // count)
    return [table.slice(start, size) for start in range(0, len(table), size)]


def decided(stage: Clusters, tables: list[pa.Table]) -> list[list[int] | None]:
    state = pool_state(stage, lambda: tables)
    return [row for part in tables for row in stage.decide(part, state)["clusters"].to_pylist()]


def test_planted_groups_are_found() -> None:
    table, of = pool(400)
    found = decided(Clusters(clusters=16), [table])
    assert [row is None for row in found] == [n % 10 == 0 for n in range(400)]
    nearest = {(int(centre), row[0]) for centre, row in zip(of, found, strict=True) if row}
    assert len(nearest) == 16, "no cluster holds rows of two centres"
    assert all(len(set(row)) == 2 for row in found if row)


@pytest.mark.parametrize("sample", [60, 1000])
def test_any_cut_into_parts_decides_alike(sample: int) -> None:
    table, _ = pool(300)
    stage = Clusters(clusters=7, sample=sample)
    whole = decided(stage, [table])
    for count in (2, 7, 100):
        assert decided(stage, parts(table, count)) == whole, f"{count} parts"


def test_the_sample_is_the_smallest_draws_and_follows_the_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table, _ = pool(2000)
    found, _ = vectors.from_column(table["embedding_image"])
    places = {uid: n for n, uid in enumerate(table["uid"].to_pylist()) if n % 10}
    seen: list[np.ndarray] = []
    monkeypatch.setattr(
        Clusters, "_fit", lambda self, sample: seen.append(sample) or sample[: self.clusters]
    )
    for seed in (0, 5):
        stage = Clusters(clusters=2, sample=300, seed=seed)
        tables = parts(table, 9)[::-1]
        state = pool_state(stage, lambda: tables)  # noqa: B023
        wanted = sorted(places, key=lambda uid: draw(uid, f"clusters:{seed}"))[:300]
        assert np.array_equal(seen[-1], found[[places[uid] for uid in wanted]])
        assert len(state) == 2


def test_the_second_pass_brings_little_more_than_the_sample() -> None:
    table, _ = pool(20_000)
    stage = Clusters(clusters=2, sample=500)
    state = stage.close(stage.summarize(table))
    assert 500 <= len(stage.look_again(table, state)) <= 505
    assert len(stage.summarize(table)) < 4000


def test_bins_keep_the_order_of_draws() -> None:
    lots = np.sort(np.append(np.random.default_rng(0).random(5000) ** 8, [0, 2**-53, 1 - 2**-53]))
    bins = _bin(lots)
    assert (np.diff(bins) >= 0).all()
    assert bins[0] < bins[1]


def test_small_and_empty_pools() -> None:
    table, _ = pool(4)
    found = decided(Clusters(clusters=10), [table])
    assert found[0] is None
    assert sorted(row[0] for row in found[1:] if row) == [0, 1, 2]
    alone = decided(Clusters(clusters=1), [table])
    assert alone == [None, [0], [0], [0]]
    assert decided(Clusters(clusters=3), [table.slice(0, 1)]) == [None]
    assert decided(Clusters(clusters=3), [table.slice(0, 0)]) == []
    same = pa.table(
        {
            "uid": [str(n) for n in range(50)],
            "embedding_image": table["embedding_image"].take([1] * 50),
        }
    )
    assert len({tuple(row) for row in decided(Clusters(clusters=3), [same]) if row}) == 1


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 30),
    centroids=st.integers(1, 9),
    cut=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_nearest_is_by_exact_cosine_and_ties_by_number(
    rows: int, centroids: int, cut: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    grid = np.array([-1, -0.5, 0.25, 1], np.float16)  # few values, so that there are ties
    left = rng.choice(grid, (rows, 6))
    right = rng.choice(grid, (centroids, 6)) * rng.choice([0.5, 1], (centroids, 1)).astype(
        np.float16
    )
    wide = right.astype(np.float64)
    cosine = left.astype(np.float64) @ wide.T / np.sqrt((wide * wide).sum(1))
    wanted = np.argsort(-cosine, axis=1, kind="stable")[:, :2]
    assert nearest_two(left, right).tolist() == wanted.tolist()
    parts = [nearest_two(left[start : start + cut], right) for start in range(0, rows, cut)]
    assert [row for part in parts for row in part.tolist()] == wanted.tolist()


def test_another_column_may_be_named() -> None:
    table, _ = pool(20)
    stage = Clusters(clusters=2, column="clusters_image")
    state = pool_state(stage, lambda: [table])
    assert stage.decide(table, state).schema == stage.writes()
    assert stage.writes().names == ["clusters_image"]


def test_options_that_cannot_work_are_named() -> None:
    with pytest.raises(ValueError, match=r"clusters = 0\. hint:"):
        Clusters(clusters=0).check()
    with pytest.raises(ValueError, match=r"sample = 5 rows for 9 clusters\. hint:"):
        Clusters(clusters=9, sample=5).check()
    with pytest.raises(ValueError, match="no embeddings"):
        Clusters(clusters=9).check_columns({"embedding_image": pa.list_(pa.float32())})
