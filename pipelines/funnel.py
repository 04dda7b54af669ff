"""What a plan would keep, stage by stage, from the columns that a pool holds: nothing is measured or written.

A stage that is committed for every part under its own fingerprint is read. A filter that is not is
worked out anew from stored columns. A measure that is not, and any code from elsewhere, is read from
whichever runs asked it about the row (`reuse`, as a run would); rows that a run would have to measure
are told as ``unmeasured`` and leave the funnel.
One part is in memory at a time, besides one bit per row and the state of a global filter.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.contract import parts, storage
from curate.contract.done import is_done
from curate.stage import GlobalStage, StageError, pool_state
from pipelines import curation, fused, global_step, intake, part, reuse
from pipelines.errors import RecipeError, RunFailed
from pipelines.held import NO_POOL_HINT
from pipelines.plan import CurationPlan, Planned

_BATCH_ROWS = 65_536  # of a filter that is worked out; its own batches are sized for pictures


@dataclass(frozen=True)
class StageCount:
    """One stage of a funnel. Rows are counted where the first stage that refuses them stands."""

    stage: str
    rows_in: int
    refused: dict[str, int] = field(default_factory=dict)  # by reason
    unmeasured: int = 0  # reach the stage and have no stored value of it

    @property
    def kept(self) -> int:
        return self.rows_in - sum(self.refused.values()) - self.unmeasured


@dataclass(frozen=True)
class Funnel:
    """The stages in order, the source first. ``bound`` says how to read ``kept``: exact, at least, about."""

    stages: tuple[StageCount, ...]
    bound: str = "exact"

    @property
    def rows(self) -> int:
        return self.stages[0].rows_in

    @property
    def kept(self) -> int:
        return self.stages[-1].kept

    @property
    def unmeasured(self) -> int:
        return sum(stage.unmeasured for stage in self.stages)

    def at(self, stage: str) -> StageCount:
        """The stage of that name. Raises KeyError."""
        return {one.stage: one for one in self.stages}[stage]


def is_deciding(planned: Planned) -> bool:
    """Whether a stage is a filter of ours, so that it can be worked out from columns alone.

    What code from elsewhere would do, such as ask a service, is not known.
    """
    is_ours = planned.use.startswith("filter.") and ":" not in planned.use
    looks = planned.makes_images or "image" in planned.reads
    return is_ours and planned.decides and not looks


def has_values(plan: CurationPlan, planned: Planned) -> bool:
    """Whether any run left values of this measure in the pool, whatever was refused above it."""

    def sidecars(fingerprint: str) -> list[str]:
        folder = plan.pool.columns_folder(planned.use, fingerprint)
        return storage.glob(storage.join(folder, "part-*.parquet"))

    if sidecars(planned.fingerprint):
        return True
    if isinstance(planned.stage, GlobalStage):
        return False
    for run in reuse.fingerprints(plan, planned):
        tables = (parts.read_table(p, ["keep", "reason"]) for p in sidecars(run.fingerprint))
        if any(reuse.known_rows(planned, table, run).any() for table in tables):
            return True
    return False


def part_count(plan: CurationPlan) -> int:
    """Parts of the plan's pool. Raises RecipeError where the pool is not there or its rows are not whole."""
    described = intake.check_pool(plan)
    if described is None:
        raise RecipeError(f"curate.pool = {plan.pool_root!r}", "there is no pool", NO_POOL_HINT)
    count = int(described["parts"])
    missing = sum(not read_in for read_in in part.are_read_in(plan, count))
    if missing:
        raise RecipeError(
            f"curate.pool = {plan.pool_root!r}",
            f"{missing} of {count} parts of the source are not read in yet",
            NO_POOL_HINT,
        )
    return count


def evaluate(plan: CurationPlan, base: CurationPlan | None = None) -> Funnel:
    """The funnel of ``plan`` over its pool. Raises RecipeError for a pool that is not there, and
    RunFailed where a filter can't be worked out with these options.

    ``base`` is the run it is compared with: where a measure of the whole pool has no values under
    ``plan``, those of ``base`` are taken, and the funnel says "about".
    """
    with tempfile.TemporaryDirectory(prefix="clip-pipe-") as folder:
        try:
            return _Evaluation(plan, base or plan, folder).funnel()
        except StageError as fault:
            raise RunFailed(str(fault)) from fault


class _Sidecar(NamedTuple):
    """Where values of a stage and part lie. An earlier run's count for the rows that a run would take over."""

    path: str
    run: reuse.Run | None = None  # an earlier one

    def read(self, planned: Planned, names: list[str]) -> tuple[pa.Table, np.ndarray]:
        """(the columns, which rows have values: bool of shape (rows,))."""
        table = parts.read_table(self.path, [*names, *self._decision(names)])
        known = (
            reuse.known_rows(planned, table, self.run)
            if self.run is not None
            else np.asarray(table["keep"].is_valid())
        )
        return table, known

    def _decision(self, names: list[str]) -> list[str]:
        wanted = ("keep",) if self.run is None else ("keep", "reason")
        return [name for name in wanted if name not in names]


