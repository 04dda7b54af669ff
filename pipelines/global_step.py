"""A global stage over the whole pool: summarize each part, merge and close each bucket, settle, decide.

Partials and states live in POOL/work/<fingerprint8> and are removed once every part is decided. No
process holds more than one bucket, and what a part is told is read by that part alone. Each file has a manifest
as a part has (``contract/done.py``). What grows with the square of the pool is made linear twice: partials are
gathered before buckets are merged, and states are routed to the parts that they are about before these decide.
"""

from __future__ import annotations

import functools
import hashlib
import math
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.contract import done, parts, storage, tables
from curate.stage import GlobalStage
from pipelines.part import alive_mask, commit_decision, living, summary_fingerprint
from pipelines.plan import CurationPlan, Planned

_MERGE_AT_ONCE = 16
_SPANS_AT_LEAST = 64  # so that there is work for as many workers
_GATHER_AT_LEAST = 64  # partials that are merged as they are; open files of a gathering task
_ADDED_AT_ONCE = 256  # partials of a further pass, which one process adds up
_STATE_GROUP_ROWS = 16_384
_ROUTED_FROM = 16  # buckets; so many files a part may look into
_ROUTE_ROWS = 4_000_000  # of the state in one routed file: 16 bytes each and what else it tells
Span = tuple[int, int]


