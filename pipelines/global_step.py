"""A global stage over the whole pool: summarize each part, merge and close each bucket, settle, decide.

Partials and states live in POOL/work/<fingerprint8> and are removed once every part is decided. No
process holds more than one bucket, and what a part is told is read by that part alone.
"""

from __future__ import annotations

import functools
import hashlib
import time
import zlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.contract import parts, storage
from curate.contract.manifest import fingerprint
from curate.stage import GlobalStage
from pipelines.part import alive_mask, commit_decision, living
from pipelines.plan import CurationPlan, Planned

_MERGE_AT_ONCE = 16
_SPANS_AT_LEAST = 64  # so that there is work for as many workers
_STATE_GROUP_ROWS = 16_384


def bucket_count(planned: Planned, rows: int) -> int:
    """How many buckets the state of a stage is split into for a pool of ``rows``."""
    stage = planned.stage
    return 1 if stage.bucket_by is None else -(-max(rows, 1) // stage.bucket_rows)


def settles(planned: Planned) -> bool:
    """Whether the stage makes one state of all buckets; else each part reads what is its own in each."""
    return type(planned.stage).settle is not GlobalStage.settle


def spans(planned: Planned, rows: int, part_count: int) -> list[tuple[int, int]]:
    """The parts, from and up to, that share partials: every partial of a bucketed stage is as many files
    as there are buckets, so parts of a large pool are summarized some at a time."""
    size = 1
    if planned.stage.bucket_by is not None:
        rows_per_part = max(1, rows // max(part_count, 1))
        size = max(
            1, min(planned.stage.bucket_rows // rows_per_part, part_count // _SPANS_AT_LEAST)
        )
    return [(n, min(n + size, part_count)) for n in range(0, part_count, size)]


def summarize(plan: CurationPlan, index: int, buckets: int, first: int, stop: int) -> None:
    """Commit the partial state of parts ``first`` up to ``stop``, one file per bucket."""
    planned = plan.stages[index]
    paths = [_partial(plan, planned, buckets, b, first, stop) for b in range(buckets)]
    if planned.stage.summary_options is None and storage.exists(paths[-1]):
        return
    masks = {part: alive_mask(plan, planned.upstream, part) for part in range(first, stop)}
    seen = hashlib.sha256(b"".join(mask.tobytes() for mask in masks.values())).hexdigest()
    if all(storage.exists(p) and parts.read_stats(p).get("alive_sha256") == seen for p in paths):
        return
    stage = planned.stage
    found = [stage.summarize(living(plan, index, part, alive)[0]) for part, alive in masks.items()]
    partial = found[0] if len(found) == 1 else stage.merge(found)
    numbers = bucket_of(partial, planned, buckets)
    for bucket, path in enumerate(paths):
        chosen = partial if buckets == 1 else partial.filter(pa.array(numbers == bucket))
        parts.write_table(path, chosen, {"alive_sha256": seen})


def merge(
    plan: CurationPlan, index: int, buckets: int, shares: list[tuple[int, int]], bucket: int
) -> None:
    """Commit the closed state of one bucket over all parts, holding a few partials at a time."""
    planned = plan.stages[index]
    path = _state(plan, planned, buckets, bucket)
    if storage.exists(path):
        return
    merged: list[pa.Table] = []
    for start in range(0, len(shares), _MERGE_AT_ONCE):
        partials = [
            parts.read_table(_partial(plan, planned, buckets, bucket, *share))
            for share in shares[start : start + _MERGE_AT_ONCE]
        ]
        merged = [planned.stage.merge([*merged, *partials])]
    _write_state(path, planned.stage.close(merged[0]))


def settle(plan: CurationPlan, index: int, buckets: int) -> None:
    """Commit the one state made of all buckets."""
    planned = plan.stages[index]
    path = _settled(plan, planned, 1)
    if storage.exists(path):
        return
    states = [parts.read_table(_state(plan, planned, buckets, b)) for b in range(buckets)]
    _write_state(path, planned.stage.settle(states))


def is_enough(plan: CurationPlan, index: int, done: int) -> bool:
    """Whether the passes after ``done`` can be left out; then the state stands where the last would put it."""
    planned = plan.stages[index]
    last = _settled(plan, planned, planned.stage.passes())
    if storage.exists(last):
        return True
    state = parts.read_table(_settled(plan, planned, done))
    if planned.stage.enough(state):
        _write_state(last, state)
        return True
    return False


def look_again(plan: CurationPlan, index: int, done: int, part: int) -> None:
    """Commit one part's partial for the pass after pass ``done``."""
    planned = plan.stages[index]
    path = _seen_again(plan, planned, done, part)
    if storage.exists(path):
        return
    table, _ = living(plan, index, part)
    state = _state_for(_settled(plan, planned, done), part)
    parts.write_table(path, planned.stage.look_again(table, state))


def adjust(plan: CurationPlan, index: int, done: int, part_count: int) -> None:
    """Commit the state after one more pass."""
    planned = plan.stages[index]
    path = _settled(plan, planned, done + 1)
    if storage.exists(path):
        return
    partials = [
        parts.read_table(_seen_again(plan, planned, done, part)) for part in range(part_count)
    ]
    state = parts.read_table(_settled(plan, planned, done))
    _write_state(path, planned.stage.adjust(state, partials))


def decide(plan: CurationPlan, index: int, buckets: int, part: int) -> dict[str, Any]:
    """Commit the decisions of one part."""
    planned = plan.stages[index]
    started = time.perf_counter()
    table, alive = living(plan, index, part)
    states = [_state_for(path, part) for path in _last_states(plan, planned, buckets)]
    state = states[0] if len(states) == 1 else pa.concat_tables(states)
    decided = planned.stage.decide(table, state)
    seconds = time.perf_counter() - started
    return commit_decision(plan, index, part, decided, alive, seconds, table["uid"])


def keep_state(plan: CurationPlan, planned: Planned, buckets: int) -> None:
    """A state that does not grow with the pool stays beside the decisions: entry counts, say."""
    if planned.stage.bucket_by is None:
        state = parts.read_table(_last_states(plan, planned, buckets)[0])
        parts.write_table(state_path(plan, planned), state)


def state_path(plan: CurationPlan, planned: Planned) -> str:
    """Where the last state of a stage with a small state is kept."""
    return storage.join(plan.pool.columns_folder(planned.use, planned.fingerprint), "state.parquet")


def forget(plan: CurationPlan, planned: Planned) -> None:
    """Remove the intermediate state of a stage that is decided for every part."""
    storage.remove(plan.pool.work_folder(planned.fingerprint))


def _partial(
    plan: CurationPlan, planned: Planned, buckets: int, bucket: int, first: int, stop: int
) -> str:
    folder = plan.pool.work_folder(_summary_fingerprint(planned))
    name = f"parts-{first:05d}-{stop - 1:05d}.parquet"
    return storage.join(folder, f"partial-{bucket:04d}-of-{buckets:04d}", name)


def _summary_fingerprint(planned: Planned) -> str:
    """What names the partials: kept ones outlive another threshold and a grown source."""
    kept = planned.stage.summary_options
    if kept is None:
        return planned.fingerprint
    options = {name: planned.options[name] for name in kept}
    return fingerprint(planned.use, planned.stage.version, options, planned.provided_by)


def _state(plan: CurationPlan, planned: Planned, buckets: int, bucket: int) -> str:
    folder = plan.pool.work_folder(planned.fingerprint)
    return storage.join(folder, f"state-{bucket:04d}-of-{buckets:04d}.parquet")


def _settled(plan: CurationPlan, planned: Planned, passes: int) -> str:
    """The state of the whole pool after so many passes."""
    folder = plan.pool.work_folder(planned.fingerprint)
    return storage.join(folder, f"settled-{passes}.parquet")


def _seen_again(plan: CurationPlan, planned: Planned, done: int, part: int) -> str:
    folder = plan.pool.work_folder(planned.fingerprint)
    return storage.join(folder, f"again-{done}", f"part-{part:05d}.parquet")


def _last_states(plan: CurationPlan, planned: Planned, buckets: int) -> list[str]:
    if planned.stage.passes() > 1 or settles(planned):
        return [_settled(plan, planned, planned.stage.passes())]
    return [_state(plan, planned, buckets, bucket) for bucket in range(buckets)]


def _write_state(path: str, state: pa.Table) -> None:
    if "part" in state.column_names:
        # So that a part's rows are found by the statistics of row groups.
        parts.write_table(path, state.sort_by("part"), row_group_rows=_STATE_GROUP_ROWS)
    else:
        parts.write_table(path, state)


def _state_for(path: str, part: int) -> pa.Table:
    """The state in one file, or those of its rows that are about one part."""
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
            if r is None or not r.has_min_max or r.min <= part <= r.max
        ]
        found = whole.read_row_groups(groups, use_threads=False).replace_schema_metadata(None)
    return found.filter(pc.equal(found["part"], part))


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
