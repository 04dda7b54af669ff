"""Groups embeddings by k-means: each row gets its two nearest centroids.

The first step of SemDeDup (arXiv 2303.09540, section 3), which compares only rows of one cluster. The
paper assigns a row to one cluster and fits on the whole pool. Here the fit sees a sample that depends
on nothing but uids and the seed, and a row is in the clusters of its two nearest centroids: near copies
on either side of a border then share one (recall on structureless data: docs/benchmarks.md).

Legend: n rows, D embedding, K clusters.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from curate.contract.columns import field
from curate.contract.draw import draws
from curate.score import vectors
from curate.stage import GlobalStage

_HISTOGRAM = pa.schema([("bin", pa.int32()), ("count", pa.int64())])
_BLOCK_ROWS = 4096  # of a part that are compared with all centroids at once
_ITERATIONS = 20


@dataclass(frozen=True, kw_only=True)
class Clusters(GlobalStage):
    """Writes ``column``: the numbers of the nearest centroids, the nearest first; null without an embedding.

    Spherical k-means by faiss, on the rows with the smallest draws. The parts are looked at twice: the
    first pass finds below which draw the sample lies, the second brings it together. No process holds
    more than about ``sample`` times D numbers, whatever the pool's size.

    Options:
        embedding: the column to group by.
        column: the name of the column to write; another one where pictures and captions are both
            grouped.
        clusters: how many; pools with fewer rows get fewer. With rows / 1000, a cluster has 2000 rows.
        sample: rows that the fit sees; faiss asks for 40 or more for each cluster.
        seed: the recipe's where it is left out.
    """

    bucket_by: ClassVar[str | None] = None  # bounded by the sample

    embedding: str = "embedding_image"
    column: str = "clusters"
    clusters: int
    sample: int = 100_000
    seed: int = 0

    def reads(self) -> tuple[str, ...]:
        return (self.embedding,)

    def writes(self) -> pa.Schema:
        return pa.schema([field("clusters").with_name(self.column)])

    def check(self) -> None:
        if self.clusters < 1:
            raise ValueError(f"clusters = {self.clusters}. hint: 1 or more; rows / 1000 is a start")
        if self.sample < self.clusters:
            raise ValueError(
                f"sample = {self.sample} rows for {self.clusters} clusters. hint: 40 rows or more for each"
            )

        if importlib.util.find_spec("faiss") is None:
            raise ValueError("faiss is not installed. hint: pip install 'clip-pipe[curate]'")

    def check_columns(self, types: Mapping[str, pa.DataType]) -> None:
        vectors.check_column(self.embedding, types[self.embedding])

    def passes(self) -> int:
        return 2

    def summarize(self, part: pa.Table) -> pa.Table:
        """How many of the part's rows have a draw in each bin: small, whatever the part's size."""
        _, _, lots = self._drawn(part)
        bins, counts = np.unique(_bin(lots), return_counts=True)
        return pa.table([pa.array(bins), pa.array(counts)], schema=_HISTOGRAM)

    def merge(self, partials: Sequence[pa.Table]) -> pa.Table:
        table = pa.concat_tables(partials)
        summed = table.group_by("bin").aggregate([("count", "sum")]).sort_by("bin")
        return pa.table([summed["bin"], summed["count_sum"]], schema=_HISTOGRAM)

    def close(self, state: pa.Table) -> pa.Table:
        """``bin``: the last that is needed for a whole sample; one row, none in an empty pool."""
        reached = np.cumsum(state["count"].to_numpy()) >= self.sample
        last = int(reached.argmax()) if reached.any() else max(len(state) - 1, 0)
        return state.select(["bin"]).slice(last, 1)

    def look_again(self, part: pa.Table, state: pa.Table) -> pa.Table:
        """The part's rows that may be in the sample: draw, uid, embedding."""
        found, uids, lots = self._drawn(part)
        near = _bin(lots) <= (state["bin"][0].as_py() if len(state) else 0)
        columns = [
            pa.array(lots[near]),
            uids.filter(pa.array(near)),
            vectors.to_column(found[near], found.shape[1]),
        ]
        return pa.table(columns, names=["draw", "uid", "embedding"])

    def adjust(self, state: pa.Table, partials: Sequence[pa.Table]) -> pa.Table:
        """One row per centroid: ``centroid``, fixed_size_list<float16, D>, unit norm."""
        table = pa.concat_tables(partials)
        # In the order of draws: the sample, and with it the fit, is the same for any cut into parts.
        order = np.lexsort((table["uid"].to_numpy(), table["draw"].to_numpy()))
        sample, _ = vectors.from_column(table["embedding"].take(pa.array(order[: self.sample])))
        column = vectors.to_column(self._fit(sample), sample.shape[1])
        usable = vectors.from_column(column)[1]  # a cluster that lost all its rows may be zero
        return pa.table({"centroid": column.filter(pa.array(usable))})

    def decide(self, part: pa.Table, state: pa.Table) -> pa.Table:
        found, usable = vectors.from_column(part[self.embedding])
        centroids, _ = vectors.from_column(state["centroid"])
        near = nearest_two(found[usable], centroids)
        lengths = np.where(usable, near.shape[1], 0)
        offsets = pa.array(np.append(0, np.cumsum(lengths)).astype(np.int32))
        lists = pa.ListArray.from_arrays(
            offsets, pa.array(near.ravel(), pa.int32()), mask=pa.array(~usable)
        )
        return pa.table([lists], schema=self.writes())

    def _drawn(self, part: pa.Table) -> tuple[np.ndarray, pa.Array, np.ndarray]:
        """float16 (n, D), uids and draws of the part's rows that have an embedding."""
        found, usable = vectors.from_column(part[self.embedding])
        uids = part["uid"].combine_chunks().filter(pa.array(usable))
        return found[usable], uids, draws(uids.to_pylist(), f"clusters:{self.seed}")

    def _fit(self, sample: np.ndarray) -> np.ndarray:
        """float16 (n, D) in a fixed order -> float32 centroids (K, D); K <= n."""
        count = min(self.clusters, len(sample))
        if not count:
            return np.zeros((0, sample.shape[1]), np.float32)
        import faiss

        rows = np.ascontiguousarray(sample, dtype=np.float32)
        faiss.normalize_L2(rows)
        before = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)  # the same sums in every run
        try:
            fit = faiss.Kmeans(
                rows.shape[1],
                count,
                niter=_ITERATIONS,
                seed=self.seed % (1 << 31),
                spherical=True,
                min_points_per_centroid=1,
                max_points_per_centroid=max(1, self.sample),
            )
            fit.train(rows)
        finally:
            faiss.omp_set_num_threads(before)
        return np.asarray(fit.centroids, np.float32)


def _bin(lots: np.ndarray) -> np.ndarray:
    """Draws in [0, 1) to int32 bins in the same order, 256 to each halving: fine near zero."""
    share, exponent = np.frexp(lots)
    bins = exponent * 256 + np.floor((share - 0.5) * 512)
    return np.where(lots > 0, bins, -(1 << 20)).astype(np.int32)


def nearest_two(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """float16 (n, D) and (K, D) -> int32 (n, min(2, K)): the nearest by cosine first, ties by number.

    In float64, where products of float16 vectors are exact: the same for any cut of the rows.
    """
    wide = centroids.astype(np.float64).T
    lengths = np.sqrt(vectors.dot(centroids, centroids))
    found = np.empty((len(rows), min(2, len(centroids))), np.int32)
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS].astype(np.float64) @ wide
        block /= lengths  # after the product: a shortened centroid would not be float16
        for place in range(found.shape[1]):
            best = block.argmax(axis=1)
            found[start : start + len(block), place] = best
            block[np.arange(len(block)), best] = -np.inf
    return found
