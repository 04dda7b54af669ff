"""Thins out rows of frequent entries until the entry distribution is flat above ``t``.

MetaCLIP, arXiv 2309.16671, section 3.3: with count(e) the rows that match entry e, and
p(e) = min(1, t / count(e)), a row stays iff one of its entries' independent coins succeeds:
P = 1 - prod(1 - p(e)). The paper throws a coin per entry; here one draw that depends on nothing but
the row's uid and the seed is compared with P, which has the same distribution and the same answer
in every run, order and partitioning. MetaCLIP 2, arXiv 2507.22062, section 3.3: a threshold for each
language from the tail share. That t can be solved for a number of rows is this project's.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.contract.draw import draws
from curate.filter import balancing
from curate.score.metadata_match import MetadataMatch
from curate.stage import KEEP, REASON, GlobalStage, Stage, StageError

_COUNTS = pa.schema([("entry", pa.int32()), ("count", pa.int64()), ("group", pa.string())])
_STATE = pa.schema([*_COUNTS, ("t", pa.int64()), ("search", pa.string())])
_LOOK = pa.schema([(name, pa.int64()) for name in ("t", "whole", "units", "matched", "unmatched")])
_REASONS = pa.array(["balanced", "unmatched"])
_MOST_ROWS = 1 << 62  # thresholds are int64 in the state
OBSERVED = "observed"
_FACTOR_STEPS = 1_000_000  # an observed allowance has six digits
_LOOKS, _LOOKS_BY_REFERENCE = 5, 8  # see balancing.next_trials: 3 are usual, 4 the most seen


@dataclass(frozen=True, kw_only=True)
class MetadataBalance(GlobalStage):
    """Refuses rows as ``balanced`` (by the draw) or ``unmatched`` (no entry at all).

    The state has a row per entry: ``entry``, ``count`` (rows that match it), ``group`` (its value of
    ``by``, null without), ``t`` (the threshold it is balanced with); ``search`` is for the passes.

    Options:
        t: rows of an entry up to which all are kept. The paper has 20,000 for 400M of 1.6B pairs.
        keep: instead of t, the rows to keep: the smallest t whose expected number of kept rows is
            at least this. What the draws keep differs by chance, by about the root of the number.
            Everything matched is kept where that is less. Costs some more readings of the entries.
        oversample: with keep: keep so many times as many rows, 1.0 or more, since some are lost in the
            download below. "observed" finds the number: first `keep` rows are asked for, and what
            the download lost of these says how many more, which alone are then fetched.
        tail_share: instead of t, the share of all matches that the entries under t have. The
            paper's t is at 0.06.
        by: a text column, such as ``language``, whose values are counted and balanced apart.
        reference: with ``by`` and t or keep: the value that t is for; every other one gets the t
            that leaves it the same tail share (MetaCLIP 2). "" gives the same t to all.
        salt: another text gives another, independent choice.
        keep_unmatched: keep rows that match no entry; MetaCLIP drops them.
        seed: the recipe's where it is left out.
    """

    bucket_by: ClassVar[str | None] = None  # the state is as large as the entry list, not the pool
    summary_options: ClassVar[tuple[str, ...] | None] = ("by",)  # counts know no threshold

    t: int | None = None
    keep: int | None = None
    tail_share: float | None = None
    oversample: float | str = 1.0
    by: str = ""
    reference: str = "en"
    salt: str = "balance"
    keep_unmatched: bool = False
    seed: int = 0

    def reads(self) -> tuple[str, ...]:
        return ("entries", self.by) if self.by else ("entries",)

    def writes(self) -> pa.Schema:
        return pa.schema([KEEP, REASON])

    def check(self) -> None:
        given = {name: getattr(self, name) for name in ("t", "keep", "tail_share")}
        found = [f"{name} = {value}" for name, value in given.items() if value is not None]
        if len(found) != 1:
            raise ValueError(
                f"{' and '.join(found) or 'none of t, keep and tail_share'} is given. hint: set one of "
                "t (rows of an entry), keep (rows in all) and tail_share"
            )
        for name in ("t", "keep"):
            if given[name] is not None and given[name] < 1:
                raise ValueError(
                    f"{found[0]}, no row would be kept. hint: {name} is a number of rows, 1 or more"
                )
            if given[name] is not None and given[name] > _MOST_ROWS:
                raise ValueError(
                    f"{found[0]}, more rows than any pool has. hint: {name} is at most {_MOST_ROWS:,}"
                )
        if self.tail_share is not None and not 0 < self.tail_share < 1:
            raise ValueError(
                f"{found[0]}. hint: a share of all matches between 0 and 1; the paper has 0.06"
            )
        self._check_oversample()
        if self.reference != "en" and not self.by:
            raise ValueError(
                f'reference = "{self.reference}" and no by. hint: name the column, as in by = "language"'
            )
        if self.reference != "en" and self.tail_share is not None:
            raise ValueError(
                f'reference = "{self.reference}" and {found[0]}, which has no reference. hint: leave `reference` out, or set t or keep'
            )

    def _check_oversample(self) -> None:
        factor = self.oversample
        if factor == 1.0:
            return
        if isinstance(factor, str) and factor != OBSERVED:
            raise ValueError(
                f'oversample = "{factor}". hint: a number of times, such as 1.3, or "{OBSERVED}"'
            )
        if isinstance(factor, float | int) and not 1 <= factor < math.inf:
            raise ValueError(f"oversample = {factor}. hint: 1 or more; 1.3 asks for 30 % more rows")
        if self.keep is None or self.by:
            found = f'by = "{self.by}"' if self.by else "no keep"
            raise ValueError(
                f"oversample = {factor!r} and {found}. hint: it multiplies `keep`, a number of rows of the whole pool"
            )
        if (self.wanted() or 0) > _MOST_ROWS:
            raise ValueError(
                f"oversample = {factor} of keep = {self.keep}, more rows than any pool has. hint: at most {_MOST_ROWS:,}"
            )

    def wanted(self) -> int | None:
        """The rows to keep, with what shall be lost later; None where t or a share decides."""
        if self.keep is None or isinstance(self.oversample, str):
            return self.keep
        return math.ceil(self.keep * Fraction(repr(float(self.oversample))))

    def rows_wanted(self) -> int | None:
        """``keep`` where the allowance shall be what the downloads below lose."""
        return self.keep if self.oversample == OBSERVED else None

    def after_losses(self, success_frac: float) -> MetadataBalance:
        """A larger t keeps all that a smaller one keeps: the draw of a row is the same."""
        factor = math.ceil(_FACTOR_STEPS / success_frac) / _FACTOR_STEPS
        # Where next to nothing came through: all that there is, and still a number that a state can hold.
        factor = max(1.0, min(factor, 0.99 * _MOST_ROWS / (self.keep or 1)))
        return dataclasses.replace(self, oversample=factor)

    def check_columns(self, types: Mapping[str, pa.DataType]) -> None:
        kind = types.get(self.by, pa.string())
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(value) or pa.types.is_large_string(value)):
            raise ValueError(
                f"column {self.by!r} is {kind}, not text. hint: name a column of words in `by`"
            )

    def check_above(self, above: Sequence[Stage]) -> None:
        for stage in above:
            lists = getattr(stage, "rule", "") == "worldwide" and "entries" in stage.writes().names
            if lists and self.by != "language":
                raise ValueError(
                    f'`entries` counts in a list for each language (rule = "worldwide"), and by is {self.by!r}: entries of different languages would be added up. hint: by = "language"'
                )
            known = stage.languages() if isinstance(stage, MetadataMatch) and self.by else ()
            if known and self.reference not in ("", *known) and self.tail_share is None:
                raise ValueError(
                    f'reference = "{self.reference}", and the lists of score.metadata_match are of {", ".join(known)}. hint: reference = one of these, or "" for the same t everywhere'
                )

    def summarize(self, part: pa.Table) -> pa.Table:
        """Rows of this part that match each entry, of each value of ``by``."""
        flat = np.asarray(part["entries"].combine_chunks().flatten())
        if not self.by:
            ids, counts = balancing.tally(flat)
            return _counts(ids, counts, pa.nulls(len(ids), pa.string()))
        values = part[self.by].cast(pa.string()).combine_chunks()
        coded = values.dictionary_encode(null_encoding="encode")
        span = int(flat.max(initial=0)) + 1
        keys, counts = balancing.tally(_keys(part, flat, np.asarray(coded.indices), span))
        return _counts(keys % span, counts, coded.dictionary.take(pa.array(keys // span)))

    def merge(self, partials: Sequence[pa.Table]) -> pa.Table:
        """Sums, by ascending group (null last) and entry. Takes states too, of which it keeps the counts."""
        table = pa.concat_tables([partial.select(_COUNTS.names) for partial in partials])
        if table["group"].null_count == len(table):
            ids, counts = balancing.added(np.asarray(table["entry"]), np.asarray(table["count"]))
            return _counts(ids, counts, pa.nulls(len(ids), pa.string()))
        summed = table.group_by(["group", "entry"]).aggregate([("count", "sum")])
        summed = summed.sort_by([("group", "ascending"), ("entry", "ascending")])
        return pa.table([summed["entry"], summed["count_sum"], summed["group"]], schema=_COUNTS)

    def close(self, state: pa.Table) -> pa.Table:
        """The counts with their thresholds, or with the first ones to try. StageError: no reference."""
        counted = _Counted(state)
        if self.keep is None or not len(state):
            return counted.state(self._thresholds(counted, [self.t or 0])[:, 0])
        return self._to_try(counted, {}, balancing.first_trials(self._highest(counted)))

    def passes(self) -> int:
        if self.keep is None:
            return 1
        return 1 + (_LOOKS_BY_REFERENCE if self.by and self.reference else _LOOKS)

    def enough(self, state: pa.Table) -> bool:
        """The search has found its threshold."""
        return not _search(state)[0]

    def look_again(self, part: pa.Table, state: pa.Table) -> pa.Table:
        """The rows of this part expected to be kept at each t to try; nothing once t is known."""
        trials, _, thresholds = _search(state)
        if not trials:
            return _LOOK.empty_table()
        counted = _counted(state)
        units = balancing.expected_units(
            self._lists(part, counted), counted.keys, counted.counts, thresholds, counted.codes
        )
        lengths = pc.fill_null(pc.list_value_length(part["entries"]), 0)
        matched = pc.sum(pc.greater(lengths, 0)).as_py() or 0
        rows = [
            (t, kept >> balancing.UNIT_BITS, kept % (1 << balancing.UNIT_BITS))
            for t, kept in zip(trials, units, strict=True)
        ]
        columns = [*zip(*rows, strict=True)]
        same = [[matched] * len(rows), [len(part) - matched] * len(rows)]
        return pa.table([pa.array(column, pa.int64()) for column in [*columns, *same]], _LOOK)

    def adjust(self, state: pa.Table, partials: Sequence[pa.Table]) -> pa.Table:
        """The smallest t known to keep enough, and what to try next. Sums are of whole numbers."""
        trials, tried, _ = _search(state)
        if not trials or self.keep is None:
            return state
        sums = {t: np.zeros(4, dtype=object) for t in trials}
        for partial in partials:
            for t, *figures in zip(*(column.to_pylist() for column in partial.columns)):
                sums[t] = sums[t] + figures
        for t, (whole, units, matched, unmatched) in sums.items():
            free = int(unmatched) << balancing.UNIT_BITS if self.keep_unmatched else 0
            tried[0] = free
            # P is rounded to units, so a sum may be short of a whole row by less than a unit for each.
            tried[t] = free + (int(whole) << balancing.UNIT_BITS) + int(units) + int(matched)
        return self._to_try(_Counted(state), tried, balancing.next_trials(tried, self._wanted()))

    def decide(self, part: pa.Table, state: pa.Table) -> pa.Table:
        chances = self.probabilities(part, state)
        unmatched = np.isnan(chances)
        keep = chances >= 1.0  # no draw reaches 1, so none is needed
        open_ = np.flatnonzero(chances < 1.0)
        uids = part["uid"].take(pa.array(open_)).to_pylist()
        keep[open_] = chances[open_] > draws(uids, f"{self.salt}:{self.seed}")
        if self.keep_unmatched:
            keep |= unmatched
        reason = pa.DictionaryArray.from_arrays(
            pa.array(unmatched.astype(np.int32), mask=keep), _REASONS
        )
        return pa.table([pa.array(keep), reason], schema=self.writes())

    def probabilities(self, part: pa.Table, state: pa.Table) -> np.ndarray:
        """P of each row, float64 of shape (rows,), NaN where it matches no entry."""
        counted = _counted(state)
        t = np.asarray(state["t"])
        return balancing.chances(self._lists(part, counted), counted.keys, counted.counts, t)

    def tried(self, state: pa.Table) -> dict[int, float]:
        """t -> rows expected to be kept, of every t that the search for ``keep`` looked at."""
        return {t: kept / (1 << balancing.UNIT_BITS) for t, kept in _search(state)[1].items() if t}

    def _lists(self, part: pa.Table, counted: _Counted) -> pa.ListArray | pa.ChunkedArray:
        """The rows' entries, as keys of (group, entry) where groups are counted apart."""
        if not self.by:
            return part["entries"]
        lists = part["entries"].combine_chunks()
        values = part[self.by].cast(pa.string()).combine_chunks()
        codes = pc.fill_null(pc.index_in(values, value_set=counted.groups), -1)
        flat = np.asarray(lists.flatten())
        if flat.max(initial=0) >= counted.span:
            raise ValueError(balancing.UNKNOWN)
        keys = _keys(part, flat, np.asarray(codes), counted.span)
        lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0), dtype=np.int64)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        return pa.LargeListArray.from_arrays(pa.array(ends), pa.array(keys))

    def _thresholds(self, counted: _Counted, trials: Sequence[int]) -> np.ndarray:
        """The t of each group for each trial, int64 of shape (groups, trials)."""
        shape = (len(counted.groups), len(trials))
        if self.tail_share is None and not (self.by and self.reference):
            return np.broadcast_to(np.array(trials, np.int64), shape)
        found = np.empty(shape, np.int64)
        if not len(counted.groups):
            return found
        reference = None if self.tail_share is not None else self._reference(counted)
        shares = [self.tail_share or 0.0] * len(trials)
        if reference is not None:
            shares = [balancing.tail_share(counted.of(reference), t) for t in trials]
        for group in range(shape[0]):
            counts = np.sort(counted.of(group))
            found[group] = [balancing.t_of_tail_share(counts, share) for share in shares]
        if reference is not None:
            found[reference] = trials
        return found

    def _reference(self, counted: _Counted) -> int:
        """The reference's place among the groups. Raises StageError where no row of it matches."""
        groups = counted.groups.to_pylist()
        if self.reference not in groups:
            there = ", ".join(str(group) for group in groups[:8])
            raise StageError(
                f'filter.metadata_balance: reference = "{self.reference}", but no kept row with an entry '
                f"has this {self.by}. hint: set reference to one of those there: {there}"
            )
        return groups.index(self.reference)

    def _wanted(self) -> int:
        return (self.wanted() or 0) << balancing.UNIT_BITS

    def _highest(self, counted: _Counted) -> int:
        """A t that keeps every matched row: one over the reference's counts makes its tail all."""
        if self.by and self.reference:
            return int(counted.of(self._reference(counted)).max()) + 1
        return int(counted.counts.max())

    def _to_try(self, counted: _Counted, tried: dict[int, int], trials: list[int]) -> pa.Table:
        """The state with the best t known, and with what the next pass shall try."""
        _, enough = balancing.bracket(tried, self._wanted())
        best = self._highest(counted) if enough is None else enough
        columns = self._thresholds(counted, [*trials, best])
        search = {"trials": trials, "tried": tried, "thresholds": columns[:, :-1].tolist()}
        return counted.state(columns[:, -1], json.dumps(search))


