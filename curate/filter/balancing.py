"""The arithmetic of balancing: chances of rows, head and tail, and the search for a threshold t.

MetaCLIP, arXiv 2309.16671, section 3.3: p(e) = min(1, t / count(e)), and a row that matches the entries
M stays with P = 1 - prod over M of (1 - p(e)). MetaCLIP 2, arXiv 2507.22062, section 3.3: every language
gets the t that leaves it the tail share of the reference language. Pure functions over NumPy and Arrow;
every product is taken one factor after the other in ascending order of entries, so that each
processor and each cut of the rows gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

UNIT_BITS = 40  # sums of chances are exact integers, in units of 2**-40 of a row
TRIALS = 32  # thresholds that one look at the pool tries
_BLOCK_ROWS = 16_384
_SPARE_IDS = 65_536


def chances(
    entries: pa.ChunkedArray | pa.ListArray,
    ids: np.ndarray,
    counts: np.ndarray,
    t: np.ndarray | float,
) -> np.ndarray:
    """The probability P of each row to be kept.

    Args:
        entries: (rows,) lists of matched ids, null or empty where a row matches nothing.
        ids: (entries,) integers, ascending and distinct.
        counts: (entries,) rows of the pool that match each id, 1 or more.
        t: one threshold, or (entries,) one for each id.

    Returns float64 of shape (rows,), NaN where a row has no entry. Raises ValueError for an id that
    is not in ``ids``.
    """
    flat, starts, lengths = _runs(entries)
    places = _places(flat, ids)
    own = _seen(places, ids)  # a pool has more entries than a part: only these are divided
    each = np.asarray(t)
    refused = np.empty(len(ids))
    refused[own] = _refusals(counts[own], each[own] if each.ndim else each)
    found = np.full(len(starts), np.nan)
    for rows, products in _products(places, starts, lengths, refused):
        found[rows] = 1.0 - products
    return found


def expected_units(
    entries: pa.ChunkedArray | pa.ListArray,
    ids: np.ndarray,
    counts: np.ndarray,
    trials: np.ndarray,
    groups: np.ndarray | None = None,
) -> list[int]:
    """The sum of P over the rows for several thresholds at once, exact in units of 2**-UNIT_BITS.

    Each row's P is rounded to a whole number of units first, so sums of sums are the same for any
    cut of the rows. ``trials`` has shape (groups, trials) and ``groups`` (entries,) names the row of
    ``trials`` that is meant for each id; without it there is one group. Returns one int per trial.
    """
    flat, starts, lengths = _runs(entries)
    places = _places(flat, ids)
    own = _seen(places, ids)
    renamed = np.empty(len(ids), np.int64)
    renamed[own] = np.arange(len(own))
    t = trials[np.zeros(len(own), np.int64) if groups is None else groups[own]]
    refused = _refusals(counts[own, None], t)
    totals = np.zeros(trials.shape[1], dtype=object)
    for _, products in _products(renamed[places], starts, lengths, refused):
        units = np.rint((1.0 - products) * float(1 << UNIT_BITS)).astype(np.int64)
        totals += units.sum(axis=0).astype(object)
    return [int(total) for total in totals]


def tally(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values, ascending, and how often each occurs (both int64)."""
    if not len(values):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    if values.min() >= 0 and values.max() < 4 * len(values) + _SPARE_IDS:
        often = np.bincount(values)
        found = np.flatnonzero(often)
        return found, often[found]
    found, often = np.unique(values, return_counts=True)
    return found.astype(np.int64), often.astype(np.int64)


