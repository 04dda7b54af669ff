"""One part at a time: load what a stage needs, take in source rows, commit sidecars.

Everything here runs inside a worker, whichever runner owns it. What is committed is whole; a
stage whose manifest for a part exists, and fits its files, is never run again for that part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.contract import done, parts, storage
from curate.contract.columns import ROW_FIELDS
from curate.contract.done import Written
from curate.contract.manifest import fingerprint
from curate.stage import KEEP, REASON, GlobalStage, Part
from pipelines import lease
from pipelines.plan import CurationPlan, Planned

_ASKED_AT_ONCE = 32  # of an object store
_SURVEYED = 1024  # parts whose manifests are in memory at a time


def sidecar(plan: CurationPlan, planned: Planned, part: int) -> str:
    return plan.pool.columns_path(planned.use, planned.fingerprint, part)


def beside(plan: CurationPlan, planned: Planned, part: int) -> dict[str, str]:
    """What belongs to a stage's sidecar of one part: its pictures, where it makes any."""
    if not planned.makes_images:
        return {}
    return {"images": plan.pool.images_path(planned.fingerprint, part)}


def look(plan: CurationPlan, planned: Planned, part: int) -> done.Seen:
    """How a stage stands with a part: done, never done, or damaged."""
    return done.look(sidecar(plan, planned, part), beside(plan, planned, part))


def is_done(plan: CurationPlan, planned: Planned, part: int) -> bool:
    """Whether a stage is committed for a part, pictures and all, with files of the sizes it had then."""
    return look(plan, planned, part).stats is not None


def survey(
    plan: CurationPlan, planned: Planned, numbers: Sequence[int]
) -> Iterator[tuple[int, done.Seen]]:
    """How a stage stands with each of these parts, in order: a listing, and a look at those with a manifest."""
    folders = [plan.pool.columns_folder(planned.use, planned.fingerprint)]
    folders += [path.rpartition("/")[0] for path in beside(plan, planned, 0).values()]
    return _surveyed(
        folders, numbers, lambda n: sidecar(plan, planned, n), lambda n: beside(plan, planned, n)
    )


def survey_rows(plan: CurationPlan, numbers: Sequence[int]) -> Iterator[tuple[int, done.Seen]]:
    """The same for the rows of the source."""
    folder = plan.pool.rows_path(0).rpartition("/")[0]
    return _surveyed([folder], numbers, plan.pool.rows_path, lambda _: {})


def _surveyed(
    folders: Sequence[str],
    numbers: Sequence[int],
    path_of: Callable[[int], str],
    beside_of: Callable[[int], dict[str, str]],
) -> Iterator[tuple[int, done.Seen]]:
    """Behind a URL sizes come with the listing, so that a part is one question, and many are asked at once."""
    is_away = storage.is_url(folders[0])
    sizes: dict[str, int] = {}
    for folder in folders if is_away else folders[:1]:
        told: dict[str, int] = {}
        with suppress(FileNotFoundError):
            if is_away:
                told = {path: size for path, (size, _) in storage.marks(folder).items()}
            else:
                told = dict.fromkeys(storage.listed(folder), -1)
        sizes.update({storage.join(folder, p.rsplit("/", 1)[-1]): told[p] for p in told})

    def one(number: int) -> done.Seen:
        path = path_of(number)
        if done.manifest_path(path) not in sizes:
            return done.Seen(None)
        return done.look(path, beside_of(number), sizes)

    if not is_away:
        yield from ((number, one(number)) for number in numbers)
        return
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        for start in range(0, len(numbers), _SURVEYED):
            some = numbers[start : start + _SURVEYED]
            yield from zip(some, pool.map(one, some), strict=True)


def survey_source(plan: CurationPlan, count: int) -> Iterator[tuple[int, done.Seen, done.Seen]]:
    """(part, its rows, the source's decisions and pictures) of each part."""
    pairs = zip(
        survey_rows(plan, range(count)), survey(plan, plan.source, range(count)), strict=True
    )
    for (number, rows), (_, decided) in pairs:
        yield number, rows, decided


def are_read_in(plan: CurationPlan, count: int) -> Iterator[bool]:
    """Whether the source's rows of each part are there, with the source's decisions and pictures."""
    for _, rows, decided in survey_source(plan, count):
        yield rows.stats is not None and decided.stats is not None


def alive_mask(plan: CurationPlan, upstream: tuple[int, ...], part: int) -> np.ndarray:
    """Which rows of a part no stage of ``upstream`` refused. Bool of shape (rows,)."""
    alive = np.ones(done.checked(plan.pool.rows_path(part))["rows"], dtype=bool)
    for index in upstream:
        keep = parts.read_part(sidecar(plan, plan.at(index), part), ["keep"])["keep"]
        alive &= np.asarray(pc.fill_null(keep, True))
    return alive


