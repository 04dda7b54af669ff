"""Rows linked as copies of each other: the groups they make, and which row of each group stays.

A group is a connected component of the links (single linkage): a row may be refused for being like a
row that is like the kept one. Of a group, the row with the smallest (rank, place) stays, a total order
that depends on no partitioning. ``base.Linked`` is the stage that is built on these functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa

from curate.stage import REASON, Stage

ROWS = pa.schema([("place", pa.int64()), ("rank", pa.float64()), ("uid", pa.string())])
LINKS = pa.schema(
    [
        ("place", pa.int64()),
        ("of_place", pa.int64()),
        ("of_rank", pa.float64()),
        ("of_uid", pa.string()),
    ]
)
COPIES = pa.schema([("part", pa.int64()), ("row", pa.int64()), ("of_uid", pa.string())])
_ROW_BITS = 32
_LINKS_AT_ONCE = 4_000_000

Pairs = tuple[np.ndarray, np.ndarray]  # row numbers, int64, shape (pairs,) each
# Which row of a group stays: the first in source order, or the picture with the most pixels, as fetched
# or as score.picture_shape measured it.
Prefer = Literal["first", "largest", "largest_stored"]
SIZES: dict[Prefer, tuple[str, ...]] = {
    "first": (),
    "largest": ("original_width", "original_height"),
    "largest_stored": ("min_side_px", "aspect_ratio"),
}


def places(table: pa.Table) -> np.ndarray:
    """Where each row stands in the source's order, as one int64 made of ``part`` and ``row``."""
    parts, rows = (table[name].to_numpy().astype(np.int64) for name in ("part", "row"))
    return (parts << _ROW_BITS) | rows


def ranks(table: pa.Table, prefer: Prefer) -> np.ndarray:
    """Float64 of shape (rows,): the smallest stays. Unknown sizes come last. Reads ``SIZES[prefer]``."""
    if not SIZES[prefer]:
        return np.zeros(len(table))
    one, other = (
        table[name].cast(pa.float64()).fill_null(0.0).to_numpy() for name in SIZES[prefer]
    )
    # The long side again, in whole pixels: the ratio is a float32, and pictures of one area must tie.
    return -(one * (np.rint(one * other) if prefer == "largest_stored" else other))


def check_sizes(prefer: Prefer, above: Sequence[Stage]) -> None:
    """Raise ValueError where pictures come with the source and none was fetched, so no such size is known."""
    names = {name for stage in above for name in stage.writes().names}
    if prefer == "largest" and "image" in names and not names.issuperset(SIZES[prefer]):
        raise ValueError(
            'prefer = "largest" goes by original_width and original_height, and the source brings pictures without them. hint: prefer = "largest_stored", below score.picture_shape with of = "stored"'
        )


def stars(rows: pa.Table, left: np.ndarray, right: np.ndarray) -> pa.Table:
    """LINKS from each row that has a better copy to the best row of its group.

    ``rows`` has the columns of ROWS, in any order and possibly with a place more than once; ``left``
    and ``right`` are row numbers of ``rows``, one pair per link. However many pairs there are, the
    answer has less than one row per place. What is best in a larger group is best here, too, so no
    other row of this group can be the one that stays.
    """
    every_place, first, node = np.unique(
        rows["place"].to_numpy(), return_index=True, return_inverse=True
    )
    label = groups(len(every_place), node[left], node[right])
    best = _best(label, rows["rank"].to_numpy()[first], every_place)
    of = best[label]
    copies = np.flatnonzero(of != np.arange(len(of)))
    kept = rows.take(pa.array(first[of[copies]]))
    return pa.table(
        [pa.array(every_place[copies]), kept["place"], kept["rank"], kept["uid"]], schema=LINKS
    )


