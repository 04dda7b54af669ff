"""What exact-duplicate filters share: of rows with an equal value, the first in source order stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from curate.stage import KEEP, REASON, GlobalStage, decision

_STATE = pa.schema([("value", pa.string()), ("part", pa.int64()), ("row", pa.int64())])


class FirstOfEqual(GlobalStage):
    """Keeps the first row, by (part, row), of those with an equal non-null ``column``.

    The state names the first row of each value, so each part is told which of its own rows are first.
    A row whose value is null is kept.
    """

    column: ClassVar[str]
    refusal: ClassVar[str]
    bucket_by: ClassVar[str | None] = "value"

    def reads(self) -> tuple[str, ...]:
        return (self.column, "part", "row")

    def writes(self) -> pa.Schema:
        return pa.schema([KEEP, REASON])

    def summarize(self, part: pa.Table) -> pa.Table:
        table = pa.table([part[self.column], part["part"], part["row"]], names=_STATE.names).cast(
            _STATE
        )
        return self.merge([table.filter(table["value"].is_valid())])

    def merge(self, partials: Sequence[pa.Table]) -> pa.Table:
        """The first row of each value; a minimum, so associative and the same in any order."""
        table = pa.concat_tables([partial.select(_STATE.names) for partial in partials])
        table = table.sort_by([(name, "ascending") for name in _STATE.names])
        values = table["value"].combine_chunks()
        if not len(values):
            return table
        changes = pc.not_equal(values.slice(1), values.slice(0, len(values) - 1))
        return table.filter(pa.concat_arrays([pa.array([True]), changes]))

    def decide(self, part: pa.Table, state: pa.Table) -> pa.Table:
        own = state.filter(pc.is_in(state["part"], part["part"].unique()))
        first = set(_places(own))
        rows = zip(_places(part), part[self.column].to_pylist(), strict=True)
        reasons = [None if value is None or at in first else self.refusal for at, value in rows]
        return pa.table(decision(reasons), schema=self.writes())


def _places(table: pa.Table) -> Iterator[tuple[int, int]]:
    """(part, row) of each row."""
    return zip(table["part"].to_pylist(), table["row"].to_pylist(), strict=True)