class _Counted:
    """The counts of a state as arrays: (E,) keys, counts and group codes, and the groups' values."""

    def __init__(self, state: pa.Table) -> None:
        self.table = state.select(_COUNTS.names)
        runs = pc.run_end_encode(state["group"].combine_chunks())  # sorted: a group is one run
        self.groups = runs.values
        self.codes = np.repeat(
            np.arange(len(runs.values)), np.diff(np.asarray(runs.run_ends), prepend=0)
        )
        self.counts = np.asarray(state["count"])
        entries = np.asarray(state["entry"])
        self.span = int(entries.max(initial=0)) + 1
        self.keys = entries + self.codes * self.span if len(self.groups) > 1 else entries

    def of(self, group: int) -> np.ndarray:
        """The counts of one group."""
        return self.counts[self.codes == group]

    def state(self, t: np.ndarray, search: str | None = None) -> pa.Table:
        """The counts with the t of each group, and the search in the first row."""
        searches = [search, *[None] * (len(self.table) - 1)][: len(self.table)]
        each = pa.array(t[self.codes], pa.int64())
        return pa.table([*self.table.columns, each, pa.array(searches, pa.string())], _STATE)


_newest: list[tuple[pa.Table, _Counted]] = []  # of the state that part after part is decided by


def _counted(state: pa.Table) -> _Counted:
    """The arrays of a state, made once for consecutive calls with the same table."""
    if not _newest or _newest[0][0] is not state:
        _newest[:] = [(state, _Counted(state))]
    return _newest[0][1]


def _counts(ids: np.ndarray, counts: np.ndarray, groups: pa.Array) -> pa.Table:
    return pa.table([pa.array(ids, pa.int32()), pa.array(counts, pa.int64()), groups], _COUNTS)


def _keys(part: pa.Table, flat: np.ndarray, codes: np.ndarray, span: int) -> np.ndarray:
    """(group, entry) of each match as one number: code * span + entry."""
    lengths = np.asarray(pc.fill_null(pc.list_value_length(part["entries"]), 0))
    return np.repeat(codes.astype(np.int64), lengths) * span + flat


def _search(state: pa.Table) -> tuple[list[int], dict[int, int], np.ndarray]:
    """What to try, what was tried (t -> units kept), and each group's t per trial."""
    found: dict[str, Any] = json.loads(state["search"][0].as_py() or "{}") if len(state) else {}
    tried = {int(t): kept for t, kept in found.get("tried", {}).items()}
    thresholds = np.array(found.get("thresholds", []), dtype=np.int64)
    return found.get("trials", []), tried, thresholds