def settled(links: pa.Table) -> pa.Table:
    """COPIES: each row that is refused, by part and row, and the uid of the row that stays for it.

    ``links`` are the stars of all buckets. Holds one row per link and never the pool.
    """
    ends = [links[name].to_numpy() for name in ("place", "of_place")]
    every_place, node = np.unique(np.concatenate(ends), return_inverse=True)
    start, end = node[: len(links)], node[len(links) :]
    label = groups(len(every_place), start, end)
    rank = np.full(len(every_place), np.inf)
    rank[end] = links["of_rank"].to_numpy()  # only the best of a star can be the best of all
    link_of = np.zeros(len(every_place), np.int64)
    link_of[end] = np.arange(len(links))
    # A place that ends no link must not win by an equal rank of infinity.
    best = _best(label, rank, every_place, ~np.isin(np.arange(len(every_place)), end))
    of = best[label]
    copies = np.flatnonzero(of != np.arange(len(of)))
    uids = links["of_uid"].take(pa.array(link_of[of[copies]]))
    part, row = every_place[copies] >> _ROW_BITS, every_place[copies] & ((1 << _ROW_BITS) - 1)
    return pa.table([pa.array(part), pa.array(row), uids], schema=COPIES)


def copied_uids(part: pa.Table, copies: pa.Table) -> pa.Array:
    """For each row of ``part`` the uid of the row that stays in its stead, or null."""
    refused = places(copies)
    order = np.argsort(refused)
    own = places(part)
    at = np.searchsorted(refused[order], own)
    found = at < len(order)
    found[found] = refused[order][at[found]] == own[found]
    where = np.zeros(len(own), np.int64)
    where[found] = order[at[found]]
    chosen = copies["of_uid"].combine_chunks().take(pa.array(where, mask=~found))
    return chosen.cast(pa.string())


def pairs_in_groups(group: np.ndarray) -> Iterator[Pairs]:
    """Every pair of positions with an equal value of ``group``, which is sorted; in several pieces.

    The first piece has each neighbour, the second each neighbour but one, and so on, so that a piece
    is never longer than ``group``.
    """
    left = np.arange(len(group))
    for step in range(1, len(group)):
        left = left[: np.searchsorted(left, len(group) - step)]
        left = left[group[left] == group[left + step]]
        if not len(left):
            return
        yield left, left + step


def forest(count: int, pieces: Iterable[Pairs]) -> Pairs:
    """Links that join the same of ``count`` rows as those given: held memory stays flat, however many."""
    held: list[Pairs] = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece[0])
        if size > max(_LINKS_AT_ONCE, 2 * count):
            held = [_spanning(count, held)]
            size = len(held[0][0])
    return _spanning(count, held)


def refusals(refused: np.ndarray, reason: str) -> list[pa.Array]:
    """The ``keep`` and ``reason`` columns where every refused row has the one reason."""
    codes = pa.array(np.zeros(len(refused), np.int32), mask=~refused)
    reasons = pa.DictionaryArray.from_arrays(codes, pa.array([reason], pa.string()))
    return [pa.array(~refused), reasons.cast(REASON.type)]


def _spanning(count: int, pieces: list[Pairs]) -> Pairs:
    """At most one link per row, to the first row of its group."""
    left, right = (np.concatenate(side) for side in zip(*pieces, strict=True))
    label = groups(count, left, right)
    of = np.unique(label, return_index=True)[1][label]
    copies = np.flatnonzero(of != np.arange(count))
    return copies, of[copies]


def groups(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Number of the connected component of each of ``count`` nodes."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(count, count))
    return np.asarray(connected_components(edges, directed=False)[1], dtype=np.int64)


def _best(
    label: np.ndarray, rank: np.ndarray, place: np.ndarray, last: np.ndarray | None = None
) -> np.ndarray:
    """For each group the node with the smallest (last, rank, place)."""
    keys = (place, rank) if last is None else (place, rank, last)
    order = np.lexsort((*keys, label))
    first = np.flatnonzero(np.diff(label[order], prepend=-1))
    return order[first]
