"""What duplicate filters share: of equal rows the first stays, of linked rows the best of each group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.filter import linked
from curate.stage import KEEP, REASON, GlobalStage

_STATE = pa.schema([("value", pa.string()), ("part", pa.int64()), ("row", pa.int64())])
_ROW_BITS = 32  # rows of one part: fewer than four billion


class FirstOfEqual(GlobalStage):
    """Keeps the first row, by (part, row), of those with an equal non-null ``column``.

    The state names the first row of each value, so each part is told which of its own rows are first.
    A row whose value is null is kept.
    """

    column: ClassVar[str]
    refusal: ClassVar[str]
    bucket_by: ClassVar[str | None] = "value"
    bucket_rows: ClassVar[int] = 500_000  # merging takes about 300 bytes a row

    def reads(self) -> tuple[str, ...]:
        return (self.column, "part", "row")

    def writes(self) -> pa.Schema:
        return pa.schema([KEEP, REASON])

    def summarize(self, part: pa.Table) -> pa.Table:
        values = part[self.column].cast(pa.string())
        table = pa.table([values, part["part"], part["row"]], schema=_STATE)
        return self.merge([table.filter(table["value"].is_valid())])

    def merge(self, partials: Sequence[pa.Table]) -> pa.Table:
        """The first row of each value; a minimum, so associative and the same in any order."""
        table = pa.concat_tables([partial.select(_STATE.names) for partial in partials])
        if not len(table):
            return table
        # One number per place, so that one pass over hashes finds the minimum.
        place = pc.add(pc.shift_left(table["part"], _ROW_BITS), table["row"])
        first = (
            pa.table([table["value"], place], names=["value", "place"])
            .group_by("value")
            .aggregate([("place", "min")])
            .sort_by("place_min")
        )
        part = pc.shift_right(first["place_min"], _ROW_BITS)
        row = pc.bit_wise_and(first["place_min"], (1 << _ROW_BITS) - 1)
        return pa.table([first["value"], part, row], schema=_STATE)

    def close(self, state: pa.Table) -> pa.Table:
        """The places of first rows; the values themselves, most of the bytes, have done their work."""
        return state.select(["part", "row"])

    def decide(self, part: pa.Table, state: pa.Table) -> pa.Table:
        wanted = pc.is_in(state["part"], pc.unique(part["part"]))
        own = state if pc.all(wanted).as_py() else state.filter(wanted)
        stays = np.isin(_places(part), _places(own)) | np.asarray(part[self.column].is_null())
        reason = pc.if_else(pa.array(stays), pa.scalar(None, pa.string()), self.refusal)
        return pa.table(
            [pa.array(stays), reason.dictionary_encode().cast(REASON.type)], schema=self.writes()
        )


class Linked(GlobalStage):
    """Keeps one row of each group of rows that are linked as near copies; see ``filter.linked``.

    A subclass writes ``summarize``, whose table has the columns of ``places()``, ``key``, and what
    else ``links`` compares, and ``links``, which finds the copies in one bucket. Rows that may be
    copies of each other must share a ``key`` (an integer or a text), else they are never compared; a
    row may come with several keys. The state is a table of its rows in their buckets; ``settle``
    holds one row per refused row and bucket in one process, and never the pool.
    """

    refusal: ClassVar[str]
    copy_of: ClassVar[str]  # the column that names the row which stays
    bucket_by: ClassVar[str | None] = "key"
    bucket_rows: ClassVar[int] = 500_000

    def reads(self) -> tuple[str, ...]:
        return ("part", "row")

    def writes(self) -> pa.Schema:
        return pa.schema([pa.field(self.copy_of, pa.string()), KEEP, REASON])

    def ranks(self, part: pa.Table) -> np.ndarray:
        """Which copy stays: the smallest, then the first in source order. Float64, shape (rows,)."""
        return np.zeros(len(part))

    def places(self, part: pa.Table) -> pa.Table:
        """``linked.ROWS`` of a part: the columns that every state of this kind has."""
        columns = [pa.array(linked.places(part)), pa.array(self.ranks(part)), part["uid"]]
        return pa.table(columns, names=linked.ROWS.names).cast(linked.ROWS)

    def links(self, bucket: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of row numbers of ``bucket`` that are copies; enough of them to join each group."""
        raise NotImplementedError

    def merge(self, partials: Sequence[pa.Table]) -> pa.Table:
        """All rows one after another. Their order is of no account: groups are sets of places."""
        return pa.concat_tables(partials)

    def close(self, state: pa.Table) -> pa.Table:
        return linked.stars(state, *self.links(state))

    def settle(self, states: Sequence[pa.Table]) -> pa.Table:
        return linked.settled(pa.concat_tables(states))

    def decide(self, part: pa.Table, state: pa.Table) -> pa.Table:
        of = linked.copied_uids(part, state)
        refused = of.is_valid().to_numpy(zero_copy_only=False)
        return pa.table([of, *linked.refusals(refused, self.refusal)], schema=self.writes())


def _places(table: pa.Table) -> np.ndarray:
    """(part, row) of each row as one int64."""
    return (np.asarray(table["part"]) << _ROW_BITS) | np.asarray(table["row"])
