"""Fused row stages over one part: read once, each picture decoded once, every stage committed whole.

Refused rows are skipped by what stands on the stage that refused them. A row that a stage raises on
is isolated by halving the batch, and gets the reason ``error.<stage>.<exception>``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.contract import parts
from curate.stage import RowStage, StageError, error
from pipelines import careful, look_ahead, reuse, signs
from pipelines.look_ahead import LookAhead
from pipelines.part import (
    alive_mask,
    beside,
    commit,
    is_done,
    load_columns,
    pictures_of,
    scatter,
    sidecar,
    sidecar_schema,
    stats_of,
    with_decision,
)
from pipelines.picture_tar import PictureTar
from pipelines.plan import CurationPlan, Planned
from pipelines.progress import rows_done

_LOG = logging.getLogger("clip_pipe")
_TOLD: set[tuple[str, str]] = set()
_OPENED: dict[str, Any] = {}  # what RowStage.open() gave, once per process


Earlier = dict[int, tuple[reuse.Run, ...]]  # stage -> runs that measured the same
Stats = dict[int, dict[str, Any]]  # stage -> a part's manifest


def run_span(
    plan: CurationPlan,
    stages: tuple[int, ...],
    span: tuple[int, ...],
    upcoming: tuple[int, ...],
    earlier: Earlier,
) -> Generator[Any, None, None]:
    """Run some parts, one after another: the Stats of each, and signs.ALIVE meanwhile.

    ``upcoming``: parts that this process is likely to run next.
    """
    _close_others({_key(plan.stages[index]) for index in stages})
    for place, part in enumerate(span):
        later = (*span[place + 1 :], *upcoming)
        yield (yield from signs.given(_rows(plan, stages, part, earlier, later)))


def run_rows(
    plan: CurationPlan,
    stages: tuple[int, ...],
    part: int,
    earlier: Earlier | None = None,
    upcoming: tuple[int, ...] = (),
) -> Stats:
    """Run the fused stages that are not done for this part; the stats of all of them, by index."""
    return signs.kept_back(_rows(plan, stages, part, earlier, upcoming))


def _rows(
    plan: CurationPlan,
    stages: tuple[int, ...],
    part: int,
    earlier: Earlier | None,
    upcoming: tuple[int, ...],
) -> Generator[None, None, Stats]:
    """``run_rows``, by steps: one for each batch of each stage."""
    if earlier is None:
        earlier = {index: reuse.fingerprints(plan, plan.stages[index]) for index in stages}
    for index in stages:
        if earlier[index] and not is_done(plan, plan.stages[index], part):
            reuse.carry_over(plan, index, part, earlier[index])
    while groups := _pending_groups(plan, stages, part):
        for group in groups:
            # Only of a step's first stage is it known from what is committed which rows it will get.
            is_first = group[0] == stages[0] and look_ahead.does(plan.stages[group[0]])
            is_first = is_first and careful.child() is None
            fused = _Fused(plan, group, part, earlier)
            if not (yield from fused.run(upcoming if is_first else None)):
                break  # another attempt was first: the stages below go on from what that one has
    return {index: parts.read_stats(sidecar(plan, plan.stages[index], part)) for index in stages}


def _pending_groups(plan: CurationPlan, stages: tuple[int, ...], part: int) -> list[list[int]]:
    """The stages still to run, cut where a stage that is done changes which picture is the newest."""
    groups: list[list[int]] = [[]]
    for index in stages:
        if not is_done(plan, plan.stages[index], part):
            groups[-1].append(index)
        elif plan.stages[index].makes_images:
            groups.append([])
    return [group for group in groups if group]


class _Fused:
    """The pending row stages of one step over one part: read once, decoded once, committed in order."""

    def __init__(self, plan: CurationPlan, pending: list[int], part: int, earlier: Earlier) -> None:
        self.plan, self.pending, self.part, self.earlier = plan, pending, part, earlier
        self.ahead: LookAhead | None = None
        made = {name for index in pending for name in plan.stages[index].columns}
        needed = {name for index in pending for name in plan.stages[index].reads} - made
        first = pending[0]
        if "image" in needed and plan.image_maker(first) is None:
            needed.discard("image")  # a pending stage makes the pictures itself
        self.columns = tuple(sorted(needed - {"image"}))
        self.pictures = pictures_of(plan, first, part) if "image" in needed else None
        # Refusals of stages that are committed; those of pending ones are added on the way.
        self.base = {
            index: alive_mask(
                plan, tuple(u for u in plan.stages[index].upstream if u not in pending), part
            )
            for index in pending
        }
        self.refused = {index: np.zeros(len(self.base[index]), dtype=bool) for index in pending}
        self.results: dict[int, list[tuple[np.ndarray, pa.Table]]] = {
            index: [] for index in pending
        }
        self.seconds: dict[int, float] = dict.fromkeys(pending, 0.0)
        self.taken_over: dict[int, int] = dict.fromkeys(pending, 0)
        self.prior = {
            index: reuse.find(plan, plan.stages[index], part, earlier[index]) for index in pending
        }

    def run(self, upcoming: tuple[int, ...] | None = None) -> Generator[None, None, bool]:
        """Process, by steps, then commit; whether all of it counts. ``upcoming``: parts further on, where
        the first stage looks ahead."""
        table = load_columns(self.plan, self.columns, self.pending[0], self.part)
        table = table.append_column("__row", pa.array(np.arange(len(table), dtype=np.int64)))
        self.writers = {
            i: PictureTar(self.plan.pool.images_path(self.plan.stages[i].fingerprint, self.part))
            for i in self.pending
            if self.plan.stages[i].makes_images
        }
        committed = False
        try:
            if upcoming is not None:
                self._begin(table, upcoming)
            yield from self._chain(0, table)
            is_ours = True
            for index in self.pending:
                is_ours = is_ours and self._commit(index, table["uid"])
                yield
            committed = True
            return is_ours
        finally:
            for writer in self.writers.values():
                writer.close()
            if self.pictures is not None:
                self.pictures.close()
            for prior in self.prior.values():
                if prior is not None:
                    prior.close()
            if self.ahead is not None:
                self.ahead.end(committed)

    def _begin(self, table: pa.Table, upcoming: tuple[int, ...]) -> None:
        """Tell the first stage which rows of this part it will get, and let it look further."""
        index = self.pending[0]
        planned, prior = self.plan.stages[index], self.prior[index]
        wanted = self.base[index] if prior is None else self.base[index] & ~prior.known
        self.ahead = LookAhead(
            self.plan, index, self.part, upcoming, self.earlier[index], opened(planned)
        )
        self.ahead.begin(look_ahead.chosen(table, planned, wanted))

    def _chain(self, position: int, table: pa.Table) -> Generator[None, None, None]:
        """Run the stage at ``position`` over ``table`` in batches, and the rest over each batch; a step each."""
        if position == len(self.pending):
            return
        index = self.pending[position]
        stage: RowStage = self.plan.stages[index].stage
        rows = np.asarray(table["__row"])
        for start in range(0, len(table), stage.batch_rows):
            batch = table.slice(start, stage.batch_rows)
            batch_rows = rows[start : start + stage.batch_rows]
            if position == 0:
                batch = self._with_pictures(batch)
                if self.ahead is not None:
                    self.ahead.top_up()
            alive = self.base[index][batch_rows] & ~self._refused_above(index, batch_rows)
            done = self._process(index, batch.filter(pa.array(alive)), batch_rows[alive])
            yield
            wider = _widened(batch, alive, done, self.plan.stages[index])
            yield from self._chain(position + 1, wider)
            if position == 0:
                rows_done(len(done))

    def _with_pictures(self, batch: pa.Table) -> pa.Table:
        """The batch with the newest pictures from above, where a stage reads any."""
        if self.pictures is None:
            return batch
        found = self.pictures(batch["uid"].to_pylist())
        return batch.append_column("image", pa.array(found, pa.large_binary()))

    def _refused_above(self, index: int, rows: np.ndarray) -> np.ndarray:
        refused = np.zeros(len(rows), dtype=bool)
        for above in self.pending:
            if above in self.plan.stages[index].upstream:
                refused |= self.refused[above][rows]
        return refused

    def _process(self, index: int, batch: pa.Table, rows: np.ndarray) -> pa.Table:
        """The stage's columns for the living rows of a batch; a row it fails on gets a reason."""
        planned = self.plan.stages[index]
        started = time.perf_counter()
        done = self._values(index, batch.drop_columns(["__row"]), rows)
        keep = np.asarray(pc.fill_null(done["keep"], True))
        self.refused[index][rows[~keep]] = True
        if index in self.writers:
            self.writers[index].add(batch["uid"].to_pylist(), done["image"].to_pylist())
        small = done.drop_columns(["image"]) if planned.makes_images else done
        self.results[index].append((rows, small))
        self.seconds[index] += time.perf_counter() - started
        return done

    def _values(self, index: int, batch: pa.Table, rows: np.ndarray) -> pa.Table:
        """What the stage says of the rows: taken over where an earlier run asked it, else asked now."""
        planned, prior = self.plan.stages[index], self.prior[index]
        nothing = with_decision(planned.schema.empty_table())
        known = np.zeros(len(batch), dtype=bool) if prior is None else prior.known[rows]
        if prior is None or not known.any():
            return attempt(planned, batch) if len(batch) else nothing
        uids = batch["uid"].filter(pa.array(known)).to_pylist()
        before = prior.take(rows[known], uids)
        self.taken_over[index] += int(known.sum())
        fresh = batch.filter(pa.array(~known))
        return reuse.spliced(known, before, attempt(planned, fresh) if len(fresh) else nothing)

    def _commit(self, index: int, uid: pa.ChunkedArray) -> bool:
        """Pictures, sidecar, manifest. False where another attempt has done the part: then that counts."""
        planned = self.plan.stages[index]
        others = {}
        for name, path in beside(self.plan, planned, self.part).items():
            self.writers[index].finish()
            if parts.prior_attempt(sidecar(self.plan, planned, self.part), {name: path}):
                return False
            others[name] = (path, self.writers[index].commit())
        rows = (
            np.concatenate([rows for rows, _ in self.results[index]])
            if self.results[index]
            else np.zeros(0, np.int64)
        )
        alive = np.zeros(len(uid), dtype=bool)
        alive[rows] = True
        tables = [table for _, table in self.results[index]]
        whole = pa.concat_tables(tables, promote_options="permissive") if tables else None
        full = scatter(whole, alive, sidecar_schema(planned)) if whole is not None else None
        if full is None:
            full = with_decision(sidecar_schema(planned).empty_table())
        full = full.add_column(0, "uid", uid)
        _, is_ours = commit(
            self.plan,
            planned,
            self.part,
            full,
            {
                **stats_of(full, self.part, alive, self.seconds[index]),
                "taken_over": self.taken_over[index],
                "measure": planned.measure,
                "fingerprint": planned.fingerprint,
                "costs": self._costs(index),
            },
            others,
        )
        return is_ours

    def _costs(self, index: int) -> dict[str, float]:
        """What the stage has spent since it was last asked: sums over parts are what counts.

        A stage that looked ahead has spent some of it on parts that come later.
        """
        planned = self.plan.stages[index]
        key = _key(planned)
        spent = dict(planned.stage.costs(_OPENED[key])) if key in _OPENED else {}
        if index in self.writers:
            spent["tar_cpu_s"] = self.writers[index].cpu_s
        return {name: round(value, 6) for name, value in sorted(spent.items())}


