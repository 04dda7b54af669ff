"""Counts of very many keys with few of them held: the frequent ones are right, and how wrong they can be is known.

Misra and Gries, "Finding repeated elements", 1982, in its batched form: when too many keys are held, the
rare half goes. What a key may lack, because it went before and came again, is added up in ``uncertain``.
Up to ``most`` keys all counts are exact.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

_BUFFER_ROWS = 500_000


class Tally:
    """Rows by (key, value); whole keys are dropped, the values of each are few."""

    def __init__(self, most: int = 200_000) -> None:
        self.dropped_rows = 0  # rows of keys that were given up
        self.uncertain = 0  # the count of a key lacks at most so many of them
        self._most = most
        self._held = _table(pa.array([], pa.string()), pa.array([], pa.string()))
        self._buffer: list[pa.Table] = []
        self._buffered = 0

    def add(self, keys: pa.Array, values: pa.Array) -> None:
        """Count one for each (key, value); neither may be null."""
        self._buffer.append(_table(keys, values))
        self._buffered += len(keys)
        if self._buffered >= _BUFFER_ROWS:
            self._settle()

    def counts(self) -> pa.Table:
        """key, value, rows: all that is held, sorted by key and value."""
        self._settle()
        return self._held.sort_by([("key", "ascending"), ("value", "ascending")])

    def _settle(self) -> None:
        whole = pa.concat_tables([self._held, *self._buffer])
        self._buffer, self._buffered = [], 0
        self._held = _summed(whole, ["key", "value"])
        keys = _summed(self._held, ["key"])
        if len(keys) <= self._most:
            return
        # The smaller key goes where two have as many rows, so that the order of work decides nothing.
        keys = keys.sort_by([("rows", "descending"), ("key", "descending")])
        stay, go = keys.slice(0, self._most // 2), keys.slice(self._most // 2)
        self.dropped_rows += pc.sum(go["rows"]).as_py()
        self.uncertain += go["rows"][0].as_py()
        self._held = self._held.filter(pc.is_in(self._held["key"], stay["key"].combine_chunks()))


def _table(keys: pa.Array, values: pa.Array) -> pa.Table:
    ones = pa.repeat(pa.scalar(1, pa.int64()), len(keys))
    return pa.table([keys, values, ones], names=["key", "value", "rows"])


def _summed(table: pa.Table, by: list[str]) -> pa.Table:
    found = table.group_by(by, use_threads=False).aggregate([("rows", "sum")])
    return found.rename_columns([*by, "rows"])
