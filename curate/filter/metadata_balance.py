"""Thins out rows of frequent entries until the entry distribution is flat above ``t``.

MetaCLIP, arXiv 2309.16671, section 3.3: with count(e) the rows that match entry e, and
p(e) = min(1, t / count(e)), a row stays iff one of its entries' independent coins succeeds:
P = 1 - prod(1 - p(e)). The paper throws a coin per entry; here one draw that depends on nothing but
the row's uid and the seed is compared with P, which has the same distribution and the same answer
in every run, order and partitioning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.contract.draw import draws
from curate.stage import KEEP, REASON, GlobalStage, decision

_STATE = pa.schema([("entry", pa.int32()), ("count", pa.int64())])


@dataclass(frozen=True, kw_only=True)
class MetadataBalance(GlobalStage):
    """Refuses rows as ``balanced`` (by the draw) or ``unmatched`` (no entry at all).

    Options:
        t: rows of an entry up to which all are kept. The paper has 20,000 for 400M of 1.6B pairs.
        salt: another text gives another, independent choice.
        keep_unmatched: keep rows that match no entry; MetaCLIP drops them.
        seed: the recipe's where it is left out.
    """

    bucket_by: ClassVar[str | None] = None  # the state is as large as the entry list, not the pool

    t: int
    salt: str = "balance"
    keep_unmatched: bool = False
    seed: int = 0

    def reads(self) -> tuple[str, ...]:
        return ("entries",)

    def writes(self) -> pa.Schema:
        return pa.schema([KEEP, REASON])

    def check(self) -> None:
        if self.t < 1:
            raise ValueError(
                f"t = {self.t}, no row would be kept. hint: t is a number of rows, 1 or more"
            )

    def summarize(self, part: pa.Table) -> pa.Table:
        """entry -> rows of this part that match it."""
        flat = part["entries"].combine_chunks().flatten()
        found, counts = np.unique(np.asarray(flat, dtype=np.int32), return_counts=True)
        return pa.table([pa.array(found, pa.int32()), pa.array(counts, pa.int64())], schema=_STATE)

    def merge(self, partials: Sequence[pa.Table]) -> pa.Table:
        table = pa.concat_tables(partials)
        summed = table.group_by("entry").aggregate([("count", "sum")]).sort_by("entry")
        return pa.table([summed["entry"], summed["count_sum"]], schema=_STATE)

    def decide(self, part: pa.Table, state: pa.Table) -> pa.Table:
        chances = self.probabilities(part["entries"].to_pylist(), state)
        lots = draws(part["uid"].to_pylist(), f"{self.salt}:{self.seed}")
        reasons = [
            self._reason(chance, lot) for chance, lot in zip(chances, lots.tolist(), strict=True)
        ]
        return pa.table(decision(reasons), schema=self.writes())

    def probabilities(self, entries: list[list[int] | None], state: pa.Table) -> list[float | None]:
        """P of each row; None where it matches no entry. Multiplied in ascending order of entries.

        A plain loop and not a vectorised product, so that every processor rounds alike.
        """
        # The state has every entry of the pool, a part only some: look at no more than these.
        wanted = pa.array({entry for matched in entries for entry in matched or ()}, pa.int32())
        own = state.filter(pc.is_in(state["entry"], wanted))
        counts = zip(own["entry"].to_pylist(), own["count"].to_pylist(), strict=True)
        p = {entry: min(1.0, self.t / count) for entry, count in counts}
        found: list[float | None] = []
        for matched in entries:
            refused = 1.0
            for entry in sorted(matched or ()):
                refused *= 1.0 - p[entry]
            found.append(1.0 - refused if matched else None)
        return found

    def _reason(self, chance: float | None, lot: float) -> str | None:
        if chance is None:
            return None if self.keep_unmatched else "unmatched"
        return None if chance > lot else "balanced"