def load_columns(plan: CurationPlan, names: tuple[str, ...], below: int, part: int) -> pa.Table:
    """uid and the named columns for every row of a part, from whichever stage above wrote each."""
    in_rows = {"uid", "url", "caption", *plan.source.columns}
    own = parts.read_part(
        plan.pool.rows_path(part), ["uid", *(n for n in names if n in in_rows and n != "uid")]
    )
    columns: dict[str, Any] = {"uid": own["uid"]}
    for name in names:
        if name in in_rows:
            columns[name] = own[name]
        elif name == "part":
            columns[name] = pa.array(np.full(len(own), part, dtype=np.int64))
        elif name == "row":
            columns[name] = pa.array(np.arange(len(own), dtype=np.int64))
        elif name != "image":
            provider = next(p for p in plan.stages if name in p.columns)
            columns[name] = parts.read_part(sidecar(plan, provider, part), [name])[name]
    if "image" in names:
        with pictures_of(plan, below, part) as pictures:
            columns["image"] = pa.array(pictures(own["uid"].to_pylist()), pa.large_binary())
    return pa.table(columns)


def pictures_of(plan: CurationPlan, below: int, part: int) -> parts.Pictures:
    """The newest pictures above stage ``below``. Raises Damaged."""
    maker = plan.image_maker(below)
    assert maker is not None
    seen = look(plan, maker, part)
    if seen.stats is None:
        path = sidecar(plan, maker, part)
        raise done.Damaged(seen.path or path, seen.fault or "it has no manifest")
    return parts.Pictures(plan.pool.images_path(maker.fingerprint, part))


def ingest(plan: CurationPlan, part: Part) -> dict[str, Any]:
    """Read one part of the source into rows, its decisions and, if it brings any, its pictures."""
    planned = plan.source
    started = time.perf_counter()
    tables = list(planned.stage.produce(part))
    own = [f for f in planned.schema if f.name in planned.columns]
    schema = pa.schema([*ROW_FIELDS, *own])
    brought = [pa.field("image", pa.binary())] if planned.makes_images else []
    empty = pa.schema([*schema, *brought, KEEP, REASON]).empty_table()
    whole = pa.concat_tables(tables, promote_options="permissive") if tables else empty
    decided = pa.table(
        {"uid": whole["uid"], "keep": whole["keep"], "reason": whole["reason"].cast(REASON.type)}
    )
    stats = parts.prior_attempt(
        sidecar(plan, planned, part.index), beside(plan, planned, part.index)
    )
    if stats is None:
        others = _brought_images(plan, part.index, whole)
        alive = np.ones(len(whole), dtype=bool)
        told = stats_of(decided, part.index, alive, time.perf_counter() - started)
        told["fingerprint"] = planned.fingerprint
        stats, _ = commit(plan, planned, part.index, decided, told, others)
    # The rows file comes last: a part that has one is whole.
    parts.write_part(
        plan.pool.rows_path(part.index),
        whole.select(schema.names).cast(schema),
        {"part": part.index, "rows": len(whole)},
    )
    return stats


def _brought_images(
    plan: CurationPlan, part: int, whole: pa.Table
) -> dict[str, tuple[str, Written]]:
    """Commit the pictures that the source brings."""
    found = {}
    for name, path in beside(plan, plan.source, part).items():
        # Refused rows may share their uid with a kept one, and their picture is none.
        kept = whole.filter(whole["keep"])
        written = parts.write_images(path, kept["uid"].to_pylist(), kept["image"].to_pylist())
        found[name] = (path, written)
    return found


def commit(
    plan: CurationPlan,
    planned: Planned,
    part: int,
    table: pa.Table,
    stats: Mapping[str, Any],
    others: Mapping[str, tuple[str, Written]] | None = None,
) -> tuple[dict[str, Any], bool]:
    """Commit a stage's sidecar for a part; (the manifest that counts, whether it is of these values).

    ``others``: the pictures, which are there already; then it was asked before them whether somebody had done
    the part. Where the part was set aside before and is another one
    now, what stands on it is set aside, too: it was made of values that are no more.
    """
    lease.check()
    path = sidecar(plan, planned, part)
    before = None if others else parts.prior_attempt(path, beside(plan, planned, part))
    if before is not None:
        return before, False
    own = parts.write_table(path, table)
    was = done.aside_stats(path)
    written = {name: told.told() for name, (_, told) in (others or {}).items()}
    if was is not None and {**was, **own.told(), **written} != was:
        for later, is_other in standing_on(plan, planned):
            if is_other:
                done.withdraw(sidecar(plan, later, part))
            else:
                done.set_aside(sidecar(plan, later, part), beside(plan, later, part))
            if isinstance(later.stage, GlobalStage):
                storage.remove(plan.pool.work_folder(later.fingerprint))
                storage.remove(plan.pool.work_folder(summary_fingerprint(later)))
        storage.remove(plan.pool.work_folder(plan.shard.fingerprint))
    return done.commit(path, stats, own, others or {})