class _Evaluation:
    """One pass over the stages, from the source on."""

    def __init__(self, plan: CurationPlan, base: CurationPlan, folder: str) -> None:
        self.plan, self.base, self.folder = plan, base, folder
        self.count = part_count(plan)
        own = [curation.parts_done(plan, p, self.count) == self.count for p in plan.stages]
        self.computed = {i for i, p in enumerate(plan.stages) if not own[i] and is_deciding(p)}
        # A whole-pool measure of another run saw other rows than would live now.
        self.stale = any(
            not own[i] and not is_deciding(p) and isinstance(p.stage, GlobalStage)
            for i, p in enumerate(plan.stages)
        )
        every = part.survey_rows(plan, range(self.count))
        self.rows = [seen.stats["rows"] for _, seen in every if seen.stats is not None]
        self.earlier: dict[int, tuple[reuse.Run, ...]] = {}  # by stage
        self.alive = [np.packbits(np.ones(rows, dtype=bool)) for rows in self.rows]

    def funnel(self) -> Funnel:
        counts = [self._stored(-1)]
        bound = "about" if self.stale else "exact"
        for index, planned in enumerate(self.plan.stages):
            if index in self.computed:
                counts.append(self._computed(index))
                if bound == "at least" and isinstance(planned.stage, GlobalStage):
                    bound = "about"  # the rows that left unmeasured would have counted here
            else:
                counts.append(self._stored(index))
                if counts[-1].unmeasured and bound == "exact":
                    bound = "at least"
        return Funnel(tuple(counts), bound)

    def _living(self, number: int) -> np.ndarray:
        return np.unpackbits(self.alive[number], count=self.rows[number]).astype(bool)

    def _stored(self, index: int) -> StageCount:
        """The decisions that sidecars hold; a row without one was refused above in every run."""
        rows_in, unmeasured = 0, 0
        refused: Counter[str] = Counter()
        for number in range(self.count):
            left = self._living(number)
            rows_in += int(left.sum())
            stay = np.zeros(len(left), dtype=bool)
            for sidecar in self._sidecars(index, number) if left.any() else ():
                table, known = sidecar.read(self.plan.at(index), ["keep", "reason"])
                known = known & left
                keep = known & np.asarray(pc.fill_null(table["keep"], True))
                _count(refused, table["reason"], known & ~keep)
                stay |= keep
                left &= ~known
            unmeasured += int(left.sum())
            self.alive[number] = np.packbits(stay)
        name = self.plan.at(index).name
        return StageCount(name, rows_in, dict(sorted(refused.items())), unmeasured)

    def _computed(self, index: int) -> StageCount:
        """The decisions of a filter from the columns it reads, for the rows that live."""
        planned = self.plan.stages[index]
        rows_in = 0
        refused: Counter[str] = Counter()
        states: _States | None = None
        for number in range(self.count):
            alive = self._living(number)
            rows_in += int(alive.sum())
            if not alive.any():
                continue
            table = self._columns(index, number, alive)
            if isinstance(planned.stage, GlobalStage):
                if states is None:
                    states = _States(self._state(index))
                done = planned.stage.decide(table, states.of(number)).cast(planned.schema)
            else:
                starts = range(0, len(table), _BATCH_ROWS)
                batches = [fused.attempt(planned, table.slice(n, _BATCH_ROWS)) for n in starts]
                done = pa.concat_tables(batches, promote_options="permissive")
            self._hold(index, number, done, alive)
            keep = np.asarray(pc.fill_null(done["keep"], True))
            _count(refused, done["reason"], ~keep)
            alive[alive] = keep
            self.alive[number] = np.packbits(alive)
        return StageCount(planned.name, rows_in, dict(sorted(refused.items())))

    def _sidecars(self, index: int, number: int) -> list[_Sidecar]:
        """Where the values of a stage and part lie: its own sidecar, else earlier runs' of the same measure."""
        planned = self.plan.at(index)
        pool = self.plan.pool
        own = part.sidecar(self.plan, planned, number)
        if index in self.computed:
            return [_Sidecar(self._held(index, number))]
        if is_done(own):
            return [_Sidecar(own)]
        if isinstance(planned.stage, GlobalStage):
            before = part.sidecar(self.base, self.base.stages[index], number)
            return [_Sidecar(before)] if is_done(before) else []
        if index not in self.earlier:
            self.earlier[index] = reuse.fingerprints(self.plan, planned)
        found = [
            _Sidecar(pool.columns_path(planned.use, run.fingerprint, number), run)
            for run in self.earlier[index]
        ]
        return [one for one in found if is_done(one.path)]

    def _state(self, index: int) -> pa.Table:
        """A global filter's state over the rows that live; one bucket of a large one at a time."""
        planned = self.plan.stages[index]
        stage: GlobalStage = planned.stage
        rows = sum(int(self._living(number).sum()) for number in range(self.count))
        buckets = global_step.bucket_count(planned, rows)
        if buckets == 1:
            return pool_state(stage, lambda: self._tables(index))
        written = 0
        for table in self._tables(index):
            partial = stage.summarize(table)
            numbers = global_step.bucket_of(partial, planned, buckets)
            for bucket in range(buckets):
                chosen = partial.filter(pa.array(numbers == bucket))
                parts.write_table(self._spilled(index, bucket, written), chosen)
            written += 1
        states = []
        for bucket in range(buckets):
            merged = parts.read_table(self._spilled(index, bucket, 0))
            for number in range(1, written):
                more = parts.read_table(self._spilled(index, bucket, number))
                merged = stage.merge([merged, more])
            states.append(stage.close(merged))
        state = stage.settle(states)
        for _ in range(1, stage.passes()):
            if stage.enough(state):
                break
            looks = [stage.look_again(table, state) for table in self._tables(index)]
            state = stage.adjust(state, looks)
        return state

    def _spilled(self, index: int, bucket: int, number: int) -> str:
        return storage.join(self.folder, f"state-{index}-{bucket}-{number}.parquet")

    def _tables(self, index: int) -> Iterator[pa.Table]:
        """What a global filter sees: the living rows of each part that has any."""
        for number in range(self.count):
            alive = self._living(number)
            if alive.any():
                yield self._columns(index, number, alive)

    def _columns(self, index: int, number: int, alive: np.ndarray) -> pa.Table:
        """uid and the columns that stage ``index`` reads, of the living rows of one part."""
        reads = self.plan.stages[index].reads
        above = {n: i for i in range(index) for n in self.plan.stages[i].columns}
        names = tuple(name for name in reads if name not in above)
        table = part.load_columns(self.plan, names, index, number)
        for provider in sorted({above[name] for name in reads if name in above}):
            wanted = [name for name in reads if above.get(name) == provider]
            for name, column in self._values(provider, number, wanted).items():
                table = table.append_column(name, column)
        return table if alive.all() else table.filter(pa.array(alive))

    def _values(self, index: int, number: int, names: list[str]) -> dict[str, pa.ChunkedArray]:
        """Stored columns of one stage for all rows of a part, each row from the first sidecar that knows it."""
        planned = self.plan.at(index)
        read = [one.read(planned, names) for one in self._sidecars(index, number)]
        tables = [table.select(names) for table, _ in read]
        if len(tables) > 1:
            known = np.stack([one for _, one in read])
            rows = np.arange(known.shape[1]) + known.argmax(axis=0) * known.shape[1]
            tables = [pa.concat_tables(tables).unify_dictionaries().take(pa.array(rows))]
        return {name: tables[0][name] for name in names}

    def _hold(self, index: int, number: int, done: pa.Table, alive: np.ndarray) -> None:
        """Keep the columns of a filter for the stages below, in the folder that is removed at the end."""
        names = self.plan.stages[index].columns
        if any(set(names) & set(below.reads) for below in self.plan.stages[index + 1 :]):
            own = pa.schema([f for f in done.schema if f.name in (*names, "keep")])
            parts.write_table(self._held(index, number), part.scatter(done, alive, own))

    def _held(self, index: int, number: int) -> str:
        return storage.join(self.folder, f"{index}-{number}.parquet")


class _States:
    """A global filter's state; one with a column ``part`` is cut, so that a part is told what is its own."""

    def __init__(self, state: pa.Table) -> None:
        self._routed = "part" in state.column_names
        self._state = state.sort_by("part") if self._routed else state
        self._part = np.asarray(self._state["part"]) if self._routed else np.zeros(0)

    def of(self, number: int) -> pa.Table:
        if not self._routed:
            return self._state
        first, end = np.searchsorted(self._part, [number, number + 1])
        return self._state.slice(first, end - first)


def _count(refused: Counter[str], reasons: Any, mask: np.ndarray) -> None:
    """Add the reasons of the masked rows; ``refused`` where a stage gave none, as in the ledger."""
    if mask.any():
        chosen = reasons.filter(pa.array(mask)).cast(pa.string())
        refused.update(part.reason_counts(pc.fill_null(chosen, "refused")))
