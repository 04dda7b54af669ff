"""Columns of embeddings: numpy to Arrow and back, and products of them that are exact.

An ``embedding_*`` column is fixed_size_list<float16>, unit norm. A product of two float16 numbers up to
1 is a multiple of 2^-48, and a sum of products of two unit vectors is never far above 1, so in float64
no addition rounds: the sum is the same in any order, for any block size, on any processor. What is
decided by such products does not depend on how the pool is cut or on the machine.

Legend: n rows, D embedding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa


def column_type(dim: int) -> pa.DataType:
    """The Arrow type of an embedding column of ``dim`` numbers a row."""
    return pa.list_(pa.float16(), dim)


def check_name(name: str) -> None:
    """Raise ValueError for a column name that does not say that embeddings are in it."""
    if not name.startswith("embedding_") or not name.isidentifier():
        raise ValueError(
            f'column = {name!r}. hint: a name such as "embedding_image", letters after "embedding_"'
        )


def to_column(vectors: np.ndarray, dim: int) -> pa.Array:
    """float (n, D) -> the column; a row with a NaN in it is null."""
    halves = np.asarray(vectors, np.float16)
    missing = np.isnan(halves).any(axis=1)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(halves.ravel()), type=column_type(dim), mask=pa.array(missing)
    )


def from_column(column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """float16 (n, D), and bool (n): whether the row has a direction (not null, zero, NaN or inf).

    Rows without one are zeros.
    """
    array: Any = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    dim = array.type.list_size
    flat = array.values.slice(array.offset * dim, len(array) * dim)
    vectors = flat.to_numpy(zero_copy_only=False).astype(np.float16, copy=False).reshape(-1, dim)
    usable = array.is_valid().to_numpy(zero_copy_only=False)
    usable = usable & np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
    return (vectors if usable.all() else np.where(usable[:, None], vectors, np.float16(0))), usable


def check_column(name: str, kind: pa.DataType, dim: int = 0) -> None:
    """Raise ValueError where a column holds no embeddings, or none of ``dim`` numbers (0: any)."""
    if not (pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type)):
        raise ValueError(
            f"column {name!r} is {kind}, no embeddings. hint: name a column of score.image_embedding or score.text_embedding"
        )
    if dim and kind.list_size != dim:
        raise ValueError(
            f"column {name!r} has {kind.list_size} numbers a row, {dim} are needed. hint: name the column of the model that goes with it"
        )


def dot(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """float16 (n, D) and (n, D) -> exact float64 (n,): the product of each pair of rows."""
    return np.einsum("nd,nd->n", left.astype(np.float64), right.astype(np.float64))


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """float16 (n, D) and (n, D) -> float64 (n,): the cosine of each pair; rows need not be unit norm."""
    return dot(left, right) / np.sqrt(dot(left, left) * dot(right, right))