def added(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values (0 or more), ascending, and the sum of each one's counts (both int64)."""
    sums = np.zeros(int(values.max(initial=-1)) + 1, np.int64)
    seen = np.zeros(len(sums), dtype=bool)
    np.add.at(sums, values, counts)
    seen[values] = True
    found = np.flatnonzero(seen)
    return found, sums[found]


def tail_share(counts: np.ndarray, t: float) -> float:
    """The share of all matches that entries under ``t`` have: sum(count < t) / sum. 0 without matches."""
    whole = int(counts.sum())
    return int(counts[counts < t].sum()) / whole if whole else 0.0


def t_of_tail_share(counts: np.ndarray, share: float) -> int:
    """MetaCLIP 2's threshold for a tail share: the count at which the cumulative share is nearest to it.

    Counts are taken in ascending order; of equally near ones the first. Never under 1: the published
    code returns 0 for (0, 0, 100) and share 0.06, and 0 / 0 afterwards. 1 where there are no matches.
    """
    ordered = np.sort(counts)
    whole = int(ordered.sum())
    if not whole:
        return 1
    nearest = int(np.argmin(np.abs(np.cumsum(ordered) / whole - share)))
    return max(1, int(ordered[nearest]))


def head_and_tail(counts: np.ndarray, t: np.ndarray | float) -> dict[str, int]:
    """Entries of the head (count >= t) and of the tail, and the matches of each.

    ``t`` is one threshold or one for each count. Entries that match no row are not in ``counts``.
    """
    head = counts >= t
    return {
        "head_entries": int(head.sum()),
        "head_matches": int(counts[head].sum()),
        "tail_entries": int((~head).sum()),
        "tail_matches": int(counts[~head].sum()),
    }


def first_trials(highest: int, trials: int = TRIALS) -> list[int]:
    """Thresholds to try first: evenly spread by ratio over 1 .. ``highest``, both included."""
    steps = max(1, min(trials, highest) - 1)
    spread = {min(highest, max(1, round(highest ** (step / steps)))) for step in range(steps + 1)}
    return sorted(spread | {1, highest})


def bracket(tried: Mapping[int, float], wanted: float) -> tuple[int, int | None]:
    """The largest t tried that keeps too few (0 if none), and the smallest that keeps enough (or None)."""
    enough = min((t for t, kept in tried.items() if t and kept >= wanted), default=None)
    return max((t for t, kept in tried.items() if kept < wanted), default=0), enough


def next_trials(tried: Mapping[int, float], wanted: float, trials: int = TRIALS) -> list[int]:
    """Thresholds to try next, given the rows kept at those tried; empty once the smallest t is known.

    Rows kept grow with t and, for one t over all entries, ever more slowly (each P is concave: 1 - P is a
    product of falling straight lines). So the chord through the bracket's ends bounds t from above
    and the lines through neighbours beyond them from below. Half of the trials go between these
    bounds; the other half cut the whole bracket evenly, which is enough where the curve is no such one.
    """
    low, high = bracket(tried, wanted)
    if high is None or high - low <= 1:
        return []
    if high - low - 1 <= trials:
        return list(range(low + 1, high))
    least, most = _bounds({0: 0.0, **tried}, wanted, low, high)
    half = trials // 2
    evenly = np.linspace(low, high, half + 2)[1:-1]
    closely = np.linspace(least, most, trials - half)
    points = {round(float(point)) for point in (*evenly, *closely)}
    return sorted(point for point in points if low < point < high)


def _bounds(tried: Mapping[int, float], wanted: float, low: int, high: int) -> tuple[float, float]:
    """Where a concave curve through the points tried can cross ``wanted``, within (low, high)."""
    ts = sorted(tried)
    left, right = ts.index(low), ts.index(high)
    gain = (tried[high] - tried[low]) / (high - low)
    most = low + (wanted - tried[low]) / gain
    least = float(low)
    if left > 0:
        slope = (tried[low] - tried[ts[left - 1]]) / (low - ts[left - 1])
        least = max(least, low + (wanted - tried[low]) / slope) if slope > 0 else least
    if right + 1 < len(ts):
        slope = (tried[ts[right + 1]] - tried[high]) / (ts[right + 1] - high)
        least = max(least, high - (tried[high] - wanted) / slope) if slope > 0 else least
    most = min(float(high - 1), math.ceil(most) + 1.0)
    return max(float(low + 1), min(math.floor(least) - 1.0, most)), most


def _seen(places: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The distinct places, ascending."""
    seen = np.zeros(len(ids), dtype=bool)
    seen[places] = True
    return np.flatnonzero(seen)


def _refusals(counts: np.ndarray, t: np.ndarray) -> np.ndarray:
    """1 - min(1, t / count) of each entry."""
    return 1.0 - np.minimum(1.0, t / counts)


def _runs(
    entries: pa.ChunkedArray | pa.ListArray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All ids in one row, ascending within each list, and the start and length of every list in it."""
    lists = entries.combine_chunks() if isinstance(entries, pa.ChunkedArray) else entries
    lengths = np.diff(np.asarray(lists.offsets, dtype=np.int64))
    if lists.null_count:
        lengths = np.where(np.asarray(lists.is_valid()), lengths, 0)
    flat, ends = np.asarray(lists.flatten()), np.cumsum(lengths)
    starts = ends - lengths
    first = np.zeros(len(flat) + 1, dtype=bool)
    first[starts] = True
    if not first[1:-1][flat[1:] < flat[:-1]].all():
        flat = flat.copy()
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            flat[start:end].sort()
    return flat, starts, lengths


def _places(flat: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The place in ``ids`` of each id. Raises ValueError for one that is not there."""
    if not len(flat):
        return np.empty(0, np.int64)
    last = int(ids[-1]) if len(ids) else -1
    if int(flat.min()) < 0 or int(flat.max()) > last:
        raise ValueError(UNKNOWN)
    if last < 4 * (len(ids) + len(flat)) + _SPARE_IDS:
        table = np.full(last + 1, -1, dtype=np.int32)
        table[ids] = np.arange(len(ids), dtype=np.int32)
        places = table[flat]
        known = int(places.min()) >= 0
    else:
        places = np.searchsorted(ids, flat)
        known = bool((ids[places] == flat).all())
    if not known:
        raise ValueError(UNKNOWN)
    return places


UNKNOWN = "a row matches an entry that has no count. hint: count and balance the same pool"


def _products(
    places: np.ndarray, starts: np.ndarray, lengths: np.ndarray, factors: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(row numbers, products of their factors), block by block; rows without an entry are left out.

    ``factors`` has shape (entries, ...). Rows of a block are sorted by length, so that step k multiplies the
    k-th factor onto the rows that still have one: for each row a plain loop over its entries.
    """
    for first in range(0, len(starts), _BLOCK_ROWS):
        length = lengths[first : first + _BLOCK_ROWS]
        order = np.argsort(-length, kind="stable")
        falling = -length[order]
        order = order[: np.searchsorted(falling, 0)]
        if not len(order):
            continue
        at = starts[first : first + _BLOCK_ROWS][order]
        products = factors[places[at]]
        for step in range(1, -int(falling[0])):
            left = np.searchsorted(falling, -step)
            products[:left] *= factors[places[at[:left] + step]]
        yield order + first, products