def summary_fingerprint(planned: Planned) -> str:
    """What names a global stage's partials: kept ones outlive another threshold and a grown source."""
    kept = planned.stage.summary_options
    if kept is None:
        return planned.fingerprint
    options = {name: planned.options[name] for name in kept}
    return fingerprint(planned.use, planned.stage.version, options, planned.provided_by)


def standing_on(plan: CurationPlan, planned: Planned) -> list[tuple[Planned, bool]]:
    """The stages below that hang on this one, and whether their values do; else only which rows they get."""
    index = -1 if planned is plan.source else plan.stages.index(planned)
    columns, has_pictures = set(planned.columns), planned.makes_images
    found = []
    for later in plan.stages[index + 1 :]:
        is_other = bool(columns & set(later.reads)) or (has_pictures and "image" in later.reads)
        if is_other:
            columns |= set(later.columns)
            has_pictures = has_pictures or later.makes_images
        if is_other or index in later.upstream:
            found.append((later, is_other))
    return found


def sidecar_schema(planned: Planned) -> pa.Schema:
    """The columns of a stage's sidecar besides uid: its own, then keep and reason."""
    return pa.schema([*(f for f in planned.schema if f.name in planned.columns), KEEP, REASON])


def scatter(table: pa.Table, alive: np.ndarray, schema: pa.Schema) -> pa.Table:
    """Values of the living rows put at their places among all rows; null elsewhere."""
    if alive.all():
        return table.select(schema.names).cast(schema)
    indices = np.where(alive, np.cumsum(alive) - 1, -1)
    taken = pa.array(indices, mask=~alive)
    return pa.table(
        [table[f.name].combine_chunks().take(taken).cast(f.type) for f in schema], schema=schema
    )


def with_decision(table: pa.Table, reason: str | None = None) -> pa.Table:
    """The table with keep and reason columns, which are the runner's where the stage has none."""
    if reason is not None:
        names = [name for name in table.column_names if name not in ("keep", "reason")]
        table = table.select(names)
    if "keep" not in table.column_names:
        keep = np.full(len(table), reason is None)
        table = table.append_column(KEEP, pa.array(keep))
        nothing = pa.scalar(reason, pa.string())
        table = table.append_column(
            REASON, pa.repeat(nothing, len(table)).dictionary_encode().cast(REASON.type)
        )
    return table


def stats_of(table: pa.Table, part: int, alive: np.ndarray, seconds: float) -> dict[str, Any]:
    """Counts of one stage and part, kept in its manifest."""
    refused = reason_counts(table["reason"])
    rows_in = int(alive.sum())
    return {
        "part": part,
        "rows": len(table),
        "rows_in": rows_in,
        "kept": rows_in - sum(refused.values()),
        "refused": refused,
        "seconds": round(seconds, 4),
    }


def reason_counts(reasons: pa.ChunkedArray) -> dict[str, int]:
    """Reason -> rows, sorted by reason; rows without one are not counted."""
    counted = pc.value_counts(reasons.cast(pa.string()).drop_null())
    return {
        entry["values"]: entry["counts"]
        for entry in sorted(counted.to_pylist(), key=lambda e: e["values"])
    }


def living(
    plan: CurationPlan, index: int, part: int, alive: np.ndarray | None = None
) -> tuple[pa.Table, np.ndarray]:
    """The kept rows of a part with the columns that stage ``index`` reads, and the mask they come from."""
    planned = plan.stages[index]
    if alive is None:
        alive = alive_mask(plan, planned.upstream, part)
    table = load_columns(plan, planned.reads, index, part)
    return (table if alive.all() else table.filter(pa.array(alive))), alive


def commit_decision(
    plan: CurationPlan,
    index: int,
    part: int,
    decided: pa.Table,
    alive: np.ndarray,
    seconds: float,
    uid: pa.ChunkedArray,
) -> dict[str, Any]:
    """Write a global stage's sidecar for one part. ``uid``: those of the living rows."""
    planned = plan.stages[index]
    if not alive.all():
        uid = parts.read_part(plan.pool.rows_path(part), ["uid"])["uid"]
    full = scatter(
        with_decision(decided.cast(planned.schema)), alive, sidecar_schema(planned)
    ).add_column(0, "uid", uid)
    stats = stats_of(full, part, alive, seconds)
    return commit(plan, planned, part, full, {**stats, "fingerprint": planned.fingerprint})[0]


def decided_rows(plan: CurationPlan, part: int) -> Iterator[tuple[str, np.ndarray, pa.Array]]:
    """(stage, keep, reasons as text) of every stage in order, the source first."""
    for planned in (plan.source, *plan.stages):
        table = parts.read_part(sidecar(plan, planned, part), ["keep", "reason"])
        yield (
            planned.name,
            np.asarray(pc.fill_null(table["keep"], True)),
            table["reason"].cast(pa.string()).combine_chunks(),
        )
