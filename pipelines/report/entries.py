"""How many rows each entry of the entry list has before and after balancing.

MetaCLIP, arXiv 2309.16671: balancing flattens the head of this distribution and leaves the tail.
Counted part by part from the pool, with the ledger beside it; only the counts are held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.contract import parts
from curate.contract.parts import Pool
from curate.filter import balancing
from pipelines.report.content import EntryBalance, EntryRow
from pipelines.report.ledger import Cursor

_CURVE_POINTS = 240


@dataclass
class EntryCounts:
    """Rows per entry id, int64 of equal lengths, and what balancing was expected to do."""

    before: np.ndarray  # rows that reached balancing
    after: np.ndarray  # rows that it kept
    unmatched: int = 0  # rows that reached it with no entry
    expected: float | None = None  # sum of the chances of the rows with an entry
    variance: float = 0.0


def entry_counts(
    pool: Pool,
    use: str,
    fingerprint: str,
    ledger_path: str,
    stage_order: Sequence[str],
    balance: str,
    state: pa.Table | None = None,
) -> EntryCounts:
    """The rows that reached ``balance`` and those that it kept, by entry.

    ``use`` and ``fingerprint`` are those of the stage that wrote the column ``entries``;
    ``stage_order`` names the run's stages in order, as the ledger does. Rows that a stage after
    ``balance`` refused were kept by it. ``state``: entry, count and t of a balance without groups;
    what it was expected to keep is left out without one, and where its counts are of another pool.
    """
    description = pool.describe() or {"parts": 0}
    place = {name: number for number, name in enumerate(stage_order)}
    ledger = Cursor(ledger_path, ["keep", "stage"])
    counts = EntryCounts(np.zeros(0, np.int64), np.zeros(0, np.int64))
    counts.expected = None if state is None else 0.0
    for part in range(description["parts"]):
        entries = parts.read_table(pool.columns_path(use, fingerprint, part), ["entries"])[
            "entries"
        ]
        rows = ledger.take(len(entries))
        if not len(entries):
            continue
        # Where each row ended: at the place of the stage that refused it, or past the last one.
        ended = np.array([place.get(stage, -1) for stage in rows["stage"].to_pylist()])
        ended[np.asarray(rows["keep"])] = len(place)
        reached = entries.filter(pa.array(ended >= place[balance]))
        counts.before = _added(counts.before, reached)
        counts.after = _added(counts.after, entries.filter(pa.array(ended > place[balance])))
        lengths = pc.fill_null(pc.list_value_length(reached), 0)
        counts.unmatched += pc.sum(pc.equal(lengths, 0)).as_py() or 0
        if state is not None and counts.expected is not None:
            _expect(counts, reached, state)
    size = max(len(counts.before), len(counts.after))
    counts.before, counts.after = _padded(counts.before, size), _padded(counts.after, size)
    return counts


def balance_of(
    before: np.ndarray, after: np.ndarray, texts: Sequence[str] | None, count: int = 10
) -> EntryBalance | None:
    """The section of the report: both ends of the list and the curves. None if nothing matched."""
    matched = np.flatnonzero(before)
    if not len(matched):
        return None
    order = matched[np.lexsort((matched, -before[matched]))]
    tail = order[max(count, len(order) - count) :]

    def rows(ids: np.ndarray) -> list[EntryRow]:
        return [EntryRow(_text(texts, int(i)), int(before[i]), int(after[i])) for i in ids]

    return EntryBalance(
        head=rows(order[:count]),
        tail=rows(tail),
        before=_curve(before),
        after=_curve(after),
        n_before=len(order),
        n_after=int((after > 0).sum()),
    )


def _expect(counts: EntryCounts, reached: pa.ChunkedArray, state: pa.Table) -> None:
    """Add the chances of some rows; none are known any more where an entry has no count."""
    columns = (np.asarray(state[name]) for name in ("entry", "count", "t"))
    try:
        chances = balancing.chances(reached, *columns)
    except ValueError:
        counts.expected = None
        return
    matched = chances[~np.isnan(chances)]
    counts.expected = (counts.expected or 0.0) + float(matched.sum())
    counts.variance += float((matched * (1.0 - matched)).sum())


def _added(counts: np.ndarray, lists: pa.ChunkedArray) -> np.ndarray:
    """``counts`` plus how often each id stands in the lists."""
    more = np.bincount(np.asarray(pc.list_flatten(lists)).astype(np.int64))
    size = max(len(counts), len(more))
    return _padded(counts, size) + _padded(more, size)


def _padded(counts: np.ndarray, size: int) -> np.ndarray:
    return np.pad(counts, (0, size - len(counts)))


def _curve(counts: np.ndarray) -> list[tuple[int, int]]:
    """(rank, rows), most frequent first, at ranks that are even on a log scale."""
    ordered = np.sort(counts[counts > 0])[::-1]
    if not len(ordered):
        return []
    ranks = np.unique(np.geomspace(1, len(ordered), _CURVE_POINTS).round().astype(int))
    return [(int(rank), int(ordered[rank - 1])) for rank in ranks]


def _text(texts: Sequence[str] | None, entry: int) -> str:
    return texts[entry] if texts is not None and entry < len(texts) else f"entry {entry}"