def bucket_count(planned: Planned, rows: int) -> int:
    """How many buckets the state of a stage is split into for a pool of ``rows``."""
    stage = planned.stage
    return 1 if stage.bucket_by is None else -(-max(rows, 1) // stage.bucket_rows)


def settles(planned: Planned) -> bool:
    """Whether the stage makes one state of all buckets; else each part reads what is its own in each."""
    return type(planned.stage).settle is not GlobalStage.settle


def spans(planned: Planned, rows: int, part_count: int) -> list[tuple[int, int]]:
    """The parts, from and up to, that share partials: of a bucketed stage those of a large pool are
    summarized some at a time, or each would have next to nothing for each bucket."""
    size = 1
    if planned.stage.bucket_by is not None:
        rows_per_part = max(1, rows // max(part_count, 1))
        size = max(
            1, min(planned.stage.bucket_rows // rows_per_part, part_count // _SPANS_AT_LEAST)
        )
    return [(n, min(n + size, part_count)) for n in range(0, part_count, size)]


def summarize(plan: CurationPlan, index: int, buckets: int, first: int, stop: int) -> None:
    """Commit the partial state of parts ``first`` up to ``stop``: one file, with a table for each bucket."""
    planned = plan.stages[index]
    path = _partial(plan, planned, buckets, (first, stop))
    before = parts.prior_attempt(path)
    if planned.stage.summary_options is None and before is not None:
        return
    masks = {part: alive_mask(plan, planned.upstream, part) for part in range(first, stop)}
    seen = hashlib.sha256(b"".join(mask.tobytes() for mask in masks.values())).hexdigest()
    if before is not None:
        if before.get("alive_sha256") == seen:
            return
        done.withdraw(path)  # kept from another run, over other rows
    stage = planned.stage
    found = [stage.summarize(living(plan, index, part, alive)[0]) for part, alive in masks.items()]
    partial = found[0] if len(found) == 1 else stage.merge(found)
    stats = {"rows": len(partial), "alive_sha256": seen}
    if buckets == 1:
        parts.write_part(path, partial, stats)
        return
    # Sorted once and cut: a filter for each of 2,000 buckets would read all rows 2,000 times.
    numbers = bucket_of(partial, planned, buckets)
    ordered = partial.take(pa.array(np.argsort(numbers, kind="stable")))
    with tables.writing(path) as file:
        start = 0
        for count in np.bincount(numbers, minlength=buckets).tolist():
            file.add(ordered.slice(start, count))
            start += count
    done.commit(path, stats, file.written, {})


def gatherings(shares: Sequence[Span]) -> list[list[Span]]:
    """Which partials are made one before buckets are merged: all as they are, or about the root of their number.

    A thousand million rows are 2,000 partials of 2,000 tables each. Merged at once, four million would be
    read, of a few kilobytes each; so 64 files at a time are made one, read and written straight on.
    """
    size = 1 if len(shares) <= _GATHER_AT_LEAST else max(_GATHER_AT_LEAST, math.isqrt(len(shares)))
    return [list(shares[n : n + size]) for n in range(0, len(shares), size)]


def gather(plan: CurationPlan, index: int, buckets: int, shares: Sequence[Span]) -> None:
    """Commit one partial made of several."""
    planned = plan.stages[index]
    path = _gathered(plan, planned, buckets, shares)
    if parts.prior_attempt(path):
        return
    paths = [_partial(plan, planned, buckets, share) for share in shares]
    if buckets == 1:
        merged = _merged(planned, (parts.read_part(path) for path in paths))
        parts.write_part(path, merged, {"rows": len(merged)})
        return
    with tables.writing(path) as file:
        for several in tables.read_all(paths, buckets):
            file.add(planned.stage.merge(several))
    done.commit(path, {"rows": file.rows}, file.written, {})


def merge(
    plan: CurationPlan, index: int, buckets: int, shares: Sequence[Span], bucket: int
) -> None:
    """Commit the closed state of one bucket over all parts, holding a few partials at a time."""
    planned = plan.stages[index]
    path = _state(plan, planned, buckets, bucket)
    if parts.prior_attempt(path):
        return
    paths = [_gathered(plan, planned, buckets, several) for several in gatherings(shares)]
    partials = (
        parts.read_part(path) if buckets == 1 else tables.read(path, bucket, buckets)[0]
        for path in paths
    )
    _write_state(path, planned.stage.close(_merged(planned, partials)))


def _merged(planned: Planned, partials: Iterable[pa.Table]) -> pa.Table:
    """One partial of many, some of them in memory at a time."""
    merged: list[pa.Table] = []
    for several in _batched(partials, _MERGE_AT_ONCE):
        merged = [planned.stage.merge([*merged, *several])]
    return merged[0]


def _batched(found: Iterable[pa.Table], size: int) -> Iterator[list[pa.Table]]:
    left = iter(found)
    while several := list(islice(left, size)):
        yield several


def routes(planned: Planned, rows: int, part_count: int, buckets: int) -> list[Span]:
    """The parts, from and up to, that find what they are told in one file; [] where each looks into every bucket."""
    if buckets < _ROUTED_FROM or planned.stage.passes() > 1 or settles(planned):
        return []
    size = max(1, part_count * _ROUTE_ROWS // max(rows, 1))
    return [(n, min(n + size, part_count)) for n in range(0, part_count, size)]


def route(plan: CurationPlan, index: int, buckets: int, share: Span) -> None:
    """Commit what some parts are told, out of every bucket's state."""
    planned = plan.stages[index]
    path = _route(plan, planned, share)
    if parts.prior_attempt(path):
        return
    states = [
        _state_for(_state(plan, planned, buckets, bucket), *share) for bucket in range(buckets)
    ]
    _write_state(path, pa.concat_tables(states))


def settle(plan: CurationPlan, index: int, buckets: int) -> None:
    """Commit the one state made of all buckets."""
    planned = plan.stages[index]
    path = _settled(plan, planned, 1)
    if parts.prior_attempt(path):
        return
    states = [parts.read_part(_state(plan, planned, buckets, b)) for b in range(buckets)]
    _write_state(path, planned.stage.settle(states))


def is_enough(plan: CurationPlan, index: int, passed: int) -> bool:
    """Whether the passes after ``passed`` can be left out; then the state stands where the last would put it."""
    planned = plan.stages[index]
    last = _settled(plan, planned, planned.stage.passes())
    if parts.prior_attempt(last):
        return True
    state = parts.read_part(_settled(plan, planned, passed))
    if planned.stage.enough(state):
        _write_state(last, state)
        return True
    return False


def look_again(plan: CurationPlan, index: int, passed: int, part: int) -> None:
    """Commit one part's partial for the pass after pass ``passed``."""
    planned = plan.stages[index]
    path = _seen_again(plan, planned, passed, part)
    if parts.prior_attempt(path):
        return
    table, _ = living(plan, index, part)
    state = _state_for(_settled(plan, planned, passed), part, part + 1)
    found = planned.stage.look_again(table, state)
    parts.write_part(path, found, {"rows": len(found)})


def adjust(plan: CurationPlan, index: int, passed: int, part_count: int) -> None:
    """Commit the state after one more pass."""
    planned = plan.stages[index]
    path = _settled(plan, planned, passed + 1)
    if parts.prior_attempt(path):
        return
    found = parts.read_parts(
        [_seen_again(plan, planned, passed, part) for part in range(part_count)]
    )
    if type(planned.stage).together is GlobalStage.together:
        partials = list(found)
    else:
        partials = []
        for several in _batched(found, _ADDED_AT_ONCE):
            partials = [planned.stage.together([*partials, *several])]
    state = parts.read_part(_settled(plan, planned, passed))
    _write_state(path, planned.stage.adjust(state, partials))


def decide(
    plan: CurationPlan, index: int, buckets: int, part: int, share: Span | None = None
) -> dict[str, Any]:
    """Commit the decisions of one part. ``share``: the parts that it shares a file of states with."""
    planned = plan.stages[index]
    started = time.perf_counter()
    table, alive = living(plan, index, part)
    last = [_route(plan, planned, share)] if share else _last_states(plan, planned, buckets)
    states = [_state_for(path, part, part + 1) for path in last]
    state = states[0] if len(states) == 1 else pa.concat_tables(states)
    decided = planned.stage.decide(table, state)
    seconds = time.perf_counter() - started
    return commit_decision(plan, index, part, decided, alive, seconds, table["uid"])


def keep_state(plan: CurationPlan, planned: Planned, buckets: int) -> None:
    """A state that does not grow with the pool stays beside the decisions: entry counts, say."""
    if planned.stage.bucket_by is None:
        state = parts.read_part(_last_states(plan, planned, buckets)[0])
        parts.write_table(state_path(plan, planned), state)


def state_path(plan: CurationPlan, planned: Planned) -> str:
    """Where the last state of a stage with a small state is kept."""
    return storage.join(plan.pool.columns_folder(planned.use, planned.fingerprint), "state.parquet")


def forget(plan: CurationPlan, planned: Planned) -> None:
    """Remove the intermediate state of a stage that is decided for every part."""
    storage.remove(plan.pool.work_folder(planned.fingerprint))


def _partial(plan: CurationPlan, planned: Planned, buckets: int, share: Span) -> str:
    folder = plan.pool.work_folder(summary_fingerprint(planned))
    return _of_parts(folder, "partial", buckets, share[0], share[1])


def _gathered(plan: CurationPlan, planned: Planned, buckets: int, shares: Sequence[Span]) -> str:
    """The partial of several, which hangs on who lives: it goes with the states. Of one: its own."""
    if len(shares) == 1:
        return _partial(plan, planned, buckets, shares[0])
    folder = plan.pool.work_folder(planned.fingerprint)
    return _of_parts(folder, "gathered", buckets, shares[0][0], shares[-1][1])


def _of_parts(folder: str, what: str, buckets: int, first: int, stop: int) -> str:
    name = f"parts-{first:05d}-{stop - 1:05d}.{'parquet' if buckets == 1 else 'tables'}"
    return storage.join(folder, f"{what}-of-{buckets:04d}", name)


def _route(plan: CurationPlan, planned: Planned, share: Span) -> str:
    folder = plan.pool.work_folder(planned.fingerprint)
    return storage.join(folder, "routed", f"parts-{share[0]:05d}-{share[1] - 1:05d}.parquet")


def _state(plan: CurationPlan, planned: Planned, buckets: int, bucket: int) -> str:
    folder = plan.pool.work_folder(planned.fingerprint)
    return storage.join(folder, f"state-{bucket:04d}-of-{buckets:04d}.parquet")


def _settled(plan: CurationPlan, planned: Planned, passes: int) -> str:
    """The state of the whole pool after so many passes."""
    folder = plan.pool.work_folder(planned.fingerprint)
    return storage.join(folder, f"settled-{passes}.parquet")


def _seen_again(plan: CurationPlan, planned: Planned, passed: int, part: int) -> str:
    folder = plan.pool.work_folder(planned.fingerprint)
    return storage.join(folder, f"again-{passed}", f"part-{part:05d}.parquet")


def _last_states(plan: CurationPlan, planned: Planned, buckets: int) -> list[str]:
    if planned.stage.passes() > 1 or settles(planned):
        return [_settled(plan, planned, planned.stage.passes())]
    return [_state(plan, planned, buckets, bucket) for bucket in range(buckets)]


def _write_state(path: str, state: pa.Table) -> None:
    stats = {"rows": len(state)}
    if "part" in state.column_names:
        # So that a part's rows are found by the statistics of row groups.
        parts.write_part(path, state.sort_by("part"), stats, row_group_rows=_STATE_GROUP_ROWS)
    else:
        parts.write_part(path, state, stats)


def _state_for(path: str, first: int, stop: int) -> pa.Table:
    """The state in one file, or those of its rows that are about parts ``first`` up to ``stop``. Raises Damaged."""
    done.checked(path)
    with storage.open_file(path) as file:
        whole = pq.ParquetFile(file)
        names = whole.schema_arrow.names
        if "part" not in names:
            return _whole_state(path, storage.modified(path))
        column = names.index("part")
        ranges = [
            whole.metadata.row_group(group).column(column).statistics
            for group in range(whole.metadata.num_row_groups)
        ]
        groups = [
            n
            for n, r in enumerate(ranges)
            if r is None or not r.has_min_max or (r.min < stop and first <= r.max)
        ]
        found = whole.read_row_groups(groups, use_threads=False).replace_schema_metadata(None)
    of = found["part"]
    return found.filter(pc.and_(pc.greater_equal(of, first), pc.less(of, stop)))


@functools.lru_cache(maxsize=1)
def _whole_state(path: str, modified: str) -> pa.Table:
    """A state that every part is told whole: read once by a process that decides many parts."""
    return parts.read_table(path)


def bucket_of(partial: pa.Table, planned: Planned, buckets: int) -> np.ndarray:
    """A bucket per row by crc32 of the bucketing column: the same on every machine and release."""
    if buckets == 1:
        return np.zeros(len(partial), dtype=np.int64)
    values = partial[planned.stage.bucket_by].cast(pa.string()).to_pylist()
    return np.array(
        [zlib.crc32((value or "").encode()) % buckets for value in values], dtype=np.int64
    )
