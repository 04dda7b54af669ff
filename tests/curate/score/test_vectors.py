"""Embeddings survive Arrow and parquet, rows without a direction are told, and products are exact."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.score import vectors


def some(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    made = np.random.default_rng(seed).normal(size=(rows, dim))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float16)


def test_there_and_back_through_parquet_and_slices(tmp_path: Path) -> None:
    given = some(9, 5).astype(np.float32)
    given[4] = np.nan
    column = vectors.to_column(given, 5)
    assert column.type == vectors.column_type(5)
    assert column.null_count == 1
    pq.write_table(pa.table({"e": column}), tmp_path / "e.parquet")
    for table in (pa.table({"e": column}), pq.read_table(tmp_path / "e.parquet")):
        for start, stop in ((0, 9), (3, 7), (4, 5), (9, 9)):
            found, usable = vectors.from_column(table["e"].slice(start, stop - start))
            assert found.dtype == np.float16
            assert usable.tolist() == [row != 4 for row in range(start, stop)]
            wanted = np.nan_to_num(given[start:stop]).astype(np.float16)
            assert np.array_equal(found, wanted)


def test_rows_without_a_direction_are_not_usable() -> None:
    rows = [[0.0, 0.0], [np.inf, 0.0], [1.0, 0.0], None]
    for kind in (pa.float16(), pa.float32()):
        given = [None if row is None else [np.float16(one) for one in row] for row in rows]
        column = pa.array(given, pa.list_(pa.float16(), 2)).cast(pa.list_(kind, 2))
        found, usable = vectors.from_column(column)
        assert usable.tolist() == [False, False, True, False]
        assert found[[0, 1, 3]].tolist() == [[0, 0]] * 3


def test_products_are_exact_in_any_order() -> None:
    left, right = some(20, 768, 1), some(20, 768, 2)
    exact = [
        sum(Fraction(float(a)) * Fraction(float(b)) for a, b in zip(x, y, strict=True))
        for x, y in zip(left, right, strict=True)
    ]
    assert [Fraction(one) for one in vectors.dot(left, right).tolist()] == exact
    whole = left.astype(np.float64) @ right.astype(np.float64).T
    assert [Fraction(one) for one in np.diag(whole).tolist()] == exact
    turned = np.random.default_rng(0).permutation(768)
    assert np.array_equal(vectors.dot(left[:, turned], right[:, turned]), vectors.dot(left, right))


def test_cosines_do_not_need_unit_norm() -> None:
    left = np.array([[3, 4], [2, 0]], np.float16)
    right = np.array([[4, 3], [-8, 0]], np.float16)
    assert vectors.cosines(left, right).tolist() == [24 / 25, -1]


def test_columns_of_another_kind_are_named() -> None:
    vectors.check_column("embedding_image", vectors.column_type(4), 4)
    with pytest.raises(
        ValueError, match=r"'caption' is string, no embeddings\. hint: name a column"
    ):
        vectors.check_column("caption", pa.string())
    with pytest.raises(ValueError, match=r"has 4 numbers a row, 5 are needed\. hint:"):
        vectors.check_column("e", vectors.column_type(4), 5)
    vectors.check_name("embedding_image_l14")
    for name in ("image", "embedding-x"):
        with pytest.raises(ValueError, match="hint: a name such as"):
            vectors.check_name(name)
