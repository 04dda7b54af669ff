"""Removes semantic duplicates: rows whose embeddings have a cosine above ``similarity``.

SemDeDup, arXiv 2303.09540, section 3: k-means, then all pairs within a cluster. It differs from the
paper in three ways. Rows are compared in the clusters of both their nearest centroids, so that a border
between two clusters hides few pairs. What is linked, directly or over other rows, is one group of which
one row stays; the paper removes a row if an earlier one of its cluster is near. And the row that stays
is the first (or largest), where the paper keeps the one farthest from its centroid.

Legend: n rows, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.contract.columns import COLUMNS
from curate.contract.draw import draws
from curate.filter import linked
from curate.filter.base import Linked
from curate.filter.linked import Prefer
from curate.score import vectors
from curate.score.clusters import nearest_two
from curate.stage import Stage

_BLOCK = 1024, 4096  # rows and columns of the cosines that are held at once
_PAIRS = 1 << 20  # links that are held before they are thinned out to a forest
_VERIFY_ROWS = 1 << 13
Pairs = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class SemanticDuplicate(Linked):
    """Refuses rows as ``semantic_duplicate``, and names in ``column`` the row that stays for each.

    All pairs of a cluster are compared, so its cost grows with the square of its rows; memory does
    not. A cluster of more than ``max_cluster_rows`` different embeddings is first split in the same
    way, around rows drawn from it. Rows without an embedding are kept.

    Options:
        similarity: cosine from 0 to 1 above which two rows are copies. SemDeDup tries 0.9 to 0.98 for CLIP.
        embedding, clusters: columns of an embedding and of ``score.clusters`` over it.
        prefer: which copy stays: ``first`` in source order, ``largest`` in pixels as fetched, or
            ``largest_stored`` as score.picture_shape measured them.
        column: the name of the column to write; another one where pictures and captions are both
            compared.
        max_cluster_rows: at 20,000 rows of 512 numbers a cluster takes about 3 CPU-seconds.
    """

    refusal: ClassVar[str] = "semantic_duplicate"
    bucket_rows: ClassVar[int] = 250_000  # each row comes twice, with its embedding: 0.5 GB

    similarity: float = 0.95
    embedding: str = "embedding_image"
    clusters: str = "clusters"
    prefer: Prefer = "first"
    column: str = "semantic_duplicate_of"
    max_cluster_rows: int = 20_000

    @property
    def copy_of(self) -> str:  # type: ignore[override]
        return self.column

    def reads(self) -> tuple[str, ...]:
        return (self.embedding, self.clusters, "part", "row", *linked.SIZES[self.prefer])

    def check(self) -> None:
        if not 0 < self.similarity < 1:
            raise ValueError(
                f"similarity = {self.similarity}. hint: a cosine between 0 and 1, such as 0.95"
            )
        if self.max_cluster_rows < 100:
            raise ValueError(f"max_cluster_rows = {self.max_cluster_rows}. hint: 100 or more")

    def check_columns(self, types: Mapping[str, pa.DataType]) -> None:
        vectors.check_column(self.embedding, types[self.embedding])
        wanted = COLUMNS["clusters"].type
        if types[self.clusters] != wanted:
            raise ValueError(
                f"column {self.clusters!r} is {types[self.clusters]}, not {wanted}. hint: name the column of score.clusters"
            )

    def check_above(self, above: Sequence[Stage]) -> None:
        linked.check_sizes(self.prefer, above)

    def ranks(self, part: pa.Table) -> np.ndarray:
        return linked.ranks(part, self.prefer)

    def summarize(self, part: pa.Table) -> pa.Table:
        """Each row once for each of its clusters, with its embedding."""
        found, usable = vectors.from_column(part[self.embedding])
        lists = part[self.clusters].combine_chunks()
        row = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
        key = lists.flatten().to_numpy()
        keep = usable[row]
        row, key = row[keep], key[keep]
        rows = self.places(part).take(pa.array(row))
        rows = rows.append_column("key", pa.array(key, pa.int32()))
        return rows.append_column("embedding", vectors.to_column(found[row], found.shape[1]))

    def links(self, bucket: pa.Table) -> Pairs:
        found, _ = vectors.from_column(bucket["embedding"])
        uids = bucket["uid"].combine_chunks()
        # In source order, so that the first of equal embeddings is the same however states were merged.
        order = np.lexsort((bucket["place"].to_numpy(), bucket["key"].to_numpy()))
        starts = np.flatnonzero(np.diff(bucket["key"].to_numpy()[order], prepend=-1))
        left: list[np.ndarray] = []
        right: list[np.ndarray] = []
        for members in np.split(order, starts[1:]):
            for a, b in self._copies(found[members], uids.take(pa.array(members))):
                left.append(members[a])
                right.append(members[b])
        empty = np.zeros(0, np.int64)
        return np.concatenate([empty, *left]), np.concatenate([empty, *right])

    def _copies(self, found: np.ndarray, uids: pa.Array) -> Iterator[Pairs]:
        """Pairs of one cluster's rows, float16 (n, D), that join the same groups as all its pairs would."""
        first, same_as = _distinct(found)
        copies = np.flatnonzero(first[same_as] != np.arange(len(found)))
        yield copies, first[same_as[copies]]
        for members in self._pieces(found[first], uids.take(pa.array(first)), depth=0):
            for a, b in _near(found[first[members]], self.similarity):
                yield first[members[a]], first[members[b]]

    def _pieces(self, found: np.ndarray, uids: pa.Array, depth: int) -> Iterator[np.ndarray]:
        """Row numbers of each piece that is compared whole; a row is in the two nearest to it.

        Rows that splitting does not take apart (nearly all go to one piece) are compared whole.
        """
        count = -(-len(found) // (self.max_cluster_rows // 4))
        if len(found) <= self.max_cluster_rows:
            yield np.arange(len(found))
            return
        lots = draws(uids.to_pylist(), f"semantic_duplicate:{depth}")
        centre = np.lexsort((np.asarray(uids), lots))[:count]
        near = nearest_two(found, found[centre])
        for piece in range(count):
            members = np.flatnonzero((near == piece).any(axis=1))
            if len(members) > 0.9 * len(found):
                yield members
                continue
            for rows in self._pieces(found[members], uids.take(pa.array(members)), depth + 1):
                yield members[rows]


def _distinct(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first row of each different vector, for each row the number of its vector)."""
    whole = np.ascontiguousarray(found).view(np.dtype((np.void, found.shape[1] * 2))).ravel()
    _, first, same_as = np.unique(whole, return_index=True, return_inverse=True)
    return first, same_as


def _near(found: np.ndarray, similarity: float) -> Iterator[Pairs]:
    """Pairs of rows of float16 (n, D) above a cosine, or a forest that joins them. Flat in memory.

    Cosines are worked out in float32; those too near to ``similarity`` for its errors, again exactly.
    """
    rows = found.astype(np.float32)
    rows /= np.sqrt(vectors.dot(found, found))[:, None]
    error = (found.shape[1] + 16) * 2.0**-23  # of a float32 product of unit vectors, at most
    held: list[Pairs] = []
    for top in range(0, len(rows), _BLOCK[0]):
        for start in range(top, len(rows), _BLOCK[1]):
            cosines = rows[top : top + _BLOCK[0]] @ rows[start : start + _BLOCK[1]].T
            left, right = np.nonzero(cosines > similarity - error)
            sure = cosines[left, right] > similarity + error
            left, right = left + top, right + start
            wanted = left < right
            left, right, sure = left[wanted], right[wanted], sure[wanted]
            sure[~sure] = _above(found, left[~sure], right[~sure], similarity)
            held.append((left[sure], right[sure]))
            if sum(len(pair[0]) for pair in held) > _PAIRS:
                held = [_forest(len(rows), held)]
    yield from held


def _above(found: np.ndarray, left: np.ndarray, right: np.ndarray, similarity: float) -> np.ndarray:
    """Exactly whether each pair's cosine is above ``similarity``."""
    above = np.zeros(len(left), bool)
    for start in range(0, len(left), _VERIFY_ROWS):
        at = slice(start, start + _VERIFY_ROWS)
        above[at] = vectors.cosines(found[left[at]], found[right[at]]) > similarity
    return above


def _forest(count: int, pairs: list[Pairs]) -> Pairs:
    """The fewest pairs that join the same groups: each row with the first of its group."""
    left, right = (np.concatenate(side) for side in zip(*pairs, strict=True))
    label = linked.groups(count, left, right)
    first = np.unique(label, return_index=True)[1][label]
    joined = np.flatnonzero(first != np.arange(count))
    return joined, first[joined]