def opened(planned: Planned) -> Any:
    """The stage's state, opened once per worker process."""
    key = _key(planned)
    if key not in _OPENED:
        try:
            _OPENED[key] = planned.stage.open()
        except StageError:
            raise
        except Exception as fault:
            # A model that can't be loaded is no row's fault.
            raise StageError(
                f"{planned.use} could not be opened: {type(fault).__name__}: {fault}. hint: check its files and options"
            ) from fault
    return _OPENED[key]


def _key(planned: Planned) -> str:
    return (
        f"{planned.fingerprint} {planned.options}"  # options, too: an endpoint is in no fingerprint
    )


def close_opened() -> None:
    """Close what ``opened`` opened in this process, where it can be closed: threads, children, connections."""
    _close_others(set())


def _close_others(keys: set[str]) -> None:
    """Close what is not among ``keys``: a process that goes from step to step must not hold all their models."""
    for key in _OPENED.keys() - keys:
        state = _OPENED.pop(key)
        if callable(close := getattr(state, "close", None)):
            close()


def attempt(planned: Planned, batch: pa.Table) -> pa.Table:
    """``process`` over a batch; when it raises, over halves, down to the row that is at fault."""
    child = careful.child()
    state = opened(planned) if child is None else None
    try:
        done = (
            planned.stage.process(batch, state) if child is None else child.process(planned, batch)
        )
    except StageError:
        raise
    except Exception as fault:
        if len(batch) == 1:
            _tell_once(planned.use, fault)
            nulls = pa.table([pa.nulls(1, f.type) for f in planned.schema], schema=planned.schema)
            return with_decision(nulls, error(planned.use, _kind_of(fault)))
        half = len(batch) // 2
        halves = [attempt(planned, batch.slice(0, half)), attempt(planned, batch.slice(half))]
        return pa.concat_tables(halves, promote_options="permissive")
    if len(done) != len(batch):
        raise StageError(
            f"{planned.use} returned {len(done)} rows for {len(batch)}. hint: a stage returns the same rows in the same order"
        )
    return with_decision(done.cast(planned.schema))


def _kind_of(fault: Exception) -> str:
    return fault.kind if isinstance(fault, careful.Lost) else type(fault).__name__


def _tell_once(use: str, fault: Exception) -> None:
    """One traceback per stage and kind of exception in each process: the rows have the reason."""
    key = (use, _kind_of(fault))
    if key not in _TOLD:
        _TOLD.add(key)
        _LOG.warning(
            "%s failed on a row: %s (told once; the row's reason is %s)",
            use,
            fault,
            error(*key),
            exc_info=fault,
        )


def _widened(batch: pa.Table, alive: np.ndarray, done: pa.Table, planned: Planned) -> pa.Table:
    """The batch with the new columns, for the stages that follow in the same pass."""
    names = [*planned.columns, *(["image"] if planned.makes_images else [])]
    if planned.makes_images and "image" in batch.column_names:
        batch = batch.drop_columns(["image"])
    taken = pa.array(np.where(alive, np.cumsum(alive) - 1, -1), mask=~alive)
    for name in names:
        batch = batch.append_column(name, done[name].combine_chunks().take(taken))
    return batch
