"""The ledger read batch by batch: how many rows each reason took, and a few rows of each.

A ledger is one parquet file or a folder of parts; either way its rows stand in source order.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from curate.contract import storage
from curate.contract.draw import draws

_SALT = "report"
_BATCH_ROWS = 65_536


@dataclass(frozen=True)
class LedgerSample:
    """One refused row: where it stands in the source's order, and its words."""

    position: int
    uid: str
    url: str
    caption: str
    stage: str = ""  # the name of the one that refused it


@dataclass(frozen=True)
class LedgerSummary:
    """Counts over the whole ledger, and the rows of each reason with the smallest draws."""

    rows: int
    kept: int
    reasons: dict[str, int]  # most frequent first
    samples: dict[str, list[LedgerSample]]


def batches(path: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The ledger's rows in order, some at a time. Raises ValueError where there is no ledger."""
    folder = storage.glob(storage.join(path, "*.parquet"))
    if not folder and not storage.exists(path):
        raise ValueError(
            f"{path}: no ledger. hint: give the shards folder of a finished `clip-pipe curate`"
        )
    for name in folder or [path]:
        with storage.open_file(name) as file:
            yield from pq.ParquetFile(file).iter_batches(_BATCH_ROWS, columns=columns)


def summarize(path: str, per_reason: int = 6) -> LedgerSummary:
    """Count the ledger and draw ``per_reason`` rows of each reason, the same ones every time."""
    rows = kept = 0
    reasons: Counter[str] = Counter()
    drawn: dict[str, list[tuple[float, int, LedgerSample]]] = {}
    for batch in batches(path, ["uid", "url", "caption", "keep", "reason", "stage"]):
        kept += batch["keep"].true_count
        for position, draw, reason, index in _refused(batch, rows):
            reasons[reason] += 1
            heap = drawn.setdefault(reason, [])
            # The heap's top is the largest draw held, so that one is the next to go.
            if len(heap) < per_reason:
                heapq.heappush(heap, (-draw, -position, _sample(batch, index, position)))
            elif (-draw, -position) > heap[0][:2]:
                heapq.heapreplace(heap, (-draw, -position, _sample(batch, index, position)))
        rows += batch.num_rows
    ordered = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
    samples = {
        reason: [item[2] for item in sorted(drawn[reason], key=lambda item: (-item[0], -item[1]))]
        for reason in ordered
    }
    return LedgerSummary(rows, kept, ordered, samples)


class Cursor:
    """A column or two of the ledger, taken in pieces of any length."""

    def __init__(self, path: str, columns: list[str]) -> None:
        self._batches = batches(path, columns)
        self._rest: list[pa.RecordBatch] = []

    def take(self, rows: int) -> pa.Table:
        """The next ``rows`` rows. Raises ValueError where the ledger has no more."""
        taken: list[pa.RecordBatch] = []
        while rows:
            batch = self._rest.pop() if self._rest else next(self._batches, None)
            if batch is None:
                raise ValueError(
                    f"the ledger ends {rows:,} rows before the pool. hint: run `clip-pipe curate` again"
                )
            taken.append(batch.slice(0, rows))
            if batch.num_rows > rows:
                self._rest.append(batch.slice(rows))
            rows -= taken[-1].num_rows
        return pa.Table.from_batches(taken) if taken else pa.table({})


def _refused(batch: pa.RecordBatch, before: int) -> Iterator[tuple[int, float, str, int]]:
    """(position in the ledger, draw, reason, index in the batch) of each refused row."""
    reasons = batch["reason"].to_pylist()
    indices = [index for index, keep in enumerate(batch["keep"].to_pylist()) if not keep]
    uids = batch["uid"].take(pa.array(indices, pa.int64())).to_pylist()
    for index, draw in zip(indices, draws(uids, _SALT).tolist(), strict=True):
        yield before + index, draw, reasons[index] or "refused", index


def _sample(batch: pa.RecordBatch, index: int, position: int) -> LedgerSample:
    names = ("uid", "url", "caption", "stage")
    uid, url, caption, stage = (batch[name][index].as_py() or "" for name in names)
    return LedgerSample(position, uid, url, caption[:2000], stage)
